"""Text from others, made safe for terminals and logs: it can't move the cursor or end a line."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with everything unprintable escaped as in Python: line breaks as `\n`.

    That includes control characters, surrogates, and marks that change the direction of text.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
