"""What the scripts answer, as values: the JSON of `scripts/CONTRACT.md`, checked at this border.

An answer that has a key too many, one too few or one of another type is a `ProtocolError`: scripts
and client travel together, so there is no other version to be patient with.

Thread model: values.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

_TEXT = 32768
_MANY = 16384


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class HostFacts(Answer):
    computer_name: str
    fqdn: str
    domain: str
    domain_joined: bool
    os_version: str
    os_caption: str
    server: bool
    powershell_version: str
    user: str
    administrator: bool
    hyperv: bool
    reference_points: bool
    diskshadow: bool
    vm_versions: list[str] = Field(max_length=_MANY)
    vm_folder: str
    disk_folder: str
    cluster: str
    iscsi_service: str
    processors: int
    memory_bytes: int
    admin_shares: bool


class DiskFile(Answer):
    """What Get-VHD knows of a file; `error` says why it knows nothing."""

    path: str = Field(max_length=_TEXT)
    format: str
    type: str
    virtual_disk_id: str
    size_bytes: int = Field(ge=0)
    file_size_bytes: int = Field(ge=0)
    logical_sector_bytes: int
    physical_sector_bytes: int
    parent_path: str = Field(max_length=_TEXT)
    error: str


class VmDisk(DiskFile):
    attachment: str
    controller: str
    controller_number: int
    location: int
    pass_through: bool
    shared: bool

    @property
    def place(self) -> str:
        """Controller and unit: `scsi0:1`."""
        return f"{self.controller}{self.controller_number}:{self.location}"


class Vm(Answer):
    id: str = Field(max_length=64)
    name: str = Field(max_length=1024)
    state: int
    generation: int
    version: str
    clustered: bool
    operational_status: list[int]
    processors: int
    memory_bytes: int
    folder: str
    checkpoint_type: int
    parent_checkpoint: str
    replication_mode: int
    tpm: bool
    shielded: bool
    vss_status: int
    fibre_channel: int
    notes: str
    disks: list[VmDisk] = Field(max_length=260)


class Vms(Answer):
    vms: list[Vm] = Field(max_length=_MANY)


class ClusterNode(Answer):
    name: str
    state: int


class ClusterVm(Answer):
    vm_id: str = Field(max_length=64)
    name: str = Field(max_length=1024)  # of its role, which is the VM's unless somebody renamed it
    owner: str


class ClusterVolume(Answer):
    name: str
    owner: str
    path: str
    redirected: bool


class Cluster(Answer):
    name: str
    nodes: list[ClusterNode] = Field(max_length=256)
    vms: list[ClusterVm] = Field(max_length=_MANY)
    volumes: list[ClusterVolume] = Field(max_length=_MANY)

    def owner_of(self, vm_id: str) -> str:
        """The node that a VM belongs to now; "": it is not one of the cluster's."""
        return next((vm.owner for vm in self.vms if vm.vm_id == vm_id), "")

    def coordinator_of(self, path: str) -> str:
        """The node that coordinates the shared volume a file lies on; "": it is on none."""
        folded = path.casefold()
        return next(
            (
                volume.owner
                for volume in self.volumes
                if folded.startswith(volume.path.rstrip("\\").casefold() + "\\")
            ),
            "",
        )


class Checkpoint(Answer):
    id: str
    vm_id: str
    name: str
    kind: str
    parent: str
    created_at: str


class Checkpoints(Answer):
    checkpoints: list[Checkpoint] = Field(max_length=_MANY)


class CheckpointStarted(Answer):
    job_id: str
    checkpoint_id: str


class ReferencePointStarted(Answer):
    job_id: str
    reference_point_id: str


class Started(Answer):
    job_id: str


class Removing(Answer):
    found: bool
    job_id: str


class JobState(Answer):
    found: bool
    state: int
    percent: int
    error_code: int
    error: str
    description: str
    checkpoints: list[str]
    reference_points: list[str]


class CheckpointDisk(Answer):
    attachment: str
    virtual_disk_id: str
    controller: str
    controller_number: int
    location: int
    chain: list[DiskFile] = Field(min_length=1, max_length=64)

    @property
    def place(self) -> str:
        return f"{self.controller}{self.controller_number}:{self.location}"

    @property
    def frozen(self) -> DiskFile:
        return self.chain[0]


class CheckpointDisks(Answer):
    checkpoint_id: str
    vm_id: str
    name: str
    kind: str
    configuration: list[str]
    disks: list[CheckpointDisk] = Field(max_length=260)


class ChangedRanges(Answer):
    processed_bytes: int = Field(ge=0)
    count: int = Field(ge=0)
    ranges: str
    job_id: str


class ReferencePointDisk(Answer):
    attachment: str
    rct_id: str
    path: str
    virtual_disk_id: str


class ReferencePoint(Answer):
    id: str
    vm_id: str
    type: int
    consistency: int
    disks: list[ReferencePointDisk] = Field(max_length=260)


class ReferencePoints(Answer):
    reference_points: list[ReferencePoint] = Field(max_length=_MANY)


class VmState(Answer):
    id: str
    name: str
    state: int
    operational_status: list[int]
    heartbeat: int
    addresses: list[str]
    guest_name: str = Field(max_length=_TEXT)
    disk_paths: list[str]
    uptime_s: int


class Shadow(Answer):
    shadow_id: str
    volume: str
    exposed: str


class ShadowSet(Answer):
    marker: str
    shadows: list[Shadow]


class ShadowDisks(Answer):
    disks: list[CheckpointDisk] = Field(max_length=260)


class MarkedShadow(Answer):
    marker: str
    created_at: str
    shadow_ids: list[str]


class MarkedShadows(Answer):
    shadows: list[MarkedShadow] = Field(max_length=_MANY)


class Removed(Answer):
    removed: int


class Share(Answer):
    share: str


class MarkedShare(Answer):
    marker: str
    share: str
    path: str


class MarkedShares(Answer):
    shares: list[MarkedShare] = Field(max_length=_MANY)
