"""The rig's place on disk, and running programs inside its Debian chroot.

It owns the cache directory and the private mount namespace that every program of the rig runs in.
It knows nothing about QEMU or the guest.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

# Runs in a mount namespace of its own, so that no mount outlives the program or is seen outside.
# Everything execs: the process that Popen knows is the program itself, which kill() then reaches.
_ENTER: Final = (
    'mkdir -p "$1/rig" && mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" '
    '&& mount --bind /tmp "$1/tmp" && mount --bind "$2" "$1/rig" '
    '&& root=$1 && shift 2 && exec chroot "$root" "$@"'
)


class RigUnavailableError(Exception):
    """The guest rig is missing and can't be built here; the message says why."""


@dataclass(frozen=True, slots=True)
class Chroot:
    """A Debian root under `cache`, with `cache` itself seen as /rig inside and /tmp shared."""

    cache: Path
    name: str = "trixie"

    @property
    def root(self) -> Path:
        """The root directory of the Debian system."""
        return self.cache / self.name

    def has(self, *paths: str) -> bool:
        """Whether all of these paths (relative to the root) exist."""
        return all((self.root / path).exists() for path in paths)

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside; it dies with the thread that starts it."""
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", _ENTER, "sh", str(self.root), str(self.cache), *argv),
        ]

    def run(self, *argv: str, stdin: IO[bytes] | None = None) -> bytes:
        """Run `argv` inside to its end and return its stdout; its stderr shows with ours."""
        done = subprocess.run(self.command(*argv), stdout=subprocess.PIPE, stdin=stdin, check=True)
        return done.stdout

    def run_quietly(self, *argv: str) -> None:
        """Run `argv` inside to its end; raise RigUnavailableError with what it said if it fails."""
        done = subprocess.run(
            self.command(*argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise RigUnavailableError(f"{argv[0]} failed:\n{done.stdout[-2000:]}")


def cache_directory() -> Path:
    """Where the rig is kept between runs: $VGPUD_RIG, else ~/.cache/vgpud-rig."""
    named = os.environ.get("VGPUD_RIG")
    return Path(named).resolve() if named else Path.home() / ".cache" / "vgpud-rig"
