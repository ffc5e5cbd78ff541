"""`vgpud serve`: the daemon in the foreground, started by hand or by a service manager."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vgpud import __version__
from vgpud.cli import qemu_lines
from vgpud.cli.foreground import run_daemon
from vgpud.cli.stdout import write_text
from vgpud.daemon import logs, refusal
from vgpud.daemon.config import Config
from vgpud.daemon.daemon import Daemon
from vgpud.daemon.final_errors import logged_if_stderr_is_lost
from vgpud.daemon.notify import Notifier
from vgpud.unix.activation import Activated


class _Start:
    """The start of a daemon, which can be tried again: each time the file is read."""

    def __init__(self, file: Path | None, log_level: str | None, activated: Activated) -> None:
        self._file = file
        self._log_level = log_level
        self._activated = activated
        self._notifier = Notifier.from_environment(os.environ)
        self._daemon: Daemon | None = None

    def __call__(self) -> None:
        """Serve until the daemon is stopped; raises ConfigError or HostError."""
        self._daemon = None
        config = Config.load(self._file)
        logs.set_level(self._log_level or config.daemon.log_level)
        config.log_warnings()
        self._daemon = Daemon(
            config,
            notifier=self._notifier,
            activated=self._activated,
            log_level=self._log_level,
        )
        lines = _announcement(config, short=self._notifier.wanted)
        run_daemon(self._daemon, lambda: write_text("\n".join(lines)))

    def has_listened(self) -> bool:
        """Return whether the daemon's sockets were open."""
        return self._daemon is not None and self._daemon.has_listened


def run(file: Path | None, log_level: str | None) -> None:
    """Serve the devices of the configuration in `file` until SIGTERM, or the built-in defaults.

    `log_level` overrides the configuration's. Raises ConfigError or HostError if the daemon can't
    start; then what waits at sockets of the service manager's has been refused.
    """
    logs.start(log_level or "info", "vgpud")
    with (
        logged_if_stderr_is_lost(),
        Activated.from_environment(os.environ) as activated,
    ):
        start = _Start(file, log_level, activated)
        refusal.run(activated, start, start.has_listened)


def _announcement(config: Config, *, short: bool) -> Iterator[str]:
    yield f"vgpud {__version__} is listening; control socket: {config.control_path or 'none'}"
    if short:  # in a journal, the command lines would be in the way
        return
    for spec in config.device_specs():
        socket = config.socket_path(spec.name)
        yield f"\n# {spec.name}, all features (guest.qcow2 stands for a disk image of yours):"
        yield qemu_lines.all_features(socket)
        yield f"\n# {spec.name}, 2D on QEMU's display:"
        yield qemu_lines.display(socket)
