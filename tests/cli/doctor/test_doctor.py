"""`vgpud doctor` as its users run it, on this host: what it says against another reading of it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.kvm_host import has_flag, open_kvm
from vgpud.cli import main as cli
from vgpud.coherency.planner import table

KVM = Path("/dev/kvm")


def doctor(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """What it prints; it never fails, however little the host can do."""
    assert cli.main(["doctor", *options]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


def examined(capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    """What it finds, by its JSON."""
    return json.loads(doctor(capsys, "--json", *options))


def test_json_agrees_with_another_reading(capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys)
    assert found["system"]["kernel"] == platform.release()
    kvm = found["kvm"]
    assert (kvm["state"] == "usable") == os.access(KVM, os.R_OK | os.W_OK)
    if kvm["state"] == "usable":
        with KVM.open("r+b", buffering=0) as fd:
            assert kvm["api_version"] == fcntl.ioctl(fd, 0xAE00, 0)
            assert kvm["memslots"] == fcntl.ioctl(fd, 0xAE03, 10)
            assert kvm["ignore_guest_pat_quirk"] == bool(fcntl.ioctl(fd, 0xAE03, 213) & 1 << 9)
        with open_kvm() as opened:
            assert kvm["non_coherent_dma_flag"] == has_flag(opened)
    assert found["guest_pat"] in {"honored", "ignored", "unknown", "emulated"}
    assert {plan["vm"] for plan in found["plans"]} == {vm["vm"] for vm in found["vms"]}
    assert all(remedy["problem"] and remedy["remedy"] for remedy in found["remedies"])


def test_the_rest_of_the_json_agrees_with_another_reading(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = examined(capsys)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    [flags, *_] = [
        set(line.split()[2:]) for line in cpuinfo.splitlines() if line.startswith("flags\t")
    ]
    assert found["cpu"]["self_snoop"] == ("ss" in flags)
    assert found["cpu"]["hypervisor"] == ("hypervisor" in flags)
    assert set(found["cpu"]["flush"]) == flags & {"clflushopt", "clwb"}

    kvm, modules = found["kvm"], Path("/sys/module")
    assert kvm["nested"] == ("hypervisor" in flags)
    # Both have a directory where they are built in; the processor then decides.
    serving = {
        vendor
        for vendor, module in (("vmx", "kvm_intel"), ("svm", "kvm_amd"))
        if (modules / module).is_dir()
    }
    if serving == {"vmx", "svm"}:
        serving &= flags
    if kvm["state"] == "usable":
        assert [kvm["vendor"]] == ([*serving] or ["other"])
    parameters = {"vmx": modules / "kvm_intel/parameters/ept"}
    parameters["svm"] = modules / "kvm_amd/parameters/npt"
    if kvm["vendor"] in parameters:
        assert kvm["tdp"] == (parameters[kvm["vendor"]].read_text().strip() in {"Y", "1"})

    for pool in found["memory"]["huge_pages"]:
        kib = pool["size"] // 1024
        counter = Path(f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages")
        assert pool["total"] == int(counter.read_text())
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        assert found["memory"]["locked_limit"] is None
    elif os.geteuid() != 0:
        assert found["memory"]["locked_limit"] == limit
    if not Path("/dev/udmabuf").exists():
        assert found["memory"]["udmabuf"]["state"] == "absent"

    nodes = {str(node) for node in Path("/dev/dri").glob("*[0-9]")}
    listed = {node["path"] for gpu in found["gpus"] for node in gpu["nodes"]}
    assert {path for path in listed if Path(path).exists()} == nodes
    assert (found["qemu"] is not None) >= (shutil.which("qemu-system-x86_64") is not None)
    if found["qemu"] is not None and found["qemu"]["version"] is not None:
        program = found["qemu"]["path"]
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
        assert f"version {found['qemu']['version']}" in said.stdout


def test_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    screen = doctor(capsys)
    assert platform.release() in screen
    assert "This host\n" in screen
    assert "How a guest maps its host blobs" in screen
    assert max(map(len, screen.splitlines())) <= 100


def test_without_privileges(capsys: pytest.CaptureFixture[str], no_root: None) -> None:
    found = examined(capsys)
    if found["kvm"]["state"] == "denied":
        assert found["kvm"]["api_version"] is None
        assert found["guest_pat"] == "unknown"
        assert found["remedies"][0]["for"] == "kvm"
        assert found["remedies"][0]["commands"]
    assert "Traceback" not in doctor(capsys)


def test_plans(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(table())
    printed = examined(capsys, "--plans")["table"]
    assert [row["reason"] for row in printed] == [row.reason for row in rows]
    assert "table" not in examined(capsys)
    text = doctor(capsys, "--plans")
    assert text.startswith("KVM flag, backing ram-wb")
    assert "This host" not in text


def test_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert "measurement" not in examined(capsys)
    found = examined(capsys, "--measure")["measurement"]
    if not os.access(KVM, os.R_OK | os.W_OK):
        assert found["rows"] == []
        assert found["problem"]
        return
    assert found["problem"] == ""
    assert [row["setup"] for row in found["rows"]] == ["neither", "flag", "quirk-disabled"]
    assert found["rows"][0]["hit"] > 0
    facts = examined(capsys)["kvm"]
    for row, there in zip(
        found["rows"],
        [True, facts["non_coherent_dma_flag"], facts["ignore_guest_pat_quirk"]],
        strict=True,
    ):
        assert (row["verdict"] == "not available") == (not there)
    assert "Measured in guest code" in doctor(capsys, "--measure")


def test_what_can_not_be_measured_is_said(
    capsys: pytest.CaptureFixture[str], no_root: None
) -> None:
    if os.access(KVM, os.R_OK | os.W_OK, effective_ids=True):
        pytest.skip("this user may open /dev/kvm")
    assert "Permission denied" in examined(capsys, "--measure")["measurement"]["problem"]
    assert "This failed: " in doctor(capsys, "--measure")


def test_it_opens_and_closes(capsys: pytest.CaptureFixture[str]) -> None:
    def open_files() -> list[Path]:
        return sorted(Path("/proc/self/fd").iterdir())

    doctor(capsys)
    before = open_files()
    doctor(capsys)
    assert open_files() == before
