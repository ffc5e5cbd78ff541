"""The picture of `vgpud bench --plot`, and the message where none can be drawn."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.cli.bench.test_suite import ROWS
from vgpud.cli import main as cli
from vgpud.cli.bench import plot, suite
from vgpud.cli.bench.slots import SlotCosts
from vgpud.errors import ConfigError, HostError

PNG = b"\x89PNG\r\n\x1a\n"


def test_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.BENCHES, "slots", lambda _: SlotCosts(ROWS))
    path = tmp_path / "bench.png"
    suite.text("slots", lambda _: None, picture=path)
    assert path.read_bytes().startswith(PNG)
    width, height = (int.from_bytes(path.read_bytes()[at : at + 4]) for at in (16, 20))
    assert width > 1000
    assert height > 200


def test_a_picture_of_nothing_is_one_too(tmp_path: Path) -> None:
    plot.draw(tmp_path / "none.svg", "nothing", {})
    assert b"<svg" in (tmp_path / "none.svg").read_bytes()


def never(_: object) -> SlotCosts:
    """A bench that must not run."""
    raise AssertionError("measured, though nothing can be drawn")


@pytest.mark.parametrize("name", ["no/such/directory/x.png", "x", "x.jpeg", "there.png"])
def test_where_it_can_not_be_drawn_nothing_is_measured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there.png").mkdir()
    monkeypatch.setitem(suite.BENCHES, "slots", never)
    assert cli.main(["bench", "slots", "--plot", str(tmp_path / name)]) == 2
    assert f"--plot {tmp_path / name}: " in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'vgpud\[plot\]'"):
        plot.check(tmp_path / "x.png")


class Unwritable(types.ModuleType):
    """matplotlib where it can't make a directory for its cache."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "matplotlib.figure":
            raise OSError("Matplotlib requires access to a writable cache directory")


def test_without_a_cache_for_matplotlib_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Unwritable("finder"), *sys.meta_path])
    with pytest.raises(HostError, match="writable cache directory; set MPLCONFIGDIR"):
        plot.check(tmp_path / "x.png")


def test_a_name_in_this_directory_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plot.check(Path("x.png"))
    assert not list(tmp_path.iterdir())
