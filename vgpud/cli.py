"""`vgpud`: arguments in, exit status out (0 done, 1 failed, 2 bad usage or configuration).

Owns argv, what is printed, and signals; everything else is the daemon's or the configuration's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from vgpud import __version__, completion, demo, doctor, logs, qemu_lines, units
from vgpud.bench import suite
from vgpud.config import Config, default_toml
from vgpud.ctl import arguments
from vgpud.daemon import Daemon
from vgpud.errors import ConfigError, HostError, VgpudError
from vgpud.serve.activation import Activated
from vgpud.serve.notify import Notifier
from vgpud.stdout import say

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


def run_daemon(daemon: Daemon, announce: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT; `announce` is called once every socket is listening.

    SIGHUP has a configuration's file read anew, if there is one; else it ends us, as it would if a
    terminal were closed.
    """
    asyncio.run(_run(daemon, announce))


async def _run(daemon: Daemon, announce: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(
        signal.SIGHUP, daemon.request_reload if daemon.reloadable else daemon.stop
    )
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
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=arguments.VerbParser)

    serve = verbs.add_parser("serve", help="serve the configured devices until SIGTERM")
    serve.set_defaults(action=_serve)
    _add_config(serve)
    serve.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="default: as configured",
    )

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

    ctl = verbs.add_parser("ctl", help="look at a running daemon, or call any of its methods")
    arguments.add_verbs(ctl)

    install = verbs.add_parser("install-units", help="put the system service's files in place")
    install.set_defaults(action=_install_units)
    install.add_argument(
        "--prefix", type=Path, metavar="DIR", help="has bin/vgpud in it (default: this program's)"
    )
    install.add_argument(
        "--root", type=Path, metavar="DIR", help="what will be / on another system (default: /)"
    )
    install.add_argument(
        "--uninstall", action="store_true", help="remove those files that nobody has changed"
    )

    words = verbs.add_parser("completion", help="print a script that completes these words")
    words.set_defaults(action=lambda args: say(completion.script(parser, args.shell)))
    words.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help="bash, zsh, fish")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: built-in defaults")


def _serve(args: argparse.Namespace) -> None:
    config = Config.load(args.config)
    logs.start(args.log_level or config.daemon.log_level, "vgpud")
    notifier = Notifier.from_environment(os.environ)
    daemon = Daemon(
        config,
        notifier=notifier,
        activated=Activated.from_environment(os.environ),
        log_level=args.log_level,
    )
    run_daemon(daemon, lambda: say("\n".join(_announcement(config, notifier.wanted))))


def _announcement(config: Config, short: bool) -> Iterator[str]:
    yield f"vgpud {__version__} is listening; control socket: {config.control_path or 'none'}"
    if short:  # for a journal that nobody pastes from
        return
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


def _install_units(args: argparse.Namespace) -> None:
    act = units.uninstall if args.uninstall else units.install
    for line in act(args.prefix, args.root):
        say(line)


def _complain(program: str, errors: BaseExceptionGroup[VgpudError]) -> None:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _complain(program, error)
        else:
            for line in str(error).splitlines():
                print(f"{program}: {line}", file=sys.stderr)
