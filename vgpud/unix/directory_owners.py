"""Whether other users may replace the files of a directory.

Source: path_resolution(7), inode(7).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def untrusted(directory: Path) -> Iterator[str]:
    """Yield why users other than root and this process's own may replace files in a directory.

    They may if they own it, or one above it, or may write there, unless only owners may remove
    files (the sticky bit). What can't be looked at is left out.
    """
    for path in (resolved := directory.resolve(), *resolved.parents):
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_uid not in {0, os.geteuid()}:
            yield f"{path} belongs to uid {found.st_uid}"
        elif found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            yield f"all users may write to {path}"
