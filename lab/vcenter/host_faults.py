"""What `lab/esx` refuses becomes the VMODL fault that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pyVmomi import vim, vmodl

from lab.esx.errors import HostError


def fault_of(error: HostError) -> BaseException:
    kind = getattr(vim.fault, error.fault, None) or getattr(vmodl.fault, error.fault)
    known = {info.name for info in kind._GetPropertyList()}
    fields = {name: value for name, value in error.fields.items() if name in known}
    if "file" in known:
        fields.setdefault("file", "")
    for name in ("reason", "text"):
        if name in known:
            fields.setdefault(name, str(error))
    fault: BaseException = kind(msg=str(error), **fields)
    return fault


@contextlib.contextmanager
def host_faults() -> Iterator[None]:
    """Raise faults in place of HostErrors."""
    try:
        yield
    except HostError as error:
        raise fault_of(error) from error
