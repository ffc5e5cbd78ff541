"""A device with nothing behind it: the ports as fakes, guest memory on memfds, and a driver.

Nothing here needs an event loop: a coroutine of the device is stepped by hand, so that a test says
where it stands still and where it is cancelled.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import Buffers, GuestPat, Layout, Rule
from vgpud.errors import HostError, VgpudError
from vgpud.gpu.contexts import Submission
from vgpud.gpu.display.reading import Budget
from vgpud.gpu.environment import Environment
from vgpud.gpu.errors import Unspecified, response_code
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.renderers import MakeRenderers, make_renderers
from vgpud.gpu.spec import DeviceSpec, PreferredMode, RendererName
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ResourceId, ResponseType
from vgpud.gpu.wire.responses import DisplayMode, OkNoData, Response
from vgpud.gpu.work import Done, Timeline, Work
from vgpud.memory import memfd
from vgpud.publish import Json
from vgpud.unix.fd import Fd

KIB = 1 << 10
MIB = 1 << 20
PAGE = 4096
WINDOW = MIB
LIMIT = 64 * MIB


class Pause:
    """Where a fake stands still, if it was asked to."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


class Patience:
    """Whether what is waited for comes at once, or only when the test goes on."""

    def __init__(self) -> None:
        self.pausing = False

    async def wait(self) -> None:
        if self.pausing:
            await Pause()


class Bar:
    """The VMM's side of the window, as strict as QEMU's: no overlap, no unmapping by halves."""

    def __init__(self, patience: Patience, size: int) -> None:
        self.refusing = False
        self.flags: int | None = None  # of the last map
        self.size = size
        self._patience = patience
        self._given_up: set[tuple[int, int]] = set()
        self.mappings: dict[int, tuple[int, Fd]] = {}

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        self.flags = flags
        taken = any(
            start < bar_offset + length and bar_offset < start + size
            for start, (size, _) in self.mappings.items()
        )
        if self.refusing or taken or fd_offset or bar_offset + length > self.size:
            raise HostError("map", OSError(errno.EREMOTEIO, ""))
        self.mappings[bar_offset] = (length, fd.dup())
        try:
            await self._patience.wait()
        except asyncio.CancelledError:
            self._drop(bar_offset)  # given up in mid-flight, it is taken back
            raise

    async def unmap(self, bar_offset: int, length: int) -> None:
        if (bar_offset, length) in self._given_up:  # asked again, it has been done meanwhile
            self._given_up.remove((bar_offset, length))
            return
        if self.refusing or self.mappings.get(bar_offset, (0, None))[0] != length:
            raise HostError("unmap", OSError(errno.EREMOTEIO, ""))
        self._drop(bar_offset)
        try:
            await self._patience.wait()
        except asyncio.CancelledError:
            self._given_up.add((bar_offset, length))
            raise

    def read(self, offset: int, length: int) -> bytes:
        """What the guest reads from its window."""
        fd, at = self._at(offset, length)
        return os.pread(fd.fileno(), length, at)

    def write(self, offset: int, data: bytes) -> None:
        """What the guest writes into its window."""
        fd, at = self._at(offset, len(data))
        os.pwrite(fd.fileno(), data, at)

    def allocated(self) -> int:
        """Bytes of the host's memory in the files that are mapped."""
        return sum(memfd.allocated_bytes(fd) for _, fd in self.mappings.values())

    def holds(self, offset: int) -> bool:
        return any(start <= offset < start + size for start, (size, _) in self.mappings.items())

    def clear(self) -> None:
        """Drops all mappings, as a VMM does when its device is reset."""
        for offset in list(self.mappings):
            self._drop(offset)
        self._given_up.clear()

    def _drop(self, offset: int) -> None:
        self.mappings.pop(offset)[1].close()

    def _at(self, offset: int, length: int) -> tuple[Fd, int]:
        for start, (size, fd) in self.mappings.items():
            if start <= offset and offset + length <= start + size:
                return fd, offset - start
        raise AssertionError(f"nothing is mapped at {offset:#x}")


class FakeExecutor:
    """A `gpu.work.WorkExecutor` whose work is done at once, or when the test says so."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._touched: Counter[ResourceId] = Counter()
        self._held: list[Callable[[], None]] = []
        self._holding = False
        self.waited_for: list[ResourceId] = []
        self.submitted = 0

    def submit(self, key: Timeline, work: Work, done: Done) -> None:
        self.submitted += 1
        if not self._holding:
            run(work, done)
            return
        self._touched.update(work.resources)

        def finish() -> None:
            try:
                run(work, done)
            finally:
                self._touched.subtract(work.resources)

        self._held.append(finish)

    def hold(self, submission: Submission) -> Callable[[], None]:
        """Starts a submission and leaves its work undone; returns what does it, and raises what it
        is refused with."""
        ended = Ended()
        self._holding = True
        try:
            submission.start(ended)
        finally:
            self._holding = False
        [finish] = self._held
        self._held.clear()

        def finish_and_check() -> None:
            finish()
            ended.check()

        return finish_and_check

    async def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def drop(self) -> None:
        self._touched.clear()

    def busy(self, resource: ResourceId) -> bool:
        return self._touched[resource] > 0

    async def drained(self, resource: ResourceId) -> None:
        self.waited_for.append(resource)
        while self.busy(resource):
            await Pause()
        await self._patience.wait()

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        await self.run_in_thread(steps)

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        try:
            await self._patience.wait()
        finally:
            for _ in steps:  # once begun it is waited for
                pass

    def free_soon(self, steps: Iterator[None]) -> None:
        for _ in steps:
            pass

    async def free_pages(self, steps: Iterator[None], *, give_up: bool = False) -> None:
        await self.run_in_thread(steps)

    async def pages_freed(self) -> None:
        pass


class Screen:
    """A `Display` that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.images: list[NDArray[np.uint8]] = []
        self.silent = False

    def scanout(self, scanout_id: int, width: int, height: int) -> None:
        self.told.append(("scanout", scanout_id, width, height))

    def damage(self, scanout_id: int, rect: Rect) -> None:
        self.told.append(("damage", scanout_id, rect))

    unsettled = False

    def taking(self, scanout_id: int) -> bool:
        return False

    def settle(self, scanout_id: int, budget: Budget) -> bool:
        return True

    async def finish_settling(self, scanout_id: int) -> None:
        raise AssertionError("everything is taken at once")

    def cursor_update(
        self, scanout_id: int, x: int, y: int, hot_x: int, hot_y: int, image: NDArray[np.uint8]
    ) -> None:
        self.told.append(("cursor", scanout_id, x, y, hot_x, hot_y))
        self.images.append(image)

    def cursor_move(self, scanout_id: int, x: int, y: int, *, visible: bool) -> None:
        self.told.append(("move", scanout_id, x, y, visible))

    async def modes(self) -> Sequence[DisplayMode]:
        self._check()
        return [DisplayMode(Rect(0, 0, 111, 222), enabled=True)] * 16

    async def edid(self, scanout_id: int) -> bytes:
        self._check()
        return bytes([scanout_id]) * 128

    def take(self) -> list[tuple[Any, ...]]:
        """What it was told since it was last asked."""
        told, self.told = self.told, []
        return told

    def _check(self) -> None:
        if self.silent:
            raise Unspecified("the display does not answer")


@dataclass(frozen=True)
class Region:
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    mmap_offset: int


def screenshot(gpu: Gpu, scanout_id: int) -> NDArray[np.uint8] | None:
    """What a scanout shows: RGB, shape (height, width, 3); None if it is off or can't be read."""

    async def take() -> NDArray[np.uint8] | None:
        capture = await gpu.scanouts.captures.take(scanout_id, gpu.quota.limit)
        if capture is None:
            return None
        picture = np.concatenate([*capture.rows()])
        capture.release()
        return picture

    return asyncio.run(take())


REGION = 256 * KIB
LOW, NEXT, HIGH = 0x10000, 0x10000 + REGION, 1 << 32
"""Guest-physical starts of the three regions; the second follows the first, in another file."""


class Ram:
    """Guest memory of three regions, filled with bytes that repeat nowhere."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self._files = []
        for seed in range(3):
            fd = Fd(os.memfd_create("ram", os.MFD_CLOEXEC))
            os.write(fd.fileno(), random_bytes(REGION, seed))
            self._files.append(fd)
        self.share()

    def share(self, starts: Sequence[int] = (LOW, NEXT, HIGH)) -> None:
        """Sends a memory table with these starts; a region left out is gone."""
        self.memory.table = self.memory.table.with_regions(
            [
                (Region(start, REGION, 0x7F0000000000 + start, 0), fd.dup())
                for start, fd in zip(starts, self._files, strict=False)
            ]
        )

    def read(self, *pieces: tuple[int, int]) -> NDArray[np.uint8]:
        """The bytes of a list of pages."""
        parts = [
            np.frombuffer(self.memory.table.read(addr, length), np.uint8) for addr, length in pieces
        ]
        return np.concatenate([np.empty(0, np.uint8), *parts])

    def snapshot(self) -> bytes:
        return b"".join(os.pread(fd.fileno(), REGION, 0) for fd in self._files)

    def close(self) -> None:
        self.memory.table = self.memory.table.with_regions([])
        for fd in self._files:
            fd.close()


class Machine:
    """A guest and its device; use it as a context manager."""

    def __init__(
        self,
        layout: Layout = Layout.WINDOW,
        *,
        window: int = WINDOW,
        limit: int = LIMIT,
        outputs: Sequence[tuple[int, int]] = ((640, 480),),
        guest_pat: GuestPat = GuestPat.HONORED,
        rule: Rule | None = None,
        kvm: KvmMode = KvmMode.UNKNOWN,
        buffers: Buffers = Buffers.AUTO,
        render_node: str | None = None,
        renderers: tuple[RendererName, ...] = (RendererName.DMA,),
        make_renderers: MakeRenderers = make_renderers,
        executor: type[FakeExecutor] = FakeExecutor,
    ) -> None:
        self.spec = DeviceSpec(
            name="gpu0",
            window=window,
            memory_limit=limit,
            outputs=tuple(PreferredMode(*size) for size in outputs),
            guest_pat=guest_pat,
            rules=(rule or Rule(layout=layout),),
            layout=layout,
            buffers=buffers,
            render_node=render_node,
            renderers=renderers,
        )
        self.patience = Patience()
        self.ram = Ram()
        self.bar = Bar(self.patience, window)
        self.executor = executor(self.patience)
        self.kvm = kvm
        self.events: list[tuple[str, int | None, dict[str, Json]]] = []
        self.gpu = Gpu(
            self.spec,
            Environment(
                find_kvm_mode=lambda: self.kvm,
                publish=self._publish,
                make_renderers=make_renderers,
            ),
            self.ram.memory,
            self.bar,
            self.executor,
        )
        self.empty = self.used

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.gpu.close()
        self.bar.clear()
        self.ram.close()

    def _publish(
        self, kind: str, message: str, *, resource: int | None = None, **data: Json
    ) -> None:
        self.events.append((kind, resource, data))

    @property
    def used(self) -> int:
        return self.gpu.quota.used

    def do(self, command: Command) -> Response:
        """Executes a command and all that comes of it; raises its `VgpudError`."""
        outcome: object = self.gpu.execute(command)
        if isinstance(outcome, Coroutine):
            outcome = finish(outcome)
        if isinstance(outcome, Submission):
            outcome = run_submission(outcome)
        return outcome  # type: ignore[return-value]

    def all(self, *some: Command) -> None:
        """Executes commands of which each must succeed."""
        for command in some:
            self.do(command)

    def hold(self, command: Command) -> Callable[[], None]:
        """Executes a command that submits work, and leaves that undone; returns what does it."""
        outcome: object = self.gpu.execute(command)
        if isinstance(outcome, Coroutine):
            outcome = finish(outcome)
        assert isinstance(outcome, Submission)
        return self.executor.hold(outcome)

    def start(self, command: Command) -> Coroutine[Any, Any, Response]:
        """Executes a command whose answer has to be waited for."""
        outcome = self.gpu.execute(command)
        assert isinstance(outcome, Coroutine)
        return outcome  # type: ignore[return-value]

    def bytes_of(self, resource_id: int) -> bytes:
        """A resource's bytes, wherever they are."""
        contents = self.gpu.resources.get(ResourceId(resource_id)).contents()
        return contents.read(0, contents.size).tobytes()

    def reset(self) -> None:
        """Resets the device and the VMM's mappings with it."""
        self.bar.clear()
        self.gpu.reset()


class Ended:
    """What a submission has come to."""

    def __init__(self) -> None:
        self._errors: list[VgpudError | None] = []

    def __call__(self, error: VgpudError | None) -> None:
        self._errors.append(error)

    def check(self) -> None:
        """Raises what it was refused with; it must have ended, once."""
        [error] = self._errors
        if error is not None:
            raise error


def run(work: Work, done: Done) -> None:
    """Does work, as an executor does."""
    error = work.refusal
    try:
        for _ in work.steps:
            pass
    except VgpudError as caught:
        error = caught
    finally:
        if work.charge is not None:
            work.charge.release()
    done(error)


def run_submission(submission: Submission) -> Response:
    """Does all that was submitted; raises what it is refused with."""
    ended = Ended()
    submission.start(ended)
    ended.check()
    return OkNoData()


def stop_at(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Goes on to the next pause; False if the end came first."""
    try:
        coroutine.send(None)
    except StopIteration:
        return False
    return True


def finish(coroutine: Coroutine[Any, Any, Any], pauses: int = 10_000) -> Any:
    """Goes on to the end; returns the result."""
    for _ in range(pauses):
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
    raise AssertionError("the command waits forever")


def cancel(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Cancels a coroutine where it stands."""
    with pytest.raises(asyncio.CancelledError):
        coroutine.throw(asyncio.CancelledError())


@contextmanager
def refused(code: ResponseType) -> Iterator[None]:
    """Expects a `VgpudError` of this code."""
    with pytest.raises(VgpudError) as caught:
        yield
    assert response_code(caught.value) is code


def random_bytes(size: int, seed: int = 1) -> bytes:
    """Bytes that repeat nowhere, the same in each run."""
    return np.random.default_rng(seed).bytes(size)
