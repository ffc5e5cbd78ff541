"""Benches of vgpud's parts, for `vgpud bench`. Each returns rows and prints nothing."""

from typing import Final

NAMES: Final = ("copy", "slots", "ring", "start")
"""The names of the benches, the quickest first. They are here, and not in `cli.bench.suite`, so
that the program can list them without importing the benches."""
