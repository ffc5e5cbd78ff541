"""The destination of log lines: standard error, the journal with fields, or syslog.

Logging never waits and never raises: a line that a handler can't write at once is lost. Lines are
limited (`daemon.log_limit`) and escaped, because guests and others cause and name things. Source:
systemd's "Native Journal Protocol", systemd.exec(5) on $JOURNAL_STREAM, syslog(3).
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import logging
import os
import select
import socket
import stat
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from vgpud.daemon.log_limit import CONVERSION, LogLimit
from vgpud.daemon.rate_limit import INTERVAL
from vgpud.memory import memfd
from vgpud.printable import printable
from vgpud.unix import ancillary

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
SYSLOG_SOCKET: Final = Path("/dev/log")
LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"

limit: Final = LogLimit()
"""The limit of this process's log."""

_DEV_NULL: Final = os.makedev(1, 3)
_LOG_DAEMON: Final = 3 << 3
_MAX_FIELD: Final = 64
"""Characters of a field's name, the journal's limit."""


def start(level: str, program: str) -> None:
    """Start logging of `level` ("debug", "info", "warning", "error") and above, with `limit`.

    Lines go to the journal if standard error is connected to it. If standard error is closed or
    /dev/null, as in processes that libvirt starts, they go to the journal or to syslog, if there is
    one. Otherwise they go to standard error.
    """
    handler = _handler(program)
    handler.addFilter(limit)
    logging.basicConfig(handlers=[handler], level=level.upper())
    atexit.register(_report)


async def report_suppressed() -> None:
    """Log now and then how many lines were left out, until cancelled."""
    while True:
        await asyncio.sleep(INTERVAL)
        _report()


def _report() -> None:
    for handler in logging.getLogger().handlers:
        if limit in handler.filters:
            limit.report(handler.emit)


def set_level(level: str) -> None:
    """Set the lowest level that is logged."""
    logging.getLogger().setLevel(level.upper())


def _handler(program: str) -> logging.Handler:
    found, lost = _stat_stderr(), stderr_is_lost()
    if is_journal(found, os.environ) or (lost and JOURNAL_SOCKET.exists()):
        return JournalHandler(program, JOURNAL_SOCKET)
    if lost and SYSLOG_SOCKET.exists():
        return SyslogHandler(program, SYSLOG_SOCKET)
    return StderrHandler() if found else logging.NullHandler()


def stderr_is_lost() -> bool:
    """Return whether standard error is closed or /dev/null."""
    found = _stat_stderr()
    return found is None or (stat.S_ISCHR(found.st_mode) and found.st_rdev == _DEV_NULL)


def is_journal(stderr: os.stat_result | None, environment: Mapping[str, str]) -> bool:
    """Return whether standard error is the stream to the journal that systemd opened.

    The numbers are compared because a shell in between may have redirected standard error.
    """
    if stderr is None:
        return False
    return environment.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def _stat_stderr() -> os.stat_result | None:
    if sys.stderr is None:  # It was closed at the start: descriptor 2 may be any file by now.
        return None
    try:
        return os.fstat(2)
    except OSError:
        return None


class LineFormatter(logging.Formatter):
    """The one formatter: it escapes what would end a line or act on a terminal.

    Values may be from guests, front-ends and clients. The lines of a traceback are indented, so
    that none looks like a line of the log.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of the record's exception, if any."""
        record.message = printable(record.getMessage() + getattr(record, "suppressed", ""))
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [self.formatMessage(record)]
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            lines += [f"  {printable(line)}" for line in trace.split("\n")]
        return "\n".join(lines)


class _LineHandler(logging.Handler, ABC):
    """A handler that sends each record at once or never."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(line))

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; if it can't be sent now, it is lost."""
        try:
            self._send(self.encode(record))
        except Exception:  # a failure to log must not disturb the caller
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Ignore the error, because there is no other place to log it."""

    @abstractmethod
    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the bytes for a record."""

    @abstractmethod
    def _send(self, data: bytes) -> None: ...


class StderrHandler(_LineHandler):
    """A handler that writes lines to standard error, while that can take them."""

    def __init__(self) -> None:
        super().__init__(LINE)
        self._encoding = sys.stderr.encoding
        self._poll = select.poll()
        self._poll.register(2, select.POLLOUT)

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the record as a line in the terminal's encoding."""
        return (self.format(record) + "\n").encode(self._encoding, "backslashreplace")

    def _send(self, data: bytes) -> None:
        # A pipe or terminal that takes any bytes takes PIPE_BUF of them without waiting.
        for start in range(0, len(data), select.PIPE_BUF):
            if not self._poll.poll(0):
                return
            os.write(2, data[start : start + select.PIPE_BUF])


class _DatagramHandler(_LineHandler):
    """A handler that sends each record as a datagram to a path."""

    def __init__(self, program: str, path: Path) -> None:
        super().__init__("%(message)s")
        self.program = program
        self._path = os.fspath(path)
        self._sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        super().close()

    def _send(self, data: bytes) -> None:
        self._sock.sendto(data, socket.MSG_NOSIGNAL, self._path)


class JournalHandler(_DatagramHandler):
    """A handler for the journal, with a field for each `key=value` pair of a line.

    `device=%s` becomes VGPUD_DEVICE, and so on. Keys are read from the record's template and values
    from its arguments, so that a value can't forge a key.
    """

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the record in the journal's own format."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_priority(record.levelno)),
            "SYSLOG_IDENTIFIER": self.program,
            "SYSLOG_FACILITY": str(_LOG_DAEMON >> 3),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        fields.update(journal_fields(record))
        return b"".join(_field(name, value) for name, value in fields.items())

    def _send(self, data: bytes) -> None:
        try:
            super()._send(data)
        except OSError as error:
            if error.errno not in {errno.EMSGSIZE, errno.ENOBUFS}:
                raise
            self._send_file(data)

    def _send_file(self, data: bytes) -> None:
        """Send a record that is too long for a datagram as a file, by its descriptor alone."""
        with memfd.filled("vgpud-log", [data]) as file:  # sealed: the journal takes no other
            ancillary.send(self._sock, [], [file], address=self._path)


class SyslogHandler(_DatagramHandler):
    """A handler for syslog, one line a record, in the format of syslog(3)."""

    def encode(self, record: logging.LogRecord) -> bytes:
        """Return the record as one line, with spaces in place of line breaks."""
        text = self.format(record)
        head = f"<{_LOG_DAEMON | _priority(record.levelno)}>{self.program}[{os.getpid()}]: "
        return (head + " ".join(map(str.strip, text.split("\n")))).encode(errors="backslashreplace")


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """Return the values of a record's `key=value` pairs by their field names in the journal."""
    if not isinstance(record.args, tuple):
        return {}
    values = dict(_values(str(record.msg), record.args))
    return {f"VGPUD_{key.upper()}"[:_MAX_FIELD]: value for key, value in values.items()}


def _values(template: str, args: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    values = iter(args)
    for found in CONVERSION.finditer(template):
        if found["spec"].endswith("%"):
            continue
        value = next(values, None)
        if found["key"]:
            yield found["key"], printable(f"%{found['spec']}" % (value,))


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return b"%s\n%s%s\n" % (name.encode(), struct.pack("<Q", len(data)), data)
    return b"%s=%s\n" % (name.encode(), data)


def _priority(level: int) -> int:
    """Return the syslog priority of a level of logging."""
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7
