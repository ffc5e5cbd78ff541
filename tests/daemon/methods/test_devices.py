"""device.*: a device's configuration, its state, and what it shows."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.daemon.methods.stand import Methods, kind_of, wait_gone
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.support.png import decode
from tests.vhost.test_session import make_blob, run, show
from vgpud.client import Client
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.call import Reply
from vgpud.control.models import Output, Screenshot
from vgpud.control.rpc import RpcError
from vgpud.daemon.config import Config
from vgpud.daemon.device_server import DeviceServer
from vgpud.errors import HostError
from vgpud.gpu import spec
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Header
from vgpud.gpu.wire.protocol import ResourceId, ResponseType
from vgpud.vhost.wire.back_end_channel import ConfigChange
from vgpud.vhost.wire.protocol import ProtocolFeature

DISPLAY_EVENT = 1


@pytest.fixture
def daemon(short_directory: Path, caplog: pytest.LogCaptureFixture) -> Iterator[DaemonThread]:
    config = (
        f'[daemon]\nruntime_dir = "{short_directory}"\n'
        '[[device]]\nname = "gpu0"\nwindow = "16MiB"\nmemory_limit = "64MiB"\n'
        'outputs = ["640x480", "800x600"]\nguest_pat = "auto"\n'
        '[[device]]\nname = "gpu1"\nwindow = "16MiB"\nmemory_limit = "64MiB"\n'
    )
    with DaemonThread(Config.from_toml(config)) as daemon:
        yield daemon
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def events_read(fe: FrontEnd) -> int:
    return int.from_bytes(fe.get_config(0, 4), "little")


def mode(fe: FrontEnd, scanout: int) -> tuple[int, int]:
    """What the guest is offered."""
    answer = fe.command(encode(c.GetDisplayInfo(Header(0x100))), response_size=24 + 16 * 24)
    _, _, width, height, _, _ = struct.unpack_from("<6I", answer, 24 + scanout * 24)
    return width, height


# -- device.get ------------------------------------------------------------------------------------


def test_a_device_by_itself(methods: Methods, short_directory: Path) -> None:
    device = methods.call("device.get", device="gpu0")
    assert device.socket == str(short_directory / "gpu0.sock")
    assert not device.connected
    assert (device.front_end_pid, device.kvm_mode, device.agent) == (None, None, None)
    assert (device.window, device.memory_limit, device.memory_used) == (16 << 20, 64 << 20, 0)
    assert (device.layout, device.buffers, device.slots) == ("window", "memfd", "frontend")
    assert device.outputs == (
        Output(scanout=0, width=640, height=480, showing=None),
        Output(scanout=1, width=800, height=600, showing=None),
    )
    assert device.problems == ()
    listed = methods.call("device.list")
    assert [item.name for item in listed.items] == ["gpu0", "gpu1"]
    assert listed.items[0] == device


def test_a_device_at_work(methods: Methods, fe: FrontEnd) -> None:
    show(fe)
    make_blob(fe, 1)
    device = methods.call("device.get", device="gpu0")
    assert (device.connected, device.front_end_pid) == (True, os.getpid())
    assert (device.resources, device.blobs, device.contexts) == (2, 1, 1)
    assert device.outputs[0].showing == (64, 64)
    assert device.outputs[1].showing is None
    assert device.memory_used > 16 << 20
    assert device.kvm_mode == "unknown"
    (problem,) = device.problems
    assert problem.startswith("host3d blobs are wb instead of wc: ")
    fallback = next(event for event in methods.events if event.kind == "plan.fallback")
    assert (fallback.device, fallback.message) == ("gpu0", problem)
    assert fallback.data["wanted"] == "wc"
    assert fallback.data["told"] == "wb"
    assert fallback.data["blob"] == "host3d"


def test_a_device_that_is_not_there(methods: Methods) -> None:
    for method in ("device.get", "device.screenshot"):
        with pytest.raises(RpcError, match="no device gpu7: the devices are gpu0, gpu1") as refused:
            methods.call(method, device="gpu7")
        assert kind_of(refused.value) == "no-device"


def test_a_command_that_was_refused_memory_is_a_problem(methods: Methods, fe: FrontEnd) -> None:
    too_large = encode(c.ResourceCreate2D(Header(0x101), ResourceId(9), 1, 8192, 8192))
    answer = fe.command(too_large, response_size=24)
    assert int.from_bytes(answer[:4], "little") == ResponseType.ERR_OUT_OF_MEMORY
    (problem,) = methods.call("device.get", device="gpu0").problems
    assert problem.startswith("memory was refused once: ResourceCreate2D: 268439552 bytes asked")
    assert "raise memory_limit, now 65536 KiB" in problem
    fe.reset()
    fe.command(encode(c.GetDisplayInfo(Header(0x100))), response_size=24 + 16 * 24)
    assert methods.call("device.get", device="gpu0").problems == ()


# -- device.resize ---------------------------------------------------------------------------------


def test_a_resize_reaches_the_guest_as_a_display_event(methods: Methods, fe: FrontEnd) -> None:
    assert (mode(fe, 1), events_read(fe)) == ((800, 600), 0)
    resized = methods.call("device.resize", device="gpu0", width=1024, height=768, scanout=1)
    assert (resized.scanout, resized.width, resized.height) == (1, 1024, 768)
    assert [type(message) for message in fe.backend.messages] == [ConfigChange]
    assert events_read(fe) == DISPLAY_EVENT
    assert (mode(fe, 0), mode(fe, 1)) == ((640, 480), (1024, 768))
    device = methods.call("device.get", device="gpu0")
    assert (device.outputs[1].width, device.outputs[1].height) == (1024, 768)
    event = next(event for event in methods.events if event.kind == "device.resized")
    assert event.data == {"scanout": 1, "width": 1024, "height": 768}
    fe.reset()
    assert mode(fe, 1) == (1024, 768)


def test_a_driver_that_does_not_run_is_notified_when_it_continues(
    methods: Methods, fe: FrontEnd
) -> None:
    assert mode(fe, 1) == (800, 600)
    fe.stop()  # as a VMM that pauses its VM
    for width in (1024, 1152):
        methods.call("device.resize", device="gpu0", width=width, height=768, scanout=1)
    assert methods.kinds().count("device.resized") == 2
    assert fe.backend.messages == []
    fe.start()
    fe.backend.wait(ConfigChange())
    assert mode(fe, 1) == (1152, 768)
    assert events_read(fe) == DISPLAY_EVENT
    assert fe.backend.messages == [ConfigChange()]


def test_a_driver_that_starts_is_not_notified_of_what_it_reads_anyway(
    methods: Methods, daemon: DaemonThread, fe: FrontEnd
) -> None:
    fe.stop()
    methods.call("device.resize", device="gpu0", width=1024, height=768, scanout=1)
    reconfigure(methods, daemon.daemon.devices["gpu0"], outputs=(spec.PreferredMode(800, 600),) * 2)
    for driver in fe.drivers:
        driver.reset()
    fe.start()
    assert mode(fe, 0) == (800, 600)
    assert fe.backend.messages == []


def test_a_resize_that_nobody_passes_on_is_undone(methods: Methods, short_directory: Path) -> None:
    fe = FrontEnd.connect(short_directory / "gpu0.sock")
    with fe.handshake(without=ProtocolFeature.BACKEND_REQ):
        with pytest.raises(HostError, match="no back-end channel"):
            methods.call("device.resize", device="gpu0", width=1024, height=768)
        assert mode(fe, 0) == (640, 480)
        assert "device.resized" not in methods.kinds()


def test_two_resizes_that_nobody_passes_on_are_both_undone(methods: Methods, fe: FrontEnd) -> None:
    fe.backend.answering.clear()
    with ThreadPoolExecutor(2) as clients:
        asking = [
            clients.submit(
                methods.call, "device.resize", device="gpu0", width=width, height=768, scanout=1
            )
            for width in (1024, 1280)
        ]
        fe.backend.wait(ConfigChange())
        methods.call("device.get", device="gpu0")  # by then both have begun
        assert fe.backend._sock is not None
        fe.backend._sock.shutdown(socket.SHUT_RDWR)
        assert all(isinstance(one.exception(5), HostError) for one in asking)
    fe.backend.close()
    assert mode(fe, 1) == (800, 600)


def test_a_resize_that_was_given_up_is_not_done_later(
    methods: Methods, fe: FrontEnd, short_directory: Path
) -> None:
    """As with a VMM that is stopped, and continues after the caller has been told of it."""
    fe.backend.answering.clear()
    params = {"device": "gpu0", "width": 1024, "height": 768, "scanout": 1}
    with Client(short_directory / "control.sock") as client:
        with pytest.raises(RpcError, match=r"device\.resize was not done in 0.3 seconds"):
            client.call("device.resize", params, timeout=0.3)
        fe.backend.answering.set()
        client.call("device.resize", {**params, "scanout": 0})
    assert (mode(fe, 0), mode(fe, 1)) == ((1024, 768), (800, 600))
    assert methods.kinds().count("device.resized") == 1


def test_what_can_not_be_resized(methods: Methods, fe: FrontEnd) -> None:
    with pytest.raises(RpcError, match="outputs 0 to 1, not 2") as refused:
        methods.call("device.resize", device="gpu0", width=1024, height=768, scanout=2)
    assert kind_of(refused.value) == "not-possible"
    with pytest.raises(RpcError) as refused:
        methods.call("device.resize", device="gpu1", width=1024, height=768)
    assert kind_of(refused.value) == "no-front-end"
    with fe.gpu_set_socket():
        with pytest.raises(RpcError, match="its own display") as refused:
            methods.call("device.resize", device="gpu0", width=1024, height=768)
        assert kind_of(refused.value) == "not-possible"
        assert methods.call("device.get", device="gpu0").display


# -- device.screenshot -----------------------------------------------------------------------------


def test_a_screenshot_is_a_png_that_nobody_can_change(methods: Methods, fe: FrontEnd) -> None:
    show(fe)
    reply = methods.call("device.screenshot", device="gpu0")
    assert isinstance(reply, Reply)
    assert isinstance(reply.value, Screenshot)
    assert (reply.value.width, reply.value.height, reply.value.format) == (64, 64, "png")
    with reply.fd as fd:
        assert os.fstat(fd.fileno()).st_size == reply.value.size
        assert os.lseek(fd.fileno(), 0, os.SEEK_CUR) == 0
        picture = decode(os.read(fd.fileno(), reply.value.size))
        seals = fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        with pytest.raises(PermissionError):
            mmap.mmap(fd.fileno(), 0)
    assert np.array_equal(picture, np.broadcast_to(np.array([0, 0, 255], np.uint8), (64, 64, 3)))


def test_of_what_shows_nothing_there_is_no_screenshot(methods: Methods, fe: FrontEnd) -> None:
    with pytest.raises(RpcError, match="output 0 of gpu0 shows nothing") as refused:
        methods.call("device.screenshot", device="gpu0")
    assert kind_of(refused.value) == "not-possible"
    with pytest.raises(RpcError, match="outputs 0 to 1, not 5"):
        methods.call("device.screenshot", device="gpu0", scanout=5)
    with pytest.raises(RpcError) as refused:
        methods.call("device.screenshot", device="gpu1")
    assert kind_of(refused.value) == "no-front-end"


def test_a_screenshot_takes_nothing_of_the_guest_s_memory(
    methods: Methods, fe: FrontEnd, daemon: DaemonThread
) -> None:
    show(fe)
    live = daemon.daemon.devices["gpu0"].live
    assert live is not None
    quota = live.gpu.quota
    charge = quota.charge(quota.limit - quota.used)
    methods.call("device.screenshot", device="gpu0").fd.close()
    assert quota.used == quota.limit
    charge.release()


def test_a_screenshot_is_no_larger_than_the_guest_s_memory(
    methods: Methods, fe: FrontEnd, daemon: DaemonThread
) -> None:
    show(fe)
    live = daemon.daemon.devices["gpu0"].live
    assert live is not None
    live.gpu.quota.limit = 64 * 64 * 7 - 1
    with pytest.raises(RpcError, match="64x64 takes 28672 bytes") as caught:
        methods.call("device.screenshot", device="gpu0")
    assert kind_of(caught.value) == "guest"


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_caller_that_goes_leaves_no_screenshot_behind(
    methods: Methods, fe: FrontEnd, daemon: DaemonThread
) -> None:
    show(fe)
    before = descriptors()

    async def give_up() -> None:
        task = asyncio.ensure_future(methods.start("device.screenshot", device="gpu0"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.2)

    methods.run(give_up())
    assert descriptors() == before


# -- What a device does by itself ------------------------------------------------------------------


def test_what_happens_to_a_device_is_told(
    methods: Methods, daemon: DaemonThread, short_directory: Path
) -> None:
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
        show(fe)
        fe.reset()
    server = daemon.daemon.devices["gpu0"]
    wait_gone(server)
    with FrontEnd.connect(short_directory / "gpu0.sock") as fe:
        fe.sock.sendall(b"\xff" * 12)
        assert fe.hung_up()
    wait_gone(server)
    assert methods.kinds() == [
        "device.connected",
        "device.reset",
        "device.disconnected",
        "device.connected",
        "device.failed",
        "device.disconnected",
    ]
    assert {event.device for event in methods.events} == {"gpu0"}
    assert (server.counters.sessions, server.counters.resets) == (2, 1)
    counted = server.counters.commands
    assert (counted[c.ResourceCreate2D], counted[c.ResourceFlush]) == (1, 1)


def test_a_guest_that_resets_over_and_over_fills_no_log(
    daemon: DaemonThread, short_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
            for _ in range(3):
                make_blob(fe, 1)
                fe.reset()
        wait_gone(daemon.daemon.devices["gpu0"])
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("guest PAT device=gpu0 kvm=") for line in lines) == 2
    assert sum("command refused" in line for line in lines) == 0


# -- Another configuration while a front-end is connected ------------------------------------------


def reconfigure(methods: Methods, server: DeviceServer, **changes: Any) -> None:
    async def work() -> None:
        server.reconfigure(replace(server.spec, **changes))

    methods.run(work())


def test_modes_and_limit_hold_at_once(methods: Methods, fe: FrontEnd, daemon: DaemonThread) -> None:
    server = daemon.daemon.devices["gpu0"]
    modes = (spec.PreferredMode(640, 480), spec.PreferredMode(1920, 1080))
    methods.events.clear()
    reconfigure(methods, server, outputs=modes, memory_limit=32 << 20)
    assert mode(fe, 1) == (1920, 1080)
    assert events_read(fe) == DISPLAY_EVENT
    fe.backend.wait(ConfigChange())
    device = methods.call("device.get", device="gpu0")
    assert device.memory_limit == 32 << 20
    assert device.problems == ()
    assert methods.kinds() == ["device.resized", "device.changed"]
    reconfigure(methods, server)  # nothing
    assert methods.kinds() == ["device.resized", "device.changed"]


def test_what_a_session_is_built_on_holds_for_the_next(
    methods: Methods, daemon: DaemonThread, short_directory: Path
) -> None:
    server = daemon.daemon.devices["gpu0"]
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
        reconfigure(
            methods,
            server,
            window=32 << 20,
            slots=SlotOwner.AGENT,
            outputs=(spec.PreferredMode(1024, 768),),
        )
        assert mode(fe, 1) == (800, 600)
        device = methods.call("device.get", device="gpu0")
        assert (device.window, device.slots, len(device.outputs)) == (16 << 20, "frontend", 2)
        assert "takes effect at the next connection" in device.problems[0]
    wait_gone(server)
    device = methods.call("device.get", device="gpu0")
    assert (device.window, device.slots, len(device.outputs)) == (32 << 20, "agent", 1)
    assert "no agent is attached" in device.problems[0]
    assert server.agent is not None
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
        make_blob(fe, 1)
        assert run(fe, c.ResourceMapBlob, 1, 0) == ResponseType.ERR_UNSPEC  # as nobody can
        assert fe.backend.messages == []
        reconfigure(methods, server, slots=SlotOwner.FRONTEND)
        assert server.agent is not None
    wait_gone(server)
    assert server.agent is None


def test_a_device_is_alive_with_a_session_and_without(
    methods: Methods, daemon: DaemonThread, short_directory: Path
) -> None:
    server = daemon.daemon.devices["gpu0"]
    assert methods.run(server.alive())
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake():
        assert methods.run(server.alive())
