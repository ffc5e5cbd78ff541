"""The numbers of the vhost-user protocol: request ids, feature bits, header flags and limits.

It has constants only; messages are in `messages`. Source: vhost-user.rst,
"Message Specification", "Protocol features", "Front-end message types" and "Back-end message
types"; names are the specification's.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import Final


class FrontEndRequest(IntEnum):
    """The id of a message from the front-end ("VHOST_USER_..." in the specification)."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackEndRequestId(IntEnum):
    """The id of a message from the back-end ("VHOST_USER_BACKEND_..." in the specification)."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*, as bits of the u64 of GET_PROTOCOL_FEATURES.

    SHMEM is bit 22 in the specification. Drafts had it at 20 and 21, which now mean other things: a
    back-end that offers 21 is sent guest-physical ring addresses.
    """

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22


class HeaderFlag(IntFlag):
    """The `flags` word of a header: two bits of version, the rest bit by bit."""

    VERSION_1 = 1
    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


REQUEST_FLAGS_MASK: Final = int(HeaderFlag.NEED_REPLY)
"""What may differ between the flags of one request and another; the rest must be VERSION_1.

An int, and so are its inverses: ~ on a flag inverts only the bits that have a name.
"""

HEADER: Final = struct.Struct("=III")
"""request, flags, payload size; every number of the protocol is in the machine's byte order."""

F_LOG_ALL: Final = 1 << 26
"""VHOST_F_LOG_ALL: the back-end marks what it writes in the dirty log."""

F_PROTOCOL_FEATURES: Final = 1 << 30
"""VHOST_USER_F_PROTOCOL_FEATURES: protocol features can be asked for."""

F_NOTIFY_ON_EMPTY: Final = 1 << 24
F_ANY_LAYOUT: Final = 1 << 27
F_RING_INDIRECT_DESC: Final = 1 << 28
F_RING_EVENT_IDX: Final = 1 << 29
F_RING_RESET: Final = 1 << 40

F_FRONT_END_RING: Final = (
    F_NOTIFY_ON_EMPTY | F_ANY_LAYOUT | F_RING_INDIRECT_DESC | F_RING_EVENT_IDX | F_RING_RESET
)
"""Ring features that QEMU offers the guest of its own accord, whatever the back-end offered.

It acknowledges what the guest took, so that SET_FEATURES may have them, and a back-end has to obey
INDIRECT_DESC and EVENT_IDX; the others ask nothing of it once VERSION_1 is in use. Any other bit
that was not offered is an error: the guest and we would read the rings differently.
"""

UNSUPPORTED: Final = MappingProxyType(
    {
        1 << 33: "VIRTIO_F_ACCESS_PLATFORM: the back-end translates no addresses, so its device"
        " can't be behind a vIOMMU (QEMU: iommu_platform=off for this device)",
        1 << 34: "VIRTIO_F_RING_PACKED: the back-end has split virtqueues (QEMU: packed=off)",
        1 << 35: "VIRTIO_F_IN_ORDER: the back-end uses chains in any order (QEMU: in_order=off)",
    }
)
"""Features that a front-end may acknowledge because of an option of its own, although the back-end
has not offered them, and what to do about it. Source: virtio 1.3, 6."""

VRING_F_LOG: Final = 1 << 0
"""SET_VRING_ADDR.flags: writes to the used ring are logged too, at `log`."""

VRING_IDX_MASK: Final = 0xFF
VRING_NOFD: Final = 1 << 8
"""SET_VRING_KICK, CALL and ERR: the message has no fd, poll instead (or don't signal)."""

MAX_MEM_REGIONS: Final = 32
"""Regions in a memory table: the specification draws 8, as QEMU has, but others send up to 32."""

MAX_FDS: Final = MAX_MEM_REGIONS
"""Fds that any one message can have: a memory table has the most."""

MAX_CONFIG_SIZE: Final = 256
"""Bytes of config space in one message, as in QEMU; a virtio-gpu's has 20."""

MAX_SHMEM_REGIONS: Final = 256
"""Length of GET_SHMEM_CONFIG's table: a shmid is a u8."""

REQUIRES: Final = MappingProxyType(
    {
        FrontEndRequest.SET_LOG_BASE: ProtocolFeature.LOG_SHMFD,
        FrontEndRequest.GET_QUEUE_NUM: ProtocolFeature.MQ,
        FrontEndRequest.SEND_RARP: ProtocolFeature.RARP,
        FrontEndRequest.NET_SET_MTU: ProtocolFeature.MTU,
        FrontEndRequest.SET_BACKEND_REQ_FD: ProtocolFeature.BACKEND_REQ,
        FrontEndRequest.SET_VRING_ENDIAN: ProtocolFeature.CROSS_ENDIAN,
        FrontEndRequest.GET_CONFIG: ProtocolFeature.CONFIG,
        FrontEndRequest.SET_CONFIG: ProtocolFeature.CONFIG,
        FrontEndRequest.CREATE_CRYPTO_SESSION: ProtocolFeature.CRYPTO_SESSION,
        FrontEndRequest.CLOSE_CRYPTO_SESSION: ProtocolFeature.CRYPTO_SESSION,
        FrontEndRequest.POSTCOPY_ADVISE: ProtocolFeature.PAGEFAULT,
        FrontEndRequest.POSTCOPY_LISTEN: ProtocolFeature.PAGEFAULT,
        FrontEndRequest.POSTCOPY_END: ProtocolFeature.PAGEFAULT,
        FrontEndRequest.GET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
        FrontEndRequest.SET_INFLIGHT_FD: ProtocolFeature.INFLIGHT_SHMFD,
        FrontEndRequest.RESET_DEVICE: ProtocolFeature.RESET_DEVICE,
        FrontEndRequest.VRING_KICK: ProtocolFeature.INBAND_NOTIFICATIONS,
        FrontEndRequest.GET_MAX_MEM_SLOTS: ProtocolFeature.CONFIGURE_MEM_SLOTS,
        FrontEndRequest.ADD_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
        FrontEndRequest.REM_MEM_REG: ProtocolFeature.CONFIGURE_MEM_SLOTS,
        FrontEndRequest.SET_STATUS: ProtocolFeature.STATUS,
        FrontEndRequest.GET_STATUS: ProtocolFeature.STATUS,
        FrontEndRequest.GET_SHARED_OBJECT: ProtocolFeature.SHARED_OBJECT,
        FrontEndRequest.SET_DEVICE_STATE_FD: ProtocolFeature.DEVICE_STATE,
        FrontEndRequest.CHECK_DEVICE_STATE: ProtocolFeature.DEVICE_STATE,
        FrontEndRequest.GET_SHMEM_CONFIG: ProtocolFeature.SHMEM,
    }
)
"""The protocol feature without which a request is not legal."""
