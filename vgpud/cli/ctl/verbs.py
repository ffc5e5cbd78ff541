"""The verbs of `vgpud ctl`: each calls methods and prints the answers.

Their options are in `arguments`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from vgpud.cli.ctl import answers, files, rates, screens
from vgpud.cli.ctl.tables import fitted, span
from vgpud.cli.stdout import ellipsis, is_terminal, write_text
from vgpud.client import Client
from vgpud.control import models
from vgpud.daemon.config import Config
from vgpud.errors import ConfigError

SYSTEM_SOCKET: Final = Path("/run/vgpud/control.sock")
"""The control socket of the system's daemon, if the user has no daemon of their own."""

Verb: TypeAlias = Callable[[Client, argparse.Namespace], None]

_CURSOR_HOME: Final = "\x1b[H"
_ERASE_LINE: Final = "\x1b[K"
_ERASE_SCREEN: Final = "\x1b[J"


def run(verb: Verb, args: argparse.Namespace) -> None:
    """Run a verb with the daemon that the arguments name."""
    with Client(_socket(args), timeout=args.timeout) as client:
        verb(client, args)


def _socket(args: argparse.Namespace) -> Path:
    if args.socket is not None:
        return Path(args.socket)
    path = Config.load(args.config).control_path
    if path is None:
        raise ConfigError(f"{args.config}: this configuration has no control socket")
    if args.config is None and not path.exists() and SYSTEM_SOCKET.exists():
        return SYSTEM_SOCKET
    return path


def status(client: Client, args: argparse.Namespace) -> None:
    """Print the daemon and its devices."""
    info = answers.ask(client, "daemon.info", models.DaemonInfo)
    devices = answers.listing(client, "device.list", models.DeviceDetails)
    if args.json:
        _print_json({"daemon": _value(info), "devices": [_value(device) for device in devices]})
    else:
        _print_lines(screens.status(info, devices))


def devices(client: Client, args: argparse.Namespace) -> None:
    """Print all devices, or all facts about one."""
    if args.device is not None:
        device = answers.ask(client, "device.get", models.DeviceDetails, {"device": args.device})
        _show(device, screens.device(device), args)
        return
    found = answers.listing(client, "device.list", models.DeviceDetails)
    _show(found, screens.devices(found), args)


def blobs(client: Client, args: argparse.Namespace) -> None:
    """Print blobs, of one device or of all."""
    found = answers.listing(client, "blob.list", models.Blob, _of_device(args))
    _show(found, screens.blobs(found), args)


def slots(client: Client, args: argparse.Namespace) -> None:
    """Print mappings into guests, of one device or of all."""
    found = answers.listing(client, "slot.list", models.Slot, _of_device(args))
    _show(found, screens.slots(found), args)


def screenshot(client: Client, args: argparse.Namespace) -> None:
    """Write a picture to a file or a pipe."""
    if args.out is None and is_terminal():
        raise ConfigError("screenshot: use --out FILE, as a terminal can't show the picture")
    if args.out is None and args.json:
        raise ConfigError("screenshot: --json needs --out FILE, as the picture goes to stdout")
    params = {"device": args.device, "scanout": args.scanout}
    value, fd = client.call_with_fd("device.screenshot", params)
    with fd:
        result = answers.checked(value, models.Screenshot, "device.screenshot")
        files.save(fd, value, args.out)
    if args.out is not None:
        _show(result, [screens.screenshot(result, str(args.out))], args)


def resize(client: Client, args: argparse.Namespace) -> None:
    """Offer the guest another mode."""
    width, height = args.mode
    params = {
        "device": args.device,
        "width": width,
        "height": height,
        "scanout": args.scanout,
    }
    result = answers.ask(client, "device.resize", models.Resized, params)
    _show(result, [screens.resized(result)], args)


def reload(client: Client, args: argparse.Namespace) -> None:
    """Have the daemon read its configuration again, and print the changes."""
    result = answers.ask(client, "config.reload", models.Reloaded)
    _show(result, screens.reloaded(result), args)


def metrics(client: Client, args: argparse.Namespace) -> None:
    """Print all metrics, as OpenMetrics text or as JSON."""
    text = answers.metrics(client).text
    if args.json:
        _print_json([asdict(sample) for sample in rates.samples(text)])
    else:
        write_text(text.removesuffix("\n"))


def events(client: Client, args: argparse.Namespace) -> None:
    """Print events as they happen, until SIGINT."""
    try:
        with closing(answers.events(client, args.kind or ["*"], args.device)) as found:
            for number, event in enumerate(found, start=1):
                line = event.model_dump_json() if args.json else screens.event(event)
                write_text("".join(_fitted([line]) if not args.json else [line]))
                if number == args.count:
                    break
    except KeyboardInterrupt:
        pass  # The one way to end it.


def watch(client: Client, args: argparse.Namespace) -> None:
    """Print the devices' rates per second at each interval, until SIGINT."""
    before, shown = rates.snapshot(answers.metrics(client).text), 0
    try:
        while shown != args.count:
            time.sleep(args.interval)
            now = rates.snapshot(answers.metrics(client).text)
            _show_rates(now, rates.rates(before, now), args)
            before, shown = now, shown + 1
    except KeyboardInterrupt:
        pass  # The one way to end it.


def call(client: Client, args: argparse.Namespace) -> None:
    """Call any method by its name, and print its result."""
    if args.out is None and not answers.has_file(args.method):
        _print_json(client.call(args.method, args.params))
        return
    value, fd = client.call_with_fd(args.method, args.params)
    with fd:
        if args.out is not None:
            files.save(fd, value, args.out)
    _print_json(value)


def _of_device(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.device is None else {"device": args.device}


def _show(
    found: BaseModel | tuple[BaseModel, ...], lines: Iterable[str], args: argparse.Namespace
) -> None:
    if not args.json:
        _print_lines(lines)
    elif isinstance(found, BaseModel):
        _print_json(_value(found))
    else:
        _print_json([_value(item) for item in found])


def _show_rates(
    now: rates.Snapshot, found: list[rates.DeviceRates], args: argparse.Namespace
) -> None:
    if args.json:
        write_text(json.dumps({"uptime_s": now.uptime, "devices": [asdict(row) for row in found]}))
        return
    heading = f"{datetime.now().astimezone():%H:%M:%S}  daemon up {span(now.uptime)}"
    lines = list(_fitted([heading, *rates.lines(found)]))
    if is_terminal():
        room = shutil.get_terminal_size().lines - 1
        write_text(
            _CURSOR_HOME + "\n".join(line + _ERASE_LINE for line in lines[:room]) + _ERASE_SCREEN
        )
    else:
        write_text("\n".join([*lines, ""]))


def _value(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def _print_json(value: object) -> None:
    write_text(json.dumps(value, indent=2))


def _print_lines(lines: Iterable[str]) -> None:
    write_text("\n".join(_fitted(lines)))


def _fitted(lines: Iterable[str]) -> Iterator[str]:
    return fitted(lines, _width(), ellipsis())


def _width() -> int | None:
    return shutil.get_terminal_size().columns if is_terminal() else None
