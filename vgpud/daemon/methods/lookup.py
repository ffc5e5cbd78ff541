"""The common part of the methods: looking up what a caller names, and paging."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from vgpud.control.call import Caller, refused
from vgpud.control.fitting import MAX_REPLY, item_text
from vgpud.control.models import ErrorKind, Model, Page
from vgpud.control.params import Paged
from vgpud.control.rpc import RpcError
from vgpud.daemon.device_server import DeviceServer
from vgpud.errors import HostError, VgpudError
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.errors import response_code
from vgpud.pace import Pace

T = TypeVar("T")
Item = TypeVar("Item", bound=Model)


def device_named(devices: Mapping[str, DeviceServer], name: str) -> DeviceServer:
    """Return the device of this name; raises RpcError (no-device)."""
    device = devices.get(name)
    if device is None:
        there = f"the devices are {', '.join(sorted(devices))}" if devices else "there is none"
        raise refused(ErrorKind.NO_DEVICE, f"no device {name}: {there}")
    return device


def devices_of(
    devices: Mapping[str, DeviceServer], name: str | None, caller: Caller
) -> Sequence[DeviceServer]:
    """Return the device of this name, or all that the caller may observe for None.

    Raises RpcError (no-device).
    """
    if name is not None:
        return [device_named(devices, name)]
    return [device for device in devices.values() if caller.observes(device.name)]


def live_device(device: DeviceServer) -> GpuDevice:
    """Return the device of the present session; raises RpcError (no-front-end)."""
    if device.live is None:
        raise refused(ErrorKind.NO_FRONT_END, f"no front-end is connected to {device.name}")
    return device.live


@contextmanager
def as_guest_error() -> Iterator[None]:
    """Translate a device's error to an RpcError with the response code that a guest would get.

    Errors of the host and of the caller pass unchanged.
    """
    try:
        yield
    except (HostError, RpcError):
        raise
    except VgpudError as error:
        raise refused(ErrorKind.GUEST, str(error), code=int(response_code(error))) from error


@dataclass(frozen=True, slots=True)
class Section(Generic[T]):
    """One of the lists that a listing is made of: its length, and a function of the indices (start,
    stop) that returns a part of it."""

    length: int
    items: Callable[[int, int], Iterable[T]]


async def page(
    kind: type[Page[Item]], parts: Iterable[Section[T]], params: Paged, make: Callable[[T], Item]
) -> Page[Item]:
    """Return the requested part of a listing, or as many items of it as a datagram can have.

    `make` is called for these items only. Other tasks run meanwhile, so what is listed may end.
    """
    wanted: list[T] = []
    total = 0
    for part in parts:
        start = max(params.offset - total, 0)
        stop = min(params.offset + params.limit - total, part.length)
        if start < stop:
            wanted += part.items(start, stop)
        total += part.length
    items: list[Item] = []
    room, pace = MAX_REPLY, Pace()
    for each in wanted:
        items.append(make(each))
        room -= len(item_text(items[-1]))
        if room < 0:
            break
        await pace.step()
    return kind(items=tuple(items), offset=params.offset, total=total)
