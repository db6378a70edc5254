"""What fusepy calls for every operation on a mounted folder: errors of ours become the kernel's.

fusepy 3.0.1 would not survive every exception, so none but OSError leaves an operation.

Thread model: that of the mount.
"""

from __future__ import annotations

import errno
import logging
from typing import Any

from appliance.base.errors import ApplianceError, StorageFullError

log = logging.getLogger(__name__)


class FuseOperations:
    """Subclasses have a method per operation, named as FUSE names it, with the path first."""

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Raises nothing but OSError with an errno, which fusepy hands to the kernel."""
        try:
            method = getattr(self, operation, None)
            if method is None:
                raise OSError(errno.ENOSYS, operation)
            return method(*arguments)
        except OSError as error:
            raise OSError(error.errno or errno.EIO, operation) from error
        except StorageFullError as error:
            raise OSError(errno.ENOSPC, operation) from error
        except ApplianceError as error:
            log.error("%s %s: [%s] %s", operation, arguments[0], error.code, error)
            raise OSError(errno.EIO, operation) from error
        except Exception as error:
            log.exception("%s %s", operation, arguments[0])
            raise OSError(errno.EIO, operation) from error
