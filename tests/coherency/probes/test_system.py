"""The kernel, the processor and the memory: of this host by other means, and of recorded ones."""

from __future__ import annotations

import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpud.coherency.probes import system as probe_system
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.system import HugePages, UdmabufFacts
from vgpud.native.cpu import cpu_features


@pytest.fixture
def locked_limit() -> Iterator[int]:
    """A limit of locked memory lower than most, while the test runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, hard))
    yield 65536
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def write(root: Path, path: str, text: str) -> None:
    """A file below `root`."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_this_system() -> None:
    found = probe_system.system()
    assert found.kernel == platform.release()
    assert found.name


def test_a_recorded_system(tmp_path: Path) -> None:
    assert probe_system.system(tmp_path).kernel == platform.release()
    write(tmp_path, "proc/sys/kernel/osrelease", "6.12.43+deb13-amd64\n")
    text = 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_CODENAME=trixie\n'
    write(tmp_path, "etc/os-release", text)
    found = probe_system.system(tmp_path)
    assert (found.kernel, found.debian) == ("6.12.43+deb13-amd64", "trixie")
    assert found.name == "Debian GNU/Linux 13 (trixie)"
    write(tmp_path, "etc/os-release", "ID=fedora\nVERSION_CODENAME=\nPRETTY_NAME='Fedora 44'\n")
    found = probe_system.system(tmp_path)
    assert (found.name, found.debian) == ("Fedora 44", None)


def test_this_processor() -> None:
    found, by_cpuid = probe_system.cpu(), cpu_features()
    assert set(found.flush) == by_cpuid & {"clflushopt", "clwb"}
    assert found.hypervisor == ("hypervisor" in by_cpuid)
    # The kernel may know of an erratum, but never adds what is not there.
    assert found.self_snoop <= ("self-snoop" in by_cpuid)


def test_a_recorded_processor(tmp_path: Path) -> None:
    write(
        tmp_path,
        "proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A CPU: fast\n"
        "flags\t\t: fpu ss clflushopt\n\nprocessor\t: 1\nflags\t\t: clwb hypervisor\n",
    )
    found = probe_system.cpu(tmp_path)
    assert (found.vendor, found.model) == ("GenuineIntel", "A CPU: fast")
    assert (found.self_snoop, found.hypervisor, found.flush) == (True, False, ("clflushopt",))


def test_no_processor_known(tmp_path: Path) -> None:
    found = probe_system.cpu(tmp_path)
    assert (found.vendor, found.model, found.flush, found.self_snoop) == ("", "", (), False)


def test_huge_pages(tmp_path: Path) -> None:
    assert probe_system.memory(tmp_path).huge_pages == ()
    pools = "sys/kernel/mm/hugepages"
    write(tmp_path, f"{pools}/hugepages-1048576kB/nr_hugepages", "0\n")
    write(tmp_path, f"{pools}/hugepages-1048576kB/free_hugepages", "0\n")
    write(tmp_path, f"{pools}/hugepages-2048kB/nr_hugepages", "512\n")
    write(tmp_path, f"{pools}/hugepages-2048kB/free_hugepages", "17\n")
    assert probe_system.memory(tmp_path).huge_pages == (
        HugePages(2 << 20, 512, 17),
        HugePages(1 << 30, 0, 0),
    )


def test_what_may_be_locked(locked_limit: int, tmp_path: Path) -> None:
    # Without CAP_IPC_LOCK, which is bit 14, and with it.
    write(tmp_path, "proc/self/status", "Name:\tx\nCapEff:\t0000000000000fff\n")
    assert probe_system.memory(tmp_path).locked_limit == locked_limit
    write(tmp_path, "proc/self/status", "Name:\tx\nCapEff:\t0000000000004000\n")
    assert probe_system.memory(tmp_path).locked_limit is None


def test_no_udmabuf(tmp_path: Path) -> None:
    path = tmp_path / "dev/udmabuf"
    expected = UdmabufFacts(DeviceAccess.ABSENT, f"open {path}: No such file or directory")
    assert probe_system.memory(tmp_path).udmabuf == expected


def test_udmabuf_of_others(other_user: Path) -> None:
    write(other_user, "dev/udmabuf", "")
    (other_user / "dev/udmabuf").chmod(0)
    assert probe_system.memory(other_user).udmabuf.state == "denied"


def test_what_is_no_udmabuf(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    write(tmp_path, "dev/udmabuf", "")
    found = probe_system.memory(tmp_path).udmabuf
    assert found.state == "failed"
    assert found.problem.startswith("UDMABUF_CREATE")
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_this_hosts_udmabuf() -> None:
    found = probe_system.memory().udmabuf
    assert (found.state == "absent") == (not Path("/dev/udmabuf").exists())
