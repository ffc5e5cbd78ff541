"""When changes take effect: at once, with the next connection, or after a restart."""

from __future__ import annotations

import pytest

from vgpud.daemon.config import Config
from vgpud.daemon.config_tables import DaemonTable, DeviceTable, on_reload
from vgpud.daemon.reload import ConfigChanges, difference
from vgpud.errors import ConfigError

HEAD = '[daemon]\nruntime_dir = "/r"\n'


def config(text: str = "", *, daemon: str = "", name: str = "gpu0") -> Config:
    """A configuration with one device, whose keys `text` has, and whatever tables follow them."""
    return Config.from_toml(f'{HEAD}{daemon}\n[[device]]\nname = "{name}"\n{text}')


def changes(old: str, new: str) -> ConfigChanges:
    return difference(config(old), config(new))


def said(found: ConfigChanges) -> tuple[list[str], list[str], list[str]]:
    return [*found.applied], [*found.next_connection], [*found.restart]


SECOND = '[[device]]\nname = "two"\n'


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            'memory_limit = "1GiB"',
            'memory_limit = "2GiB"',
            "device gpu0: memory_limit 1GiB -> 2GiB",
        ),
        ('guest_pat = "auto"', 'guest_pat = "honored"', "device gpu0: guest_pat auto -> honored"),
        (
            'outputs = ["640x480", "800x600"]',
            'outputs = ["640x480", "1024x768"]',
            "device gpu0: outputs [640x480, 800x600] -> [640x480, 1024x768]",
        ),
        (
            "",
            '[[slot_policy]]\nmemory_type = "uc"\nfallback = "refuse"',
            "device gpu0: slot_policy none -> [all: uc refuse window]",
        ),
        (
            '[[slot_policy]]\nmatch = { min_size = "8KiB" }\n[[slot_policy]]\nfallback = "snoop"',
            (
                '[[slot_policy]]\nmatch = { min_size = "4KiB", blob = "host3d", device = "g*" }\n'
                '[[slot_policy]]\nfallback = "snoop"'
            ),
            (
                "device gpu0: slot_policy [>=8KiB: wc flush window] ->"
                " [g* host3d >=4KiB: wc flush window]"
            ),
        ),
        (
            '[[slot_policy]]\nmatch = { max_size = "8KiB" }\n[[slot_policy]]',
            "[[slot_policy]]",
            "device gpu0: slot_policy [<=8KiB: wc flush window] -> none",
        ),
    ],
)
def test_what_holds_at_once(old: str, new: str, line: str) -> None:
    found = changes(old, new)
    assert said(found) == ([line], [], [])
    assert found.changed == config(new).device_specs()
    assert not found.added
    assert not found.removed


PER_BLOB = '\n[[slot_policy]]\nlayout = "per-blob"'
PER_BLOB_ALSO = "device gpu0: slot_policy none -> [all: wc flush per-blob]"


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("", 'window = "1MiB"', ["device gpu0: window 256MiB -> 1MiB"]),
        ("", 'slots = "agent"', ["device gpu0: slots frontend -> agent"]),
        ("", 'buffers = "memfd"', ["device gpu0: buffers auto -> memfd"]),
        ("", "renderers = []", ["device gpu0: renderers [dma] -> []"]),
        (
            "",
            'outputs = ["640x480", "800x600"]',
            ["device gpu0: outputs [1280x800] -> [640x480, 800x600]"],
        ),
        (
            PER_BLOB,
            f'buffers = "gem"\nrender_node = "/dev/dri/renderD128"{PER_BLOB}',
            [
                "device gpu0: buffers auto -> gem",
                "device gpu0: render_node none -> /dev/dri/renderD128",
            ],
        ),
    ],
)
def test_what_waits_for_the_next_connection(old: str, new: str, lines: list[str]) -> None:
    found = changes(old, new)
    assert said(found) == ([], lines, [])
    assert found.changed == config(new).device_specs()


def test_another_layout_is_another_policy_too() -> None:
    found = changes("", PER_BLOB)
    assert said(found) == ([PER_BLOB_ALSO], ["device gpu0: layout window -> per-blob"], [])


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            config(),
            Config.from_toml('[daemon]\nruntime_dir = "/s"\n[[device]]\nname = "gpu0"'),
            "daemon: runtime_dir /r -> /s",
        ),
        (
            config(),
            config(daemon='control_socket = ""'),
            "daemon: control_socket control.sock -> none",
        ),
        (
            config(),
            config('socket = "zero"'),
            "device gpu0: socket gpu0.sock -> zero",
        ),
    ],
)
def test_what_takes_a_restart(old: Config, new: Config, line: str) -> None:
    found = difference(old, new)
    assert said(found) == ([], [], [line])
    assert found.changed == ()
    assert found.config == old, "what is open stays where it is"
    assert difference(found.config, new).restart == (line,), "and is told again"
    assert difference(found.config, old).lines == ()


def test_who_may_call_and_what_is_logged_change_at_once() -> None:
    new = config(daemon='allow_users = []\nallow_groups = ["kvm", "gpu"]\nlog_level = "debug"')
    assert said(difference(config(), new)) == (
        [
            "daemon: allow_users [root] -> []",
            "daemon: allow_groups [] -> [kvm, gpu]",
            "daemon: log_level info -> debug",
        ],
        [],
        [],
    )


def test_a_log_level_from_the_command_line_stays() -> None:
    new = config(daemon='log_level = "debug"')
    line = "daemon: log_level info -> debug, overridden by --log-level error"
    assert said(difference(config(), new, log_level="error")) == ([], [], [line])


def test_devices_come_and_go() -> None:
    found = difference(config(), config(SECOND, name="one"))
    assert said(found)[0] == ["device gpu0: removed", "device one: added", "device two: added"]
    assert found.removed == ("gpu0",)
    assert [spec.name for spec in found.added] == ["one", "two"]
    assert found.changed == ()


def test_the_order_of_devices_and_of_names_does_not_matter() -> None:
    old = config(SECOND, daemon='allow_users = ["a", "b"]')
    new = config('[[device]]\nname = "gpu0"', name="two", daemon='allow_users = ["b", "a"]')
    assert difference(old, new).lines == ()


def test_every_key_says_when_it_takes_effect() -> None:
    assert on_reload(DaemonTable).keys() == DaemonTable.model_fields.keys()
    assert on_reload(DeviceTable).keys() == DeviceTable.model_fields.keys() - {"name"}


def test_the_same_is_no_change() -> None:
    assert difference(config(), config()).lines == ()


def test_a_policy_for_other_devices_only_is_no_change() -> None:
    assert changes("", '[[slot_policy]]\nmatch = { device = "x*" }').lines == ()


def test_a_new_device_can_not_have_the_socket_that_another_keeps_until_a_restart() -> None:
    new = config('socket = "zero"\n[[device]]\nname = "two"\nsocket = "gpu0.sock"')
    with pytest.raises(ConfigError, match=r"device\]\] 2: socket = .*/r/gpu0.sock is that of"):
        difference(config(), new)


def test_lines_stay_short() -> None:
    many = "".join(
        f'[[slot_policy]]\nmatch = {{ max_size = "{size}MiB" }}\n' for size in range(1, 500)
    )
    [line] = changes("", many).applied
    assert len(line) < 250
