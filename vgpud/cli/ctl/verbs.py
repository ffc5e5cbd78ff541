"""What each verb of `vgpud ctl` does: calls, and what is printed of the answers.

Owns no option: `arguments` has them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from vgpud.cli.ctl import answers, files, rates, screens
from vgpud.cli.ctl.tables import fitted, span
from vgpud.cli.stdout import is_terminal, say
from vgpud.client import Client
from vgpud.control import models
from vgpud.daemon.config import Config
from vgpud.errors import ConfigError

SYSTEM_SOCKET: Final = Path("/run/vgpud/control.sock")
"""Where a daemon that the system has started is, for users whose own one would be elsewhere."""

Verb: TypeAlias = Callable[[Client, argparse.Namespace], None]

_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"


def run(verb: Verb, args: argparse.Namespace) -> None:
    """Do it at the daemon that the arguments name."""
    with Client(_socket(args)) as client:
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
    """The daemon and its devices."""
    info = answers.ask(client, "daemon.info", models.DaemonInfo)
    devices = answers.listing(client, "device.list", models.Device)
    if args.json:
        _say_json({"daemon": _value(info), "devices": [_value(device) for device in devices]})
    else:
        _say_lines(screens.status(info, devices))


def devices(client: Client, args: argparse.Namespace) -> None:
    """All devices, or all about one."""
    if args.device is not None:
        device = answers.ask(client, "device.get", models.Device, {"device": args.device})
        _show(device, screens.device(device), args)
        return
    found = answers.listing(client, "device.list", models.Device)
    _show(found, screens.devices(found), args)


def blobs(client: Client, args: argparse.Namespace) -> None:
    """Blobs, of one device or of all."""
    found = answers.listing(client, "blob.list", models.Blob, _of_device(args))
    _show(found, screens.blobs(found), args)


def slots(client: Client, args: argparse.Namespace) -> None:
    """Mappings into guests, of one device or of all."""
    found = answers.listing(client, "slot.list", models.Slot, _of_device(args))
    _show(found, screens.slots(found), args)


def screenshot(client: Client, args: argparse.Namespace) -> None:
    """A picture, into a file or a pipe."""
    if args.out is None and is_terminal():
        raise ConfigError("screenshot: say --out FILE, as a picture is nothing for a terminal")
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
    """Offer another mode."""
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
    """Have the configuration read anew."""
    result = answers.ask(client, "config.reload", models.Reloaded)
    _show(result, screens.reloaded(result), args)


def metrics(client: Client, args: argparse.Namespace) -> None:
    """All metrics, as OpenMetrics text or one by one."""
    text = answers.metrics(client).text
    if args.json:
        _say_json([asdict(sample) for sample in rates.samples(text)])
    else:
        say(text.removesuffix("\n"))


def events(client: Client, args: argparse.Namespace) -> None:
    """What happens, as it does, until SIGINT."""
    try:
        with closing(answers.events(client, args.kind or ["*"], args.device)) as found:
            for number, event in enumerate(found, start=1):
                line = event.model_dump_json() if args.json else screens.event(event)
                say("".join(fitted([line], None if args.json else _width())))
                if number == args.count:
                    break
    except KeyboardInterrupt:
        pass  # The one way to end it.


def watch(client: Client, args: argparse.Namespace) -> None:
    """What devices do a second, again and again, until SIGINT."""
    before, shown = rates.look(answers.metrics(client).text), 0
    try:
        while shown != args.count:
            time.sleep(args.interval)
            now = rates.look(answers.metrics(client).text)
            _show_rates(now, rates.rates(before, now), args)
            before, shown = now, shown + 1
    except KeyboardInterrupt:
        pass  # The one way to end it.


def call(client: Client, args: argparse.Namespace) -> None:
    """Any method, by its name."""
    if args.out is None and not answers.has_file(args.method):
        _say_json(client.call(args.method, args.params))
        return
    value, fd = client.call_with_fd(args.method, args.params)
    with fd:
        if args.out is not None:
            files.save(fd, value, args.out)
    _say_json(value)


def _of_device(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.device is None else {"device": args.device}


def _show(
    found: BaseModel | tuple[BaseModel, ...], lines: Iterable[str], args: argparse.Namespace
) -> None:
    if not args.json:
        _say_lines(lines)
    elif isinstance(found, BaseModel):
        _say_json(_value(found))
    else:
        _say_json([_value(item) for item in found])


def _show_rates(now: rates.Look, found: list[rates.DeviceRates], args: argparse.Namespace) -> None:
    if args.json:
        say(json.dumps({"uptime_s": now.uptime, "devices": [asdict(row) for row in found]}))
        return
    heading = f"{datetime.now().astimezone():%H:%M:%S}  daemon up {span(now.uptime)}"
    lines = list(fitted([heading, *rates.lines(found)], _width()))
    if is_terminal():
        room = shutil.get_terminal_size().lines - 1
        say(_HOME + "\n".join(line + _REST_OF_LINE for line in lines[:room]) + _REST_OF_SCREEN)
    else:
        say("\n".join([*lines, ""]))


def _value(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def _say_json(value: object) -> None:
    say(json.dumps(value, indent=2))


def _say_lines(lines: Iterable[str]) -> None:
    say("\n".join(fitted(lines, _width())))


def _width() -> int | None:
    return shutil.get_terminal_size().columns if is_terminal() else None
