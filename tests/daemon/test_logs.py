"""Log lines: where they go, what fields the journal gets, and that logging never waits."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vgpud.daemon import logs
from vgpud.unix.fd import Fd

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens where the journal does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(str(tmp_path / "journal"))
        yield sock


@pytest.fixture
def journal(reader: socket.socket) -> Iterator[logging.Logger]:
    """A logger with a handler that sends to `reader`."""
    handler = logs.JournalHandler("test", Path(reader.getsockname()))
    logger = logging.Logger("vgpud.test", logging.DEBUG)
    logger.addHandler(handler)
    yield logger
    handler.close()


def parsed(data: bytes) -> dict[str, str]:
    """An entry by the journal's own rules."""
    fields = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            [size] = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        fields[name.decode()] = value.decode()
    return fields


def received(reader: socket.socket) -> dict[str, str]:
    return parsed(reader.recv(1 << 20))


def test_an_entry(journal: logging.Logger, reader: socket.socket) -> None:
    journal.warning("front-end refused device=%s pid=%d: pid %d is connected", "gpu0", 7, 8)
    entry = received(reader)
    assert entry.pop("CODE_LINE").isdecimal()
    assert entry == {
        "MESSAGE": "front-end refused device=gpu0 pid=7: pid 8 is connected",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "test",
        "SYSLOG_FACILITY": "3",
        "LOGGER": "vgpud.test",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_an_entry",
        "VGPUD_DEVICE": "gpu0",
        "VGPUD_PID": "7",
    }


@pytest.mark.parametrize(
    ("template", "args", "fields"),
    [
        ("device=%s resource=%d", ("gpu0", 3), {"DEVICE": "gpu0", "RESOURCE": "3"}),
        ("100%% device=%s", ("gpu0",), {"DEVICE": "gpu0"}),
        ("%s device=%s", ("device=evil", "gpu0"), {"DEVICE": "gpu0"}),
        ("device=%s reason=%s", ("a", "b device=c"), {"DEVICE": "a", "REASON": "b device=c"}),
        ("address=%#x left=%.1f", (4096, 1.25), {"ADDRESS": "0x1000", "LEFT": "1.2"}),
        ("client=%r", ("a b",), {"CLIENT": "'a b'"}),
        ("device=gpu0", (), {}),
        ("device=%s", (("a", "b"),), {"DEVICE": "('a', 'b')"}),
        ("%(device)s", ({"device": "a"},), {}),
    ],
)
def test_fields_are_of_the_template_and_its_arguments(
    template: str, args: tuple[object, ...], fields: dict[str, str]
) -> None:
    record = logging.LogRecord("n", logging.INFO, "p", 1, template, args, None)
    assert logs.journal_fields(record) == {f"VGPUD_{key}": value for key, value in fields.items()}


@pytest.mark.parametrize("value", ["two\nlines", "two\nMESSAGE=forged", "\n", "\udcff", "é\0"])
def test_no_value_can_forge_a_field(
    journal: logging.Logger, reader: socket.socket, value: str
) -> None:
    journal.info("device=%s", value)
    entry = received(reader)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
    assert entry["MESSAGE"] == f"device={shown}"
    assert entry["VGPUD_DEVICE"] == shown


def test_levels(journal: logging.Logger, reader: socket.socket) -> None:
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(journal, level)("x")
    assert [received(reader)["PRIORITY"] for _ in range(5)] == ["7", "6", "4", "3", "2"]


def test_a_traceback_is_part_of_the_message(journal: logging.Logger, reader: socket.socket) -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        journal.exception("ended device=%s", "gpu0")
    message = received(reader)["MESSAGE"]
    assert message.startswith("ended device=gpu0\n  Traceback")
    assert message.endswith("\n  ValueError: oh")


def test_what_no_datagram_holds_goes_as_a_sealed_file(
    journal: logging.Logger, reader: socket.socket
) -> None:
    before = len([*Path("/proc/self/fd").iterdir()])
    text = "x" * (1 << 20)
    journal.info("%s", text)
    data, ancillary, _, _ = reader.recvmsg(16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    [(_, kind, rights)] = ancillary
    assert (data, kind) == (b"", socket.SCM_RIGHTS)
    with Fd(array.array("i", rights)[0]) as fd:
        seals = fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS)
        assert seals & 0xF == 0xF, "the journal takes no file that may change"
        assert parsed(os.pread(fd.fileno(), 2 << 20, 0))["MESSAGE"] == text
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_journal_that_does_not_read_costs_no_time(
    journal: logging.Logger, reader: socket.socket
) -> None:
    begin = time.monotonic()
    for number in range(5000):
        journal.info("number=%d", number)
    assert time.monotonic() - begin < 5
    assert received(reader)["VGPUD_NUMBER"] == "0"


def test_a_journal_that_is_gone_and_comes_back(
    journal: logging.Logger, reader: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(reader.getsockname())
    reader.close()
    journal.info("into the void")
    path.unlink()
    journal.info("and again")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as anew:
        anew.settimeout(5)
        anew.bind(str(path))
        journal.info("here")
        assert received(anew)["MESSAGE"] == "here"
    assert capsys.readouterr() == ("", "")


def test_a_line_that_can_not_be_formatted_raises_nothing(
    journal: logging.Logger, reader: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.info("device=%d", "no number")
    journal.info("good")
    assert received(reader)["MESSAGE"] == "good"
    assert capsys.readouterr() == ("", "")


def test_syslog(reader: socket.socket) -> None:
    handler = logs.SyslogHandler("vgpud", Path(reader.getsockname()))
    logger = logging.Logger("vgpud.test")
    logger.addHandler(handler)
    logger.error("one\ntwo device=%s", "gpu0")
    handler.close()
    assert reader.recv(1 << 16) == f"<27>vgpud[{os.getpid()}]: one\\ntwo device=gpu0".encode()


PROGRAM = """
import os, sys
from pathlib import Path
from vgpud.daemon import logs
logs.JOURNAL_SOCKET, logs.SYSLOG_SOCKET = map(Path, sys.argv[1:3])
logs.start("info", "prog")
logs.logging.getLogger("a").info("hello device=%s", "gpu0")
logs.logging.getLogger("a").debug("not this")
logs.set_level("debug")
logs.logging.getLogger("a").debug("but this")
"""


def run(
    journal: Path, syslog: Path, *, before: Callable[[], None] | None = None, **options: object
) -> str:
    """What a program that logs two lines puts on its standard error, if that is a pipe."""
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", PROGRAM, journal, syslog],
        cwd=ROOT,
        check=True,
        timeout=30,
        text=True,
        preexec_fn=before,
        **{"stderr": subprocess.PIPE, **options},
    )
    return str(done.stderr or "")


def test_standard_error_as_it_was(reader: socket.socket) -> None:
    path = Path(reader.getsockname())
    first, second = run(path, path).splitlines()
    assert first.endswith(" INFO a: hello device=gpu0")
    assert second.endswith(" DEBUG a: but this")


def close_stderr() -> None:
    os.close(2)


@pytest.mark.parametrize(
    "options", [{"stderr": subprocess.DEVNULL}, {"stderr": None, "before": close_stderr}]
)
def test_where_standard_error_is_lost(
    reader: socket.socket, tmp_path: Path, options: dict[str, Callable[[], None] | None]
) -> None:
    path, nothing = Path(reader.getsockname()), tmp_path / "nothing"
    run(path, nothing, **options)
    assert received(reader)["MESSAGE"] == "hello device=gpu0"
    entry = received(reader)
    assert (entry["MESSAGE"], entry["SYSLOG_IDENTIFIER"]) == ("but this", "prog")
    run(nothing, path, **options)
    assert reader.recv(1 << 16).endswith(b": hello device=gpu0")
    run(nothing, nothing, **options)


def test_standard_error_is_the_journals_stream(reader: socket.socket, tmp_path: Path) -> None:
    path = Path(reader.getsockname())
    with (tmp_path / "stream").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environment = {**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        run(path, path, stderr=stream, env=environment)
        assert received(reader)["VGPUD_DEVICE"] == "gpu0"
        stream.seek(0)
        assert stream.read() == ""
    # A shell in between has sent it elsewhere.
    assert "hello device=gpu0" in run(path, path, env=environment)


NAME = "qemu\n2026-11-30 00:00:00,000 CRITICAL vgpud: all guests are lost\x1b[2J\u2028\r"
ESCAPED = "qemu\\n2026-11-30 00:00:00,000 CRITICAL vgpud: all guests are lost\\x1b[2J\\u2028\\r"

HOSTILE = """
import sys
from pathlib import Path
from vgpud.daemon import logs
logs.JOURNAL_SOCKET, logs.SYSLOG_SOCKET = map(Path, sys.argv[1:3])
logs.start("info", "prog")
log = logs.logging.getLogger("a")
log.info("front-end device=%s program=%s", "gpu0", sys.argv[3])
try:
    raise ValueError(sys.argv[3])
except ValueError:
    log.exception("ended device=%s", "gpu0")
"""


def hostile(journal: Path, syslog: Path, **options: object) -> str:
    done = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", HOSTILE, journal, syslog, NAME],
        cwd=ROOT,
        check=True,
        timeout=30,
        encoding="utf-8",
        **{"stderr": subprocess.PIPE, **options},
    )
    return str(done.stderr or "")


def test_no_name_forges_a_line_of_standard_error(tmp_path: Path) -> None:
    first, second, *trace = hostile(tmp_path / "none", tmp_path / "none").splitlines()
    assert first.endswith(f" INFO a: front-end device=gpu0 program={ESCAPED}")
    assert second.endswith(" ERROR a: ended device=gpu0")
    assert trace[0] == "  Traceback (most recent call last):"
    assert trace[-2] == "  ValueError: qemu"
    assert all(line.startswith("  ") for line in trace)


@pytest.mark.parametrize("which", ["journal", "syslog"])
def test_no_name_forges_a_line_of_the_system_log(
    reader: socket.socket, tmp_path: Path, which: str
) -> None:
    paths = dict.fromkeys(("journal", "syslog"), tmp_path / "none")
    paths[which] = Path(reader.getsockname())
    hostile(*paths.values(), stderr=subprocess.DEVNULL)
    for expected in (ESCAPED, "ended device=gpu0"):
        data = reader.recv(1 << 16)
        if which == "journal":
            entry = parsed(data)
            assert expected in entry["MESSAGE"]
            assert not any(
                line.startswith("2026") or "\x1b" in line for line in entry["MESSAGE"].split("\n")
            )
        else:
            assert expected in data.decode()
            assert len(data.splitlines()) == 1


def test_a_pipe_that_nobody_reads_costs_no_time(tmp_path: Path) -> None:
    program = f"""{PROGRAM}
from vgpud.daemon.log_limit import UNLIMITED
for number in range(9000):
    logs.logging.getLogger("a").warning(str(number) * 99, extra=UNLIMITED)
"""
    read, write = os.pipe()
    try:
        subprocess.run(
            [sys.executable, "-c", program, tmp_path / "none", tmp_path / "none"],
            cwd=ROOT,
            check=True,
            timeout=30,
            stderr=write,
        )
    finally:
        os.close(read)
        os.close(write)


def test_a_narrow_encoding_loses_no_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "koi8-r:strict"}
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, tmp_path / "none", tmp_path / "none", "日本語"],
        cwd=ROOT,
        check=True,
        timeout=30,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert b"program=\\u65e5\\u672c\\u8a9e" in done.stderr
