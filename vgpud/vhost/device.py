"""The interface between a vhost-user session and the virtio device that it serves.

The session handles the protocol and is the same for every device; a device does not see the
protocol's messages. Source: the vhost-user specification; virtio 1.3, 2 "Basic Facilities of a
Virtio Device".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from vgpud.errors import PeerError
from vgpud.unix.received_fd import ReceivedFd
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.virtqueue import Virtqueue


class Device:
    """The base class of virtio devices, of which each serves one session.

    Methods that not every device needs have a default. `name` is for the log, `queues` are the
    names of its virtqueues in order, `features` its own feature bits as offered, `shared_memory`
    the sizes of its shared-memory regions in bytes by shmid.
    """

    name: str
    queues: Sequence[str]
    features: int = 0
    shared_memory: Mapping[int, int] = {}

    # The session

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Begin a session; the device runs its tasks in this group, which is the session's."""

    def set_memory(self, memory: MemoryTable) -> None:
        """Use another memory table from now on. The rings get it, too."""

    def set_back_end_channel(self, channel: BackEndChannel) -> None:
        """Use another back-end channel from now on; the one before it is closed."""

    def set_display_socket(self, socket: ReceivedFd) -> None:
        """Take the socket of VHOST_USER_GPU_SET_SOCKET; raise `PeerError` if the device has no
        display."""
        raise PeerError(f"{self.name} has no display")

    async def end(self) -> None:
        """End the device's own tasks, because the front-end has disconnected. The queues are
        stopped after this."""

    async def alive(self) -> None:
        """Wait until every thread of the device has responded, however long it takes."""

    async def free(self) -> None:
        """Release what takes long, in steps that let the event loop run; the tasks have ended.

        `close` comes next, and does the rest if this is cancelled.
        """

    def close(self) -> None:
        """Release everything; the tasks have ended, or are cancelled with their group."""

    # The configuration space

    def config(self) -> bytes:
        """Return the configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Handle a driver's write to the configuration space."""

    # The rings

    async def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Start a queue that is ready: call `queue.start` with a handler of chains.

        A device that knows by the beginning of a request how much of it matters says so there, by
        `request_size`, and need not wait for the rest.
        `queue.setup.fresh` is set if the driver has not used the ring yet.
        """
        raise NotImplementedError

    async def stop_queue(self, index: int) -> None:
        """Stop working for a queue until it is started again.

        Commands in progress may be held. Answers that are given nevertheless are written when the
        queue is started again.
        """

    async def reset(self) -> None:
        """Drop everything that the driver has made. All queues have been stopped."""

    async def save(self) -> object:
        """Return the state that a driver depends on as a frozen value for `restore`.

        None for a device that has no state. All queues have been stopped.
        """

    async def restore(self, state: object) -> None:
        """Take over a saved state, before any queue is started."""

    async def quiesce(self) -> None:
        """Complete or hold all work: nothing of the device runs on any thread from the end of this
        call until a queue is started."""
