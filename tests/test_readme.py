"""What the README shows works: its configurations, its programs, its command lines, its links."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon_thread import DaemonThread
from tests.support.kvm_host import open_kvm
from vgpud.cli import main as cli
from vgpud.daemon.config import Config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
RUNTIME_DIR = "/run/vgpud"
PATIENCE = 30.0


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """What is to be typed of vgpud's own commands, each without its comment."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(vgpud [^`<>|]*)`", " ".join(TEXT.split()))
    parts = [part for line in lines for part in re.split(r"&&|;|>|\|", line.partition(" #")[0])]
    own = [re.sub(r"^\S*/bin/", "", part.strip()) for part in parts]
    return sorted({part for part in own if part.startswith("vgpud ")})


def run_program(program: str, runtime_dir: Path) -> str:
    """Run a block of Python against the daemon in a directory of the test's own."""
    done = subprocess.run(
        [sys.executable, "-c", program.replace(RUNTIME_DIR, str(runtime_dir))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("block", blocks("toml"))
def test_configurations_have_no_fault(block: str) -> None:
    assert Config.from_toml(block).device_specs()


def test_command_lines_are_found() -> None:
    assert len(command_lines()) > 20


@pytest.mark.parametrize("line", command_lines())
def test_vgpud_takes_its_command_lines(line: str) -> None:
    cli.parser().parse_args(shlex.split(line)[1:])


def test_the_client_that_knows_nothing_of_vgpud(short_directory: Path) -> None:
    [program] = [block for block in blocks("python") if "SOCK_DGRAM" in block]
    assert "vgpud " not in program
    config = Config.from_toml(f'[daemon]\nruntime_dir = "{short_directory}"')
    with DaemonThread(config):
        printed = run_program(program, short_directory)
    assert "'name': 'gpu0'" in printed


def test_the_vmms_slot_agent(short_directory: Path) -> None:
    [program] = [block for block in blocks("python") if "SlotAgent" in block]
    assert len(program.splitlines()) <= 20
    config = Config.from_toml(
        f'[daemon]\nruntime_dir = "{short_directory}"\n[[device]]\nname = "gpu0"\nslots = "agent"'
    )
    with open_kvm(), DaemonThread(config):
        printed = run_program(program, short_directory)
    # What became of the flag depends on the kernel; that it was tried, does not.
    assert re.search(r"'flag_accepted': (True|False)", printed)


def test_the_metrics_file_has_only_types_that_the_older_format_has(short_directory: Path) -> None:
    [line] = [line for block in blocks("sh") for line in block.splitlines() if ".prom" in line]
    command, _, _ = line.replace("vgpud ctl", f"{sys.executable} -m vgpud ctl", 1).partition(">")
    config = Config.from_toml(f'[daemon]\nruntime_dir = "{short_directory}"')
    with DaemonThread(config):
        done = subprocess.run(
            [
                "sh",
                "-c",
                command.replace(" metrics", f" --socket {config.control_path} metrics", 1),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
    types = set(re.findall(r"^# TYPE \S+ (\S+)$", done.stdout, re.MULTILINE))
    # Source: Prometheus, "Exposition formats", "Text-based format".
    assert types
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}


def test_links_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in headings}
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (ROOT / link).exists(), link
