"""Completion in a shell, asked of a real bash."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vgpud.cli import completion
from vgpud.cli import main as cli
from vgpud.control.methods import METHODS

PATIENCE = 60.0


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script for bash."""
    path = tmp_path_factory.mktemp("completion") / "vgpud"
    path.write_text(completion.script(cli.parser(), "bash"))
    return path


def completed(script: Path, line: str, cwd: Path) -> set[str]:
    """What bash offers for the last word of a line."""
    program = """
    set -u
    source "$1"
    read -r -a COMP_WORDS <<<"$2"
    [[ $2 == *' ' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$2 COMP_POINT=${#2} COMPREPLY=()
    set +u
    spec=$(complete -p vgpud)
    [[ $spec =~ -F\\ ([^ ]+) ]]
    "${BASH_REMATCH[1]}" vgpud "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "--norc", "-c", program, "bash", script, line],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("vgpud se", {"serve"}),
        ("vgpud ctl stat", {"status"}),
        ("vgpud ctl device.", {"device.list", "device.get", "device.resize", "device.screenshot"}),
        ("vgpud ctl screenshot --sc", {"--scanout"}),
        ("vgpud ctl events --k", {"--kind"}),
        ("vgpud ctl blob.export --o", {"--out"}),
        ("vgpud serve --log-level w", {"warning"}),
        ("vgpud config ", {"check", "default", "schema"}),
        ("vgpud completion ba", {"bash"}),
        ("vgpud serve --config here", {"here.toml"}),
        ("vgpud config check here", {"here.toml"}),
        ("vgpud ctl --socket here", {"here.toml"}),
    ],
)
def test_bash_completes(script: Path, tmp_path: Path, line: str, offered: set[str]) -> None:
    (tmp_path / "here.toml").touch()
    assert offered <= completed(script, line, tmp_path)
    if not line.endswith(" "):
        word = line.rsplit(maxsplit=1)[-1]
        assert all(one.startswith(word) for one in completed(script, line, tmp_path))


def test_bash_offers_every_method(script: Path, tmp_path: Path) -> None:
    assert set(METHODS) <= completed(script, "vgpud ctl ", tmp_path)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_there_is_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    output = capsys.readouterr().out
    assert "vgpud" in output
    assert "device.screenshot" in output


def test_other_shells_are_bad_usage() -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["completion", "tcsh"])
    assert caught.value.code == 2
