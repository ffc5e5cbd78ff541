"""Measurements of vgpud's own parts, for `vgpud bench`. Each returns rows and prints nothing."""

from typing import Final

NAMES: Final = ("copy", "slots", "ring", "start")
"""The benches, in the order of patience; `cli.bench.suite` has them. Here, so that to name them
takes no import of them: the daemon is started by the same program, and need not wait for that."""
