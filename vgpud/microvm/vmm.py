"""A VMM with one guest: machine, front-end and window together, for one run of the guest.

Owns the order of things, and looks at the window's memory from outside while the guest stands
still. Each of the parts is in a module of its own.
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
from vgpud.microvm.guest_code import Dma, GuestFailedError, Image, Mapped, Pat, Program, Written
from vgpud.microvm.machine import Halted, Machine
from vgpud.microvm.slots import NUMBERS, Accepted, SlotBook, Window

WIDTH: Final = 64
HEIGHT: Final = 48
"""Pixels: where KVM emulates each instruction, a picture of this size takes 0.2 s to write."""
ROUNDS: Final = 2

_BYTES_PER_PIXEL: Final = 4
_ELSEWHERE: Final = 64 << 20
"""Bytes from where a guest that does not look has its BAR to where it may be meanwhile."""


@dataclass(frozen=True, slots=True)
class Round:
    """One picture: written by the guest, worked on by the device, read back by the guest."""

    written: Written
    dma: Dma


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a run.

    `seen` is the last picture and `copied` the device's copy of it, both (height, width, 4) of B,
    G, R, X as found in the window's memory. `slots` are the window's, as KVM took them, and `tried`
    those that the daemon had its agent set before, on trial. `chains` counts what each queue took.
    """

    pat: Pat
    mapped: tuple[Mapped, ...]
    rounds: tuple[Round, ...]
    seen: NDArray[np.uint8]
    copied: NDArray[np.uint8]
    slots: tuple[Accepted, ...]
    chains: tuple[int, ...]
    tried: tuple[Accepted, ...] = ()


@dataclass(frozen=True, slots=True)
class Attach:
    """A device of the daemon at the control socket `path`, to attach as the slot agent of.

    `moved` is whether the BAR is put elsewhere and back once the guest has its first picture.
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
    """Connects a machine to the back-end at the other end of `connection`, and runs its driver.

    The window's slots are ours to set when the back-end asks to map, with `slot_flags`; with an
    `agent`, a socket to its master or the control socket to attach by, they are set as the daemon
    says, with the flags that it says. Sockets are closed in the end. Raises `HostError` where KVM
    refuses or the back-end is too slow, `PeerError` where that breaks the protocol, `RpcError`
    where the daemon takes no agent, `GuestFailedError` where the device refuses the guest.
    """
    with ExitStack() as cleanup:
        machine = cleanup.enter_context(Machine.open(disable_quirk=disable_quirk))
        vmm = cleanup.enter_context(FrontEnd(connection, machine))
        vmm.introduce()
        book = SlotBook(machine.vm)
        size = min(vmm.window_size, boot.WINDOW_LIMIT)
        moving: SlotAgent | None = None
        if agent is None:
            vmm.window = Window(book, boot.WINDOW_GPA, vmm.window_size, flags=slot_flags)
            cleanup.callback(vmm.window.close)
        else:
            granted = range(boot.WINDOW_GPA, boot.WINDOW_GPA + vmm.window_size)
            channel = agent if isinstance(agent, socket.socket) else Client(agent.path)
            slots = SlotAgent(channel, book, numbers=NUMBERS, window=granted)
            cleanup.callback(slots.close)
            vmm.watch(channel, slots.serve_one)
            if isinstance(agent, Attach):
                setup = ("disable-ignore-guest-pat",) if disable_quirk else ()
                slots.attach(agent.device, vm_setup=setup)
                moving = slots if agent.moved else None
        tried = len(book.history)
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
        return _run(machine, vmm, book, moving, tried)


def _run(
    machine: Machine, vmm: FrontEnd, book: SlotBook, moving: SlotAgent | None, tried: int
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
                    moving.move(range(here.start + _ELSEWHERE, here.stop + _ELSEWHERE))
                    moving.move(here)
            case Dma() if written is not None:
                rounds.append(Round(written, event))
            case Image() if written is not None:
                # Not before the device has done all: to look is to flush, which may be just what
                # somebody else has forgotten.
                pictures = (
                    _picture(book, event, written.offset),
                    _picture(book, event, event.offset),
                )
            case _:
                raise GuestFailedError(f"the guest reported {event} out of turn")
    chains = tuple(vmm.stop())
    if pat is None or pictures is None:
        raise GuestFailedError("the guest ended before its time")
    slots = tuple(book.history)
    return Outcome(
        pat, tuple(mapped), tuple(rounds), *pictures, slots[tried:], chains, slots[:tried]
    )


def _picture(book: SlotBook, image: Image, offset: int) -> NDArray[np.uint8]:
    """What is in memory, whoever has what in a cache."""
    shape = image.height, image.width, _BYTES_PER_PIXEL
    contents = book.contents(boot.WINDOW_GPA + offset, prod(shape))
    return np.frombuffer(contents.read(0, contents.size), np.uint8).reshape(shape)
