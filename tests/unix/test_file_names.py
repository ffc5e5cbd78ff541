"""File names and text: there and back, whatever the bytes and the locale."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vgpud.unix.file_names import as_text, file_name, shown

LOCALES = {
    "utf-8": {"PYTHONUTF8": "1"},
    "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("name", [b"/run/vgpud", "rtä/ж.sock".encode(), b"/tmp/\xff", b""])
def test_there_and_back(name: bytes) -> None:
    path = os.fsdecode(name)
    assert file_name(as_text(path)) == path


def test_what_is_shown_is_text() -> None:
    assert shown(os.fsdecode("ж".encode())) == "ж"
    assert shown(os.fsdecode(b"a\xff")) == "a\\xff"


@pytest.mark.parametrize("locale", LOCALES)
def test_a_name_has_the_same_bytes_in_every_locale(locale: str) -> None:
    code = (
        "import os; from vgpud.unix.file_names import *;"
        "name = os.fsdecode('rt\\u0436'.encode());"
        "assert os.fsencode(file_name('rt\\u0436')) == 'rt\\u0436'.encode();"
        "assert as_text(name) == shown(name) == 'rt\\u0436'"
    )
    environment = {**os.environ, **LOCALES[locale]}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
