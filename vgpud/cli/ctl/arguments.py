"""The arguments of `vgpud ctl`: its verbs, and every method of the control API by its own name.

The functions of the verbs are in `verbs`.
"""

from __future__ import annotations

import argparse
import json
import re
from functools import partial
from pathlib import Path
from typing import Final

from vgpud.cli.ctl import verbs
from vgpud.cli.ctl.verb_parser import VerbParser
from vgpud.cli.stdout import ProgramParser
from vgpud.control.methods import METHODS
from vgpud.control.rpc import MAX_WAIT

SHORTEST_INTERVAL: Final = 0.1
"""Seconds. With a shorter interval, the figures would show the watching itself."""


def add_verbs(parser: VerbParser) -> None:
    """Add the verbs to a parser that has no options yet."""
    _add_daemon(parser, default=None)
    _add_timeout(parser, default=None)
    names = parser.add_subparsers(required=True, metavar="VERB|METHOD", parser_class=ProgramParser)
    _add(names, "status", verbs.status, "the daemon, and its devices")

    devices = _add(names, "devices", verbs.devices, "all devices, or all about one")
    devices.add_argument("device", nargs="?", metavar="DEVICE")

    for name, verb, about in (
        ("blobs", verbs.blobs, "blobs, of one device or of all"),
        ("slots", verbs.slots, "what is mapped into guests, of one device or of all"),
    ):
        _add(names, name, verb, about).add_argument("device", nargs="?", metavar="DEVICE")

    screenshot = _add(names, "screenshot", verbs.screenshot, "what an output shows, as a PNG")
    screenshot.add_argument("device", metavar="DEVICE")
    _add_scanout(screenshot)
    screenshot.add_argument(
        "--out", type=Path, metavar="FILE", help="default: stdout, if that is no terminal"
    )

    events = _add(names, "events", verbs.events, "what happens, until SIGINT")
    events.add_argument(
        "--kind",
        action="append",
        metavar="PATTERN",
        help="only such as device.* or agent.lost; may be given several times",
    )
    events.add_argument("--device", metavar="DEVICE", help="only of this device")
    _add_count(events)

    _add(names, "metrics", verbs.metrics, "counters and states, as OpenMetrics text")

    resize = _add(names, "resize", verbs.resize, "offer the guest another mode")
    resize.add_argument("device", metavar="DEVICE")
    resize.add_argument("mode", type=_mode, metavar="WIDTHxHEIGHT", help="in pixels")
    _add_scanout(resize)

    _add(names, "reload", verbs.reload, "have the daemon read its configuration again")

    watch = _add(names, "watch", verbs.watch, "what devices do a second, until SIGINT")
    watch.add_argument(
        "--interval", type=_interval, default=1.0, metavar="SECONDS", help="default: 1"
    )
    _add_count(watch)

    for method in METHODS.values():
        _add_method(names, method.name, _sentence(method.about), with_file=method.fd is not None)
    parser.add_method = partial(_add_unknown, names)


def _add(
    names: argparse._SubParsersAction[ProgramParser],
    name: str,
    verb: verbs.Verb,
    about: str,
    *,
    only_json: bool = False,
) -> argparse.ArgumentParser:
    parser = names.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
    parser.set_defaults(action=partial(verbs.run, verb))
    # These options may also come after the verb.
    _add_daemon(parser, default=argparse.SUPPRESS)
    _add_timeout(parser, default=argparse.SUPPRESS)
    about = "no effect: the answer is always JSON" if only_json else "print JSON"
    parser.add_argument("--json", action="store_true", help=about)
    return parser


def _add_unknown(names: argparse._SubParsersAction[ProgramParser], name: str) -> None:
    # An argument that is no method, such as a file's name, does no harm.
    if name not in names.choices:
        _add_method(names, name, "a method that only the daemon knows", with_file=True)


def _add_method(
    names: argparse._SubParsersAction[ProgramParser],
    name: str,
    about: str,
    *,
    with_file: bool,
) -> None:
    parser = _add(names, name, verbs.call, about, only_json=True)
    parser.set_defaults(method=name, out=None)
    parser.add_argument(
        "params", type=_params, nargs="?", metavar="JSON", help="its parameters: {...} or [...]"
    )
    if with_file:
        parser.add_argument(
            "--out", type=Path, metavar="FILE", help="for the file that comes with the answer"
        )


def _add_daemon(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=default,
        help="the daemon's configuration; default: built-in defaults",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        metavar="SOCKET",
        default=default,
        help="control socket; default: as configured",
    )


def _add_timeout(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--timeout",
        type=_timeout,
        metavar="SECONDS",
        default=default,
        help="how long a method may take until it is given up; default: by method",
    )


def _add_scanout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scanout", type=_scanout, default=0, metavar="N", help="which output; default: 0"
    )


def _add_count(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--count", type=_count, metavar="N", help="end after so many; default: go on"
    )


def _sentence(about: str) -> str:
    text = about.removesuffix(".")
    return text[0].lower() + text[1:]


def _params(text: str) -> dict[str, object] | list[object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict | list):
        raise argparse.ArgumentTypeError("must be an object or an array")
    return value


def _mode(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text)
    if match is None:
        raise argparse.ArgumentTypeError('must be width and height in pixels, as in "1280x800"')
    return int(match[1]), int(match[2])


def _scanout(text: str) -> int:
    return _whole(text, "an output's number, 0 to 15", range(16))


def _count(text: str) -> int:
    return _whole(text, "a whole number from 1", range(1, 1 << 63))


def _whole(text: str, what: str, allowed: range) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) not in allowed:
        raise argparse.ArgumentTypeError(f"must be {what}")
    return int(text)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_WAIT:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, {MAX_WAIT:.0f} at most")
    return seconds


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_INTERVAL <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be {SHORTEST_INTERVAL} seconds or more")
    return seconds
