"""Numbers of ONC RPC, portmap, MOUNT and NFS version 3.

Source: RFC 5531 (RPC), RFC 1833 section 3 (portmap v2), RFC 1813 (NFS v3; MOUNT v3 in appendix I).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

RPC_VERSION = 2
PORTMAP_PROGRAM, PORTMAP_VERSION = 100000, 2
NFS_PROGRAM, NFS_VERSION = 100003, 3
MOUNT_PROGRAM, MOUNT_VERSION = 100005, 3

PORTMAP_PORT = 111
NFS_PORT = 2049

HANDLE_BYTES_MAX = 64  # FHSIZE3
NAME_BYTES_MAX = 255
PATH_BYTES_MAX = 1024  # MNTPATHLEN
SYMLINK_BYTES_MAX = 4095  # PATH_MAX of Linux, without its final NUL
VERIFIER_BYTES = 8  # of WRITE, COMMIT, CREATE and READDIR
AUTH_BYTES_MAX = 400  # RFC 5531 section 8.2
GROUPS_MAX = 16
SIZE_MAX = (1 << 63) - 1


class MessageType(IntEnum):
    CALL = 0
    REPLY = 1


class ReplyStatus(IntEnum):
    ACCEPTED = 0
    DENIED = 1


class AcceptStatus(IntEnum):
    SUCCESS = 0
    PROG_UNAVAIL = 1
    PROG_MISMATCH = 2
    PROC_UNAVAIL = 3
    GARBAGE_ARGS = 4
    SYSTEM_ERR = 5


class RejectStatus(IntEnum):
    RPC_MISMATCH = 0
    AUTH_ERROR = 1


class AuthStatus(IntEnum):
    BADCRED = 1
    BADVERF = 3
    TOOWEAK = 5


class AuthFlavor(IntEnum):
    NONE = 0
    SYS = 1
    GSS = 6


class Procedure(IntEnum):
    """Of NFS version 3."""

    NULL = 0
    GETATTR = 1
    SETATTR = 2
    LOOKUP = 3
    ACCESS = 4
    READLINK = 5
    READ = 6
    WRITE = 7
    CREATE = 8
    MKDIR = 9
    SYMLINK = 10
    MKNOD = 11
    REMOVE = 12
    RMDIR = 13
    RENAME = 14
    LINK = 15
    READDIR = 16
    READDIRPLUS = 17
    FSSTAT = 18
    FSINFO = 19
    PATHCONF = 20
    COMMIT = 21


class MountProcedure(IntEnum):
    NULL = 0
    MNT = 1
    DUMP = 2
    UMNT = 3
    UMNTALL = 4
    EXPORT = 5


class PortmapProcedure(IntEnum):
    NULL = 0
    SET = 1
    UNSET = 2
    GETPORT = 3
    DUMP = 4
    CALLIT = 5


class Status(IntEnum):
    """nfsstat3; MOUNT's statuses are the same numbers as far as they go."""

    OK = 0
    PERM = 1
    NOENT = 2
    IO = 5
    NXIO = 6
    ACCES = 13
    EXIST = 17
    XDEV = 18
    NODEV = 19
    NOTDIR = 20
    ISDIR = 21
    INVAL = 22
    FBIG = 27
    NOSPC = 28
    ROFS = 30
    MLINK = 31
    NAMETOOLONG = 63
    NOTEMPTY = 66
    DQUOT = 69
    STALE = 70
    REMOTE = 71
    BADHANDLE = 10001
    NOT_SYNC = 10002
    BAD_COOKIE = 10003
    NOTSUPP = 10004
    TOOSMALL = 10005
    SERVERFAULT = 10006
    BADTYPE = 10007
    JUKEBOX = 10008


class FileType(IntEnum):
    REGULAR = 1
    DIRECTORY = 2
    SYMLINK = 5


class StableHow(IntEnum):
    UNSTABLE = 0
    DATA_SYNC = 1
    FILE_SYNC = 2


class CreateHow(IntEnum):
    UNCHECKED = 0
    GUARDED = 1
    EXCLUSIVE = 2


class Access(IntFlag):
    READ = 0x01
    LOOKUP = 0x02
    MODIFY = 0x04
    EXTEND = 0x08
    DELETE = 0x10
    EXECUTE = 0x20


class FsProperty(IntFlag):
    LINK = 0x01
    SYMLINK = 0x02
    HOMOGENEOUS = 0x08
    CANSETTIME = 0x10
