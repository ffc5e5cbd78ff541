"""The images to which C may execute transfers: the facade of transfer.c.

The caller decides which images there are and whether they may be accessed now (`gpu.fast_path`).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import address_of
from vgpud.native.ring import FastPath
from vgpud.native.spans import SpanList

_EXECUTE = ffi.addressof(lib, "vgpud_transfer")

#: An image that can be the target of transfers: `vgpud_image` of native.h.
IMAGE: Final = np.dtype(
    [
        ("resource", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("zero", "<u4"),
        ("pixels", "<u8"),
        ("pixels_count", "<u8"),
        ("backing", "<u8"),
        ("backing_count", "<u8"),
        ("pixels_ends", "<u8"),
        ("backing_ends", "<u8"),
    ]
)
assert IMAGE.itemsize == ffi.sizeof("vgpud_image")

BATCH_COST: Final = 1_000_000
"""Nanoseconds that the commands of one batch may cost, by the reckoning of native.h. The event loop
runs nothing else meanwhile; what costs more takes the slow path."""

MAX_IMAGES: Final = 16
"""Searching more would take longer than they save: a guest draws to a few images at a time."""


class TransferTable:
    """A table of images by resource id, whose memory it keeps mapped.

    `fast_path` executes transfers to them: TRANSFER_TO_HOST_2D, and _3D while `with_3d` is set.
    """

    __slots__ = ("_images", "_kept", "_native", "fast_path")

    def __init__(self) -> None:
        self._images = np.zeros(MAX_IMAGES, IMAGE)
        self._kept: dict[int, tuple[int, int, SpanList, SpanList, object]] = {}
        self._native = ffi.new("vgpud_transfers *")
        self._native.images = address_of(self._images)
        self._native.with_3d = True
        self._native.left = BATCH_COST
        self.fast_path = FastPath(_EXECUTE, self._native)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def with_3d(self) -> bool:
        """Whether `fast_path` executes TRANSFER_TO_HOST_3D."""
        return bool(self._native.with_3d)

    @with_3d.setter
    def with_3d(self, value: bool) -> None:
        self._native.with_3d = value

    def begin_batch(self) -> None:
        """Let the commands that follow cost `BATCH_COST` together."""
        self._native.left = BATCH_COST

    def collect(self) -> tuple[int, int, int]:
        """Return the transfers executed since the last call: 2D, 3D, and those with a fence.

        Those with a fence are counted in the first two numbers, too.
        """
        native = self._native
        done = native.done_2d, native.done_3d, native.done_fences
        native.done_2d = native.done_3d = native.done_fences = 0
        return done

    def __contains__(self, resource: int) -> bool:
        return resource in self._kept

    def add(
        self,
        resource: int,
        width: int,
        height: int,
        pixels: SpanList,
        backing: SpanList,
        owner: object,
    ) -> None:
        """Add an image that is not in the table.

        Its size is in pixels; `pixels` has no gaps between rows. `owner` keeps `pixels` and
        `backing` mapped. A full table is emptied first.
        """
        if len(self._kept) == MAX_IMAGES:
            self.clear()
        self._kept[resource] = (width, height, pixels, backing, owner)
        self._write(len(self._kept) - 1)

    def remove(self, resource: int) -> None:
        """Remove an image, if it is in the table."""
        if self._kept.pop(resource, None) is not None:
            self._write(0)

    def clear(self) -> None:
        """Remove all images."""
        self._kept.clear()
        self._native.count = 0

    def _write(self, first: int) -> None:
        """Update the native table from its row `first` on."""
        for at, (resource, image) in enumerate(self._kept.items()):
            if at >= first:
                width, height, pixels, backing, _ = image
                self._images[at] = (
                    *(resource, width, height, 0),
                    *(pixels.address, len(pixels.array)),
                    *(backing.address, len(backing.array)),
                    *(address_of(pixels.ends), address_of(backing.ends)),
                )
        self._native.count = len(self._kept)
