"""The `vhost-user-vgpu` program: one device, started by a VMM or libvirt for one guest.

The daemon's modules are imported only to serve, because libvirt asks for the capabilities, and
waits for them, whenever it starts a guest. Source: QEMU's docs/interop/vhost-user.rst, "Backend
program conventions", and docs/interop/vhost-user.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import SOCK_DGRAM, SOCK_SEQPACKET, SOCK_STREAM, SocketKind
from typing import TYPE_CHECKING, Final

from vgpud.cli.main import exit_status
from vgpud.cli.stdout import ProgramParser, write_text
from vgpud.errors import ConfigError, VgpudError
from vgpud.memory.addresses import Gpa
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.file_names import as_text

if TYPE_CHECKING:
    from vgpud.daemon.config import Config
    from vgpud.daemon.daemon import ConnectedAgent


_KINDS: Final = {
    SOCK_STREAM: "stream",
    SOCK_DGRAM: "datagram",
    SOCK_SEQPACKET: "sequenced-packet",
}

CAPABILITIES: Final[dict[str, object]] = {"type": "gpu", "features": []}
"""Without `render-node` and `virgl`: if one were offered, libvirt would ask for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `vhost-user-vgpu` program; return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--print-capabilities" in arguments:
        # By the convention, all other arguments are ignored then, even wrong ones.
        return exit_status(
            "vhost-user-vgpu", lambda: write_text(json.dumps(CAPABILITIES, indent=2))
        )
    return exit_status("vhost-user-vgpu", lambda: _serve(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = ProgramParser(
        prog="vhost-user-vgpu",
        description="vhost-user back-end program of a virtio-GPU, for one guest.",
        allow_abbrev=False,
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket-path", type=Path, metavar="PATH", help="listen at PATH")
    where.add_argument("--fd", type=int, metavar="N", help="serve the connected socket N")
    parser.add_argument("--print-capabilities", action="store_true", help="print them as JSON")
    parser.add_argument("--render-node", metavar="PATH", help="not available in this version")
    parser.add_argument("--virgl", action="store_true", help="not available in this version")
    agent = parser.add_argument_group(
        "memory slots by an agent of the VMM's (vgpud.client.slot_agent)"
    )
    agent.add_argument("--agent-fd", type=int, metavar="N", help="connected socket N to the agent")
    agent.add_argument(
        "--agent-window",
        type=_address,
        metavar="GPA",
        help="guest-physical address of the BAR window",
    )
    agent.add_argument(
        "--agent-slots",
        type=_slots,
        metavar="FIRST:COUNT",
        help="slot numbers that the daemon may use",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take the first device of this file"
    )
    return parser


def _serve(args: argparse.Namespace) -> None:
    gc.disable()  # for the reason in main.py
    from vgpud.daemon import logs
    from vgpud.daemon.final_errors import logged_if_stderr_is_lost

    logs.start("info", "vhost-user-vgpu")  # first, because a faulty file is logged, too
    with logged_if_stderr_is_lost():
        _run(args)


def _run(args: argparse.Namespace) -> None:
    from vgpud.cli.foreground import run_daemon
    from vgpud.coherency.slot_policy import SlotOwner
    from vgpud.daemon.config import Config
    from vgpud.daemon.daemon import Daemon

    for option, given in (("--render-node", args.render_node), ("--virgl", args.virgl)):
        if given:
            raise VgpudError(f"{option} is not available in this version: it has no 3D renderer")
    config = Config.load(args.config)
    config.log_warnings()
    with ExitStack() as inherited:
        connection, path = None, Path("/")
        if args.fd is not None:
            connection = inherited.enter_context(_inherited("--fd", args.fd, {SOCK_STREAM}))
        else:
            path = args.socket_path.absolute()
        agent = _agent(args, inherited)
        if agent is None and config.device[0].slots is SlotOwner.AGENT:
            # Without a control socket no agent could attach.
            raise ConfigError('slots = "agent" takes --agent-fd, --agent-window and --agent-slots')
        daemon = Daemon(_first_device(config, path), connection=connection, agent=agent)
        run_daemon(daemon, lambda: None)


def _agent(args: argparse.Namespace, inherited: ExitStack) -> ConnectedAgent | None:
    from vgpud.daemon.daemon import ConnectedAgent

    given = (args.agent_fd, args.agent_window, args.agent_slots)
    if given == (None, None, None):
        return None
    if None in given:
        raise ConfigError("--agent-fd, --agent-window and --agent-slots go together")
    kinds = {SOCK_DGRAM, SOCK_SEQPACKET}
    sock = inherited.enter_context(_inherited("--agent-fd", args.agent_fd, kinds))
    return ConnectedAgent(sock, args.agent_window, args.agent_slots)


def _address(text: str) -> Gpa:
    address = int(text, 0)
    if address < 0 or address % PAGE_SIZE:
        raise argparse.ArgumentTypeError(f"{text} is no guest-physical address of a page")
    return Gpa(address)


def _slots(text: str) -> range:
    first, _, count = text.partition(":")
    numbers = range(int(first), int(first) + int(count))
    if numbers.start < 0 or not numbers:
        raise argparse.ArgumentTypeError(f"{text} is no range of slots, such as 8:16")
    return numbers


def _first_device(config: Config, socket_path: Path) -> Config:
    """Return a configuration of the first device only, at `socket_path`, with no control socket.

    Guests must not share a control socket.
    """
    from vgpud.daemon.config import Config
    from vgpud.daemon.config_tables import DaemonTable

    # By copies, which are not checked again: the path may be no text.
    daemon = DaemonTable(control_socket="").model_copy(
        update={"runtime_dir": as_text(socket_path.parent)}
    )
    device = config.device[0].model_copy(update={"socket": as_text(socket_path)})
    return Config(daemon=daemon, device=(device,), slot_policy=config.slot_policy)


def _inherited(option: str, number: int, kinds: set[SocketKind]) -> socket.socket:
    """Return the connected unix socket that the parent process passed as descriptor `number`."""
    try:
        connection = socket.socket(fileno=number)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{option} {number}: not a socket: {error}") from error
    try:
        os.set_inheritable(number, False)
        if connection.family != socket.AF_UNIX or connection.type not in kinds:
            raise ConfigError(f"{option} {number}: not a unix {_names(kinds)} socket")
        connection.getpeername()
    except OSError as error:
        connection.close()
        raise ConfigError(f"{option} {number}: not connected") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _names(kinds: set[SocketKind]) -> str:
    return " or ".join(name for kind, name in _KINDS.items() if kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
