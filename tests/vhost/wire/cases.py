"""Every vhost-user message as a value and as bytes, spelled by hand from the specification.

One table for readers and writers. The bytes are those of a little-endian machine, which all of the
project's hosts are.
"""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.back_end_channel import BackEndMessage, ConfigChange, ShmemMap, ShmemUnmap
from vgpud.vhost.wire.protocol import BackEndRequestId, FrontEndRequest, ProtocolFeature
from vgpud.vhost.wire.replies import (
    ConfigReply,
    EmptyReply,
    MessageReply,
    ShmemConfig,
    U64Reply,
    VringState,
)
from vgpud.vhost.wire.requests import Request

R = FrontEndRequest
NO_FEATURE = ProtocolFeature(0)


@dataclass(frozen=True)
class Case:
    """`fds`: how many come with it. `extension`: the protocol feature without which it may not."""

    request: FrontEndRequest
    message: Request
    payload: str
    fds: int = 0
    extension: ProtocolFeature = NO_FEATURE

    def __str__(self) -> str:
        return self.request.name

    @property
    def payload_bytes(self) -> bytes:
        return bytes.fromhex(self.payload)


def regions(count: int) -> tuple[m.MemRegion, ...]:
    return tuple(
        m.MemRegion(Gpa(i << 32), 0x1000 * (i + 1), Uva(0x7F00_0000_0000 + i), 0x2000 * i)
        for i in range(count)
    )


REQUESTS = [
    Case(R.GET_FEATURES, m.GetFeatures(), ""),
    Case(R.SET_FEATURES, m.SetFeatures(0x1_4000_0003), "03 00 00 40 01 00 00 00"),
    Case(R.SET_OWNER, m.SetOwner(), ""),
    Case(R.RESET_OWNER, m.ResetOwner(), ""),
    Case(R.SET_MEM_TABLE, m.SetMemTable(()), "00000000 00000000"),
    Case(
        R.SET_MEM_TABLE,
        m.SetMemTable(
            (
                m.MemRegion(Gpa(0), 0xA0000, Uva(0x7F12_3456_0000), 0),
                m.MemRegion(Gpa(0x1_0000_0000), 0x8000_0000, Uva(0x7F13_0000_0000), 0x4000_0000),
            )
        ),
        """02000000 00000000
        0000000000000000 00000a0000000000 00005634127f0000 0000000000000000
        0000000001000000 0000008000000000 00000000137f0000 0000004000000000""",
        fds=2,
    ),
    Case(
        R.SET_LOG_BASE,
        m.SetLogBase(0x8000, 0x1000),
        "0080000000000000 0010000000000000",
        fds=1,
        extension=ProtocolFeature.LOG_SHMFD,
    ),
    Case(R.SET_LOG_FD, m.SetLogFd(), "", fds=1),
    Case(R.SET_VRING_NUM, m.SetVringNum(1, 256), "01000000 00010000"),
    Case(
        R.SET_VRING_ADDR,
        m.SetVringAddr(
            1, 1, Uva(0x7F00_0000_1000), Uva(0x7F00_0000_3000), Uva(0x7F00_0000_2000), Gpa(0x3000)
        ),
        """01000000 01000000
        00100000007f0000 00300000007f0000 00200000007f0000 0030000000000000""",
    ),
    Case(R.SET_VRING_BASE, m.SetVringBase(1, 0xFFFE), "01000000 feff0000"),
    Case(R.GET_VRING_BASE, m.GetVringBase(1), "01000000 00000000"),
    Case(R.SET_VRING_KICK, m.SetVringKick(1, True), "0100000000000000", fds=1),
    Case(R.SET_VRING_KICK, m.SetVringKick(1, False), "0101000000000000"),
    Case(R.SET_VRING_CALL, m.SetVringCall(255, True), "ff00000000000000", fds=1),
    Case(R.SET_VRING_CALL, m.SetVringCall(0, False), "0001000000000000"),
    Case(R.SET_VRING_ERR, m.SetVringErr(0, True), "0000000000000000", fds=1),
    Case(R.SET_VRING_ERR, m.SetVringErr(2, False), "0201000000000000"),
    Case(R.GET_PROTOCOL_FEATURES, m.GetProtocolFeatures(), ""),
    Case(
        R.SET_PROTOCOL_FEATURES,
        m.SetProtocolFeatures(ProtocolFeature.SHMEM | ProtocolFeature.REPLY_ACK),
        "0800400000000000",
    ),
    Case(R.GET_QUEUE_NUM, m.GetQueueNum(), "", extension=ProtocolFeature.MQ),
    Case(R.SET_VRING_ENABLE, m.SetVringEnable(1, True), "01000000 01000000"),
    Case(R.SET_VRING_ENABLE, m.SetVringEnable(1, False), "01000000 00000000"),
    Case(
        R.SET_BACKEND_REQ_FD,
        m.SetBackendReqFd(),
        "",
        fds=1,
        extension=ProtocolFeature.BACKEND_REQ,
    ),
    Case(
        R.GET_CONFIG,
        m.GetConfig(8, 4, 0),
        "08000000 04000000 00000000 00000000",
        extension=ProtocolFeature.CONFIG,
    ),
    Case(
        R.SET_CONFIG,
        m.SetConfig(4, 1, b"\x01\x02\x03"),
        "04000000 03000000 01000000 010203",
        extension=ProtocolFeature.CONFIG,
    ),
    Case(R.GPU_SET_SOCKET, m.GpuSetSocket(), "", fds=1),
    Case(R.RESET_DEVICE, m.ResetDevice(), "", extension=ProtocolFeature.RESET_DEVICE),
    Case(R.GET_SHMEM_CONFIG, m.GetShmemConfig(), "", extension=ProtocolFeature.SHMEM),
]

REPLIES: list[tuple[FrontEndRequest, MessageReply, str]] = [
    (R.GET_FEATURES, U64Reply(0x1_4000_0000), "0000004001000000"),
    (R.GET_PROTOCOL_FEATURES, U64Reply(0x40_2623), "2326400000000000"),
    (R.GET_QUEUE_NUM, U64Reply(2), "0200000000000000"),
    (R.SET_LOG_BASE, EmptyReply(), ""),
    (R.SET_LOG_BASE, U64Reply(1), "0100000000000000"),
    (R.GET_VRING_BASE, VringState(1, 77), "01000000 4d000000"),
    (R.GET_CONFIG, ConfigReply(8, 0, b"\x01\0\0\0"), "08000000 04000000 00000000 01000000"),
    (R.GET_CONFIG, EmptyReply(), ""),
    (R.GET_SHMEM_CONFIG, ShmemConfig(()), "0000000000000000" + "00" * 2048),
    (
        R.GET_SHMEM_CONFIG,
        ShmemConfig((0, 0x1000_0000)),
        "01000000 00000000 0000000000000000 0000001000000000" + "00" * 2032,
    ),
    (R.SET_MEM_TABLE, U64Reply(0), "0000000000000000"),
    (R.GPU_SET_SOCKET, U64Reply(1), "0100000000000000"),
]

BACKEND: list[tuple[BackEndRequestId, BackEndMessage, str]] = [
    (
        BackEndRequestId.SHMEM_MAP,
        ShmemMap(1, 0x1000, 0x20_0000, 0x3000, True),
        """01 00000000000000
        0010000000000000 0000200000000000 0030000000000000 0100000000000000""",
    ),
    (
        BackEndRequestId.SHMEM_MAP,
        ShmemMap(255, 0, 0, 0x1000, False),
        """ff 00000000000000
        0000000000000000 0000000000000000 0010000000000000 0000000000000000""",
    ),
    (
        BackEndRequestId.SHMEM_UNMAP,
        ShmemUnmap(1, 0x20_0000, 0x3000),
        """01 00000000000000
        0000000000000000 0000200000000000 0030000000000000 0000000000000000""",
    ),
    (BackEndRequestId.CONFIG_CHANGE_MSG, ConfigChange(), ""),
]
