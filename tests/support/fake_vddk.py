"""A stand-in for nbdkit's VDDK plugin: the real nbdkit, with its sh plugin under the name `vddk`.

    fake = FakeVddk(tmp_path, content, password="secret")
    Vddk(fake.library, lambda: "secret")

It takes the parameters that the real plugin takes, refuses others, checks the password, serves
`content` for whatever `file` it is given, and keeps what it was told in `parameters`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from vmware.transports.vddk import VddkLibrary

_WRAPPER = """#!/bin/sh
# Runs nbdkit with `vddk` replaced by the sh plugin; answers --dump-plugin itself.
for word do
    case "$word" in
    --dump-plugin) dump=1 ;;
    libdir=*) libdir=${{word#libdir=}} ;;
    esac
done
if [ -n "$dump" ]; then
    ls "$libdir"/lib64/libvixDiskLib.so* >/dev/null 2>&1 || {{
        echo "nbdkit: no library" >&2
        exit 1
    }}
    echo name=vddk
    echo vddk_library_version=8
    exit 0
fi
count=$#
while [ "$count" -gt 0 ]; do
    word=$1
    shift
    count=$((count - 1))
    case "$word" in
    vddk) set -- "$@" sh {plugin} ;;
    *) set -- "$@" "$word" ;;
    esac
done
exec nbdkit "$@"
"""

_PLUGIN = """#!/bin/sh
case "$1" in
config)
    case "$2" in
    password)
        case "$3" in
        +*) cat "${{3#+}}" > {folder}/password ;;
        *) echo "a password in the argument list" >&2; exit 1 ;;
        esac ;;
    libdir|server|port|user|thumbprint|vm|snapshot|transports|file) ;;
    *) echo "unknown parameter $2" >&2; exit 1 ;;
    esac
    echo "$2=$3" >> {folder}/parameters ;;
config_complete)
    [ -z "$LD_LIBRARY_PATH" ] || {{ echo "LD_LIBRARY_PATH is set" >&2; exit 1; }} ;;
open)
    cmp -s {folder}/password {folder}/expected || {{
        echo "EIO cannot log in with $(cat {folder}/password)" >&2
        exit 1
    }} ;;
thread_model) echo parallel ;;
get_size) stat -L -c %s {folder}/disk ;;
pread) dd if={folder}/disk iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=64K status=none ;;
*) exit 2 ;;
esac
"""


class FakeVddk:
    def __init__(self, folder: Path, content: bytes, *, password: str) -> None:
        self._folder = folder / "fake-vddk"
        lib64 = self._folder / "vmware-vix-disklib-distrib/lib64"
        lib64.mkdir(parents=True)
        (lib64 / "libvixDiskLib.so.8").write_bytes(b"")
        (self._folder / "disk").write_bytes(content)
        (self._folder / "expected").write_text(password)
        (self._folder / "parameters").write_text("")
        plugin = self._folder / "vddk.sh"
        where = shlex.quote(str(self._folder))
        self._script(plugin, _PLUGIN.format(folder=where))
        wrapper = self._folder / "nbdkit"
        self._script(wrapper, _WRAPPER.format(plugin=shlex.quote(str(plugin))))
        self.library = VddkLibrary(folder=lib64.parent, program=str(wrapper))

    def serve(self, file: Path) -> None:
        """Show the present content of a file from now on."""
        disk = self._folder / "disk"
        disk.unlink()
        disk.symlink_to(file)

    @property
    def parameters(self) -> dict[str, str]:
        lines = (self._folder / "parameters").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    @staticmethod
    def _script(path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
