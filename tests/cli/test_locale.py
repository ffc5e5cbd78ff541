"""Names that the locale has no characters for: files of a configuration are found all the same."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support.process import BACK_END, VGPUD, Process
from vgpud.client import Client

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONFIG = """
    [daemon]
    runtime_dir = "{directory}/rtä"
    control_socket = "ж.sock"
    allow_groups = ["gruppeä"]
    [[device]]
    name = "gpu0"
    socket = "ö.sock"
    render_node = "/dev/dri/ж"
    [[slot_policy]]
    layout = "per-blob"
"""


def test_a_daemon_whose_locale_lacks_the_characters_of_its_paths(tmp_path: Path) -> None:
    config = tmp_path / "é.toml"
    config.write_text(CONFIG.format(directory=tmp_path), encoding="utf-8")
    with Process(*VGPUD, "config", "check", config, environment=ASCII) as check:
        assert check.wait() == 0
    assert "Traceback" not in check.log
    control = tmp_path / "rtä" / "ж.sock"
    with Process(*VGPUD, "serve", "--config", config, environment=ASCII) as daemon:
        daemon.until(control.exists)
        daemon.until_printed("is listening")
        with Client(control) as client:
            [device] = client.call("device.list")["items"]
            info = client.call("daemon.info")
        with Process(*VGPUD, "ctl", "--config", config, "device.list", environment=ASCII) as asked:
            assert asked.wait() == 0
        daemon.terminate()
        assert daemon.wait() == 0
    assert device["socket"] == info["devices"][0]["socket"] == f"{tmp_path}/rtä/ö.sock"
    assert info["config_file"] == str(config)
    assert json.loads(asked.output)["items"] == [device]


def test_an_unknown_group_whose_name_the_locale_lacks(tmp_path: Path) -> None:
    config = tmp_path / "a.toml"
    text = f'[daemon]\nruntime_dir = "{tmp_path}/run"\n[[device]]\nname = "a"\nsocket_group = "ж"\n'
    config.write_text(text, encoding="utf-8")
    with Process(*VGPUD, "serve", "--config", config, environment=ASCII) as daemon:
        assert daemon.wait() == 2
    assert daemon.log.endswith("a.sock: socket_group = '\\u0436': there is no such group\n")
    with Process(*VGPUD, "config", "check", config, environment=ASCII) as check:
        assert check.wait() == 0
    assert "socket_group: \\u0436: unknown to this system" in check.log


def test_a_socket_path_that_is_no_text(tmp_path: Path) -> None:
    directory = bytes(tmp_path) + b"/\xff"
    with Process(*BACK_END, "--socket-path", os.fsdecode(directory + b"/s")) as program:
        program.until(lambda: Path(os.fsdecode(directory), "s").exists())
        program.terminate()
        assert program.wait() == 0
