"""The man pages: that they are well formed, and leave nothing out."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vgpud.cli import backend_program
from vgpud.cli import main as cli
from vgpud.control.methods import METHODS
from vgpud.control.models import ErrorKind
from vgpud.daemon.config import Config
from vgpud.daemon.config_tables import (
    DaemonTable,
    DeviceTable,
    Effect,
    MatchTable,
    SlotPolicyTable,
    on_reload,
)

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").iterdir())
VGPUD = (ROOT / "man/vgpud.1").read_text()
BACK_END = (ROOT / "man/vhost-user-vgpu.1").read_text()
TOML = (ROOT / "man/vgpud.toml.5").read_text()


def words(source: str) -> str:
    """What a reader sees, roughly: macros and escapes gone."""
    text = re.sub(r"^\.[A-Z][a-z] ?", "", source, flags=re.MULTILINE)
    text = text.replace(r"\(dq", '"')
    return re.sub(r"\b(Cm|Ar|Fl|Ns|Op|Li|Pa|Ap) ", "", text).replace("Fl ", "--")


def items(source: str) -> set[str]:
    """The words that list items explain, but for arguments."""
    found: set[str] = set()
    for line in re.findall(r"^\.It (.*)$", source, re.MULTILINE):
        named = line.split(" Ar ")[0].split(" Op ")[0]
        found.update(word for word in re.split(r"[ ,]+", named) if word not in ("Cm", "Li", "Ev"))
    return found


def options(source: str) -> set[str]:
    """The long options that a page explains."""
    return {f"--{name}" for name in re.findall(r"^\.It Fl Fl ([a-z-]+)", source, re.MULTILINE)}


def parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every verb, and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield name, child
                yield from parsers(child)


def long_options(parser: argparse.ArgumentParser) -> set[str]:
    """The options of one parser, but for help."""
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and option != "--help"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_wrong_with_a_page(page: Path) -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("needs groff: apt-get install groff-base")
    done = subprocess.run(
        [groff, "-ww", "-mdoc", "-Tutf8", page], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_as_its_name_says(page: Path) -> None:
    text = page.read_text()
    name, section = page.name.rsplit(".", 1)
    assert f".Dt {name.upper()} {section}\n" in text
    assert f".Sh NAME\n.Nm {name}\n.Nd " in text
    for name, section in re.findall(r"^\.Xr (v\S+) (\d)", text, re.MULTILINE):
        assert (ROOT / "man" / f"{name}.{section}").exists()
    assert max(map(len, text.splitlines())) <= 80


def test_every_verb_is_explained() -> None:
    explained = items(VGPUD)
    missing = {name for name, _ in parsers(cli.parser())} - explained
    assert not missing


def test_every_option_is_explained() -> None:
    found = {option for _, parser in parsers(cli.parser()) for option in long_options(parser)}
    assert found | {"--version"} == options(VGPUD)
    assert long_options(backend_program._parser()) == options(BACK_END)


def test_every_method_and_error_is_explained() -> None:
    assert not set(METHODS) - items(VGPUD)
    assert not {str(kind) for kind in ErrorKind} - items(VGPUD)


def test_every_event_is_explained() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "vgpud").rglob("*.py"))
    kinds = set(re.findall(r'publish\(\s*"([a-z]+\.[a-z]+)"', sources))
    assert len(kinds) > 5
    assert not kinds - items(VGPUD)


@pytest.mark.parametrize("table", [DaemonTable, DeviceTable, SlotPolicyTable, MatchTable])
def test_every_key_is_explained_and_its_default_is_right(table: type) -> None:
    text = words(TOML)
    for name, field in table.model_fields.items():  # type: ignore[attr-defined]
        assert name in items(TOML)
        default = field.default
        if isinstance(default, str) and default:
            assert f'"{default}"' in text, (name, default)
        if isinstance(default, tuple):
            assert "[" + ", ".join(f'"{item}"' for item in default) + "]" in text, (name, default)


@pytest.mark.parametrize(
    ("effect", "item"),
    [
        (Effect.AT_ONCE, "at once"),
        (Effect.NEXT_CONNECTION, "with the next connection"),
        (Effect.RESTART, "after a restart"),
    ],
)
def test_when_a_changed_key_takes_effect(effect: Effect, item: str) -> None:
    _, _, rest = TOML.partition(f".It {item}\n")
    listed = re.findall(r"\w+", words(re.split(r"^\.(?:It|El)", rest, flags=re.MULTILINE)[0]))
    keys = {
        key
        for table in (DaemonTable, DeviceTable)
        for key, means in on_reload(table).items()
        if effect in (means.effect, means.resized)
    }
    assert keys <= set(listed)


def test_the_example_is_a_good_configuration() -> None:
    (example,) = re.findall(r"\.Bd -literal[^\n]*\n(\[\[device\]\].*?)\.Ed", TOML, re.DOTALL)
    config = Config.from_toml(example)
    assert [device.name for device in config.device] == ["one", "two"]
