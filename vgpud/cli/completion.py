"""Completion of `vgpud`'s arguments in a shell, by a script that is generated from its parser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SHELLS: Final = ("bash", "zsh", "fish")
DIRECTORY: Final = "DIR"
"""The metavar of options that take a directory; all other paths are files."""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell, which completes verbs, options, methods and files."""
    import shtab  # noqa: PLC0415 - for this one verb only

    for action in _actions(parser):
        if action.type is Path:
            action.complete = (  # type: ignore[attr-defined]
                shtab.DIRECTORY if action.metavar == DIRECTORY else shtab.FILE
            )
    return str(shtab.complete(parser, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for child in action.choices.values():
                yield from _actions(child)
