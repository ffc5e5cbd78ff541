"""A parser of words whose verbs may be names of methods, also of such as are not known here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

_METHOD: Final = re.compile(r"[a-z]+(\.[a-z_]+)+")


class VerbParser(argparse.ArgumentParser):
    """With `add_method`, that is called with each word that looks like a method's name, before
    they are parsed."""

    add_method: Callable[[str], None] | None = None

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse does it."""
        if self.add_method is not None:
            for word in args or ():
                if _METHOD.fullmatch(word):
                    self.add_method(word)
        return super().parse_known_args(args, namespace)
