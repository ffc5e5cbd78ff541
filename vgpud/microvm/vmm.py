"""A VMM with one guest: it composes machine, front-end and window for one run of the guest.

It also reads the window's memory from outside, while the guest does not run.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.client import Client, SlotAgent
from vgpud.microvm import boot
from vgpud.microvm.front_end import FrontEnd
from vgpud.microvm.guest_code import (
    Dma,
    GuestFailedError,
    GuestImage,
    Mapped,
    Pat,
    Program,
    Written,
)
from vgpud.microvm.machine import Halted, Machine
from vgpud.microvm.slots import NUMBERS, Accepted, SlotRecorder, SlotWindow

WIDTH: Final = 64
HEIGHT: Final = 48
"""Pixels: where KVM emulates each instruction, a picture of this size takes 0.2 s to write."""
ROUNDS: Final = 2

_BYTES_PER_PIXEL: Final = 4
_MOVE_BY: Final = 64 << 20
"""Bytes by which the BAR is moved, and back, while the guest does not run."""


@dataclass(frozen=True, slots=True)
class Round:
    """One picture: written by the guest, copied by the device, read back by the guest."""

    written: Written
    dma: Dma


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The outcome of a run.

    `seen` is the last picture and `copied` the device's copy of it, both (height, width, 4) of B,
    G, R, X as read from the window's memory. `slots` are the window's slots that KVM took, `trials`
    the trial slots that the daemon had its agent set before. `chains` has the number of chains that
    each queue took.
    """

    pat: Pat
    mapped: tuple[Mapped, ...]
    rounds: tuple[Round, ...]
    seen: NDArray[np.uint8]
    copied: NDArray[np.uint8]
    slots: tuple[Accepted, ...]
    chains: tuple[int, ...]
    trials: tuple[Accepted, ...] = ()


@dataclass(frozen=True, slots=True)
class Attach:
    """A device to attach to as slot agent, at the daemon's control socket `path`.

    `moved` says whether the BAR is moved and moved back after the guest's first picture.
    """

    path: Path
    device: str
    moved: bool = False


def run_front_end(
    connection: socket.socket,
    *,
    agent: socket.socket | Attach | None = None,
    slot_flags: int = 0,
    disable_quirk: bool = False,
    width: int = WIDTH,
    height: int = HEIGHT,
    rounds: int = ROUNDS,
) -> Outcome:
    """Connect a machine to the back-end at the other end of `connection`, and run its driver.

    Without an `agent`, the front-end sets the window's slots on the back-end's request, with
    `slot_flags`. With an `agent`, a socket that the daemon has or a device to attach to, the daemon
    decides about slots and their flags. Sockets are closed at the end.

    Raises `HostError` if KVM refuses or the back-end is too slow, `PeerError` if the back-end
    breaks the protocol, `RpcError` if the daemon refuses the agent, and `GuestFailedError` if the
    device refuses a command of the guest.
    """
    with ExitStack() as cleanup:
        machine = cleanup.enter_context(Machine.open(disable_quirk=disable_quirk))
        vmm = cleanup.enter_context(FrontEnd(connection, machine))
        vmm.introduce()
        recorder = SlotRecorder(machine.vm)
        size = min(vmm.window_size, boot.WINDOW_LIMIT)
        moving: SlotAgent | None = None
        if agent is None:
            vmm.window = SlotWindow(recorder, boot.WINDOW_GPA, vmm.window_size, flags=slot_flags)
            cleanup.callback(vmm.window.close)
        else:
            granted = range(boot.WINDOW_GPA, boot.WINDOW_GPA + vmm.window_size)
            channel = agent if isinstance(agent, socket.socket) else Client(agent.path)
            slots = SlotAgent(channel, recorder, numbers=NUMBERS, window=granted)
            cleanup.callback(slots.close)
            vmm.watch(channel, slots.serve_one)
            if isinstance(agent, Attach):
                setup = ("disable-ignore-guest-pat",) if disable_quirk else ()
                slots.attach(agent.device, vm_setup=setup)
                moving = slots if agent.moved else None
        trials = len(recorder.history)
        machine.load(
            boot.boot_block(
                Program.FRONT_END,
                window_gpa=boot.WINDOW_GPA,
                window_size=size,
                width=width,
                height=height,
                rounds=rounds,
            )
        )
        vmm.start()
        return _run(machine, vmm, recorder, moving, trials)


def _run(
    machine: Machine, vmm: FrontEnd, recorder: SlotRecorder, moving: SlotAgent | None, trials: int
) -> Outcome:
    pat: Pat | None = None
    mapped: list[Mapped] = []
    written: Written | None = None
    rounds: list[Round] = []
    pictures: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
    for event in machine.run():
        match event:
            case Halted():
                vmm.wait()
            case Pat():
                pat = event
            case Mapped():
                mapped.append(event)
            case Written():
                written = event
                if moving is not None and moving.window is not None:
                    here = moving.window
                    moving.move(range(here.start + _MOVE_BY, here.stop + _MOVE_BY))
                    moving.move(here)
            case Dma() if written is not None:
                rounds.append(Round(written, event))
            case GuestImage() if written is not None:
                # Only after the device has done all: reading flushes, which could hide that another
                # party forgot to.
                pictures = (
                    _picture(recorder, event, written.offset),
                    _picture(recorder, event, event.offset),
                )
            case _:
                raise GuestFailedError(f"the guest reported {event} out of order")
    chains = tuple(vmm.stop())
    if pat is None or pictures is None:
        raise GuestFailedError("the guest ended too early")
    slots = tuple(recorder.history)
    return Outcome(
        pat, tuple(mapped), tuple(rounds), *pictures, slots[trials:], chains, slots[:trials]
    )


def _picture(recorder: SlotRecorder, image: GuestImage, offset: int) -> NDArray[np.uint8]:
    """Return a picture as it is in memory, not in a cache."""
    shape = image.height, image.width, _BYTES_PER_PIXEL
    contents = recorder.contents(boot.WINDOW_GPA + offset, prod(shape))
    return np.frombuffer(contents.read(0, contents.size), np.uint8).reshape(shape)
