"""A front-end's process that may have any number of descriptors, or keep those from looking at it
that do: it must not hold the event loop."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from vgpud.daemon import process_examiner
from vgpud.daemon.process_examiner import MAX_THREADS, ProcessExaminer

MANY = """
import os, resource, sys
count = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
for _ in range(count):
    os.dup(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def crowded() -> Iterator[int]:
    """A process with as many descriptors as it may have."""
    process = subprocess.Popen(
        [sys.executable, "-c", MANY, "15000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline()
    yield process.pid
    process.stdin.close()
    process.wait()
    process.stdout.close()


def with_vm(proc: Path, at: int, start: str = "7") -> Path:
    """A recorded process whose VM is descriptor number `at`."""
    entry = proc / "7"
    (entry / "fd").mkdir(parents=True, exist_ok=True)
    (entry / "exe").symlink_to("/usr/bin/qemu-system-x86_64")
    (entry / "cmdline").write_bytes(b"")
    (entry / "stat").write_text(f"7 (a) b) S {'0 ' * 18}{start} 0")
    for number in range(at):
        (entry / "fd" / str(number)).symlink_to("/dev/null")
    (entry / "fd" / str(at)).symlink_to("anon_inode:kvm-vm")
    return proc


class Found:
    """A callback that counts, and can be waited for."""

    def __init__(self) -> None:
        self.times = 0
        self._event = asyncio.Event()

    def __call__(self) -> None:
        self.times += 1
        self._event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(30):
            await self._event.wait()
        self._event.clear()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_the_loop_goes_on_while_all_are_looked_at(crowded: int) -> None:
    async def main() -> None:
        found = Found()
        examiner = ProcessExaminer(found)
        facts = examiner.facts(crowded)
        assert facts.incomplete
        assert facts.problem == "it is being examined"
        ticks = 0
        while not found.times:
            await asyncio.sleep(0)
            ticks += 1
        facts = examiner.facts(crowded)
        assert (facts.kvm_vms, facts.problem, facts.incomplete) == (0, "", False)
        assert ticks > 10
        examiner.close()

    run(main)


def test_no_vm_is_news_for_a_short_time_only(crowded: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VMM may open its VM at any time, and what follows from its having none would be wrong."""

    async def main() -> None:
        found = Found()
        examiner = ProcessExaminer(found)
        assert examiner.facts(crowded).incomplete
        assert examiner.facts(crowded).incomplete
        await found.wait()
        assert found.times == 1, "one thread looks, however often it is asked"
        monkeypatch.setattr(process_examiner, "monotonic", lambda: time.monotonic() + 2)
        assert examiner.facts(crowded).incomplete
        await found.wait()
        assert found.times == 2

    run(main)


def test_what_a_starting_driver_finds_counts_as_long_as_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        found = Found()
        examiner = ProcessExaminer(found, with_vm(tmp_path, 0))
        (tmp_path / "7" / "fd" / "0").unlink()
        await examiner.examine(7)
        assert examiner.facts(7).kvm_vms == 0
        monkeypatch.setattr(process_examiner, "monotonic", lambda: time.monotonic() + 2)
        assert examiner.facts(7).kvm_vms == 0
        (tmp_path / "7" / "fd" / "3").symlink_to("anon_inode:kvm-vm")
        await examiner.examine(7)
        assert examiner.facts(7).kvm_vms == 1

    run(main)


def test_a_vm_is_remembered_as_long_as_its_process_lives(tmp_path: Path) -> None:
    async def main() -> None:
        found = Found()
        examiner = ProcessExaminer(found, with_vm(tmp_path, 300))
        assert examiner.facts(7).incomplete
        await found.wait()
        assert examiner.facts(7).kvm_vms == 1
        (tmp_path / "7" / "fd" / "300").unlink()
        examiner._until = 0.0
        assert examiner.facts(7).kvm_vms == 1
        await examiner.examine(7)
        assert examiner.facts(7).kvm_vms == 1
        (tmp_path / "7" / "stat").write_text(f"7 (a) b) S {'0 ' * 18}8 0")
        await examiner.examine(7)
        assert examiner.facts(7).kvm_vms == 0, "another process has that number by now"
        examiner.close()

    run(main)


def test_a_process_that_never_answers_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose command line is in memory that it does not bring."""
    monkeypatch.setattr(process_examiner, "PATIENCE", 0.05)
    with_vm(tmp_path, 0)
    (tmp_path / "7" / "cmdline").unlink()
    os.mkfifo(tmp_path / "7" / "cmdline")

    async def main() -> None:
        examiner = ProcessExaminer(lambda: None, tmp_path)
        for session in range(2 * MAX_THREADS):
            await examiner.examine(7)
            assert examiner.facts(7).incomplete
            assert examiner._threads == min(session + 1, MAX_THREADS)
            examiner.close()
        await asyncio.to_thread((tmp_path / "7" / "cmdline").write_bytes, b"")
        async with asyncio.timeout(30):
            while examiner._threads:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (tmp_path / "7" / "cmdline").unlink()
        (tmp_path / "7" / "cmdline").write_bytes(b"")
        await examiner.examine(7)
        assert examiner.facts(7).kvm_vms == 1

    run(main)
