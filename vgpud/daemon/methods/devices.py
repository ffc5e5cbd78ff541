"""device.list, device.get, device.resize and device.screenshot."""

from __future__ import annotations

import os
from collections.abc import Mapping

from vgpud.control import params
from vgpud.control.call import Caller, Handler, Reply, refused
from vgpud.control.models import DeviceDetails, ErrorKind, Output, Page, Resized, Screenshot
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods import agents
from vgpud.daemon.methods.lookup import (
    Section,
    as_guest_error,
    device_named,
    devices_of,
    live_device,
    page,
)
from vgpud.daemon.screenshots import Screenshots
from vgpud.gpu.blobs.buffers import BlobBuffers


class DeviceMethods:
    """The methods about devices; `devices` may change meanwhile."""

    def __init__(self, devices: Mapping[str, DeviceServer]) -> None:
        self._devices = devices
        self._screenshots = Screenshots()

    def close(self) -> None:
        """End the threads that make screenshots."""
        self._screenshots.close()

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the methods by name."""
        return {
            "device.list": self._list,
            "device.get": self._get,
            "device.resize": self._resize,
            "device.screenshot": self._screenshot,
        }

    async def _list(self, asked: params.Paged, caller: Caller) -> Page[DeviceDetails]:
        devices = devices_of(self._devices, None, caller)
        listed = Section(len(devices), lambda start, stop: devices[start:stop])
        return await page(Page[DeviceDetails], [listed], asked, describe)

    def _get(self, asked: params.OfDevice, caller: Caller) -> DeviceDetails:
        return describe(device_named(self._devices, asked.device))

    async def _resize(self, asked: params.Resize, caller: Caller) -> Resized:
        device = device_named(self._devices, asked.device)
        live = live_device(device)
        if live.gpu.has_display:
            raise refused(
                ErrorKind.NOT_POSSIBLE,
                f"the VMM has its own display for {device.name}, which decides about modes:"
                " resize its window instead",
            )
        _check_output(device, asked.scanout)
        with as_guest_error():
            await live.resize(asked.scanout, asked.width, asked.height)
        return Resized(
            device=device.name, scanout=asked.scanout, width=asked.width, height=asked.height
        )

    async def _screenshot(self, asked: params.TakeScreenshot, caller: Caller) -> Reply:
        device = device_named(self._devices, asked.device)
        async with self._screenshots.turn(device.name) as work:
            live = live_device(device)
            gpu = live.gpu
            if not gpu.has_display:  # a VMM's display decides how many outputs there are
                _check_output(device, asked.scanout)
            captures, limit = gpu.scanouts.captures, gpu.quota.limit
            with as_guest_error():
                capture = await live.perform(captures.take(asked.scanout, limit, work.run))
            if capture is None:
                what = f"output {asked.scanout} of {device.name} shows nothing"
                raise refused(ErrorKind.NOT_POSSIBLE, what)
            work.at_end(capture.release)
            fd = await work.picture(f"{device.name}-screenshot", capture)
        value = Screenshot(
            device=device.name,
            scanout=asked.scanout,
            width=capture.width,
            height=capture.height,
            format="png",
            size=os.fstat(fd.fileno()).st_size,
        )
        return Reply(value, fd)


def describe(device: DeviceServer) -> DeviceDetails:
    """Return a device and its state."""
    spec, live, buffers = device.spec, device.live, device.buffers
    gpu = live.gpu if live is not None else None
    if gpu is not None:
        spec = gpu.spec
        modes = gpu.scanouts.outputs
        showing = [gpu.scanouts.showing(number) for number in range(len(modes))]
    else:
        modes = spec.outputs
        showing = [None] * len(modes)
    finding = device.finding
    agent = device.agent.attached() if device.agent is not None else None
    return DeviceDetails(
        name=device.name,
        socket=device.socket,
        connected=device.connected,
        front_end_pid=device.front_end_pid,
        layout=spec.layout,
        window=spec.window,
        memory_limit=spec.memory_limit,
        memory_used=gpu.quota.used if gpu is not None else 0,
        buffers=buffers.kind,
        render_node=spec.render_node,
        renderers=tuple(map(str, spec.renderers)),
        slots=device.slot_owner,
        guest_pat=spec.guest_pat,
        kvm_mode=finding.mode if finding is not None else None,
        kvm_reason=finding.reason if finding is not None else None,
        outputs=tuple(
            Output(scanout=number, width=mode.width, height=mode.height, showing=shown)
            for number, (mode, shown) in enumerate(zip(modes, showing, strict=True))
        ),
        display=gpu is not None and gpu.has_display,
        resources=len(gpu.resources) + len(gpu.vmm_blobs) if gpu is not None else 0,
        blobs=gpu.blob_count if gpu is not None else 0,
        contexts=len(gpu.contexts) if gpu is not None else 0,
        agent=agents.describe(device.name, agent) if agent is not None else None,
        problems=_problems(device, buffers),
    )


def _problems(device: DeviceServer, buffers: BlobBuffers) -> tuple[str, ...]:
    problems = [*buffers.problems()]
    if device.live is not None:
        problems += device.live.gpu.plans.problems
        problems += device.live.problems()
        if (refused_memory := device.live.gpu.quota.problem) is not None:
            problems.append(refused_memory)
    if device.live is not None and device.live.state_lost:
        problems.append(
            "the guest's driver has run before this session, and what it has made is lost: restart"
            " the guest, or load its driver again"
        )
    if device.agent is not None and device.agent.grant is None:
        problems.append('slots = "agent", but no agent is attached: nothing can be mapped')
    if device.live is not None and device.live.gpu.spec != device.spec:
        problems.append("part of the configuration takes effect at the next connection only")
    return tuple(problems)


def _check_output(device: DeviceServer, scanout: int) -> None:
    count = len(live_device(device).gpu.scanouts.outputs)
    if scanout >= count:
        has = "one output, 0" if count == 1 else f"outputs 0 to {count - 1}"
        raise refused(ErrorKind.NOT_POSSIBLE, f"{device.name} has {has}, not {scanout}")
