"""What QEMU says of itself: programs that answer as it does, or do not, and the rig's real one."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rig.build import Rig
from tests.rig.chroot import Chroot, cache_directory
from vgpud.coherency.probes import qemu as probe_qemu
from vgpud.coherency.probes.qemu import QemuFacts

GREETING: dict[str, Any] = {
    "QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "x"}}
}
DEVICE = {"name": "device", "type": "string"}
HONOR = {"name": "honor-guest-pat", "type": "OnOffAuto"}


def program(path: Path, source: str) -> Path:
    """A Python program of these lines at `path`."""
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


def qemu(path: Path, properties: list[dict[str, str]], version: str = "10.0.2") -> Path:
    """A QEMU that answers every question, and that of the accelerator's properties with these."""
    numbers = dict(zip(("major", "minor", "micro"), map(int, version.split(".")), strict=True))
    greeting = {"QMP": {"version": {"qemu": numbers, "package": "x"}}}
    return program(
        path,
        "import json, sys\n"
        "assert sys.argv[1:3] == ['-machine', 'none'], sys.argv\n"
        f"print({json.dumps(json.dumps(greeting))})\n"
        "for line in sys.stdin:\n"
        "    question = json.loads(line)\n"
        "    answer = {'return': {}}\n"
        "    if question['execute'] == 'qom-list-properties':\n"
        "        assert question['arguments'] == {'typename': 'kvm-accel'}\n"
        f"        answer = {{'return': {properties!r}, 'id': question['id']}}\n"
        "    print(json.dumps({'timestamp': {}, 'event': 'X'}))\n"
        "    print(json.dumps(answer))\n"
        "    if question['execute'] == 'quit':\n"
        "        break\n",
    )


@pytest.mark.parametrize(
    ("properties", "known"), [([DEVICE], False), ([DEVICE, HONOR], True), ([HONOR], True)]
)
def test_the_option_is_known_by_asking(
    tmp_path: Path, properties: list[dict[str, str]], known: bool
) -> None:
    path = qemu(tmp_path / "qemu", properties)
    assert probe_qemu.probe([str(path)]) == QemuFacts(str(path), "10.0.2", known)


@pytest.mark.parametrize(
    ("version", "default"),
    [("11.1.0", "off"), ("11.1.3", "off"), ("11.0.9", None), ("11.2.0", None), ("12.1.0", None)],
)
def test_the_default_is_known_of_versions_that_were_examined_whatever_they_say(
    tmp_path: Path, version: str, default: str | None
) -> None:
    said = HONOR | {"description": "Disable KVM quirk that ignores guest PAT (default: auto)"}
    path = qemu(tmp_path / "qemu", [said], version)
    assert probe_qemu.probe([str(path)]) == QemuFacts(str(path), version, True, default)
    path = qemu(tmp_path / "qemu", [DEVICE], version)
    assert probe_qemu.probe([str(path)]) == QemuFacts(str(path), version, False)


def test_the_first_that_is_there_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe_qemu.probe() is None
    qemu(tmp_path / "qemu-kvm", [DEVICE])
    found = probe_qemu.probe()
    assert found is not None
    assert found.path == str(tmp_path / "qemu-kvm")
    qemu(tmp_path / "qemu-system-x86_64", [DEVICE])
    found = probe_qemu.probe()
    assert found is not None
    assert found.path == str(tmp_path / "qemu-system-x86_64")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import time\ntime.sleep(60)\n", "no answer in 0.5 seconds"),
        ("import sys\nsys.exit('qemu: no such option\\nqemu: bye')\n", "qemu: bye"),
        ("", "it did not answer QMP"),
        ("print('QMP')\nprint('[]')\nprint('{')\n", "it did not answer QMP"),
    ],
)
def test_one_that_does_not_answer(tmp_path: Path, source: str, problem: str) -> None:
    path = program(tmp_path / "qemu", source)
    assert probe_qemu.probe([str(path)], patience=0.5) == QemuFacts(str(path), problem=problem)


def test_one_that_answers_too_little(tmp_path: Path) -> None:
    path = program(tmp_path / "qemu", f"print({json.dumps(json.dumps(GREETING))})\n")
    found = probe_qemu.probe([str(path)])
    assert found == QemuFacts(str(path), "10.0.2", problem="it did not answer QMP")


def test_one_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    path.write_text("\0")
    path.chmod(0o755)
    assert probe_qemu.probe([str(path)]) == QemuFacts(str(path), problem="Exec format error")


@pytest.mark.guest
def test_the_real_one(rig: Rig, tmp_path: Path) -> None:
    command = Chroot(cache_directory()).command("/usr/bin/qemu-system-x86_64")
    path = tmp_path / "qemu"
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)
    found = probe_qemu.probe([str(path)], patience=30.0)
    assert found is not None
    assert found.problem == ""
    assert found.version is not None
    assert tuple(map(int, found.version.split("."))) >= (11, 1)
    assert found.honor_guest_pat is True
    assert found.default == ("off" if found.version.startswith("11.1.") else None)
