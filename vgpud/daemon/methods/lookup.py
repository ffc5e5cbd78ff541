"""The common part of the methods: looking up what a caller names, and paging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from vgpud.control.call import refused
from vgpud.control.models import ErrorKind, Model, Page
from vgpud.control.params import Paged
from vgpud.control.rpc import RpcError
from vgpud.daemon.device_server import DeviceServer
from vgpud.errors import HostError, VgpudError
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.errors import response_code

T = TypeVar("T")
Item = TypeVar("Item", bound=Model)


def device_named(devices: Mapping[str, DeviceServer], name: str) -> DeviceServer:
    """Return the device of this name; raises RpcError (no-device)."""
    device = devices.get(name)
    if device is None:
        there = f"the devices are {', '.join(sorted(devices))}" if devices else "there is none"
        raise refused(ErrorKind.NO_DEVICE, f"no device {name}: {there}")
    return device


def devices_of(devices: Mapping[str, DeviceServer], name: str | None) -> Sequence[DeviceServer]:
    """Return the device of this name, or all devices for None; raises RpcError (no-device)."""
    return [*devices.values()] if name is None else [device_named(devices, name)]


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


def page(
    kind: type[Page[Item]], all_: Sequence[T], params: Paged, make: Callable[[T], Item]
) -> Page[Item]:
    """Return the requested part of a listing; `make` is called for the items in it only."""
    part = all_[params.offset : params.offset + params.limit]
    return kind(items=tuple(map(make, part)), offset=params.offset, total=len(all_))
