"""What README.md and docs/ show works: configurations, programs, command lines, links, paths."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.daemon_thread import DaemonThread
from tests.support.kvm_host import open_kvm
from tests.support.pages import PAGES, ROOT, Block, Page, blocks
from tests.test_imports import BELOW
from vgpud.cli import backend_program, bench, units
from vgpud.cli import main as cli
from vgpud.cli.qemu_lines import all_features, display
from vgpud.control.methods import METHODS
from vgpud.control.models import ErrorKind
from vgpud.daemon.config import Config

RUNTIME_DIR = "/run/vgpud"
PATIENCE = 30.0
LANGUAGES = {"python", "sh", "text", "toml", "xml"}
BY_NAME = {page.name: page for page in PAGES}

PROGRAMS = {
    "SOCK_DGRAM": ("frontend", r"'name': 'gpu0'"),
    "client.pages": ("frontend", r"gpu0 0\n# "),
    # What became of the flag depends on the kernel; that it was tried, does not.
    "SlotAgent": ("agent", r"'flag_accepted': (True|False)"),
    "LocalSlots": (None, r"listening gpu0.sock"),
}
"""What only this program has: the `slots` of the daemon that it needs, and what it prints."""

OTHERS = {
    *("S=$(command", "$S", "python3", ".venv/bin/pip", "/opt/vgpud/bin/pip", ".venv/bin/python"),
    *("systemd-sysusers", "systemd-tmpfiles", "udevadm", "systemctl", "virsh", "echo", "grep"),
    *("/etc/apparmor.d/local/usr.sbin.libvirtd", "qemu-system-x86_64", "git", "tests/run"),
    *("/var/lib/prometheus/node-exporter/vgpud.prom", "tests/kernel/run"),
    *(".venv/bin/ruff", ".venv/bin/mypy"),
}
"""First words of commands that are not ours: a new one is a reason to think of how to check it."""


def own_commands() -> list[str]:
    """Every command line of vgpud's own programs, in blocks and in the text."""
    lines = [part for block in blocks("sh") for part in block.commands]
    spans = [span for page in PAGES for span in page.spans]
    lines += [span for span in spans if re.fullmatch(r"(vgpud|vhost-user-vgpu) [^<>|…]+", span)]
    own = [re.sub(r"^\S*/bin/(?=vgpud)", "", line) for line in lines]
    return sorted({line for line in own if re.match(r"(vgpud|vhost-user-vgpu) ", line)})


def ctl_commands() -> list[str]:
    """Those that end by themselves and need no guest."""
    verbs = ("status", "devices", "blobs", "slots", "metrics", "reload", "blob.list")
    found = [line for line in own_commands() if line.startswith("vgpud ctl ")]
    return [line for line in found if line.split()[2] in (*verbs, "rpc.discover")]


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints; it must succeed, and complain of nothing."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def config_in(directory: Path, slots: str = "frontend") -> Config:
    return Config.from_toml(
        f'[daemon]\nruntime_dir = "{directory}"\n[[device]]\nname = "gpu0"\nslots = "{slots}"'
    )


def test_there_is_no_block_that_nothing_here_looks_at() -> None:
    assert {block.language for page in PAGES for block in page.blocks} == LANGUAGES


def test_the_readme_is_one_page() -> None:
    assert len(BY_NAME["README.md"].text.encode()) < 8192


# Configurations


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_configurations_have_no_fault(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "vgpud.toml"
    file.write_text(block.text)
    assert cli.main(["config", "check", str(file)]) == 0
    assert Config.from_toml(block.text).device_specs()


# Programs


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_programs_run(block: Block, short_directory: Path) -> None:
    [(slots, printed)] = [PROGRAMS[key] for key in PROGRAMS if key in block.text]
    program = block.text.replace(RUNTIME_DIR, str(short_directory))
    if slots is None:
        with open_kvm():
            assert re.search(printed, run(sys.executable, "-c", program))
        return
    with DaemonThread(config_in(short_directory, slots)):
        if slots == "agent":
            with open_kvm():
                assert re.search(printed, run(sys.executable, "-c", program))
        else:
            assert re.search(printed, run(sys.executable, "-c", program))


def test_every_program_is_there_once() -> None:
    found = [key for block in blocks("python") for key in PROGRAMS if key in block.text]
    assert sorted(found) == sorted(PROGRAMS)


def test_the_plain_client_needs_nothing_of_vgpud() -> None:
    [plain] = [block for block in blocks("python") if "SOCK_DGRAM" in block.text]
    assert "import vgpud" not in plain.text
    assert "from vgpud" not in plain.text


def test_a_slot_agent_takes_no_more_than_twenty_lines() -> None:
    [agent] = [block for block in blocks("python") if "SlotAgent" in block.text]
    assert len(agent.text.splitlines()) <= 20


# Command lines


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_a_shell_can_read_what_is_to_be_typed(block: Block) -> None:
    run("sh", "-n", "-c", block.text)
    firsts = {shlex.split(command, comments=True)[0] for command in block.commands}
    ours = {first for first in firsts if Path(first).name in {"vgpud", "vhost-user-vgpu"}}
    assert firsts - ours <= OTHERS
    for name in re.findall(r"(?<![\w/.-])(?:tests|vgpud)/[\w./-]+", block.text):
        assert (ROOT / name).exists(), name


def test_command_lines_are_found() -> None:
    assert len(own_commands()) > 30
    assert len(ctl_commands()) > 6


@pytest.mark.parametrize("line", own_commands())
def test_our_programs_take_their_command_lines(line: str) -> None:
    program, *words = shlex.split(line, comments=True)
    parser: argparse.ArgumentParser = (
        cli.parser() if program == "vgpud" else backend_program._parser()
    )
    parser.parse_args(words)


@pytest.mark.parametrize("line", ctl_commands())
def test_a_daemon_answers_what_needs_no_guest(line: str, short_directory: Path) -> None:
    words = shlex.split(line)[2:]
    # A reload takes a file, and there are no blobs yet to tell anything of.
    file = short_directory / "vgpud.toml"
    file.write_text(f'[daemon]\nruntime_dir = "{short_directory}"\n')
    config = Config.load(file)
    with DaemonThread(config):
        output = run(
            sys.executable, "-m", "vgpud", "ctl", "--socket", str(config.control_path), *words
        )
    assert output


@pytest.mark.parametrize("verb", ["check", "default", "schema"])
def test_a_configuration_can_be_looked_at(verb: str, tmp_path: Path) -> None:
    [line] = {line for line in own_commands() if line.startswith(f"vgpud config {verb}")}
    shutil.copy(ROOT / "config" / "vgpud.toml", tmp_path)
    run(sys.executable, "-m", *shlex.split(line), cwd=tmp_path)


def test_qemus_command_lines_are_those_that_serve_prints() -> None:
    found = [block.text for block in blocks("sh") if block.text.startswith("qemu")]
    socket = Path(RUNTIME_DIR) / "gpu0.sock"
    assert sorted(set(found)) == sorted(f"{line(socket)}\n" for line in (all_features, display))
    assert all_features(socket) in BY_NAME["README.md"].text
    assert display(socket) in BY_NAME["docs/qemu.md"].text


def test_the_service_is_set_up_as_install_units_says() -> None:
    [block] = [block for block in blocks("sh") if "systemd-sysusers" in block.text]
    steps = [line.strip() for line in units.NEXT.splitlines() if line.startswith("  ")]
    assert steps[:-1] == block.text.splitlines()[2:]


def test_the_metrics_file_has_only_types_that_the_older_format_has(short_directory: Path) -> None:
    [line] = [line for block in blocks("sh") for line in block.text.splitlines() if ".prom" in line]
    command, _, _ = line.replace("vgpud ctl", f"{sys.executable} -m vgpud ctl", 1).partition(">")
    config = config_in(short_directory)
    with DaemonThread(config):
        output = run(
            "sh", "-c", command.replace(" metrics", f" --socket {config.control_path} metrics", 1)
        )
    types = set(re.findall(r"^# TYPE \S+ (\S+)$", output, re.MULTILINE))
    # Source: Prometheus, "Exposition formats", "Text-based format".
    assert types
    assert types <= {"counter", "gauge", "histogram", "summary", "untyped"}


def test_the_domain_is_xml() -> None:
    """What it does is tried by tests/guest/test_libvirt.py."""
    [block] = blocks("xml")
    assert block.page == "docs/libvirt.md"
    assert ElementTree.fromstring(block.text).tag == "domain"


# What is listed


def rows(page: str, heading: str) -> set[str]:
    """The code in the first column of the tables below a heading."""
    _, _, after = BY_NAME[page].text.partition(f"\n## {heading}\n")
    part = after.partition("\n## ")[0]
    first = re.findall(r"^\| ([^|]*) \|", part, re.MULTILINE)
    return {code for cell in first for code in re.findall(r"`([^`]+)`", cell)}


def test_every_method_and_error_is_listed() -> None:
    assert rows("docs/control-api.md", "Methods") == set(METHODS)
    assert rows("docs/control-api.md", "Errors") == {*map(str, ErrorKind), "data.kind"}


def test_every_event_is_listed() -> None:
    listed = set()
    for kinds, names in re.findall(
        r"^\| `([a-z]+)\.[*a-z]+` \|(.*)\|$", BY_NAME["docs/operations.md"].text, re.MULTILINE
    ):
        listed |= {f"{kinds}.{name}" for name in re.findall(r"`([a-z]+)`", names)}
    sources = "".join(path.read_text() for path in (ROOT / "vgpud").rglob("*.py"))
    kinds = set(re.findall(r'publish\(\s*"([a-z]+\.[a-z]+)"', sources))
    assert len(kinds) > 5
    assert kinds <= listed


def test_every_bench_is_listed() -> None:
    _, _, table = BY_NAME["docs/performance.md"].text.partition("| name |")
    listed = re.findall(r"^\| `([a-z]+)` \|", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(listed) == sorted(bench.NAMES)


def test_the_picture_of_the_packages_is_that_of_the_import_test() -> None:
    [picture] = [block for block in BY_NAME["docs/architecture.md"].blocks if "+--" in block.text]
    rows = [
        [part.split() for part in line.strip("|").split("|")]
        for line in picture.text.splitlines()
        if line.startswith("|")
    ]
    place = {
        name: (row, column, index)
        for row, columns in enumerate(rows)
        for column, chain in enumerate(columns)
        for index, name in enumerate(name for name in chain if name != "->")
    }
    packages = {name for name in BELOW if (ROOT / "vgpud" / name).is_dir()}
    assert set(place) == packages | {"errors"}
    for package, (row, column, index) in place.items():
        below = {name for name in place if place[name][0] > row}
        below |= {name for name in place if place[name][:2] == (row, column)}
        imported = BELOW[package] & set(place)
        assert imported <= below - {package}, package
        assert all(place[name] > (row, column, index) for name in imported), package
    explained = set(re.findall(r"\*\*`vgpud/(\w+)", BY_NAME["docs/architecture.md"].text))
    assert explained == set(place)


# Links and paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        target, _, anchor = link.partition("#")
        path = (ROOT / page.name).parent / target if target else ROOT / page.name
        assert path.exists(), link
        if anchor:
            assert anchor in BY_NAME[str(path.resolve().relative_to(ROOT))].anchors, link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_and_modules_are_there(page: Page) -> None:
    for span in page.spans:
        if re.fullmatch(r"(vgpud|tests|config|systemd|man|docs)/[\w./@-]+", span):
            assert (ROOT / span).exists(), span
        elif match := re.fullmatch(r"(vgpud(?:\.[a-z_]+)+)(?:\.[A-Z]\w+)?", span):
            path = ROOT / match[1].replace(".", "/")
            unit = ROOT / "systemd" / span
            assert path.with_suffix(".py").exists() or path.is_dir() or unit.exists(), span


def test_the_readme_names_every_page() -> None:
    linked = {link.partition("#")[0] for link in BY_NAME["README.md"].links}
    assert {page.name for page in PAGES} - {"README.md"} <= linked
