"""Typed facade over the native module's transfers: the images that they may be done to.

What is done and what is not is told in transfer.c; whether it may be done now, and to what, is the
caller's business.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from vgpud.native._native import ffi, lib
from vgpud.native.ring import FastPath
from vgpud.native.spans import SpanList, address_of

_EXECUTE = ffi.addressof(lib, "vgpud_transfer")

#: An image that transfers may be done to: `vgpud_image` of native.h.
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
    ]
)
assert IMAGE.itemsize == ffi.sizeof("vgpud_image")

MAX_IMAGES: Final = 16
"""More would take longer to look through than they save: a guest draws to a few at a time."""


class TransferTable:
    """A table of images, by resource id; keeps the memory of what is in it mapped.

    `fast_path` executes transfers to them.
    """

    __slots__ = ("_images", "_kept", "_native", "fast_path")

    def __init__(self) -> None:
        self._images = np.zeros(MAX_IMAGES, IMAGE)
        self._kept: dict[int, tuple[int, int, SpanList, SpanList, object]] = {}
        self._native = ffi.new("vgpud_transfers *")
        self._native.images = address_of(self._images)
        self._native.fences = True
        self.fast_path = FastPath(_EXECUTE, self._native)

    def __len__(self) -> int:
        return len(self._kept)

    def collect(self) -> tuple[int, int, int]:
        """How many TRANSFER_TO_HOST_2D and _3D have been done since the last call, and how many of
        them were fenced."""
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
        """Enter an image that is not there: its size in pixels, its bytes, without gaps between
        rows, and its backing.

        `owner` keeps both mapped. A full table is emptied first.
        """
        if len(self._kept) == MAX_IMAGES:
            self.clear()
        self._kept[resource] = (width, height, pixels, backing, owner)
        self._write(len(self._kept) - 1)

    def remove(self, resource: int) -> None:
        """Take an image out, if it is there."""
        if self._kept.pop(resource, None) is not None:
            self._write(0)

    def clear(self) -> None:
        """Take all images out."""
        self._kept.clear()
        self._native.count = 0

    def _write(self, first: int) -> None:
        """Bring the native table up to date from one of its rows on."""
        for at, (resource, image) in enumerate(self._kept.items()):
            if at >= first:
                width, height, pixels, backing, _ = image
                self._images[at] = (
                    *(resource, width, height, 0),
                    *(pixels.address, len(pixels.array)),
                    *(backing.address, len(backing.array)),
                )
        self._native.count = len(self._kept)
