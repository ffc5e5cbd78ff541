"""A daemon in a thread of the test's own process, for tests that look inside it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from vgpud.daemon.config import Config
from vgpud.daemon.daemon import Daemon
from vgpud.slots.owner import TrackedSlots

START_S: Final = 10.0
STOP_S: Final = 10.0


class DaemonThread:
    """Runs a Daemon on an event loop of its own; use it as a context manager.

    Leaving the context stops the daemon and raises what it ended with, if that was an error.
    """

    def __init__(self, config: Config, slots: Mapping[str, TrackedSlots] | None = None) -> None:
        """Say what to serve; entering the context returns once every socket listens."""
        self._config = config
        self._slots = slots
        self._listening: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._main, name="vgpud")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._listening.result(START_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()
        self._ended.result()

    @property
    def daemon(self) -> Daemon:
        """The daemon; what is not safe to use from another thread goes through `call`."""
        return self._daemon

    def screenshot(self, scanout_id: int = 0, device: str = "gpu0") -> NDArray[np.uint8] | None:
        """What a scanout shows now: RGB, shape (height, width, 3); None if it is off."""

        async def read() -> NDArray[np.uint8] | None:
            live = self._daemon.devices[device].live
            if live is None:
                return None
            capture = await live.gpu.scanouts.captures.take(scanout_id, live.gpu.quota.limit)
            if capture is None:
                return None
            picture = np.concatenate([*capture.rows()])
            capture.release()
            return picture

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(STOP_S)

    def _stop(self) -> None:
        if self._thread.is_alive() and hasattr(self, "_loop"):
            self._loop.call_soon_threadsafe(self._daemon.stop)
        self._thread.join(STOP_S)
        assert not self._thread.is_alive(), "the daemon does not stop"

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # handed on to the test
            for future in (self._listening, self._ended):
                if not future.done():
                    future.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._daemon = Daemon(self._config, slots=self._slots)
        async with asyncio.TaskGroup() as group:
            announcer = group.create_task(self._announce())
            await self._daemon.run()
            announcer.cancel()

    async def _announce(self) -> None:
        await self._daemon.wait_listening()
        self._listening.set_result(None)
