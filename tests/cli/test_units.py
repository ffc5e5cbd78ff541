"""The system service's files go where the system looks for them, name the program, and come off."""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vgpud.cli import units
from vgpud.errors import ConfigError, HostError

PROJECT = Path(__file__).parents[2]
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
UNITS = sorted((PROJECT / "systemd").glob("vgpud*.s*t")) + sorted(
    (PROJECT / "systemd").glob("vgpud*.service")
)


def settings(unit: Path) -> list[tuple[str, str]]:
    """The lines of a unit that set something."""
    lines = [line.strip() for line in unit.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#[;"]
    return [(name, value) for name, _, value in pairs]


def prefix_in(root: Path, name: str = "srv/vgpud") -> Path:
    """A prefix with a program in it, which is never run."""
    prefix = root / name
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin/vgpud").touch(mode=0o755)
    return prefix


def found(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def test_every_file_goes_where_an_administrator_has_it(tmp_path: Path) -> None:
    said = list(units.install(Path("/srv/vgpud"), tmp_path))
    files = found(tmp_path)
    assert set(files) >= {
        "etc/systemd/system/vgpud.service",
        "etc/systemd/system/vgpud.socket",
        "etc/systemd/system/vgpud@.service",
        "etc/systemd/system/vgpud@.socket",
        "etc/systemd/system/vgpud-device@.socket",
        "etc/sysusers.d/vgpud.conf",
        "etc/tmpfiles.d/vgpud.conf",
        "etc/udev/rules.d/70-vgpud.rules",
        "etc/vgpud.toml",
    }
    assert sorted(said) == sorted(f"installed {tmp_path / name}" for name in files)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in files} == {0o644}
    [description] = [name for name in files if name.startswith("etc/qemu/vhost-user/")]
    assert json.loads(files[description])["binary"] == "/srv/vgpud/bin/vhost-user-vgpu"


def test_a_distribution_s_package_leaves_etc_alone_but_for_the_configuration(
    tmp_path: Path,
) -> None:
    list(units.install(Path("/usr"), tmp_path))
    files = found(tmp_path)
    assert [name for name in files if name.startswith("etc/")] == ["etc/vgpud.toml"]
    assert {"usr/lib/systemd/system/vgpud.service", "usr/lib/udev/rules.d/70-vgpud.rules"} <= set(
        files
    )
    assert b"ExecStart=/usr/bin/vgpud serve" in files["usr/lib/systemd/system/vgpud.service"]


@pytest.mark.parametrize("prefix", ["/srv/vgpud", "/usr"])
def test_no_file_names_another_prefix(tmp_path: Path, prefix: str) -> None:
    list(units.install(Path(prefix), tmp_path))
    for name, content in found(tmp_path).items():
        assert units.WRITTEN_FOR.encode() not in content or name.startswith("usr/"), name
        if name.endswith(".service"):
            commands = re.findall(rb"^Exec\w+=(\S*vgpud) ", content, re.MULTILINE)
            assert set(commands) == {f"{prefix}/bin/vgpud".encode()}


def test_doing_it_again_changes_nothing(tmp_path: Path) -> None:
    list(units.install(Path("/opt/vgpud"), tmp_path))
    before = {path: path.stat() for path in tmp_path.rglob("*") if path.is_file()}
    said = list(units.install(Path("/opt/vgpud"), tmp_path))
    assert said
    assert all(line.startswith("unchanged ") for line in said)
    assert {path: path.stat().st_ino for path in before} == {
        path: stat.st_ino for path, stat in before.items()
    }


def test_a_configuration_that_was_edited_is_kept_and_an_old_unit_is_not(tmp_path: Path) -> None:
    list(units.install(Path("/opt/vgpud"), tmp_path))
    config, unit = tmp_path / "etc/vgpud.toml", tmp_path / "etc/systemd/system/vgpud.service"
    config.write_text("[daemon]\n")
    unit.write_text("[Unit]\n")
    said = list(units.install(Path("/opt/vgpud"), tmp_path))
    assert f"kept {config}: it was edited" in said
    assert f"replaced {unit}" in said
    assert config.read_text() == "[daemon]\n"
    assert "ExecStart=" in unit.read_text()


def test_uninstalling_leaves_only_what_somebody_changed(tmp_path: Path) -> None:
    list(units.install(Path("/opt/vgpud"), tmp_path))
    config = tmp_path / "etc/vgpud.toml"
    config.write_text("[daemon]\n")
    said = list(units.uninstall(Path("/opt/vgpud"), tmp_path))
    assert found(tmp_path) == {"etc/vgpud.toml": b"[daemon]\n"}
    assert f"kept {config}: it was changed" in said
    assert f"removed {tmp_path / 'etc/systemd/system/vgpud.service'}" in said
    assert list(units.uninstall(Path("/opt/vgpud"), tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("prefix", "problem"),
    [
        ("opt/vgpud", "must be an absolute path"),
        ("/opt/../vgpud", "must be an absolute path"),
        ("/opt/my vgpud", "special in systemd units"),
        ("/opt/100%", "special in systemd units"),
        ("/nowhere", "/nowhere/bin/vgpud: there is no such program"),
    ],
)
def test_a_prefix_that_can_t_be_is_refused(prefix: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        next(units.install(Path(prefix)))


@pytest.mark.parametrize("where", ["prefix", "python"])
def test_a_program_that_the_sandbox_hides_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    hidden = tmp_path / "hidden"
    monkeypatch.setattr(units, "_HIDDEN", (hidden,))
    prefix = prefix_in(hidden if where == "prefix" else tmp_path)
    if where == "python":
        hidden.mkdir()
        (hidden / "python").touch()
        (prefix / "bin/python").symlink_to(hidden / "python")
    with pytest.raises(ConfigError, match="the service can't see it") as caught:
        next(units.install(prefix))
    assert units.WRITTEN_FOR in str(caught.value)


def test_a_place_that_can_t_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "etc").touch()
    with pytest.raises(HostError, match=r"(reading|writing) .*etc"):
        list(units.install(Path("/opt/vgpud"), tmp_path))


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vgpud", "install-units", "--root", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment, check=False
        )

    done = run("--prefix", "/opt/vgpud")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"installed {tmp_path}/etc/systemd/system/vgpud.service\n" in done.stdout
    done = run("--prefix", "opt")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vgpud: --prefix opt: must be an absolute path\n"
    done = run("--prefix", "/opt/vgpud", "--uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert found(tmp_path) == {}


def test_a_file_that_another_user_has_put_there_is_not_written_to(tmp_path: Path) -> None:
    victim, root = tmp_path / "victim", tmp_path / "root"
    victim.write_text("secret")
    victim.chmod(0o600)
    (root / "etc/systemd/system").mkdir(parents=True)
    for name in (".vgpud.service.partial", "vgpud.socket"):
        (root / "etc/systemd/system" / name).symlink_to(victim)
    list(units.install(Path("/opt/vgpud"), root))
    assert (victim.read_text(), victim.stat().st_mode & 0o777) == ("secret", 0o600)
    for name in ("vgpud.service", "vgpud.socket"):
        assert not (root / "etc/systemd/system" / name).is_symlink()
        assert b"[Install]" in (root / "etc/systemd/system" / name).read_bytes()


def test_all_users_may_read_what_is_installed_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        list(units.install(Path("/opt/vgpud"), tmp_path / "root"))
    finally:
        os.umask(umask)
    made = [*(tmp_path / "root").rglob("*")]
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in made}
    assert modes == {(True, 0o755), (False, 0o644)}


@pytest.mark.parametrize("prefix", [b"/opt/\xd0\xb6", b"/opt/\xff"])
def test_a_prefix_of_characters_that_the_locale_lacks(tmp_path: Path, prefix: bytes) -> None:
    command = [os.fsencode(sys.executable), b"-m", b"vgpud", b"install-units", b"--prefix", prefix]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **ASCII_LOCALE}
    done = subprocess.run(
        [*command, b"--root", os.fsencode(tmp_path) + b"/\xd0\xb6"],
        env=environment,
        capture_output=True,
        check=False,
    )
    if prefix.endswith(b"\xff"):
        assert done.returncode == 2
        assert b"must be UTF-8" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, b"")
        unit = tmp_path / "ж/etc/systemd/system/vgpud.service"
        assert b"ExecStart=/opt/\xd0\xb6/bin/vgpud serve" in unit.read_bytes()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_what_systemd_reads(unit: Path) -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    kind = unit.suffix[1:].capitalize()
    assert set(parser.sections()) == {"Unit", kind, "Install"}


def test_both_services_have_the_same_sandbox() -> None:
    one, many = (
        [
            (name, value)
            for name, value in settings(PROJECT / "systemd" / unit)
            if name not in {"Description", "ExecStart", "RuntimeDirectory"}
        ]
        for unit in ("vgpud.service", "vgpud@.service")
    )
    assert one == many
    assert ("SystemCallFilter", "@system-service") in one


def test_the_sandbox_leaves_callers_their_names() -> None:
    names = dict(settings(PROJECT / "systemd/vgpud.service"))
    assert "PrivateUsers" not in names
    assert "DynamicUser" not in names
