"""The units under a real systemd: runs in the guest as root, once everything basic is up.

Does one thing after another as an administrator would, and writes what came of each to
out/systemd.json: {name: {"ok", "seconds", "said"}}. What depends on a failed one fails too.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.systemd.host import (
    CONFIG,
    CONTROL,
    PATIENCE,
    PREFIX,
    RUNTIME,
    SERVICE,
    SOCKETS,
    Json,
    as_user,
    call,
    freeze,
    journal,
    main_pid,
    micro_vm,
    mode,
    reap,
    sandboxed,
    sh,
    show,
    until,
)
from vgpud.client import Client
from vgpud.control.rpc import RpcError
from vgpud.errors import HostError

UNITS = (SERVICE, *SOCKETS, "vgpud@vm1.service", "vgpud@vm1.socket")
WATCHDOG_S = 6
"""Seconds; 15 in the unit, which is long to wait for. An idle daemon answers in well under one."""
DEVICE = """\
[[device]]
name = "gpu0"
window = "1MiB"
memory_limit = "{limit}"
slots = "agent"
allow_users = ["vmm"]
"""
FEATURES = "010000000500000008000000"
"""The head of the answer to VHOST_USER_GET_FEATURES."""
# Two more, of dma-bufs: one of vgem's buffers, one of a memory file's pages.
MORE_DEVICES = """\
[[device]]
name = "gpu1"
window = "1MiB"
buffers = "gem"
render_node = "/dev/dri/renderD128"
slots = "agent"
allow_users = ["vmm"]
[[device]]
name = "gpu2"
window = "1MiB"
buffers = "udmabuf"
slots = "agent"
allow_users = ["vmm"]
[[slot_policy]]
match = { device = "gpu[12]" }
layout = "per-blob"
[[slot_policy]]
layout = "window"
"""


def install() -> str:
    """`vgpud install-units` puts everything in place, once."""
    (PREFIX / "bin").mkdir(parents=True)
    shutil.copytree("/job/package", PREFIX / "lib")
    for name, module in (("vgpud", "vgpud"), ("vhost-user-vgpu", "vgpud.cli.backend_program")):
        program = PREFIX / "bin" / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH={PREFIX}/lib exec python3 -m {module} "$@"\n')
        program.chmod(0o755)
    command = (str(PREFIX / "bin/vgpud"), "install-units", "--prefix", str(PREFIX))
    said = sh(*command)
    again = sh(*command).splitlines()
    for line in again:
        if line.startswith("now:"):
            break
        assert line.startswith("unchanged "), line
    # As it says.
    commands = [line.strip() for line in said.splitlines() if line.startswith("  ")]
    for line in commands[:2]:
        sh("sh", "-c", line)
    sh("udevadm", "trigger", "--settle", "--subsystem-match=misc")
    for name, groups in (("vmm", "kvm"), ("stranger", "users")):
        sh("useradd", "--no-create-home", "--groups", groups, name)
    CONFIG.write_text(DEVICE.format(limit="24MiB"))
    extra = Path(f"/etc/systemd/system/{SERVICE}.d/test.conf")
    extra.parent.mkdir()
    extra.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    sh("systemctl", "daemon-reload")
    return said


def verify() -> str:
    """systemd has nothing to say against the units."""
    said = sh("systemd-analyze", "verify", "--man=no", *UNITS)
    assert said == "", said
    return said


def exposure() -> str:
    """The sandbox is as tight as it was meant to be."""
    said = []
    for unit in ("vgpud.service", "vgpud@.service"):
        path = f"/etc/systemd/system/{unit}"
        text = sh("systemd-analyze", "security", "--offline=true", "--no-pager", path)
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", text)
        assert found is not None, text
        assert float(found[1]) <= 0.5, text
        said.append(found[0])
    return "; ".join(said)


def groups() -> str:
    """The devices that the daemon may open are its groups'."""
    found = {
        name: mode(Path("/dev", name)) for name in ("kvm", "udmabuf", "dri/card0", "dri/renderD128")
    }
    assert found == {
        "kvm": ("0o660", "root", "kvm"),
        "udmabuf": ("0o660", "root", "kvm"),
        "dri/card0": ("0o660", "root", "video"),
        "dri/renderD128": ("0o660", "root", "render"),
    }, found
    return str(found)


def activation() -> str:
    """The first call of a method starts the daemon, and is answered."""
    sh("systemctl", "start", *SOCKETS)
    assert show(SERVICE, "ActiveState") == "inactive"
    assert mode(CONTROL) == ("0o666", "root", "root"), mode(CONTROL)
    assert mode(RUNTIME / "gpu0.sock") == ("0o660", "root", "kvm"), mode(RUNTIME / "gpu0.sock")
    start = time.monotonic()
    info = call("daemon.info")
    took = time.monotonic() - start
    assert info["pid"] == main_pid(), info
    assert [device["socket"] for device in info["devices"]] == ["/run/vgpud/gpu0.sock"], info
    said = " ".join(entry["MESSAGE"] for entry in journal(_SYSTEMD_UNIT=SERVICE, PRIORITY="4"))
    assert said == "", said
    return f"answered {took:.1f} s after the call: {info}"


def ready() -> str:
    """It was the daemon that said that it was ready, and how it is."""
    until("active", lambda: show(SERVICE, "ActiveState") == "active")
    assert show(SERVICE, "Type") == "notify"
    status = show(SERVICE, "StatusText")
    assert "1" in status, status
    return status


def privileges() -> str:
    """It has none: another user, no capabilities, system calls filtered."""
    lines = Path(f"/proc/{main_pid()}/status").read_text().splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert found["Uid"].split() == [str(pwd.getpwnam("vgpud").pw_uid)] * 4, found
    assert {found[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}, found
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2"), found
    return f"Uid: {found['Uid']}; CapBnd: {found['CapBnd']}; Seccomp: {found['Seccomp']}"


def callers() -> str:
    """Who may call is told by the configuration; others get an error, and no silence. They can't
    fill /run either."""
    assert as_user("vmm", lambda: call("daemon.info"))["pid"] == main_pid()

    def refused() -> Json:
        with suppress(PermissionError):
            (RUNTIME / "clients" / "file").write_text("")
        try:
            with Client(CONTROL, timeout=3) as client:
                return str(client.call("daemon.info"))
        except (HostError, RpcError) as error:  # where both see abstract addresses, an answer
            return str(error)

    message: str = as_user("stranger", refused)
    assert f"uid {pwd.getpwnam('stranger').pw_uid}" in message, message
    assert "allow_users" in message, message
    assert [*(RUNTIME / "clients").iterdir()] == []
    return message


def grants() -> str:
    """A VMM has its own device alone."""

    def refused() -> Json:
        try:
            return str(call("config.reload"))
        except RpcError as error:
            return {"message": error.message, "data": error.data}

    said = as_user("vmm", refused)
    assert said["data"]["kind"] == "not-allowed", said
    assert said["data"]["grant"] == "change", said
    message: str = said["message"]
    return message


def work() -> str:
    """A guest of another user's does its whole work, its slots set by its own VMM, with the flag
    that the daemon asks it for."""
    said = micro_vm("gpu0")
    assert set(said["slot_flags"]) == {8}, said  # the first is the daemon's trial
    assert set(said["map_info"]) == {3}, said
    kinds = [event["kind"] for event in said["events"]]
    [attached] = [event for event in said["events"] if event["kind"] == "agent.attached"]
    assert attached["data"]["flag_accepted"] is True, said
    assert attached["data"]["uid"] == pwd.getpwnam("vmm").pw_uid, said
    assert "slot.set" in kinds, said
    assert "slot.refused" not in kinds, said
    return f"map_info {said['map_info']}, slot flags {said['slot_flags']}, events {kinds}"


def buffers() -> str:
    """Devices that a reload adds have sockets for VMMs, and the sandbox lets them have buffers of
    GPUs and pinned ones."""
    CONFIG.write_text(DEVICE.format(limit="24MiB") + MORE_DEVICES)
    sh("systemctl", "reload", SERVICE)
    told = []
    for device, kind in (("gpu1", "gem"), ("gpu2", "udmabuf")):
        assert mode(RUNTIME / f"{device}.sock") == ("0o660", "vgpud", "kvm")
        said = micro_vm(device)
        assert said["device"]["buffers"] == kind, said
        assert said["slot_flags"], said
        told.append(f"{device}: {kind}, map_info {said['map_info']}, flags {said['slot_flags']}")
    CONFIG.write_text(DEVICE.format(limit="24MiB"))
    sh("systemctl", "reload", SERVICE)
    assert not (RUNTIME / "gpu1.sock").exists()
    return "; ".join(told)


def announcements() -> str:
    """The kernel's announcements of GPUs get through to the daemon's network namespace."""
    program = (
        "from vgpud.daemon.gpu_watch import kernel_monitor\n"
        "print(kernel_monitor().poll(timeout=60).sys_name)\n"
    )
    announce = ("udevadm", "trigger", "--action=change", "/sys/class/drm/card0")
    said = sandboxed(program, lambda: sh(*announce))
    assert said == "card0", said
    return said


def peers() -> str:
    """Of VMMs of its own user and group the daemon sees what they do with KVM, of others
    nothing."""
    program = "from vgpud.coherency.probes.front_end import probe; print(probe({}))"
    said = {}
    for user in ("vgpud", "vmm"):
        as_it = (f"--reuid={user}", "--regid=kvm", "--clear-groups")
        command = ("setpriv", *as_it, "sleep", "60")
        with subprocess.Popen(command) as process:
            until("exec", partial(is_called, process.pid, "sleep"))
            said[user] = sandboxed(program.format(process.pid))
            process.kill()
    assert "program='sleep', kvm_vms=0" in said["vgpud"], said
    assert "program=None" in said["vmm"], said
    assert "hidden" in said["vmm"], said
    return said["vmm"]


def is_called(pid: int, name: str) -> bool:
    """Whether a process has become the program of this name."""
    return Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"


def reload() -> str:
    """systemctl reload takes a good file, and fails for a bad one, which changes nothing."""
    pid = main_pid()
    CONFIG.write_text(DEVICE.format(limit="32MiB"))
    sh("systemctl", "reload", SERVICE)
    assert call("device.get", device="gpu0")["memory_limit"] == 32 << 20
    CONFIG.write_text(DEVICE.format(limit="64 parsecs"))
    sh("systemctl", "reload", SERVICE, fails=True)
    assert (show(SERVICE, "ActiveState"), main_pid()) == ("active", pid)
    assert call("device.get", device="gpu0")["memory_limit"] == 32 << 20
    said: list[str] = [entry["MESSAGE"] for entry in journal(_SYSTEMD_UNIT=SERVICE)]
    assert any("64 parsecs" in text for text in said), said
    CONFIG.write_text(DEVICE.format(limit="48MiB"))
    os.kill(pid, signal.SIGHUP)
    until("HUP", lambda: call("device.get", device="gpu0")["memory_limit"] == 48 << 20)
    until("running", lambda: show(SERVICE, "SubState") == "running")
    assert main_pid() == pid
    return next(text for text in said if "64 parsecs" in text)


def watchdog() -> str:
    """A device that hangs is named, the daemon is ended, and a new one serves."""
    pid = main_pid()
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(os.fspath(RUNTIME / "gpu0.sock"))
        until("connected", lambda: call("device.get", device="gpu0")["connected"])
        # Its threads start with the first question whether it is alive.
        until("threads", lambda: len([*Path(f"/proc/{pid}/task").iterdir()]) > 1)
        time.sleep(WATCHDOG_S)
        assert main_pid() == pid, "a daemon that works was ended"
        start = time.monotonic()
        threads = freeze(pid)

        def ended() -> bool:
            reap(threads)
            return main_pid() != pid

        until("ended", ended)
        took = time.monotonic() - start
    until("restarted", lambda: show(SERVICE, "ActiveState") == "active" and main_pid())
    assert show(SERVICE, "NRestarts") == "1"
    assert call("daemon.info")["pid"] == main_pid() != pid
    said = [entry for entry in journal(_PID=str(pid)) if entry["PRIORITY"] == "3"]
    assert any(entry.get("VGPUD_DEVICE") == "gpu0" for entry in said), said
    assert any(entry["MESSAGE"].startswith("device hangs device=gpu0") for entry in said), said
    manager = [entry["MESSAGE"] for entry in journal(UNIT=SERVICE)]
    [ended] = [text for text in manager if "Watchdog timeout" in text]
    [hung] = [entry["MESSAGE"] for entry in said if "device hangs" in entry["MESSAGE"]]
    return f"{hung}; {ended}; ended after {took:.1f} s"


def stop() -> str:
    """Nothing is left of it: no process, no socket."""
    user = pwd.getpwnam("vgpud").pw_uid
    sh("systemctl", "stop", SERVICE, *SOCKETS)
    assert show(SERVICE, "Result") == "success"
    left = sorted(str(path) for path in RUNTIME.rglob("*"))
    assert left == [str(RUNTIME / "clients")], left
    processes = [path for path in Path("/proc").glob("[0-9]*") if path.stat().st_uid == user]
    assert processes == [], processes
    return sh("systemctl", "show", "--property=Result,ExecMainStatus", SERVICE)


def connect() -> str:
    """What a front-end gets that asks for the features: the answer's head, or "closed"."""
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(PATIENCE)
        front_end.connect(os.fspath(RUNTIME / "gpu0.sock"))
        try:
            front_end.sendall(bytes((1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0)))  # GET_FEATURES
            return front_end.recv(12).hex() or "closed"
        except (BrokenPipeError, ConnectionResetError):
            return "closed"


def device_activation() -> str:
    """A VMM that connects starts the daemon, and is served."""
    sh("systemctl", "start", *SOCKETS)
    assert show(SERVICE, "ActiveState") == "inactive"
    answer: str = as_user("vmm", connect)
    assert answer == FEATURES, answer
    assert main_pid() > 0
    sh("systemctl", "stop", SERVICE, *SOCKETS)
    return answer


def mended() -> str:
    """Who calls while the file has a fault is told which, each one costs one start and no more, and
    all is well as soon as the file is right."""
    sh("systemctl", "start", *SOCKETS)
    CONFIG.write_text(DEVICE.format(limit="64 parsecs"))
    before = starts()
    said = refused()
    assert "64 parsecs" in said, said
    until("failed", lambda: show(SERVICE, "ActiveState") == "failed")
    assert as_user("vmm", connect) == "closed"
    until("failed", lambda: show(SERVICE, "ActiveState") == "failed")
    time.sleep(5)
    assert starts() == before + 2
    assert show(SERVICE, "ExecMainStatus") == "2"
    CONFIG.write_text(DEVICE.format(limit="24MiB"))
    assert call("daemon.info")["pid"] == main_pid() > 0
    sh("systemctl", "stop", SERVICE)
    return said


def repaired() -> str:
    """A program that can't be started leaves nothing behind that has to be reset by hand."""
    sh("systemctl", "start", *SOCKETS)
    program, gone = PREFIX / "bin/vgpud", PREFIX / "bin/gone"
    program.rename(gone)
    try:
        for _ in range(12):  # twice as often as systemd starts a service within its usual limit
            assert as_user("vmm", connect) == "closed"
        assert [show(unit, "ActiveState") for unit in SOCKETS] == ["active"] * 2
        results = [show(SERVICE, name) for name in ("Result", "ExecMainStatus")]
    finally:
        gone.rename(program)
    assert as_user("vmm", connect) == FEATURES
    until("active", lambda: show(SERVICE, "ActiveState") == "active")
    assert call("daemon.info")["pid"] == main_pid() > 0
    sh("systemctl", "stop", SERVICE, *SOCKETS)
    return " ".join(results)


def starts() -> int:
    """How often systemd has started the service."""
    lines = [entry["MESSAGE"] for entry in journal(UNIT=SERVICE)]
    return sum(line.startswith("Starting ") for line in lines)


def refused() -> str:
    """What a call that fails is told."""
    try:
        return f"not refused: {call('daemon.info')}"
    except RpcError as error:
        return error.message


def instance() -> str:
    """A daemon for one VM has its own socket and configuration, and goes alone."""
    Path("/etc/vgpud").mkdir(exist_ok=True)
    Path("/etc/vgpud/vm1.toml").write_text(DEVICE.format(limit="8MiB"))
    sh("systemctl", "start", SERVICE, "vgpud@vm1.service")
    own = RUNTIME / "vm1/control.sock"
    found = as_user("vmm", lambda: call("device.get", own, device="gpu0"))
    assert found["memory_limit"] == 8 << 20, found
    assert found["socket"] == "/run/vgpud/vm1/gpu0.sock", found
    sh("systemctl", "stop", "vgpud@vm1.service")
    assert call("daemon.info")["pid"] == main_pid()
    assert mode(RUNTIME / "gpu0.sock")[2] == "kvm"
    sh("systemctl", "stop", SERVICE)
    return str(found["socket"])


def uninstall() -> str:
    """`vgpud install-units --uninstall` removes what nobody has changed."""
    said = sh(str(PREFIX / "bin/vgpud"), "install-units", "--prefix", str(PREFIX), "--uninstall")
    left = [path for path in Path("/etc").rglob("*vgpud*") if path.is_file() or path.is_symlink()]
    assert left == [CONFIG], left
    sh("systemctl", "daemon-reload")
    return said


CHECKS: tuple[Callable[[], str], ...] = (
    *(install, verify, exposure, groups, activation, ready, privileges, callers, grants, work),
    *(buffers, announcements, peers, reload, watchdog, stop, device_activation),
    *(mended, repaired, instance, uninstall),
)


def main() -> int:
    """Do all of them, or those that are named, and write down what came of each."""
    results = {}
    chosen = set(sys.argv[1:]) or {check.__name__ for check in CHECKS}
    for check in (check for check in CHECKS if check.__name__ in chosen):
        start = time.monotonic()
        try:
            said, ok = check(), True
        except BaseException:
            said, ok = traceback.format_exc(), False
        seconds = round(time.monotonic() - start, 1)
        results[check.__name__] = {"ok": ok, "seconds": seconds, "said": said}
        print(f"{check.__name__}: {'ok' if ok else 'FAILED'}, {seconds} s", flush=True)
        if not ok:
            print(said, flush=True)
    Path("out/systemd.json").write_text(json.dumps(results, indent=1))
    Path("out/journal.txt").write_text(sh("journalctl", "--no-pager", "--output=short-monotonic"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
