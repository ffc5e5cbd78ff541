"""Charts as a picture, for `vgpud bench --plot`.

matplotlib is the optional extra `plot`, and is imported only to draw.
"""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from vgpud.cli.bench.figures import BenchResult, Chart
from vgpud.cli.output_file import write_file
from vgpud.errors import ConfigError, HostError

SUFFIXES: Final = (".png", ".svg", ".pdf")
_COLUMNS: Final = 2
_WIDTH: Final = 8.0  # inches, of a chart
_BAR: Final = 0.32
_AROUND: Final = 1.1
_COLOUR: Final = "lightsteelblue"
_FAR: Final = 50
"""The ratio of a chart's largest to its least value above which its scale is logarithmic."""


def check(path: Path) -> None:
    """Raise ConfigError or HostError unless `draw` can write to `path`.

    It is called before minutes of measuring.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--plot {path}: the name must end in {', '.join(SUFFIXES)}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"--plot {path}: no file can be created there")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'vgpud[plot]'")
    try:
        importlib.import_module("matplotlib.figure")
    except OSError as error:  # It makes a directory for its cache.
        advice = "set MPLCONFIGDIR to a directory that can be written to"
        raise HostError("loading matplotlib", error, advice) from error


def draw(path: Path, heading: str, found: Mapping[str, BenchResult]) -> None:
    """Draw all charts of these benches into one picture; raises HostError if that fails."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional

    charts = [(name, chart) for name, measured in found.items() for chart in measured.charts()]
    rows = [charts[at : at + _COLUMNS] for at in range(0, len(charts), _COLUMNS)]
    heights = [_AROUND + _BAR * max(len(chart.bars) for _, chart in row) for row in rows]
    figure = Figure(figsize=(_WIDTH * _COLUMNS, sum(heights) + 1), layout="constrained")
    figure.suptitle(heading)
    if charts:
        grid = figure.subplots(len(rows), _COLUMNS, height_ratios=heights, squeeze=False)
        for axes in grid.flat:
            axes.set_visible(False)
        for index, (name, chart) in enumerate(charts):
            axes = grid[index // _COLUMNS][index % _COLUMNS]
            axes.set_visible(True)
            _draw_chart(axes, name, chart)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.removeprefix("."))
    write_file(path, [picture.getvalue()])


def _draw_chart(axes: object, name: str, chart: Chart) -> None:
    from matplotlib.axes import Axes  # noqa: PLC0415 - optional

    assert isinstance(axes, Axes)
    medians = [bar.spread.median for bar in chart.bars]
    below = [bar.spread.median - bar.spread.lower for bar in chart.bars]
    above = [bar.spread.upper - bar.spread.median for bar in chart.bars]
    labels = [bar.label for bar in chart.bars]
    positions = range(len(medians))
    axes.barh(positions, medians, xerr=(below, above), capsize=3, color=_COLOUR)
    for position, median in zip(positions, medians, strict=True):
        transform = axes.get_yaxis_transform()
        axes.text(1.01, position, _number(median), transform=transform, verticalalignment="center")
    axes.set_yticks(positions, labels)
    axes.invert_yaxis()
    if max(bar.spread.upper for bar in chart.bars) > _FAR * min(medians) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xlim(left=0)
    axes.set_title(f"{name}: {chart.title}", loc="left", fontsize="medium")
    axes.set_xlabel(chart.unit)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
