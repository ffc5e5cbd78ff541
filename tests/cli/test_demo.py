"""`vgpud demo`: on this machine, as a process; and what would refute each of its steps."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.microvm.kvm import needs_kvm
from tests.support.png import decode
from vgpud.cli import demo
from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import Finding, KvmMode
from vgpud.coherency.plan import Plan
from vgpud.coherency.planner import plan
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.slot_policy import DEFAULT_RULE, Fallback, MemoryType, Rule
from vgpud.gpu.memory_types import MAP_INFO
from vgpud.gpu.wire.protocol import MapInfo
from vgpud.memory.backing import HostBacking
from vgpud.microvm.guest_code import LINUX_PAT, Dma, Mapped, Pat, Written
from vgpud.microvm.slots import Accepted
from vgpud.microvm.vmm import Outcome, Round

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path, before: Sequence[str] = ()) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of `vgpud demo ARGUMENTS`."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "vgpud", "demo", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@needs_kvm
def test_all_four_steps_hold_on_this_machine(tmp_path: Path) -> None:
    status, output, errors = run("--json", "--out", tmp_path / "new" / "directory")
    assert (status, errors) == (0, "")
    result = json.loads(output)
    assert [(step["step"], step["ok"]) for step in result["steps"]] == [
        (number, True) for number in (1, 2, 3, 4)
    ]
    assert result["seconds"] < 10
    told, written, moved = (step["evidence"] for step in result["steps"][1:])
    # The plan that was used instead is named just where the flag is not there.
    flagged = any("NON_COHERENT_DMA" in slot for slot in written["slots"])
    assert flagged != ("instead" in told)
    assert len({line.split()[0] for line in told["map_info"]}) == 1
    # The picture that was written out is the one whose CRC the engine computed.
    picture = decode(Path(moved["picture"]).read_bytes())
    pixels = np.zeros((*picture.shape[:2], 4), np.uint8)
    pixels[..., :3] = picture[..., ::-1]
    assert f"{zlib.crc32(pixels.tobytes()):08x}" in moved["copied"][-1]
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert np.array_equal(picture, decode((ROOT / "docs" / "demo.png").read_bytes()))


@needs_kvm
def test_it_is_told_to_people_too() -> None:
    status, output, errors = run()
    assert (status, errors) == (0, "")
    assert re.findall(r"^(\d)\. .*: yes$", output, re.MULTILINE) == ["1", "2", "3", "4"]
    assert re.search(r"^4 of 4 steps held, in \d\.\d s$", output, re.MULTILINE)
    assert "picture" not in output


@needs_kvm
def test_a_picture_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, output, errors = run("--out", tmp_path / "file")
    assert (status, output) == (1, "")
    assert "vgpud-demo.png: Not a directory" in errors or "File exists" in errors
    assert "Traceback" not in errors


def test_without_kvm_it_says_what_to_do() -> None:
    """In a mount namespace with nothing in /dev."""
    hidden = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs t /dev && "$@"']
    if subprocess.run([*hidden, "sh", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("can't hide /dev/kvm: no mount namespaces here")
    status, output, errors = run("--json", before=[*hidden, "sh"])
    assert (status, output) == (1, "")
    assert errors.startswith("vgpud: open /dev/kvm: No such file")
    assert "kvm_intel" in errors
    assert "Traceback" not in errors


# -- What would refute each step -------------------------------------------------------------------


def chosen(mode: KvmMode = KvmMode.FLAG) -> Plan:
    """The plan on a host of this kind."""
    return plan(Facts(mode, HostBacking.RAM_WB, GuestMtrr.WB), DEFAULT_RULE)


def outcome(how: Plan) -> Outcome:
    """A run that went well under this plan."""
    bits = {MemoryType.WC: 1 << 3, MemoryType.WB: 0}[how.memory_type]
    picture = np.arange(4 * 2 * 4, dtype=np.uint8).reshape(2, 4, 4)
    copied = picture[::-1].copy()
    seen_crc, copy_crc = (zlib.crc32(pixels.tobytes()) for pixels in (picture, copied))
    return Outcome(
        pat=Pat(LINUX_PAT, LINUX_PAT),
        mapped=(Mapped(1, MAP_INFO[how.memory_type], 0, 4096, 1 << 32 | bits | 3),),
        rounds=(
            Round(Written(0, 1, 0, 32), Dma(0, 1, 1, 2, 2, 0)),
            Round(Written(1, seen_crc, 0, 32), Dma(1, seen_crc, seen_crc, copy_crc, copy_crc, 0)),
        ),
        seen=picture,
        copied=copied,
        slots=(Accepted(1, how.slot_flags, 1 << 32, 1 << 20, 4096),),
        chains=(19, 1),
    )


def logged(how: Plan) -> list[str]:
    """What the back-end logs under this plan."""
    map_info = MAP_INFO[how.memory_type].name
    return [f"INFO plan device=microvm blob=host3d map_info={map_info}: {how.reason}"]


@pytest.mark.parametrize("mode", [mode for mode in KvmMode if mode is not KvmMode.EMULATED])
@pytest.mark.parametrize("flag", [True, False])
def test_a_run_that_went_well_shows_all_steps(mode: KvmMode, flag: bool) -> None:
    how = chosen(mode)
    facts = KvmFacts("/dev/kvm", DeviceAccess.USABLE, non_coherent_dma_flag=flag)
    went = outcome(how)
    steps = (
        demo.programmed(how, logged(how), 0),
        demo.answered(Finding(mode, "why"), facts, how, went),
        demo.written(how, went),
        demo.moved(went, None),
    )
    assert [(step.step, step.ok) for step in steps] == [(n, True) for n in (1, 2, 3, 4)]
    assert ("instead" in steps[1].evidence) == (mode is not KvmMode.FLAG)
    text = demo.Demo(steps, 1.0).text()
    assert "4 of 4 steps held" in text
    failed = demo.Demo((replace(steps[0], ok=False), *steps[1:]), 1.0)
    assert not failed.ok
    assert "1. The daemon has the device not snoop the buffer: NO" in failed.text()


def test_step_1_needs_a_device_that_does_not_snoop_and_a_back_end_that_agrees() -> None:
    how = chosen()
    assert not demo.programmed(how, [], 0).ok
    assert not demo.programmed(how, logged(how) * 2, 0).ok
    assert not demo.programmed(how, logged(chosen(KvmMode.FORCED_WB)), 0).ok
    unknown = chosen(KvmMode.UNKNOWN)  # the same map_info for another reason
    assert not demo.programmed(unknown, logged(chosen(KvmMode.FORCED_WB)), 0).ok
    assert not demo.programmed(how, logged(how), 1).ok
    snoops = plan(Facts(KvmMode.FORCED_WB), Rule(fallback=Fallback.SNOOP))
    assert snoops.device_snoops
    assert not demo.programmed(snoops, logged(snoops), 0).ok


@pytest.mark.parametrize("answer", [MapInfo.CACHED, MapInfo.UNCACHED, MapInfo.NONE, 7])
def test_step_2_needs_the_type_that_was_planned(answer: int) -> None:
    how = chosen()
    went = outcome(how)
    wrong = replace(went, mapped=(*went.mapped, replace(went.mapped[0], map_info=answer)))
    facts = KvmFacts("/dev/kvm", DeviceAccess.USABLE, non_coherent_dma_flag=True)
    finding = Finding(KvmMode.FLAG, "why")
    assert not demo.answered(finding, facts, how, wrong).ok
    assert not demo.answered(finding, facts, how, replace(went, mapped=())).ok


WRONG_WRITES: dict[str, Callable[[Outcome], Outcome]] = {
    "another PAT": lambda o: replace(o, pat=Pat(LINUX_PAT, 0x0007040600070406)),
    "no flag": lambda o: replace(o, slots=(replace(o.slots[0], flags=0),)),
    "no slot": lambda o: replace(o, slots=()),
    "cached": lambda o: replace(o, mapped=(replace(o.mapped[0], entry=1 << 32 | 3),)),
    "uncached": lambda o: replace(o, mapped=(replace(o.mapped[0], entry=1 << 32 | 0x13),)),
    "not in memory": lambda o: replace(o, seen=np.zeros_like(o.seen)),
    "nothing written": lambda o: replace(o, rounds=()),
}


@pytest.mark.parametrize("wrong", WRONG_WRITES.values(), ids=WRONG_WRITES)
def test_step_3_needs_slot_pat_mapping_and_bytes(wrong: Callable[[Outcome], Outcome]) -> None:
    how = chosen()
    assert not demo.written(how, wrong(outcome(how))).ok


def test_step_3_needs_the_flag_left_out_where_the_plan_does() -> None:
    how = chosen(KvmMode.SVM)
    went = outcome(how)
    assert not demo.written(how, replace(went, slots=(replace(went.slots[0], flags=8),))).ok


@pytest.mark.parametrize(
    "change", [{"picture_crc": 0}, {"own_picture_crc": 0}, {"copy_crc": 0}, {"wrong_pixels": 1}]
)
@pytest.mark.parametrize("which", [0, 1])
def test_step_4_needs_every_round_to_agree(change: dict[str, int], which: int) -> None:
    went = outcome(chosen())
    rounds = list(went.rounds)
    rounds[which] = replace(rounds[which], dma=replace(rounds[which].dma, **change))
    assert not demo.moved(replace(went, rounds=tuple(rounds)), None).ok


def test_step_4_needs_the_copy_in_memory() -> None:
    went = outcome(chosen())
    assert not demo.moved(replace(went, copied=np.zeros_like(went.copied)), None).ok
    assert not demo.moved(replace(went, rounds=()), None).ok
