"""The commands on 2D resources: create, attach a backing, and transfer pixels between the two.

3D transfers are included: a guest whose device offers VIRGL sends those for what it drew itself.
Source: virtio 1.3, 5.7.6.8 "controlq (2d)" and 5.7.6.9 "controlq (3d)".
"""

from __future__ import annotations

from time import perf_counter

from vgpud.errors import OutOfMemory
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.fast_path import TransferFastPath
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.quota import Quota
from vgpud.gpu.rects import check_rect, is_empty
from vgpud.gpu.resources import (
    BYTES_PER_PIXEL,
    OVERHEAD,
    Backing,
    GuestBlob,
    HostBlob,
    Image,
    Resource,
    ResourceTable,
    make_backing,
    restore_backing,
)
from vgpud.gpu.state import ImageState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import BlobMem, Format, ResourceId
from vgpud.gpu.work import INLINE_COST, Answer, BackgroundWork
from vgpud.memory.extents import Extents
from vgpud.memory.pages import zeroed
from vgpud.memory.steps import SLOW, Place, Steps, copy_steps, cost

OK = responses.OkNoData()


class Images:
    """The commands on images and on resources' backings."""

    def __init__(
        self, resources: ResourceTable, quota: Quota, memory: GuestMemory, executor: BackgroundWork
    ) -> None:
        self._resources = resources
        self._quota = quota
        self._memory = memory
        self._executor = executor
        self.transfers = TransferFastPath(memory)

    def create_2d(self, command: commands.ResourceCreate2D) -> responses.Response:
        """Execute RESOURCE_CREATE_2D."""
        made = self.make(command.resource_id, command.format, command.width, command.height)
        self._resources.add(made)
        return OK

    def make(self, resource_id: ResourceId, format_: int, width: int, height: int) -> Image:
        """Return a new image of zeros, which is charged for; raise `VgpudError` if its id is in
        use."""
        self._resources.check_free(resource_id)
        known = check_format(format_)
        if width == 0 or height == 0:
            raise _invalid(f"an image of {width}x{height}")
        charge = self._quota.charge(width * height * BYTES_PER_PIXEL + OVERHEAD)
        try:
            pixels = Extents.from_array(zeroed(width * height * BYTES_PER_PIXEL))
        except OutOfMemory:
            charge.release()
            raise
        return Image(resource_id, width, height, known, pixels, charge)

    def restore(self, state: ImageState) -> None:
        """Make an image from its saved state."""
        image = self.make(state.id, state.format, state.width, state.height)
        image.pixels.write(0, state.pixels)
        image.uuid = state.uuid
        self._resources.add(image)
        image.backing = restore_backing(self._memory, state.backing, self._quota)

    def attach_backing(self, command: commands.ResourceAttachBacking) -> responses.Response:
        """Execute RESOURCE_ATTACH_BACKING."""
        resource = self._resources.get(command.resource_id)
        if isinstance(resource, HostBlob) and resource.blob_mem is BlobMem.HOST3D:
            raise _invalid(f"blob {resource.id} is in host memory only")
        if resource.backing is not None:
            raise Unspecified(f"resource {resource.id} has a backing already")
        backing = make_backing(self._memory, command.entries, self._quota)
        if isinstance(resource, GuestBlob) and backing.size < resource.size:
            backing.release()
            raise InvalidParameter(
                f"backing of {backing.size} bytes for blob {resource.id} of {resource.size}",
            )
        resource.backing = backing
        return OK

    def detach_backing(self, command: commands.ResourceDetachBacking) -> responses.Response:
        """Execute RESOURCE_DETACH_BACKING."""
        resource = self._resources.get(command.resource_id)
        _backing(resource).release()
        resource.backing = None
        self.transfers.remove(resource.id)
        return OK

    def transfer_to_host_2d(self, command: commands.TransferToHost2D) -> Answer:
        """Execute TRANSFER_TO_HOST_2D; `offset` is that of the rectangle's first pixel in the
        backing."""
        image = self._image(command.resource_id)
        if is_empty(command.rect):
            return OK
        rect = check_rect(command.rect, image.width, image.height)
        return self._transfer(
            image,
            (rect.y * image.stride + rect.x * BYTES_PER_PIXEL, image.stride),
            (command.offset, image.stride),
            (rect.width * BYTES_PER_PIXEL, rect.height),
            to_host=True,
        )

    def _image(self, resource_id: ResourceId) -> Image:
        resource = self._resources.get(resource_id)
        if not isinstance(resource, Image):
            raise _invalid(f"resource {resource_id} is a blob, not an image")
        return resource

    def transfer_3d(
        self, command: commands.TransferToHost3D | commands.TransferFromHost3D, *, to_host: bool
    ) -> Answer:
        """Execute TRANSFER_TO_HOST_3D or TRANSFER_FROM_HOST_3D, on an image, or on rows of bytes of
        a HOST3D_GUEST blob."""
        resource, box = self._resources.get(command.resource_id), command.box
        if box.z != 0 or box.d != 1 or command.level != 0:
            raise _invalid(
                f"box {box} of level {command.level}, in an image of one layer and level"
            )
        match resource:
            case Image():
                rect = check_rect(Rect(box.x, box.y, box.w, box.h), resource.width, resource.height)
                row_bytes = rect.width * BYTES_PER_PIXEL
                host_stride = resource.stride
                host_offset = rect.y * host_stride + rect.x * BYTES_PER_PIXEL
            case HostBlob():
                row_bytes = box.w
                host_stride = command.stride or row_bytes
                host_offset = box.y * host_stride + box.x
            case GuestBlob():
                raise _invalid(f"blob {resource.id} has no host memory")
        return self._transfer(
            resource,
            (host_offset, host_stride),
            (command.offset, command.stride or host_stride),
            (row_bytes, box.h),
            to_host=to_host,
        )

    def _transfer(
        self,
        resource: Image | HostBlob,
        host_at: tuple[int, int],
        backing_at: tuple[int, int],
        shape: tuple[int, int],
        *,
        to_host: bool,
    ) -> Answer:
        """Copy `shape` (bytes a row, rows) between two positions (offset, stride)."""
        host, backing = resource.contents(), _backing(resource).extents
        host_place, backing_place = Place(host, *host_at), Place(backing, *backing_at)
        to, source = (host_place, backing_place) if to_host else (backing_place, host_place)
        # The two do not overlap: one is guest memory, the other host memory.
        nanoseconds = cost(*shape, to, source)
        if nanoseconds > INLINE_COST:
            return _wait(self._executor, copy_steps(to, source, *shape), nanoseconds)
        steps, began = copy_steps(to, source, *shape, limit=INLINE_COST), perf_counter()
        for _ in steps:
            if perf_counter() - began > SLOW:
                return _wait_for_thread(self._executor, steps)
        if to_host and isinstance(resource, Image):
            size = (resource.width, resource.height)
            self.transfers.enter(resource.id, *size, host, backing)
        return OK


def check_format(value: int) -> Format:
    """Return the pixel format of this number; raise `InvalidParameter` if it is none of the
    eight."""
    try:
        return Format(value)
    except ValueError as error:
        raise _invalid(f"unknown pixel format {value}") from error


def _backing(resource: Resource) -> Backing:
    if resource.backing is None:
        raise Unspecified(f"resource {resource.id} has no backing")
    return resource.backing


async def _wait(executor: BackgroundWork, steps: Steps, cost: int) -> responses.Response:
    await executor.run_steps(steps, cost)
    return OK


async def _wait_for_thread(executor: BackgroundWork, steps: Steps) -> responses.Response:
    await executor.run_in_thread(steps)
    return OK


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
