"""nfs-ganesha with its VFS back end, and the client that measures it and us.

Both servers run in one network namespace, where port 111 is free: QEMU's nfs driver asks it and
takes no other. ganesha's packages are unpacked beside the system; it wants rpcbind.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.perf import programs
from tests.perf.programs import NotMeasuredError
from tests.support.debian_programs import RPCBIND, environment, unpacked
from tests.support.network_namespace import NetworkNamespace
from tests.support.rpcbind import rpcbind

GANESHA = (
    *("nfs-ganesha", "nfs-ganesha-vfs", "libntirpc4.3", "liburcu8", "libnfsidmap1"),
    *("libwbclient0", *RPCBIND),
)
_PLUGINS = "usr/lib/x86_64-linux-gnu/ganesha"
_CONFIG = """\
NFS_CORE_PARAM {{
    Protocols = 3; Enable_NLM = false; Enable_RQUOTA = false;
    Plugins_Dir = "{plugins}"; mount_path_pseudo = false;
}}
NFS_KRB5 {{ Active_krb5 = false; }}
NFSV4 {{ Graceless = true; UseGetpwnam = true; RecoveryRoot = "{work}"; }}
EXPORT {{
    Export_Id = 1; Path = "{folder}"; Pseudo = "/export"; Access_Type = RW;
    Squash = No_Root_Squash; SecType = "sys"; Protocols = 3; Transports = TCP;
    FSAL {{ Name = VFS; }}
}}
"""


@contextlib.contextmanager
def ganesha(network: NetworkNamespace, folder: Path, work: Path) -> Iterator[str]:
    """Serve `folder`; yields its nfs:// URL."""
    try:
        root = unpacked(*GANESHA)
    except RuntimeError as error:
        raise NotMeasuredError(f"nfs-ganesha: {error}") from error
    config, log = work / "ganesha.conf", work / "ganesha.log"
    config.write_text(_CONFIG.format(plugins=root / _PLUGINS, work=work, folder=folder))
    uri = f"nfs://127.0.0.1{folder}"

    def ready(_: IO[bytes]) -> bool:
        return network.run("nfs-ls", uri, timeout_s=30).returncode == 0

    words = [root / "usr" / "bin" / "ganesha.nfsd", "-F", "-f", config, "-L", log]
    command = network.command(*words, "-p", work / "ganesha.pid", "-N", "NIV_CRIT")
    started = programs.server(command, ready=ready, environment=environment(root))
    with rpcbind(network, work), started:
        yield uri


def bench(
    network: NetworkNamespace,
    uri: str,
    *,
    count: int,
    depth: int,
    size_bytes: int,
    step_bytes: int,
    flush_every: int = 0,
) -> float:
    """Requests per second of `qemu-img bench`; `flush_every` 0: reads."""
    words = ["qemu-img", "bench", "-f", "raw", "-t", "none", f"-c{count}", f"-d{depth}"]
    if flush_every:
        words += ["-w", f"--flush-interval={flush_every}", "--no-drain"]
    run = programs.run(
        network.command(*words, f"-s{size_bytes}", f"-S{step_bytes}", uri), timeout_s=300
    )
    match = re.search(r"Run completed in ([0-9.]+) seconds", run.stdout)
    if match is None:
        raise NotMeasuredError(f"qemu-img bench printed {run.stdout[-200:]!r}")
    return count / float(match[1])
