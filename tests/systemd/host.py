"""What the checks under systemd do over and over: ask systemd, the daemon, and other users.

Runs in the guest, as root.
"""

from __future__ import annotations

import ctypes
import grp
import json
import os
import pwd
import re
import stat
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vgpud.client import Client

PREFIX = Path("/opt/vgpud")
RUNTIME = Path("/run/vgpud")
CONTROL = RUNTIME / "control.sock"
CONFIG = Path("/etc/vgpud.toml")
SERVICE = "vgpud.service"
SOCKETS = ("vgpud.socket", "vgpud-device@gpu0.socket")
PATIENCE = 120.0

Json = Any


def sh(*argv: str, fails: bool = False) -> str:
    """What a command says, which must succeed, or with `fails` must not."""
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode != 0) == fails, f"{' '.join(argv)}: {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


def show(unit: str, name: str) -> str:
    """A property of a unit, as systemd has it."""
    return sh("systemctl", "show", "--value", f"--property={name}", unit)


def journal(**fields: str) -> list[dict[str, Json]]:
    """What was logged, by its fields."""
    matches = [f"{name}={value}" for name, value in fields.items()]
    sh("journalctl", "--sync")
    lines = sh("journalctl", "--no-pager", "--quiet", "--output=json", *matches)
    return [json.loads(line) for line in lines.splitlines()]


def until(what: str, there: Callable[[], Json]) -> Json:
    """Wait for something to be the case."""
    deadline = time.monotonic() + PATIENCE
    while not (found := there()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.1)
    return found


def call(method: str, path: Path = CONTROL, **params: Json) -> Json:
    """The result of a method."""
    with Client(path, timeout=PATIENCE) as client:
        return client.call(method, params)


def as_user(name: str, act: Callable[[], Json]) -> Json:
    """What `act` returns in a process of another user's, with that user's groups."""
    user = pwd.getpwnam(name)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.initgroups(name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            said = {"value": act()}
        except BaseException:
            said = {"error": traceback.format_exc()}
        os.write(writer, json.dumps(said).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert "value" in said, said["error"]
    return said["value"]


def main_pid() -> int:
    return int(show(SERVICE, "MainPID"))


def mode(path: Path) -> tuple[str, str, str]:
    """A file's mode, user and group."""
    found = path.stat()
    user, group = pwd.getpwuid(found.st_uid).pw_name, grp.getgrgid(found.st_gid).gr_name
    return oct(stat.S_IMODE(found.st_mode)), user, group


def micro_vm(device: str) -> dict[str, Json]:
    """What came of a guest of another user's, which the daemon's sandbox knows nothing of."""
    path = RUNTIME / f"{device}.sock"
    program = ("python3", "tests/systemd/micro_vm.py", os.fspath(CONTROL), os.fspath(path), device)
    said: dict[str, Json] = json.loads(sh("runuser", "-u", "vmm", "--", *program))
    assert said["holds"] == [True, True], said
    for name in ("seen", "copied"):  # by who looks at the memory, and by the device's engine
        here, engine = said[name]
        assert here == engine, said
    return said


def sandboxed(program: str, meanwhile: Callable[[], Json] = lambda: None) -> str:
    """What a piece of Python says as the daemon's user, in what of its sandbox decides about seeing
    processes and GPUs. `meanwhile` is done again and again until it ends."""
    unit = Path(f"/etc/systemd/system/{SERVICE}").read_text()
    names = (
        *("User", "Group", "PrivateNetwork", "ProtectProc", "PrivateDevices"),
        "RestrictAddressFamilies",
    )
    found = re.findall(rf"^(?:{'|'.join(names)})=.*$", unit, re.MULTILINE)
    assert len(found) == len(names), found
    source, output = Path("/run/probe.py"), Path("/run/probe.out")
    source.write_text(program)
    lines = (
        *("[Service]", "Type=oneshot", f"Environment=PYTHONPATH={PREFIX}/lib", *found),
        *(f"ExecStart=python3 {source}", f"StandardOutput=truncate:{output}"),
    )
    Path("/run/systemd/system/probe.service").write_text("\n".join(lines) + "\n")
    sh("systemctl", "daemon-reload")
    with subprocess.Popen(("systemctl", "start", "probe.service")) as starting:
        while starting.poll() is None:
            meanwhile()
            time.sleep(0.2)
    said = output.read_text().strip()
    assert starting.returncode == 0, said
    return said


def freeze(pid: int) -> list[int]:
    """Stop every thread of a process but its first; which these are."""
    ptrace = ctypes.CDLL(None, use_errno=True).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    seize, interrupt = 0x4206, 0x4207
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]  # noqa: PTH208
    for thread in threads:
        for request in (seize, interrupt):
            done = ptrace(request, thread, None, None)
            assert done == 0, os.strerror(ctypes.get_errno())
    return threads


def reap(threads: list[int]) -> None:
    """A process is not gone before who looks on has seen the end of its threads."""
    wall = 0x40000000
    for thread in threads:
        with suppress(ChildProcessError):
            os.waitpid(thread, wall | os.WNOHANG)
