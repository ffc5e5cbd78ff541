"""File names as text, and the other way round, whatever the locale.

Text is UTF-8 in files and messages. Python has file names in the encoding of the locale, which may
lack characters of a text; names are in a form that os.fsencode takes. Source: PEP 383, path names
in POSIX.
"""

from __future__ import annotations

import os


def file_name(text: str) -> str:
    """Return the file name whose bytes are the text's in UTF-8."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def as_text(name: str | os.PathLike[str]) -> str:
    """Return the text of a file name, such that `file_name` returns the name again.

    Bytes that are not UTF-8 are surrogates in it.
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")


def shown(name: str | os.PathLike[str]) -> str:
    r"""Return a file name for messages: bytes that are not UTF-8 are escaped, as in `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
