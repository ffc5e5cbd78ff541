"""The virtio-GPU: makes one guest's resources, scanouts and contexts, has each command executed by
the part that it concerns, and executes those that concern several. Source: virtio 1.3, 5.7 "GPU
Device".
"""

from __future__ import annotations

import logging
import uuid
from asyncio import Lock
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

from vgpud.coherency.slot_policy import Layout
from vgpud.gpu.blobs.buffers import resolve
from vgpud.gpu.blobs.commands import Blobs
from vgpud.gpu.blobs.layout import BlobLayout
from vgpud.gpu.blobs.per_blob_layout import PerBlobLayout
from vgpud.gpu.blobs.plans import Plans
from vgpud.gpu.blobs.slot_owner import BarSlots
from vgpud.gpu.blobs.vm_facts import VmFacts
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID, VmmBlobs
from vgpud.gpu.blobs.window_layout import WindowLayout
from vgpud.gpu.config_space import ConfigSpace
from vgpud.gpu.contexts import FEW, Contexts
from vgpud.gpu.cursors import Cursors
from vgpud.gpu.display.display import Display
from vgpud.gpu.environment import Environment
from vgpud.gpu.features import CONTEXT_FEATURES, FEATURES
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.images import Images
from vgpud.gpu.preparation import Outcome, Preparation
from vgpud.gpu.quota import Quota
from vgpud.gpu.renderers import RendererParts
from vgpud.gpu.resources import GuestBlob, HostBlob, Image, Resource, ResourceTable
from vgpud.gpu.scanouts import Scanouts
from vgpud.gpu.spec import DeviceSpec, PreferredMode
from vgpud.gpu.state import GpuState, GuestBlobState, HostBlobState, ImageState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.protocol import ConfigEvent, ResourceId
from vgpud.gpu.work import WorkExecutor

log = logging.getLogger(__name__)


class Gpu:
    """The GPU of one session.

    Raises `OutOfMemory` if the memory limit is smaller than the window.
    """

    def __init__(
        self,
        spec: DeviceSpec,
        environment: Environment,
        memory: GuestMemory,
        slots: BarSlots,
        executor: WorkExecutor,
    ) -> None:
        self.spec = spec
        self.counters = environment.counters
        self._publish = environment.publish
        self.quota = Quota(spec.memory_limit)
        self.resources = ResourceTable()
        self.buffers = resolve(spec, environment.nodes)
        if self.buffers.fallback is not None:
            log.warning(
                "buffers device=%s kind=%s: %s", spec.name, self.buffers.kind, self.buffers.fallback
            )
        self._vm = VmFacts(
            spec.guest_pat,
            spec.rules,
            spec.layout,
            environment.find_kvm_mode,
            environment.examine,
        )
        common = (spec.name, spec.window, self.quota, slots, executor)
        self.layout: BlobLayout = (
            WindowLayout(*common, self._vm.window_flags)
            if spec.layout is Layout.WINDOW
            else PerBlobLayout(*common, self.buffers.source)
        )
        self._images = images = Images(self.resources, self.quota, memory, executor)
        self.transfers = images.transfers
        self._renderers = environment.make_renderers(
            spec.renderers,
            RendererParts(executor, images, self.quota, self.counters, max_blob_size=spec.window),
        )
        if not self._renderers:
            self.transfers.refuse_3d()
        self.contexts = Contexts(self.resources, self.quota, self._renderers)
        self.scanouts = Scanouts(
            *(spec.name, spec.outputs, self.resources, self.contexts.is_attached),
            *(self.quota, executor),
        )
        self.cursors = Cursors(self.resources, self.scanouts.check, executor)
        self._executor = executor
        self._window_lock = Lock()
        self._preparation = preparation = Preparation(
            self.resources,
            self.scanouts,
            memory,
            self.quota,
            executor,
            self._window_lock,
            self._execute_prepared,
        )
        self._display: Display | None = None
        self.config_space = ConfigSpace(len(spec.outputs), self.contexts.num_capsets)
        self.plans = Plans(spec.name, self._vm, self._publish)
        self._blobs = blobs = Blobs(
            self.resources,
            self.contexts,
            self.layout,
            self.quota,
            memory,
            self.plans,
            self._window_lock,
            self.counters,
        )
        self.vmm_blobs = VmmBlobs(
            spec.name,
            self.layout,
            self.plans,
            self.quota,
            self._window_lock,
            environment.blob_ids,
            self.counters,
            self._publish,
        )
        self._execute: dict[type[Command], Callable[[Any], Outcome]] = {
            commands.GetDisplayInfo: self.scanouts.display_info,
            commands.GetEdid: self.scanouts.edid,
            commands.ResourceCreate2D: images.create_2d,
            commands.ResourceUnref: self._unref,
            commands.SetScanout: self.scanouts.set_scanout,
            commands.ResourceFlush: self.scanouts.flush,
            commands.TransferToHost2D: images.transfer_to_host_2d,
            commands.ResourceAttachBacking: preparation.with_list(images.attach_backing),
            commands.ResourceDetachBacking: images.detach_backing,
            commands.GetCapsetInfo: self.contexts.capset_info,
            commands.GetCapset: self.contexts.get_capset,
            commands.ResourceAssignUuid: self._assign_uuid,
            commands.ResourceCreateBlob: preparation.with_list(blobs.create),
            commands.SetScanoutBlob: self.scanouts.set_scanout_blob,
            commands.CtxCreate: self.contexts.create,
            commands.CtxDestroy: self.contexts.destroy,
            commands.CtxAttachResource: self.contexts.attach,
            commands.CtxDetachResource: self.contexts.detach,
            commands.ResourceCreate3D: self.contexts.create_resource,
            commands.TransferToHost3D: self.contexts.transfer_to_host,
            commands.TransferFromHost3D: self.contexts.transfer_from_host,
            commands.Submit3D: self._submit,
            commands.ResourceMapBlob: blobs.map,
            commands.ResourceUnmapBlob: blobs.unmap,
            commands.UpdateCursor: self.cursors.update,
            commands.MoveCursor: self.cursors.move,
        }

    def execute(self, command: Command) -> Outcome:
        """Execute a command, or return what is left to do for it; raise `VgpudError` on failure."""
        waiting = self._preparation.needed(command)
        return self._execute[type(command)](command) if waiting is None else waiting

    def _execute_prepared(self, command: Command) -> Outcome:
        """Execute a command for which everything that it needs has been waited for."""
        return self._execute[type(command)](command)

    def attach_display(self, display: Display | None) -> None:
        """Show the scanouts and cursors on a VMM's display; None for no display."""
        self._display = display
        self.scanouts.attach(display)
        self.cursors.attach(display)

    @property
    def has_display(self) -> bool:
        """Whether there is a VMM's display, which then decides the outputs' modes."""
        return self._display is not None

    def detach_display(self, display: Display) -> None:
        """Detach a display, unless it has been replaced already."""
        if self._display is display:
            self.attach_display(None)

    def reconfigure(self, spec: DeviceSpec) -> None:
        """Apply what can change of the specification while a guest uses the device: memory limit,
        rules, `guest_pat`, and the outputs' modes if there are as many outputs as before."""
        if len(spec.outputs) == len(self.spec.outputs):
            modes = zip(self.spec.outputs, spec.outputs, strict=True)
            for scanout_id, (old, new) in enumerate(modes):
                if new != old:
                    self._take_mode(scanout_id, new)
            self.spec = replace(self.spec, outputs=spec.outputs)
        self.quota.limit = spec.memory_limit
        self.spec = replace(
            self.spec, memory_limit=spec.memory_limit, guest_pat=spec.guest_pat, rules=spec.rules
        )
        self._vm.reconfigure(spec.guest_pat, spec.rules)

    def resize(self, scanout_id: int, width: int, height: int) -> None:
        """Offer the guest another mode, in pixels, for as long as this front-end is connected.

        The driver reads it after the front-end has notified it that the configuration changed.
        Raises `InvalidScanoutId`.
        """
        self.scanouts.resize(scanout_id, width, height)
        self.config_space.events |= ConfigEvent.DISPLAY

    def announce_resize(self, scanout_id: int) -> None:
        """Publish the event of a `resize`."""
        output = self.scanouts.outputs[scanout_id]
        self._publish(
            "device.resized",
            f"output {scanout_id} offers {output.width}x{output.height}",
            scanout=scanout_id,
            width=output.width,
            height=output.height,
        )

    def count_reset(self) -> None:
        """Count a reset of the driver, and publish its event."""
        self.counters.resets += 1
        self._publish("device.reset", "the guest's driver is gone, or starts afresh")

    def report_lost_state(self) -> None:
        """Publish that the driver has run before this session, with another device."""
        text = "the driver has run before this session, and what it has made is lost"
        self._publish("device.state-lost", text)

    def find_kvm_mode_again(self) -> None:
        """Find the KVM mode again if it is unknown, for instance because an agent has attached."""
        self._vm.find_kvm_mode_again(window_mapped=self.layout.window_mapped)

    def blobs(self, start: int, stop: int) -> list[GuestBlob | HostBlob]:
        """Return a part of all blobs, the guest's first, in the order of their ids."""
        guests = self.resources.blob_count
        own = self.vmm_blobs.part(max(start - guests, 0), max(stop - guests, 0))
        return [*self.resources.blobs(start, stop), *own]

    @property
    def blob_count(self) -> int:
        """The number of all blobs."""
        return self.resources.blob_count + len(self.vmm_blobs)

    def find_blob(self, blob_id: int) -> GuestBlob | HostBlob | None:
        """Return the blob of this id, the guest's or the VMM's, if there is one."""
        if blob_id >= FIRST_ID:
            return self.vmm_blobs.find(blob_id)
        found = self.resources.find(ResourceId(blob_id))
        return None if isinstance(found, Image) else found

    @property
    def features(self) -> int:
        """The device's own feature bits, as offered."""
        return FEATURES | (CONTEXT_FEATURES if self._renderers else 0)

    async def quiesce(self) -> None:
        """Stop all renderers and the executor's work: none accesses memory or completes anything
        until `resume`. Copies that have begun are waited for."""
        for renderer in self._renderers:
            await renderer.quiesce()
        await self._executor.pause()

    def resume(self) -> None:
        """Continue where `quiesce` stopped."""
        self._executor.resume()
        for renderer in self._renderers:
            renderer.resume()

    def save(self) -> GpuState:
        """Return all that driver and VMM have made; `quiesce` comes first.

        Raises `VgpudError` where a blob's bytes are lost, or in a renderer's memory.
        """
        return GpuState(
            self.scanouts.outputs,
            int(self.config_space.events),
            self.resources.save(),
            self.vmm_blobs.save(),
            self.contexts.save(),
            self.scanouts.save(),
            self.cursors.save(),
        )

    async def restore(self, state: GpuState) -> None:
        """Take over a saved state, before a driver uses the device.

        Raises `VgpudError` where something of it can't be made on this host; reset the device then.
        """
        for number, mode in enumerate(state.outputs):
            self.scanouts.resize(number, mode.width, mode.height)
        self.config_space.events = ConfigEvent(state.events)
        with self.quota.checked_at_end():  # a blob costs more until it is in the window again
            for resource in state.resources:
                match resource:
                    case ImageState():
                        self._images.restore(resource)
                    case GuestBlobState():
                        self._blobs.restore_guest(resource)
                    case HostBlobState():
                        await self._blobs.restore_host(resource)
                    case _ as unreachable:
                        assert_never(unreachable)
            for blob in state.vmm_blobs:
                await self.vmm_blobs.restore(blob)
            for context in state.contexts:
                self.contexts.restore(context)
        for scanout in state.scanouts:
            self.scanouts.restore(scanout)
        for cursor in state.cursors:
            self.cursors.restore(cursor)

    async def empty(self) -> None:
        """Drop what driver and VMM have made in steps that let the event loop run, which `reset`
        and `close` would do in one; `quiesce` comes first, and `reset` or `close` next."""
        self.scanouts.clear()
        self.cursors.clear()
        self.transfers.clear()
        await self.contexts.empty()
        await self.resources.empty()
        await self.vmm_blobs.empty()
        await self.layout.empty()

    def reset(self) -> None:
        """Drop everything that the driver has made, because it was reset or is gone; `quiesce`
        comes first."""
        for renderer in self._renderers:
            renderer.reset()
        self._executor.drop()
        self._clear()

    def close(self) -> None:
        """Drop everything, including the window and the renderers."""
        self.attach_display(None)
        for renderer in self._renderers:
            renderer.close()
        self._clear()
        self.layout.close()

    def _clear(self) -> None:
        self.scanouts.clear()
        self.cursors.clear()
        self.contexts.clear()
        self.transfers.clear()
        self.resources.clear()
        self.vmm_blobs.clear()
        self.layout.reset()
        self.plans.forget()
        self.quota.forget_refusals()
        self._vm.forget()
        self.config_space.events = ConfigEvent(0)

    def _submit(self, command: commands.Submit3D) -> Outcome:
        if (outcome := self.contexts.submit(command)) is not None:
            return outcome
        return self._preparation.with_window(partial(self.contexts.submit_long, command))

    def _take_mode(self, scanout_id: int, mode: PreferredMode) -> None:
        if self.has_display:  # which has modes of its own; this one is used after it
            self.scanouts.resize(scanout_id, mode.width, mode.height)
        else:
            self.resize(scanout_id, mode.width, mode.height)
            self.announce_resize(scanout_id)

    def _unref(self, command: commands.ResourceUnref) -> Outcome:
        """Execute RESOURCE_UNREF; a mapped blob is unmapped first."""
        resource = self.resources.get(command.resource_id)
        if isinstance(resource, HostBlob):
            return self._destroy(resource)
        if self.contexts.attachments(resource.id) > FEW:
            return self._detach_and_forget(resource)
        return self._forget(resource)

    async def _destroy(self, blob: HostBlob) -> responses.Response:
        async with self._window_lock:
            mapped = blob.mapped
            await blob.memory.destroy()
        self.counters.unmaps += mapped
        return await self._detach_and_forget(blob)

    async def _detach_and_forget(self, resource: Resource) -> responses.Response:
        await self.contexts.detach_in_steps(resource.id)
        return self._forget(resource)

    def _forget(self, resource: Resource) -> responses.Response:
        self.scanouts.forget(resource.id)
        self.contexts.forget(resource.id)
        self.transfers.remove(resource.id)
        self.resources.remove(resource)
        return responses.OkNoData()

    def _assign_uuid(self, command: commands.ResourceAssignUuid) -> responses.Response:
        """Execute RESOURCE_ASSIGN_UUID; a second one returns the same UUID."""
        resource = self.resources.get(command.resource_id)
        if resource.uuid is None:
            resource.uuid = uuid.uuid4()
        return responses.ResourceUuid(resource.uuid.bytes)
