"""Whether a device file of this host can be used, as found by using it."""

from __future__ import annotations

import errno
from enum import StrEnum
from typing import Self


class DeviceAccess(StrEnum):
    """The result of using a device file."""

    USABLE = "usable"
    ABSENT = "absent"
    DENIED = "denied"
    FAILED = "failed"

    @classmethod
    def after(cls, number: int | None) -> Self:
        """Return the result for an attempt that failed with this errno."""
        match number:
            case errno.EACCES | errno.EPERM:
                return cls.DENIED
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                return cls.ABSENT
            case _:
                return cls.FAILED
