"""Files for output: whole or not at all, and never through a link."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vgpud.cli.output_file import write_file
from vgpud.errors import HostError

DATA = [b"one", b"", b"two" * 100_000]
WHOLE = b"".join(DATA)


def test_a_file_is_made_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    write_file(path, DATA)
    assert path.read_bytes() == WHOLE
    path.chmod(0o640)
    write_file(path, [b"less"])
    assert path.read_bytes() == b"less"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, there: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.png"
    if there:
        victim.write_text("precious")
    path.symlink_to(victim)
    write_file(path, DATA)
    assert not path.is_symlink()
    assert path.read_bytes() == WHOLE
    assert victim.exists() == there
    if there:
        assert victim.read_text() == "precious"


def test_a_hard_link_keeps_its_contents(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.png"
    victim.write_text("precious")
    path.hardlink_to(victim)
    write_file(path, DATA)
    assert victim.read_text() == "precious"


def test_a_link_that_appears_meanwhile_is_replaced(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "out.png"
    victim.write_text("precious")

    def chunks() -> Iterator[bytes]:
        yield b"half"
        path.symlink_to(victim)
        yield b"half"

    write_file(path, chunks())
    assert path.read_bytes() == b"halfhalf"
    assert not path.is_symlink()
    assert victim.read_text() == "precious"


def test_a_failure_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_text("former")

    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise HostError("reading", OSError(5, ""))

    with pytest.raises(HostError, match="reading"):
        write_file(path, chunks())
    assert path.read_text() == "former"
    assert [*tmp_path.iterdir()] == [path]


def test_a_pipe_and_a_link_to_one_are_written_to(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with ThreadPoolExecutor() as threads:
            reading = threads.submit(pipe.read_bytes)
            write_file(path, DATA)
            assert reading.result(5) == WHOLE
    write_file(Path("/dev/null"), DATA)
    assert pipe.is_fifo()


@pytest.mark.parametrize("target", ["/proc/self/fd/1", "/dev/fd/1", "link-to-it"])
def test_a_name_of_a_descriptor_is_not_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "link-to-it").symlink_to("/proc/self/fd/1")
    name, redirected = tmp_path / "stdout", tmp_path / "shot.png"
    name.symlink_to(target)
    code = (
        "import sys; from pathlib import Path; from vgpud.cli.output_file import write_file;"
        "print('before', flush=True); write_file(Path(sys.argv[1]), [b'PNG'])"
    )
    with redirected.open("wb") as file:
        subprocess.run([sys.executable, "-c", code, name], stdout=file, check=True)
    assert redirected.read_bytes() == b"before\nPNG"
    assert name.is_symlink()
    with redirected.open("wb") as file:
        subprocess.run([sys.executable, "-c", code, "/proc/self/fd/1"], stdout=file, check=True)
    assert redirected.read_bytes() == b"before\nPNG"


def test_a_descriptor_that_is_not_open(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.symlink_to("/proc/self/fd/1000000")
    with pytest.raises(HostError, match="Bad file descriptor"):
        write_file(path, DATA)
    assert path.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a link of another user's")
def test_a_link_of_another_user_s_to_a_descriptor_is_replaced(tmp_path: Path) -> None:
    path, victim = tmp_path / "out.png", tmp_path / "victim"
    with victim.open("wb") as file:
        path.symlink_to(f"/proc/self/fd/{file.fileno()}")
        os.lchown(path, 65534, 65534)
        write_file(path, DATA)
    assert path.read_bytes() == WHOLE
    assert victim.read_bytes() == b""


def test_a_descriptor_that_does_not_wait(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    with ThreadPoolExecutor() as threads, os.fdopen(read, "rb") as reader:
        writing = threads.submit(write_file, Path(f"/proc/self/fd/{write}"), DATA)
        assert reader.read(len(WHOLE)) == WHOLE
        writing.result(5)
    os.close(write)


@pytest.mark.parametrize("name", ["no/such/directory", "directory", ".", "/"])
def test_a_place_where_no_file_can_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "directory").mkdir()
    with pytest.raises(HostError, match="writing "):
        write_file(tmp_path / name, DATA)
    assert [*tmp_path.iterdir()] == [tmp_path / "directory"]


def test_a_full_device(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No space"):
        write_file(Path("/dev/full"), DATA)


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    write_file(path, DATA)
    assert path.read_bytes() == WHOLE
