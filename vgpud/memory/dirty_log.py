"""The dirty log: which pages of the guest's memory the daemon has written, for live migration.

Source: the vhost-user specification, "Migration" and VHOST_USER_SET_LOG_BASE; VHOST_F_LOG_ALL.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import HostError, PeerError
from vgpud.memory.mapping import map_received_file
from vgpud.native.dirty_log import dirty_log_rect, dirty_log_set
from vgpud.native.spans import SpanList
from vgpud.unix.fd import Fd

LOG_PAGE: Final = 4096
"""Bytes that one bit stands for, by the protocol (VHOST_LOG_PAGE), whatever the page size of either
side."""


MAX_LOG: Final = (1 << 52) // LOG_PAGE // 8
"""Bytes of a log of all guest-physical addresses that x86-64 has: 128 GiB."""


class DirtyLog:
    """A front-end's bitmap, `size` bytes from `offset` in its file.

    The descriptor is taken and closed. Raises PeerError if the file can't be mapped, or the log is
    larger than any guest's.
    """

    def __init__(self, fd: Fd, size: int, offset: int = 0) -> None:
        with fd:
            if size > MAX_LOG:
                raise PeerError(f"a dirty log of {size} bytes; {MAX_LOG} is the most")
            try:
                self._mapping = map_received_file(fd, size, offset)
            except HostError as error:
                raise PeerError(f"the dirty log can't be mapped: {error}") from error
        self._bitmap = self._mapping.array

    @property
    def limit(self) -> int:
        """The first guest-physical address after those that the log covers."""
        return self._bitmap.nbytes * 8 * LOG_PAGE

    @property
    def faulted(self) -> bool:
        """Whether the front-end has truncated the log's file."""
        return self._mapping.faulted

    def set(self, guest_phys_addr: int, length: int) -> None:
        """Mark the pages of a range as written; pages beyond the log are left out.

        To be called after the write.
        """
        if length > 0 and guest_phys_addr < self.limit:
            first = guest_phys_addr // LOG_PAGE
            end = min(guest_phys_addr + length, self.limit)
            dirty_log_set(self._bitmap, first, -(-end // LOG_PAGE) - first)

    def set_rect(
        self,
        spans: SpanList,
        addresses: NDArray[np.uint64],
        offset: int,
        stride: int,
        row_bytes: int,
        rows: int,
    ) -> None:
        """Mark the pages of a rectangle of a buffer as written, as `set` does.

        `addresses` are the guest-physical addresses of the buffer's spans, one for each.
        """
        dirty_log_rect(self._bitmap, spans, addresses, offset, stride, row_bytes, rows)
