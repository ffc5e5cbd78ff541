"""What a virtio device is to its vhost-user session.

The session speaks the protocol and knows nothing of what a device does; a device knows nothing of
the protocol's messages. Source: the vhost-user specification; virtio 1.3, 2 "Basic Facilities of a
Virtio Device".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from vgpud.errors import PeerError
from vgpud.unix.fd import Fd
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.virtqueue import Virtqueue


class Device:
    """A virtio device, for as long as one front-end is connected. Subclass it: what a device has no
    need of has a default.

    `name` is for the log, `queues` are the names of its virtqueues in order, `features` its own
    feature bits as offered, `shared_memory` the sizes of its shared-memory regions by shmid, in
    bytes.
    """

    name: str
    queues: Sequence[str]
    features: int = 0
    shared_memory: Mapping[int, int] = {}

    # What lasts as long as the session

    def open(self, tasks: asyncio.TaskGroup) -> None:
        """Begin: what the device runs are tasks of this group, which is the session's."""

    def set_memory(self, memory: MemoryTable) -> None:
        """Take the memory table in force, in place of the one before it. The rings have it too."""

    def set_back_end_channel(self, channel: BackEndChannel) -> None:
        """Take the channel on which the front-end can be asked for something, in place of the one
        before it, which is closed."""

    def set_display_socket(self, socket: Fd) -> None:
        """Take the socket of VHOST_USER_GPU_SET_SOCKET; raise `PeerError` if the device has no use
        for one."""
        raise PeerError(f"{self.name} has no display")

    async def end(self) -> None:
        """End what the device runs by itself: the front-end has gone. The queues are stopped after
        this."""

    async def alive(self) -> None:
        """Return once every thread of the device has done something new, however long it takes."""

    def close(self) -> None:
        """Let go of everything; the tasks have ended, or are cancelled with their group."""

    # The configuration space

    def config(self) -> bytes:
        """Return the configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """Take what the driver writes to the configuration space."""

    # The rings

    async def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Take a queue that is ready, and start it: `queue.start` with a handler of chains.

        `queue.setup.fresh` tells that a driver starts there which has used nothing of the ring yet.
        """
        raise NotImplementedError

    async def stop_queue(self, index: int) -> None:
        """Give a queue back: do nothing for it until it is started again. What is under way for it
        may be held; what is answered nevertheless is delivered when the queue is started again."""

    async def reset(self) -> None:
        """Forget everything that the driver has made. All queues have been stopped."""

    async def save(self) -> object:
        """Return all that a driver depends on as a frozen value, which `restore` takes; None for a
        device that has no state. All queues have been stopped."""

    async def restore(self, state: object) -> None:
        """Become the device of a value, before any queue is started."""

    async def quiesce(self) -> None:
        """Have all work done or held: nothing of the device runs on any thread when this returns,
        until a queue is started."""
