"""Finding the guest rig, and what is said where there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vgpud.cli import main as cli
from vgpud.cli.bench.guest_rig import C_BACK_END, Rig
from vgpud.errors import VgpudError

PROGRAMS = Path(__file__).parents[2] / "rig" / "programs"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a rig without an image, of a user who may use it."""
    monkeypatch.setenv("VGPUD_RIG", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in ("vmlinux", "trixie/usr/bin/qemu-system-x86_64", f"trixie{C_BACK_END}"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def image(cache: Path, name: str, age: int, contents: bytes) -> Path:
    """An image of guest programs, so many seconds old."""
    path = cache / f"guest-{name}.cpio"
    path.write_bytes(contents)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def printed() -> bytes:
    """What the guest's program is compiled from says, as the compiler has it."""
    source = (PROGRAMS / "speed.c").read_text()
    start = source.index("SPEED {")
    return source[start : source.index("mode", start)].replace('\\"', '"').encode()


def test_the_newest_image_of_these_programs_is_taken(cache: Path) -> None:
    image(cache, "other", 0, b"of another checkout")
    image(cache, "old", 20, b"\0" + printed())
    wanted = image(cache, "new", 10, b"\0" + printed())
    assert Rig.find() == Rig(cache, cache / "trixie", wanted)


def test_images_of_other_programs_will_not_do(cache: Path) -> None:
    image(cache, "other", 0, b'SPEED {"mode": ')
    with pytest.raises(VgpudError, match=f"no guest image of this vgpud in {cache}: .*tests/run"):
        Rig.find()


def test_without_a_rig_it_says_what_builds_one(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "vmlinux").unlink()
    assert cli.main(["bench", "guest"]) == 1
    assert f"no guest rig in {cache}: in a checkout, tests/run builds it" in capsys.readouterr().err


def test_who_is_not_root_is_told(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(VgpudError, match="needs root"):
        Rig.find()
