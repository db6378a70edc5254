"""`/nfc/<lease>/<file>`: the bytes of export and import leases.

| lease | method | body |
|---|---|---|
| export | GET | a disk as streamOptimized VMDK, chunked, no ranges; other files as they are |
| import | POST | a disk as streamOptimized VMDK |
| import | PUT, `Overwrite: t` | nvram, ISO image |

The lease's id is the only credential, as with the products. Reading holds shared locks on the
chain and is refused while `/folder` reads a file of it, and the other way round; writing holds
exclusive ones. Source: design notes on vSphere, section 4c. Thread model: any thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import zlib
from collections.abc import Iterator
from http import HTTPStatus

from lab.data_plane.faulty_body import spoiled, strike
from lab.data_plane.import_spec import FileKind
from lab.data_plane.lease import Lease, LeaseEndedError, LeaseFile, LeaseMode, ManifestEntry
from lab.data_plane.lease_table import LeaseTable
from lab.data_plane.place import Place, Refusal
from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.disk_chain import ChainReader, DiskChain, open_chain
from lab.esx.errors import FileLockedError, HostError
from lab.esx.file_locks import FileLocks, LockMode
from lab.esx.sparse_extent import GRAIN_BYTES, BadStreamError
from lab.esx.stream_vmdk_reader import receive_vmdk
from lab.esx.stream_vmdk_writer import StreamDefect, descriptor_text, stream_vmdk
from lab.faults import FaultName, FaultSwitches
from lab.vcenter.http_message import BodyReader, ConnectionCut, HttpReply, HttpRequest

PREFIX = "/nfc"
STREAM_TYPE = "application/x-vnd.vmware-streamVmdk"
_PIECE_BYTES = 1 << 20
_DEFECTS = {
    FaultName.LEASE_BAD_GRAIN: StreamDefect.BAD_GRAIN,
    FaultName.LEASE_WRONG_LBA: StreamDefect.WRONG_LBA,
    FaultName.LEASE_NO_FOOTER: StreamDefect.NO_FOOTER,
}
_numbers = itertools.count(1)


class NfcHandler:
    """Answers transfers at one place."""

    def __init__(
        self,
        place: Place,
        leases: LeaseTable,
        datastores: Datastores,
        locks: FileLocks,
        switches: FaultSwitches,
    ) -> None:
        self._place = place
        self._leases = leases
        self._datastores = datastores
        self._locks = locks
        self._switches = switches

    def __call__(self, request: HttpRequest) -> HttpReply:
        try:
            strike(self._place, request, self._switches)
            lease, file = self._find(request)
            return self._answer(request, lease, file)
        except Refusal as refusal:
            return refusal.reply
        except (HostError, LeaseEndedError, BadStreamError) as error:
            return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, str(error)).reply

    def _find(self, request: HttpRequest) -> tuple[Lease, LeaseFile]:
        lease_id, _, target_id = request.path.removeprefix(PREFIX).strip("/").partition("/")
        lease = self._leases.get(lease_id)
        file = lease.file(target_id) if lease is not None else None
        if lease is None or file is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "no such lease or file")
        if self._switches.take(FaultName.LEASE_EXPIRY, host=self._place.name, path=request.path):
            lease.expire()
        lease.require_ready()
        return lease, file

    def _answer(self, request: HttpRequest, lease: Lease, file: LeaseFile) -> HttpReply:
        if lease.mode is LeaseMode.EXPORT and request.method == "GET":
            return self._send(request, lease, file)
        disk = file.kind is FileKind.DISK
        if lease.mode is LeaseMode.IMPORT and request.method == ("POST" if disk else "PUT"):
            with lease.transferring(file):
                take = self._take_disk if disk else self._take_file
                take(request, lease, file)
            return HttpReply(status=HTTPStatus.CREATED.value)
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"not for a lease of mode {lease.mode}")

    # export

    def _send(self, request: HttpRequest, lease: Lease, file: LeaseFile) -> HttpReply:
        held = contextlib.ExitStack()
        try:
            held.enter_context(lease.transferring(file))
            if file.kind is FileKind.DISK:
                chain = open_chain(self._datastores, file.path)
                self._lock_for_reading(held, chain.locks(LockMode.SHARED))
                pieces = self._disk_pieces(request, chain)
            else:
                self._lock_for_reading(held, [(file.path, LockMode.SHARED)])
                pieces = self._file_pieces(file)
        except BaseException:
            held.close()
            raise
        pieces = self._counted(pieces, lease, file, held)
        return HttpReply(
            headers=[("Content-Type", STREAM_TYPE)],
            body=spoiled(pieces, self._place, request, self._switches),
            done=held.close,
        )

    def _lock_for_reading(
        self, held: contextlib.ExitStack, files: list[tuple[DatastorePath, LockMode]]
    ) -> None:
        for path, _ in files:
            for lock in self._locks.locks(path):
                if lock.holder.startswith("http "):
                    raise FileLockedError(f"{path} is open for {lock.holder}")
        held.enter_context(self._locks.held(f"nfc {next(_numbers)}", files))

    def _disk_pieces(self, request: HttpRequest, chain: DiskChain) -> Iterator[bytes]:
        fields = {"host": self._place.name, "path": request.path}
        defect = next(
            (what for name, what in _DEFECTS.items() if self._switches.take(name, **fields)), None
        )
        descriptor = chain.leaf.descriptor
        text = descriptor_text(
            size_bytes=chain.capacity_bytes,
            content_id=int(descriptor.content_id, 16),
            uuid=descriptor.uuid,
            hardware_version=19,
        )
        return stream_vmdk(ChainReader(self._datastores, chain), text, defect)

    def _file_pieces(self, file: LeaseFile) -> Iterator[bytes]:
        files, offset = self._datastores.files_of(file.path), 0
        while data := files.read_at(file.path.path, offset, _PIECE_BYTES):
            offset += len(data)
            yield data

    def _counted(
        self, pieces: Iterator[bytes], lease: Lease, file: LeaseFile, held: contextlib.ExitStack
    ) -> Iterator[bytes]:
        """The body while the lease lasts; files are free before the last byte is sent."""
        checksum_type = lease.checksum_type(file)
        digest, size, last = hashlib.new(checksum_type), 0, b""
        try:
            for piece in pieces:
                lease.require_ready()
                digest.update(piece)
                size += len(piece)
                if last:
                    yield last
                last = piece
        except (HostError, LeaseEndedError, zlib.error) as error:
            raise ConnectionCut(str(error)) from error
        lease.record(_entry(file, checksum_type, digest.hexdigest(), size, file.stored_bytes))
        held.close()
        yield last

    # import

    def _take_disk(self, request: HttpRequest, lease: Lease, file: LeaseFile) -> None:
        if request.header("Content-Type") != STREAM_TYPE:
            raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"a disk is {STREAM_TYPE}")
        chain = open_chain(self._datastores, file.path)
        extent = chain.leaf.extent_path
        files = self._datastores.files_of(extent)
        source = _Digesting(request.body, lease, lease.checksum_type(file))

        def begin(capacity_bytes: int) -> None:
            if capacity_bytes != file.capacity_bytes:
                raise BadStreamError(f"a disk of {capacity_bytes} bytes for {file.capacity_bytes}")
            files.resize(extent.path, 0)  # what an earlier attempt left
            files.resize(extent.path, capacity_bytes)

        with self._locks.held(f"nfc {next(_numbers)}", chain.locks(LockMode.EXCLUSIVE)):
            received = receive_vmdk(
                source.read, begin, lambda offset, data: files.write_at(extent.path, offset, data)
            )
        lease.record(source.entry(file, received.populated_bytes))

    def _take_file(self, request: HttpRequest, lease: Lease, file: LeaseFile) -> None:
        files = self._datastores.files_of(file.path)
        there = files.stat(file.path.path) is not None
        if there and request.header("Overwrite") != "t":
            raise Refusal(HTTPStatus.PRECONDITION_FAILED, "the file exists: Overwrite: t")
        temp = file.path.sibling(f".upload-{next(_numbers)}.nfc")
        source = _Digesting(request.body, lease, lease.checksum_type(file))
        with self._locks.held(f"nfc {next(_numbers)}", [(file.path, LockMode.EXCLUSIVE)]):
            files.create(temp.path)
            try:
                offset = 0
                while piece := source.read(_PIECE_BYTES):
                    files.write_at(temp.path, offset, piece)
                    offset += len(piece)
                if there:
                    files.delete(file.path.path)
                files.rename(temp.path, file.path.path)
            except BaseException:
                files.delete(temp.path)
                raise
        lease.record(source.entry(file, 0))


class _Digesting:
    """A request's body, read exactly and digested, while the lease lasts."""

    def __init__(self, body: BodyReader, lease: Lease, checksum_type: str) -> None:
        self._body = body
        self._lease = lease
        self._checksum_type = checksum_type
        self._digest = hashlib.new(checksum_type)
        self._size = 0

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end. Raises LeaseEndedError."""
        self._lease.require_ready()
        parts = []
        while count and (data := self._body.read(min(count, GRAIN_BYTES))):
            parts.append(data)
            count -= len(data)
        joined = b"".join(parts)
        self._digest.update(joined)
        self._size += len(joined)
        return joined

    def entry(self, file: LeaseFile, populated_bytes: int) -> ManifestEntry:
        digest_hex = self._digest.hexdigest()
        return _entry(file, self._checksum_type, digest_hex, self._size, populated_bytes)


def _entry(
    file: LeaseFile, checksum_type: str, digest_hex: str, size_bytes: int, populated_bytes: int
) -> ManifestEntry:
    return ManifestEntry(
        key=file.key,
        checksum_type=checksum_type,
        checksum_hex=digest_hex,
        size_bytes=size_bytes,
        disk=file.kind is FileKind.DISK,
        capacity_bytes=file.capacity_bytes,
        populated_bytes=populated_bytes,
    )
