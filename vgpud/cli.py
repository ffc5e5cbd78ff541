"""`vgpud`: arguments in, exit status out (0 done, 1 failed, 2 bad usage or configuration).

Owns argv, what is printed, and signals; everything else is the daemon's or the configuration's.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vgpud import __version__, demo, doctor, qemu_lines
from vgpud.bench import suite
from vgpud.client import Client
from vgpud.config import Config, default_toml
from vgpud.daemon import Daemon
from vgpud.errors import ConfigError, HostError, VgpudError

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """The `vgpud` program; returns its exit status."""
    args = parser().parse_args(argv)
    return exit_status("vgpud", lambda: args.action(args))


def exit_status(program: str, action: Callable[[], None]) -> int:
    """Run `action`; what it raises on purpose goes to stderr and becomes an exit status."""
    status = DONE
    try:
        action()
    except* ConfigError as errors:
        status = BAD_USAGE
        _complain(program, errors)
    except* VgpudError as errors:
        status = max(status, FAILED)
        _complain(program, errors)
    return status


def say(text: str) -> None:
    """Print on stdout, now; raises HostError if nobody can read it."""
    if sys.stdout is None:  # Closed before we were started: print would say nothing, silently.
        raise HostError("standard output", OSError(errno.EBADF, os.strerror(errno.EBADF)))
    try:
        print(text, flush=True)
    except OSError as error:
        # Else the interpreter would try, and complain, once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise HostError("standard output", error) from error


def start_logging(level: str) -> None:
    """Log lines of `level` and above go to stderr."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def run_daemon(daemon: Daemon, announce: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT; `announce` is called once every socket is listening."""
    asyncio.run(_run(daemon, announce))


async def _run(daemon: Daemon, announce: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, daemon.stop)
    async with asyncio.TaskGroup() as group:
        announcer = group.create_task(_announce(daemon, announce))
        await daemon.run()
        announcer.cancel()


async def _announce(daemon: Daemon, announce: Callable[[], None]) -> None:
    await daemon.wait_listening()
    try:
        announce()
    except HostError as error:
        _log.warning("not announced error=%s", error)  # Guests do not need to be told.


def parser() -> argparse.ArgumentParser:
    """The options of `vgpud`; the chosen verb is in `action`."""
    parser = argparse.ArgumentParser(
        prog="vgpud", description="Host back-end of a virtio-GPU over vhost-user."
    )
    parser.add_argument("--version", action="version", version=f"vgpud {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    serve = verbs.add_parser("serve", help="serve the configured devices until SIGTERM")
    serve.set_defaults(action=_serve)
    _add_config(serve)
    serve.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")

    examine = verbs.add_parser("doctor", help="say what this host can do, and what would help")
    examine.set_defaults(action=_doctor)
    examine.add_argument("--json", action="store_true", help="for machines")
    examine.add_argument(
        "--measure", action="store_true", help="also time loads in a guest, by memory type"
    )
    examine.add_argument(
        "--plans", action="store_true", help="the planner's whole table, for any host"
    )

    shown = verbs.add_parser("demo", help="show non-coherent DMA at work on this machine")
    shown.set_defaults(action=_demo)
    shown.add_argument("--json", action="store_true", help="print the steps as JSON")
    shown.add_argument("--out", type=Path, metavar="DIR", help="put the picture there, as a PNG")

    bench = verbs.add_parser("bench", help="measure what parts of vgpud cost on this machine")
    bench.set_defaults(action=_bench)
    bench.add_argument(
        "name",
        nargs="?",
        choices=sorted(suite.BENCHES),
        metavar="NAME",
        help=f"one of {', '.join(sorted(suite.BENCHES))} (default: all)",
    )
    bench.add_argument("--json", action="store_true", help="for machines")

    config = verbs.add_parser("config", help="check a configuration, or show what there is to set")
    nouns = config.add_subparsers(required=True, metavar="WHAT")
    check = nouns.add_parser("check", help="name every fault of a file")
    check.set_defaults(action=_config_check)
    check.add_argument("file", type=Path, metavar="FILE")
    default = nouns.add_parser("default", help="print the defaults as a commented file")
    default.set_defaults(action=lambda _: say(default_toml().rstrip()))
    schema = nouns.add_parser("schema", help="print the JSON schema")
    schema.set_defaults(action=lambda _: say(json.dumps(Config.model_json_schema(), indent=2)))

    ctl = verbs.add_parser("ctl", help="call a method of a running daemon")
    ctl.set_defaults(action=_ctl)
    _add_config(ctl)
    ctl.add_argument(
        "--socket", type=Path, metavar="S", help="control socket (default: as configured)"
    )
    ctl.add_argument("method", metavar="METHOD", help="for example daemon.info")
    ctl.add_argument("params", type=_params, nargs="?", metavar="JSON", help="its parameters")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: built-in defaults")


def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config)
    start_logging(args.log_level)
    run_daemon(Daemon(config), lambda: say("\n".join(_announcement(config))))


def _announcement(config: Config) -> Iterator[str]:
    yield f"vgpud {__version__} is listening; control socket: {config.control_path or 'none'}"
    for spec in config.device_specs():
        socket = config.socket_path(spec.name)
        yield f"\n# {spec.name}, all features (guest.qcow2 stands for a disk image of yours):"
        yield qemu_lines.all_features(socket)
        yield f"\n# {spec.name}, 2D on QEMU's display:"
        yield qemu_lines.display(socket)


def _doctor(args: argparse.Namespace) -> None:
    say(doctor.text(as_json=args.json, plans=args.plans, measure=args.measure))


def _demo(args: argparse.Namespace) -> None:
    result = demo.run(args.out)
    say(json.dumps(result.to_json(), indent=2) if args.json else result.text())
    if not result.ok:
        raise VgpudError("not every step held")


def _bench(args: argparse.Namespace) -> None:
    names = [args.name] if args.name else list(suite.BENCHES)
    say(suite.text(names, _tell, as_json=args.json))


def _tell(what: str) -> None:
    print(f"vgpud: measuring {what}", file=sys.stderr, flush=True)


def _config_check(args: argparse.Namespace) -> None:
    Config.load(args.file)
    say(f"{args.file}: no fault found")


def _ctl(args: argparse.Namespace) -> None:
    path = args.socket or Config.load(args.config).control_path
    if path is None:
        raise ConfigError(f"{args.config}: this configuration has no control socket")
    with Client(path) as client:
        say(json.dumps(client.call(args.method, args.params), indent=2))


def _params(text: str) -> dict[str, object] | list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict | list):
        raise argparse.ArgumentTypeError("must be an object or an array")
    return value


def _complain(program: str, errors: BaseExceptionGroup[VgpudError]) -> None:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _complain(program, error)
        else:
            for line in str(error).splitlines():
                print(f"{program}: {line}", file=sys.stderr)
