"""Directories in which other users may replace files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vgpud.unix.directory_owners import untrusted


def test_directories_of_our_own_and_of_root_s(tmp_path: Path) -> None:
    assert [*untrusted(tmp_path)] == []
    assert [*untrusted(Path("/run/vgpud/not/there"))] == []


@pytest.mark.parametrize("where", ["", "inner"])
def test_a_directory_that_all_may_write_to(tmp_path: Path, where: str) -> None:
    (tmp_path / where).mkdir(exist_ok=True)
    tmp_path.chmod(0o777)
    assert [*untrusted(tmp_path / where)] == [f"all users may write to {tmp_path}"]
    tmp_path.chmod(0o1777)
    assert [*untrusted(tmp_path / where)] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories to others")
def test_a_directory_of_another_user_s(tmp_path: Path) -> None:
    inner, link = tmp_path / "inner", tmp_path / "link"
    inner.mkdir()
    link.symlink_to(inner)
    os.chown(inner, 65534, 65534)
    for path in (inner, inner / "missing", link):
        assert [*untrusted(path)] == [f"{inner} belongs to uid 65534"]
