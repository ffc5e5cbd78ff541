"""`vhost-user-vgpu`: one device, started by a VMM or libvirt for one guest.

Owns that convention's options. Source: QEMU's docs/interop/vhost-user.rst, "Backend program
conventions", and docs/interop/vhost-user.json.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vgpud.cli import exit_status, run_daemon, say, start_logging
from vgpud.config import Config
from vgpud.config_tables import DaemonTable
from vgpud.daemon import Daemon
from vgpud.errors import ConfigError, VgpudError

CAPABILITIES: Final[dict[str, object]] = {"type": "gpu", "features": []}
"""Neither `render-node` nor `virgl`: offering one would make libvirt ask for it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The `vhost-user-vgpu` program; returns its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if "--print-capabilities" in arguments:
        # The convention: then nothing else counts, not even what is wrong.
        return exit_status("vhost-user-vgpu", lambda: say(json.dumps(CAPABILITIES, indent=2)))
    args = _parser().parse_args(arguments)
    return exit_status("vhost-user-vgpu", lambda: _serve(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="take the first device of this file"
    )
    return parser


def _serve(args: argparse.Namespace) -> None:
    for option, given in (("--render-node", args.render_node), ("--virgl", args.virgl)):
        if given:
            raise VgpudError(f"{option} is not available in this version: it has no 3D renderer")
    config = Config.load(args.config)
    start_logging("info")
    if args.fd is not None:
        with _inherited(args.fd) as connection:
            run_daemon(Daemon(_alone(config, Path("/")), connection=connection), lambda: None)
    else:
        path = args.socket_path.absolute()
        run_daemon(Daemon(_alone(config, path)), lambda: None)


def _alone(config: Config, socket_path: Path) -> Config:
    """The first device by itself, at `socket_path`, and no control socket for guests to share."""
    daemon = DaemonTable(runtime_dir=str(socket_path.parent), control_socket="")
    device = config.device[0].model_copy(update={"socket": str(socket_path)})
    return Config(daemon=daemon, device=(device,), slot_policy=config.slot_policy)


def _inherited(number: int) -> socket.socket:
    """The stream socket that our parent connected and left to us as descriptor `number`."""
    try:
        connection = socket.socket(fileno=number)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--fd {number}: not a socket: {error}") from error
    try:
        os.set_inheritable(number, False)
        if connection.family != socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
            raise ConfigError(f"--fd {number}: not a unix stream socket")
        connection.getpeername()
    except OSError as error:
        connection.close()
        raise ConfigError(f"--fd {number}: not connected") from error
    except BaseException:
        connection.close()
        raise
    return connection


if __name__ == "__main__":
    sys.exit(main())
