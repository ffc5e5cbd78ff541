"""What kind of file a descriptor is that another process has sent.

Nothing here asks the file itself: fstat(2), fstatfs(2), ioctl(2) and poll(2) wait for the server of
a FUSE or network filesystem, for ever if that does not answer. The kernel's own tables don't.
Source: memfd_create(2); fcntl(2), F_GET_SEALS; proc(5), /proc/PID/fd and /proc/PID/fdinfo; Linux,
drivers/dma-buf/dma-buf.c, dma_buf_show_fdinfo().
"""

from __future__ import annotations

import fcntl
from enum import Enum
from pathlib import Path
from typing import Final

from vgpud.unix.fd import Fd


class FileKind(Enum):
    """The kinds that front-ends have a use for.

    EVENTFD: an eventfd. MEMORY: a memory file, or a file on tmpfs or hugetlbfs. DMA_BUF: a dma-buf.
    OTHER: any other file, also one that is open for its path only (O_PATH).
    """

    EVENTFD = "an eventfd"
    MEMORY = "a memory file"
    DMA_BUF = "a dma-buf"
    OTHER = "another kind of file"


_EVENTFD: Final = "anon_inode:[eventfd]"
_DMA_BUF_NAME: Final = "/dmabuf:"  # which a file of a filesystem may have, too
_DMA_BUF_FIELD: Final = "\nexp_name:"


def file_kind(fd: Fd) -> FileKind:
    """Return the kind of an open file. Never waits."""
    number = fd.fileno()
    try:
        fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL; EBADF for O_PATH
        pass
    else:
        return FileKind.MEMORY
    try:
        name = str(Path(f"/proc/self/fd/{number}").readlink())
        if name == _EVENTFD:
            return FileKind.EVENTFD
        if name.startswith(_DMA_BUF_NAME):
            about = Path(f"/proc/self/fdinfo/{number}").read_text(encoding="utf-8")
            if _DMA_BUF_FIELD in about:
                return FileKind.DMA_BUF
    except OSError:  # no /proc
        pass
    return FileKind.OTHER
