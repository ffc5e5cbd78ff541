"""Formatting of tables, sizes, numbers and durations for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from vgpud.printable import printable

GAP: Final = "  "
NOTHING: Final = "-"
"""The text of an empty cell."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Return lines with aligned columns; a column whose header starts with ">" is right-aligned.

    Cells are escaped by `printable`.
    """
    names = [name.removeprefix(">") for name in header]
    cells = [names, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        yield GAP.join(
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()


def fitted(lines: Iterable[str], width: int | None, mark: str = "…") -> Iterator[str]:
    """Yield lines cut to `width` columns, if that is not None; a cut line ends with `mark`."""
    for line in lines:
        if width is None or len(line) <= width:
            yield line
        else:
            yield f"{line[: max(width - len(mark), 0)]}{mark}"


def size(count: float) -> str:
    """Return a number of bytes with a unit, to three digits: `1.5 MiB`."""
    unit = 0
    while count >= 1023.5 and unit < len(_UNITS) - 1:  # from there it would be rounded to 1024
        count /= 1024
        unit += 1
    return f"{number(count)} {_UNITS[unit]}"


def number(value: float) -> str:
    """Return a number to three digits, or with all digits before the point."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def span(seconds: float) -> str:
    """Return a duration in its two largest units: `3 h 12 min`."""
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
    """Return an address, an offset or flags in hexadecimal."""
    return NOTHING if value is None else f"{value:#x}"
