"""The private folder of our Samba: its configuration, its state, and the account of hosts.

    FOLDER/
        smb.conf      written by us at every change
        domain.conf   written by the administrator who makes us a member of a domain; included
        password      of the account, made with the first share and removed after the last
        users, private/, state/

With `domain.conf` computer accounts of the domain are let in too, and `private/`, where the
membership's secret lies, stays when there is no share any more.

Nothing of an installed Samba is read or written. Settings are those that Hyper-V needs of a share:
no alternate attributes, no access lists of its own (the guest's virtual account means nothing to
us), locks of Samba's own, so that handles can be durable. Every write waits for the disk.
Thread model: one thread at a time. Source: smb.conf(5) of Samba 4.17, [MS-HVRS].
"""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from appliance.base.atomic import make_folders, replace_file
from appliance.base.errors import ApplianceError, ExternalProgramError, StorageError
from appliance.base.secret import Secret
from appliance.exports.iscsi.target import new_secret
from appliance.exports.smb.share import ShareAccount, SmbShare

ACCOUNT = "holdfast"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWORD, _DOMAIN = "password", "domain.conf"
_LIMIT_BYTES = 1 << 16
_TIMEOUT_S = 60
_WORKGROUP = re.compile(r"^\s*workgroup\s*=\s*([A-Za-z0-9_.-]{1,63})\s*$", re.MULTILINE)


class ShareAccountError(ApplianceError):
    """The account of shares is not there: the daemon that serves them makes it. Is it running?"""

    code = "export.share-account"


class DomainFileError(ApplianceError):
    """`smb/domain.conf` of the state folder has no line `workgroup = …`, or cannot be read."""

    code = "export.share-domain"


class SambaFolder:
    def __init__(self, folder: Path) -> None:
        self.path = folder

    @property
    def config_path(self) -> Path:
        return self.path / "smb.conf"

    @property
    def log_path(self) -> Path:
        return self.path / "smbd.log"

    def account(self) -> ShareAccount:
        """Raises ShareAccountError."""
        try:
            secret = Secret((self.path / _PASSWORD).read_bytes()[:_LIMIT_BYTES])
        except OSError as error:
            raise ShareAccountError(f"{self.path / _PASSWORD}: {error.strerror}") from error
        return ShareAccount(user=ACCOUNT, password=secret)

    def domain(self) -> str:
        """The domain that we are a member of, by its short name; empty: none.

        Raises DomainFileError.
        """
        try:
            text = (self.path / _DOMAIN).read_text()[:_LIMIT_BYTES]
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise DomainFileError(f"{self.path / _DOMAIN}: {error}") from error
        found = _WORKGROUP.search(text)
        if found is None:
            raise DomainFileError(str(self.path / _DOMAIN))
        return found[1]

    def prepare(self, host: str, port: int) -> None:
        """Make what smbd needs before it starts; the account stays the same while there is one.

        Raises: StorageError, ExternalProgramError, DomainFileError.
        """
        try:
            make_folders(self.path)
            for name in ("private", "state"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            (self.path / "users").write_text(f"{getpass.getuser()} = {ACCOUNT}\n")
            if not (self.path / _PASSWORD).exists():
                replace_file(self.path / _PASSWORD, new_secret().reveal())
        except OSError as error:
            raise StorageError(f"{self.path}: {error.strerror}") from error
        self.write_config(host, port, (), self.path)
        password = self.account().password.reveal() + b"\n"
        _run(
            ["pdbedit", f"--configfile={self.config_path}", "-a", "-t", "-u", getpass.getuser()],
            password * 2,
        )

    def write_config(self, host: str, port: int, shares: Iterable[SmbShare], mount: Path) -> None:
        """`mount`: holds a folder per share. Raises StorageError, DomainFileError."""
        domain = self.domain()
        lines = ["[global]", *_lines(self._settings(host, port, domain))]
        if domain:
            lines.append(f"  include = {self.path / _DOMAIN}")
        user = getpass.getuser()
        for share in shares:
            accounts = [user, *(f"{domain}\\{each}" for each in share.computers if domain)]
            settings = {
                "path": str(mount / share.name),
                "read only": "no",
                "browseable": "no",
                "valid users": " ".join(f'"{each}"' for each in accounts),
                "force user": user,
                "hosts allow": " ".join(share.addresses),
                "hosts deny": "ALL",
            }
            lines += [f"[{share.name}]", *_lines(settings)]
        try:
            replace_file(self.config_path, ("\n".join(lines) + "\n").encode())
        except OSError as error:
            raise StorageError(f"{self.config_path}: {error.strerror}") from error

    def remove(self) -> None:
        """After the last share: the account and all state, but for a membership of a domain."""
        kept = {_DOMAIN, "private"} if (self.path / _DOMAIN).exists() else set()
        if not kept:
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for entry in self.path.iterdir():
            if entry.name in kept:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def _settings(self, host: str, port: int, domain: str) -> dict[str, str]:
        state = str(self.path / "state")
        bound = {} if host in ("0.0.0.0", "::") else {"interfaces": host}
        role = {} if domain else {"server role": "standalone server", "netbios name": "HOLDFAST"}
        kinds = ("lock", "state", "cache", "pid")
        return {
            **role,
            **bound,
            "bind interfaces only": "yes" if bound else "no",
            "disable netbios": "yes",
            "smb ports": str(port),
            "server min protocol": "SMB3_00",
            "server signing": "mandatory",
            "smb encrypt": "required",
            "map to guest": "never",
            "restrict anonymous": "2",
            "passdb backend": f"tdbsam:{self.path / 'private' / 'accounts.tdb'}",
            "username map": str(self.path / "users"),
            "private dir": str(self.path / "private"),
            **{f"{kind} directory": state for kind in kinds},
            "ncalrpc dir": f"{state}/ncalrpc",
            "log file": str(self.log_path),
            "max log size": "1000",
            "load printers": "no",
            "disable spoolss": "yes",
            "durable handles": "yes",
            "kernel oplocks": "no",
            "kernel share modes": "no",
            "posix locking": "no",
            "strict sync": "yes",
            "strict allocate": "no",
            "ea support": "no",
            "nt acl support": "no",
            "store dos attributes": "no",
            "map archive": "no",
            "map hidden": "no",
            "map system": "no",
            "map readonly": "no",
        }


def _lines(settings: dict[str, str]) -> list[str]:
    return [f"  {name} = {value}" for name, value in settings.items()]


def _run(words: list[str], said: bytes) -> None:
    try:
        done = subprocess.run(
            words,
            input=said,
            capture_output=True,
            env={"PATH": _PATH, "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExternalProgramError(f"{words[0]}: {error} (Debian package samba)") from error
    if done.returncode:
        told = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise ExternalProgramError(f"{words[0]}: exit code {done.returncode}: {told}")
