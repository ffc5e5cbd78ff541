"""`vgpud bench`: its text, its JSON, and its output without KVM."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from tests.support.kvm_host import open_kvm
from vgpud.cli import main as cli
from vgpud.cli.bench import NAMES, suite
from vgpud.cli.bench.slots import SlotCosts, SlotRow
from vgpud.errors import VgpudError

ROWS = tuple(
    SlotRow(way, live, 2000, median, 99999.9)
    for way, median in [("slot", 129.72), ("window", 9.14)]
    for live in (0, 1000, 8000)
)


def test_the_table_has_a_line_for_each_way() -> None:
    lines = list(SlotCosts(ROWS).lines())
    assert max(map(len, lines)) <= 100
    _, heading, _, *ways = lines
    assert heading.split() == ["live", "blobs", "0", "1,000", "8,000"]
    assert [line.split()[-6:] for line in ways] == [
        [median, "99999.9"] * 3 for median in ("129.7", "9.1")
    ]
    assert [line.split(":")[0].strip() for line in ways] == ["slot", "window"]


def test_json_and_what_is_told_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    with open_kvm():
        assert cli.main(["bench", "slots", "--json"]) == 0
    output, told = capsys.readouterr()
    found = json.loads(output)
    assert found["kernel"] == platform.release()
    places = [(way, live) for way in ("slot", "window") for live in (0, 1000, 8000)]
    assert [(row["way"], row["live"]) for row in found["slots"]] == places
    assert all(0 < row["median_us"] <= row["p99_us"] for row in found["slots"])
    assert told.splitlines() == [
        f"vgpud: measuring slots: {way}, {live:,} live blobs" for way, live in places
    ]


def test_without_a_name_all_are_measured() -> None:
    fakes: suite.Benches = {name: lambda _: SlotCosts(ROWS) for name in ("one", "two")}
    found = json.loads(suite.text(None, lambda _: None, fakes, as_json=True))
    assert found["one"] == found["two"] == SlotCosts(ROWS).to_json()
    assert found["left_out"] == {}
    text = suite.text("one", lambda _: None, fakes)
    assert text.startswith("vgpud ")
    assert text.endswith("\n".join(SlotCosts(ROWS).lines()))


def test_of_all_those_that_can_not_be_measured_are_left_out() -> None:
    def absent(_: object) -> SlotCosts:
        raise VgpudError("there is none")

    fakes: suite.Benches = {"one": absent, "two": lambda _: SlotCosts(ROWS)}
    found = json.loads(suite.text(None, lambda _: None, fakes, as_json=True))
    assert found["left_out"] == {"one": "there is none"}
    assert "one" not in found
    assert found["two"] == SlotCosts(ROWS).to_json()
    assert suite.text(None, lambda _: None, fakes).endswith("\n\none: not measured: there is none")
    with pytest.raises(VgpudError, match="there is none"):
        suite.text("one", lambda _: None, fakes)


def test_every_bench_has_its_name() -> None:
    assert tuple(suite.BENCHES) == NAMES


def test_without_kvm_it_says_what_to_do(capsys: pytest.CaptureFixture[str], no_root: None) -> None:
    if os.access(Path("/dev/kvm"), os.R_OK | os.W_OK, effective_ids=True):
        pytest.skip("this user may open /dev/kvm")
    assert cli.main(["bench", "slots"]) == 1
    output, told = capsys.readouterr()
    assert output == ""
    assert told.splitlines()[-1].startswith("vgpud: open /dev/kvm: ")


def test_an_unknown_name_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "nonsense"])
    assert ended.value.code == 2
    assert "slots" in capsys.readouterr().err
