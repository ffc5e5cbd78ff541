"""The `vgpud` program: it parses arguments, runs a verb and returns an exit status.

The status is 0 for done, 1 for failed, 2 for bad usage or configuration. A verb's modules are
imported where its options are added or where it runs, and not at the top, because loading all of
them takes longer than most verbs run.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vgpud import __version__
from vgpud.cli import completion
from vgpud.cli.ctl.verb_parser import VerbParser
from vgpud.cli.stdout import ProgramParser, write_error, write_text
from vgpud.errors import ConfigError, VgpudError

DONE: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `vgpud` program; return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    # Only options without a value may come before the verb.
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    return exit_status("vgpud", lambda: _run(verb, arguments))


def _run(verb: str, arguments: Sequence[str]) -> None:
    args = parser(verb).parse_args(arguments)
    args.action(args)


def exit_status(program: str, action: Callable[[], None]) -> int:
    """Run `action`; print the errors that it raises to stderr, and return the exit status."""
    status = DONE
    try:
        action()
    except* ConfigError as errors:
        status = BAD_USAGE
        _print_errors(program, errors)
    except* VgpudError as errors:
        status = max(status, FAILED)
        _print_errors(program, errors)
    except* KeyboardInterrupt:
        status = FAILED
        write_error(f"{program}: interrupted")
    return status


def parser(verb: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of `vgpud`; the parsed arguments have the verb's function as `action`.

    With `verb`, the parser has all verbs, but options only for that one, so that the modules for
    the options of others are not imported.
    """
    parser = ProgramParser(
        prog="vgpud", description="Host back-end of a virtio-GPU over vhost-user."
    )
    parser.add_argument("--version", action="version", version=f"vgpud {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=VerbParser)
    for name, (about, add_options) in _VERBS.items():
        child = verbs.add_parser(name, help=about)
        if verb in (None, name):
            add_options(child)
    return parser


def _add_serve(parser: VerbParser) -> None:
    parser.set_defaults(action=_serve)
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: built-in defaults")
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        help="default: as configured",
    )


def _add_doctor(parser: VerbParser) -> None:
    parser.set_defaults(action=_doctor)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--measure", action="store_true", help="also time loads in a guest, by memory type"
    )
    parser.add_argument(
        "--plans", action="store_true", help="the planner's whole table, for any host"
    )


def _add_demo(parser: VerbParser) -> None:
    parser.set_defaults(action=_demo)
    parser.add_argument("--json", action="store_true", help="print the steps as JSON")
    parser.add_argument("--out", type=Path, metavar="DIR", help="put the picture there, as a PNG")


def _add_bench(parser: VerbParser) -> None:
    from vgpud.cli import bench

    parser.set_defaults(action=_bench)
    parser.add_argument(
        "name",
        nargs="?",
        choices=bench.NAMES,
        metavar="NAME",
        help=f"one of {', '.join(bench.NAMES)} (default: all that this host has the means for)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="also draw a picture; FILE ends with .png, .svg or .pdf",
    )


def _add_config(parser: VerbParser) -> None:
    nouns = parser.add_subparsers(required=True, metavar="WHAT")
    check = nouns.add_parser("check", help="name every fault of a file")
    check.set_defaults(action=_config_check)
    check.add_argument("file", type=Path, metavar="FILE")
    default = nouns.add_parser("default", help="print the defaults as a commented file")
    default.set_defaults(action=_config_default)
    schema = nouns.add_parser("schema", help="print the JSON schema")
    schema.set_defaults(action=_config_schema)


def _add_ctl(parser: VerbParser) -> None:
    from vgpud.cli.ctl.arguments import add_verbs

    add_verbs(parser)


def _add_install_units(parser: VerbParser) -> None:
    parser.set_defaults(action=_install_units)
    parser.add_argument(
        "--prefix",
        type=Path,
        metavar="DIR",
        help="the directory that has bin/vgpud (default: this program's)",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the directory that becomes / on another system (default: /)",
    )
    parser.add_argument(
        "--uninstall", action="store_true", help="remove the files that were not changed"
    )


def _add_completion(parser: VerbParser) -> None:
    parser.set_defaults(action=_completion)
    parser.add_argument("shell", choices=completion.SHELLS, metavar="SHELL", help="bash, zsh, fish")


_VERBS: Final[dict[str, tuple[str, Callable[[VerbParser], None]]]] = {
    "serve": ("serve the configured devices until SIGTERM", _add_serve),
    "doctor": ("say what this host can do, and what would help", _add_doctor),
    "demo": ("show non-coherent DMA at work on this machine", _add_demo),
    "bench": ("measure what parts of vgpud cost on this machine", _add_bench),
    "config": ("check a configuration, or show what there is to set", _add_config),
    "ctl": ("look at a running daemon, or call any of its methods", _add_ctl),
    "install-units": ("put the system service's files in place", _add_install_units),
    "completion": ("print a script that completes these verbs and options", _add_completion),
}
"""The description of each verb for `--help`, and the function that adds its options."""


def _serve(args: argparse.Namespace) -> None:
    gc.disable()  # imports leave no garbage, and collections take a tenth of the start time
    from vgpud.cli import serve

    serve.run(args.config, args.log_level)


def _doctor(args: argparse.Namespace) -> None:
    from vgpud.cli import doctor

    write_text(doctor.text(as_json=args.json, plans=args.plans, measure=args.measure))


def _demo(args: argparse.Namespace) -> None:
    from vgpud.cli import demo

    result = demo.run(args.out)
    write_text(json.dumps(result.to_json(), indent=2) if args.json else result.text())
    if not result.ok:
        raise VgpudError("not every step held")


def _bench(args: argparse.Namespace) -> None:
    from vgpud.cli.bench import suite

    write_text(suite.text(args.name, _report_progress, as_json=args.json, picture=args.plot))


def _report_progress(what: str) -> None:
    write_error(f"vgpud: measuring {what}")


def _config_check(args: argparse.Namespace) -> None:
    from vgpud.daemon.config import Config

    config = Config.load(args.file)
    for warning in (*config.warnings(), *config.host_warnings()):
        write_error(f"{args.file}: warning: {warning}")
    write_text(f"{args.file}: no fault found")


def _config_default(_: argparse.Namespace) -> None:
    from vgpud.daemon.config import default_toml

    write_text(default_toml().rstrip())


def _config_schema(_: argparse.Namespace) -> None:
    from vgpud.daemon.config import schema

    write_text(json.dumps(schema(), indent=2))


def _install_units(args: argparse.Namespace) -> None:
    from vgpud.cli import units

    act = units.uninstall if args.uninstall else units.install
    for line in act(args.prefix, args.root):
        write_text(line)


def _completion(args: argparse.Namespace) -> None:
    write_text(completion.script(parser(), args.shell))


def _print_errors(program: str, errors: BaseExceptionGroup[VgpudError]) -> None:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _print_errors(program, error)
        else:
            for line in str(error).splitlines():
                write_error(f"{program}: {line}")
