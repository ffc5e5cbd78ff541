"""An argument parser whose verbs may be names of methods, including unknown ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from vgpud.cli.stdout import ProgramParser

_METHOD: Final = re.compile(r"[a-z]+(\.[a-z_]+)+")


class VerbParser(ProgramParser):
    """A parser that calls `add_method` for each argument that looks like a method's name.

    It does so before the arguments are parsed.
    """

    add_method: Callable[[str], None] | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse arguments as argparse does, after `add_method` was called."""
        if self.add_method is not None:
            for argument in args or ():
                if _METHOD.fullmatch(argument):
                    self.add_method(argument)
        return super().parse_known_args(args, namespace)
