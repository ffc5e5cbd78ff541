"""A front-end in a process with very many descriptors, which resets its device again and again.

python -m tests.attacks.many_files SOCKET SECONDS
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Final

from tests.attacks.stand import until
from tests.hostile.siege import rogue_front_end

FILES: Final = 18_000


def main(path: Path, seconds: float) -> None:
    """Open the descriptors, connect, and reset the device until the time is up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES + 200, hard), hard))
    [os.open("/dev/null", os.O_RDONLY) for _ in range(min(FILES, hard - 200))]
    fe = rogue_front_end(path)
    for _ in until(seconds):
        fe.reset()
    fe.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
