"""Columns, sizes and spans of time, as people read them.

Must not do any I/O, nor know what is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

GAP: Final = "  "
NOTHING: Final = "-"
"""What a cell says where there is nothing to say."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines with aligned columns: those with a header that starts with ">" to the right.

    Cells are made `plain`.
    """
    names = [name.removeprefix(">") for name in header]
    cells = [names, *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        yield GAP.join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()


def fitted(lines: Iterable[str], width: int | None) -> Iterator[str]:
    """The lines, cut to `width` columns if that is not None; what was cut is seen to be."""
    for line in lines:
        yield line if width is None or len(line) <= width else f"{line[: max(width - 1, 0)]}…"


def plain(text: str) -> str:
    """Text that does nothing to a terminal: what can't be printed is escaped as in Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: float) -> str:
    """Bytes with a unit, to three digits: `1.5 MiB`."""
    unit = 0
    while count >= 1023.5 and unit < len(_UNITS) - 1:  # Less than 1024, but would be shown as that.
        count /= 1024
        unit += 1
    return f"{number(count)} {_UNITS[unit]}"


def number(value: float) -> str:
    """A number to three digits, or all of those before the point."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def span(seconds: float) -> str:
    """A span of time, by its two largest units: `3 h 12 min`."""
    whole = int(seconds)
    for unit, name, smaller, smaller_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {smaller_name}"
    return f"{whole} s"


def address(value: int | None) -> str:
    """An address, an offset or flags."""
    return NOTHING if value is None else f"{value:#x}"
