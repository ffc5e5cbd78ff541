"""Slot policies: the memory type that is wanted for a kind of blob, and how the blob is mapped.

Here are the values of the `[[slot_policy]]` table and the choice of a rule. Whether the host can do
what a rule says is for `coherency.planner`. Source: virtio 1.3, 5.7.6.8
"VIRTIO_GPU_CMD_RESOURCE_CREATE_BLOB" (the kinds of blob) and "VIRTIO_GPU_CMD_RESOURCE_MAP_BLOB"
(the memory types).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final, Literal, TypeAlias

from vgpud.uapi.page import PAGE_SIZE


class BlobKind(StrEnum):
    """The `blob_mem` of a host blob; a blob in the guest's own pages has no policy."""

    HOST3D = "host3d"
    HOST3D_GUEST = "host3d_guest"


class MemoryType(StrEnum):
    """A memory type that guest, host and device agree on."""

    WC = "wc"
    UC = "uc"
    WB = "wb"


class Fallback(StrEnum):
    """What happens to a blob whose memory type can't be had on this host."""

    FLUSH = "flush"
    SNOOP = "snoop"
    REFUSE = "refuse"


class Layout(StrEnum):
    """How blobs are mapped into the BAR: one mapping for all of them, or one for each."""

    WINDOW = "window"
    PER_BLOB = "per-blob"


class GuestPat(StrEnum):
    """Whether KVM honours the guest's PAT."""

    HONORED = "honored"
    IGNORED = "ignored"
    AUTO = "auto"


class SlotOwner(StrEnum):
    """The slot owner: which process maps blobs into the guest's address space.

    FRONTEND: the VMM at the other end of the vhost-user socket (SHMEM_MAP). AGENT: a slot agent in
    the VMM, by requests over the control socket. LOCAL: this process, which owns the VM.
    """

    FRONTEND = "frontend"
    AGENT = "agent"
    LOCAL = "local"


class Buffers(StrEnum):
    """What the memory of host blobs is made of.

    UDMABUF: a memfd's pages, pinned, as a dma-buf. GEM: buffers of a GPU's driver, as dma-bufs.
    """

    MEMFD = "memfd"
    UDMABUF = "udmabuf"
    GEM = "gem"
    AUTO = "auto"


ResolvedBuffers: TypeAlias = Literal[Buffers.MEMFD, Buffers.UDMABUF, Buffers.GEM]
"""`Buffers` after AUTO has been resolved."""


@dataclass(frozen=True, slots=True)
class Match:
    """The blobs that a rule is for; the default is all of them.

    `device` is a shell-style pattern for a device's name; `blob` None is every kind; `min_size` and
    `max_size` are bytes and inclusive, `max_size` None is no limit.
    """

    device: str = "*"
    blob: BlobKind | None = None
    min_size: int = 0
    max_size: int | None = None

    def covers_device(self, device: str) -> bool:
        """Return whether any blob of the device of this name can match."""
        return fnmatchcase(device, self.device)

    def covers(self, device: str, blob: BlobKind, size: int) -> bool:
        """Return whether a blob of `size` bytes on `device` matches."""
        return (
            self.covers_device(device)
            and self.blob in (None, blob)
            and self.min_size <= size
            and (self.max_size is None or size <= self.max_size)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One slot policy; the default values are the policy of a device that has no rules.

    `allow_guest_ram`: a slot outside of the BAR's window may have the flag, too.
    """

    match: Match = Match()
    memory_type: MemoryType = MemoryType.WC
    fallback: Fallback = Fallback.FLUSH
    layout: Layout = Layout.WINDOW
    allow_guest_ram: bool = False


DEFAULT_RULE: Final = Rule()
"""The rule for a blob that no other rule matches."""


def first_match(rules: Sequence[Rule], device: str, blob: BlobKind, size: int) -> Rule:
    """Return the first of `rules` that matches a blob of `size` bytes, or `DEFAULT_RULE`."""
    for rule in rules:
        if rule.match.covers(device, blob, size):
            return rule
    return DEFAULT_RULE


def layouts(rules: Sequence[Rule], device: str) -> set[Layout]:
    """Return every layout that some blob of `device` would get under `rules`.

    Only `HOST3D` counts, as no other kind is mapped into the BAR. A host blob is a whole number of
    pages. Which rule matches a blob changes with its size only at the limits in the rules, so it is
    enough to try these.
    """
    sizes = {PAGE_SIZE}
    for rule in rules:
        sizes.add(max(PAGE_SIZE, _page_up(rule.match.min_size)))
        if rule.match.max_size is not None:
            sizes.add(max(PAGE_SIZE, _page_up(rule.match.max_size + 1)))
    return {first_match(rules, device, BlobKind.HOST3D, size).layout for size in sizes}


def _page_up(size: int) -> int:
    return -(-size // PAGE_SIZE) * PAGE_SIZE
