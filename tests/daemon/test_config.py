"""The configuration: the meaning of a file, and the messages about wrong ones."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from vgpud.coherency.slot_policy import (
    BlobKind,
    Buffers,
    Fallback,
    GuestPat,
    Layout,
    Match,
    MemoryType,
    Rule,
    SlotOwner,
)
from vgpud.daemon.config import Config
from vgpud.daemon.config_tables import DeviceTable, default_runtime_dir, size_text
from vgpud.errors import ConfigError
from vgpud.gpu.spec import DeviceSpec, PreferredMode, RendererName

MIB = 1 << 20

FULL = """
[daemon]
runtime_dir = "/run/elsewhere"
control_socket = "ctl"
allow_users = ["libvirt-qemu", "107"]
allow_groups = []
log_level = "debug"

[[device]]
name = "gpu0"
socket = "zero"
window = "64KiB"
memory_limit = "64KiB"
outputs = ["640x480", "32x8192"]
buffers = "memfd"
slots = "frontend"
guest_pat = "honored"

[[device]]
name = "big.one"
socket = "/somewhere/else.sock"
window = "2GiB"
buffers = "gem"
render_node = "/dev/dri/renderD129"
renderers = []
slots = "agent"
guest_pat = "ignored"

[[slot_policy]]
match = { device = "big*", blob = "host3d", min_size = "4KiB" }
memory_type = "uc"
fallback = "refuse"
layout = "per-blob"
allow_guest_ram = true

[[slot_policy]]
match = { blob = "host3d_guest", max_size = "1MiB" }
memory_type = "wb"

[[slot_policy]]
fallback = "snoop"
"""


def faults(text: str) -> list[str]:
    """What is said about a file, without its name, which every line starts with."""
    with pytest.raises(ConfigError) as caught:
        Config.from_toml(text, source="a.toml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("a.toml: ") for line in lines)
    return [line.removeprefix("a.toml: ") for line in lines]


def test_every_key_reaches_its_device() -> None:
    config = Config.from_toml(FULL)
    big = Rule(
        Match("big*", BlobKind.HOST3D, 4096),
        MemoryType.UC,
        Fallback.REFUSE,
        Layout.PER_BLOB,
        allow_guest_ram=True,
    )
    shadowed = Rule(Match(blob=BlobKind.HOST3D_GUEST, max_size=MIB), MemoryType.WB)
    rest = Rule(fallback=Fallback.SNOOP)
    assert config.device_specs() == (
        DeviceSpec(
            name="gpu0",
            window=65536,
            memory_limit=65536,
            outputs=(PreferredMode(640, 480), PreferredMode(32, 8192)),
            guest_pat=GuestPat.HONORED,
            rules=(shadowed, rest),
            layout=Layout.WINDOW,
            slots=SlotOwner.FRONTEND,
            buffers=Buffers.MEMFD,
            render_node=None,
            renderers=(RendererName.DMA,),
        ),
        DeviceSpec(
            name="big.one",
            window=2048 * MIB,
            memory_limit=1024 * MIB,
            outputs=(PreferredMode(1280, 800),),
            guest_pat=GuestPat.IGNORED,
            rules=(big, shadowed, rest),
            layout=Layout.PER_BLOB,
            slots=SlotOwner.AGENT,
            buffers=Buffers.GEM,
            render_node="/dev/dri/renderD129",
            renderers=(),
        ),
    )
    assert config.daemon.allow_users == ("libvirt-qemu", "107")
    assert config.daemon.allow_groups == ()
    assert config.daemon.log_level == "debug"
    assert config.control_path == Path("/run/elsewhere/ctl")
    assert config.socket_path("gpu0") == Path("/run/elsewhere/zero")
    assert config.socket_path("big.one") == Path("/somewhere/else.sock")


def test_the_built_in_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/mine")
    config = Config.default()
    assert config == Config.load(None) == Config.from_toml("")
    assert config.device_specs() == (
        DeviceSpec(
            name="gpu0",
            window=256 * MIB,
            memory_limit=1024 * MIB,
            outputs=(PreferredMode(1280, 800),),
            guest_pat=GuestPat.AUTO,
            rules=(),
            layout=Layout.WINDOW,
        ),
    )
    assert config.control_path == Path("/run/mine/control.sock")
    assert config.socket_path("gpu0") == Path("/run/mine/gpu0.sock")


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({}, "/run/vgpud"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, "/run/user/7/vgpud"),
        ({"XDG_RUNTIME_DIR": ""}, "/run/vgpud"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "RUNTIME_DIRECTORY": "/run/a"}, "/run/a"),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, "/run/a"),
    ],
)
def test_the_default_runtime_directory(environment: dict[str, str], directory: str) -> None:
    assert default_runtime_dir(environment) == directory


def test_a_bad_environment_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "not/absolute")
    with pytest.raises(ConfigError, match=r"built-in defaults.*runtime_dir.*absolute"):
        Config.default()


def test_no_control_socket() -> None:
    assert Config.from_toml('[daemon]\ncontrol_socket = ""').control_path is None


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (
            "window = 268435456",
            "[[device]] 1: window = 268435456: a size is a whole number and a un",
        ),
        ('window = "256"', 'window = "256": a size'),
        ('window = "256MB"', 'window = "256MB": a size'),
        ('window = "-4KiB"', 'window = "-4KiB": a size'),
        ('window = "1.5MiB"', 'window = "1.5MiB": a size'),
        ('window = "3MiB"', 'window = "3MiB": must be a power of two'),
        ('window = "32KiB"', 'window = "32KiB": must be a power of two and 64KiB or more'),
        ('window = "0GiB"', 'window = "0GiB": must be a power of two'),
        ('memory_limit = "0KiB"', "must be more than zero"),
        ('memory_limit = "8589934592GiB"', "must be less than 8589934592GiB"),
        ("outputs = []", "outputs = []: must be 1 to 16 outputs"),
        (f"outputs = {['640x480'] * 17}", "must be 1 to 16 outputs"),
        ('outputs = "640x480"', 'outputs = "640x480": must be an array'),
        ('outputs = ["640x480", "640"]', 'outputs.1 = "640": an output is'),
        ('outputs = ["31x480"]', "must be 32 to 8192 pixels"),
        ('outputs = ["640x8193"]', "must be 32 to 8192 pixels"),
        (
            'guest_pat = "honoured"',
            "guest_pat = \"honoured\": must be 'honored', 'ignored' or 'auto'",
        ),
        ('slots = "none"', "slots = \"none\": must be 'frontend', 'agent' or 'local'"),
        ('buffers = "vram"', "buffers = \"vram\": must be 'memfd', 'udmabuf', 'gem' or 'auto'"),
        ('buffers = "gem"', 'buffers = "gem": must be "auto" or "memfd" with the window layout'),
        ('buffers = "udmabuf"', 'buffers = "udmabuf": must be "auto" or "memfd" with the window'),
        ('render_node = "renderD128"', 'render_node = "renderD128": must be an absolute path'),
        ('render_node = "/dev/r"', 'render_node = "/dev/r": of no effect with the window layout'),
        (
            'buffers = "memfd"\nrender_node = "/dev/r"',
            'render_node = "/dev/r": of no effect with buffers = "memfd"; use "gem" or "auto"',
        ),
        ('renderers = ["virgl"]', "renderers.0 = \"virgl\": must be 'dma'"),
        ('renderers = ["dma", "dma"]', "names the same one twice"),
        ('renderers = "dma"', 'renderers = "dma": must be an array'),
        ("window = true", "window = true: a size"),
        ("socket = 3", "socket = 3: must be a string"),
        ('socket = ""', 'socket = "": '),
        ('socket = "a\\u0000b"', "a path can't contain a NUL character"),
        ('socket = "there/"', "must be the path of a file"),
        ('socket = ".."', "must be the path of a file"),
        ('socket = "/"', "must be the path of a file"),
        ('socket = "."', "must be the path of a file"),
        ("colour = 1", "colour = 1: unknown key; known: name, socket, window, memory_limit"),
    ],
)
def test_a_fault_of_a_device(table: str, fault: str) -> None:
    [line] = faults(f'[[device]]\nname = "gpu0"\n{table}')
    assert fault in line
    assert line.startswith("[[device]] 1: ")


@pytest.mark.parametrize("name", ["", "-a", ".", "../a", "a/b", "a b", "a\\n", "x" * 64])
def test_a_name_that_can_not_name_a_socket(name: str) -> None:
    [line] = faults(f'[[device]]\nname = "{name}"')
    assert "a name is 1 to 63 of" in line


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x =", "is not TOML: Invalid value (at end of document)"),
        ("[gpu]", "gpu = {}: no table of this file; known: [daemon], [[device]], [[slot_policy]]"),
        ("daemon = 3", "[daemon] = 3: must be a table"),
        ('[daemon]\nruntime_dir = "x"', '[daemon]: runtime_dir = "x": must be an absolute path'),
        ("[daemon]\nx = 1", "[daemon]: x = 1: unknown key; known: runtime_dir, control_socket"),
        ('[daemon]\nallow_users = "a"', '[daemon]: allow_users = "a": must be an array'),
        ("[daemon]\nallow_users = [0]", "[daemon]: allow_users.0 = 0: must be a string"),
        ('[daemon]\nallow_users = ["root", ""]', 'allow_users.1 = "": a user or group is a name'),
        ('[daemon]\nallow_groups = ["a:b"]', 'allow_groups.0 = "a:b": a user or group is a name'),
        ('[daemon]\nallow_users = [" "]', 'allow_users.0 = " ": a user or group is a name'),
        (
            '[daemon]\nallow_users = ["4294967295"]',
            'allow_users.0 = "4294967295": the number of a user or group is at most 4294967294',
        ),
        (
            f'[daemon]\nallow_users = ["{"0" * 4400}4294967295"]',
            "the number of a user or group is at most 4294967294",
        ),
        (
            f'[daemon]\nallow_users = ["{"9" * 4400}"]',
            "the number of a user or group is at most 4294967294",
        ),
        ('[daemon]\nallow_groups = ["a\\u000ab"]', "a user or group is a name"),
        (
            '[[device]]\nname = "a"\nsocket = "clients"',
            "/clients is the directory of the control socket's clients",
        ),
        (
            '[[device]]\nname = "a"\nsocket = "clients/a.sock"',
            "/clients is the directory of the control socket's clients",
        ),
        (
            '[[device]]\nname = "a"\nsocket = "control.sock/a"',
            "control.sock can't be a directory, as it is the socket of [daemon]: control_socket",
        ),
        (
            '[daemon]\nlog_level = "loud"',
            "[daemon]: log_level = \"loud\": must be 'debug', 'info', 'warning' or 'error'",
        ),
        ('[device]\nname = "a"', '[[device]] = { name = "a" }: must be tables'),
        ("device = []", "device = []: there must be at least one [[device]], or no such key"),
        ("device = [3]", "[[device]] 1 = 3: must be a table"),
        ('log_level = "debug"', 'log_level = "debug": no table of this file; known: [daemon]'),
        (
            "[[device]]",
            "[[device]] 1: name is missing: its name in slot policies and in the control API",
        ),
        ("[[slot_policy]]\nmatch = 3", "[[slot_policy]] 1: match = 3: must be a table"),
        (
            '[[slot_policy]]\nmatch = { blob = "3d" }',
            "match.blob = \"3d\": must be 'host3d' or 'host3d_guest'",
        ),
        (
            '[[slot_policy]]\nmatch = { blob = "guest" }',
            "match.blob = \"guest\": must be 'host3d' or 'host3d_guest'",
        ),
        ("[[slot_policy]]\nmatch = { x = 1 }", "match.x = 1: unknown key; known: device, blob, "),
        ("[[slot_policy]]\nmatch = { min_size = 4 }", "match.min_size = 4: a size"),
        (
            '[[slot_policy]]\nmatch = { min_size = "8KiB", max_size = "4KiB" }',
            "max_size is less than min_size",
        ),
        ('[[slot_policy]]\nmemory_type = "WC"', "must be 'wc', 'uc' or 'wb'"),
        ('[[slot_policy]]\nlayout = "blob"', "must be 'window' or 'per-blob'"),
        ('[[slot_policy]]\nfallback = ""', "must be 'flush', 'snoop' or 'refuse'"),
        (
            '[[slot_policy]]\nallow_guest_ram = "true"',
            '[[slot_policy]] 1: allow_guest_ram = "true": must be true or false',
        ),
        (
            "[[slot_policy]]\nallow_guest_ram = true",
            "[[slot_policy]] 1: allow_guest_ram = true: of no effect; it needs layout = ",
        ),
        (
            "[[slot_policy]]\n[[slot_policy]]",
            "[[slot_policy]] 1: matches every blob, so no later one has any effect",
        ),
        (
            '[[device]]\nname="a"\n[[device]]\nname="a"',
            '[[device]]: name = "a": used more than once',
        ),
        (
            '[daemon]\nruntime_dir="/r"\n[[device]]\nname="a"\nsocket="s"\n[[device]]\nname="b"\nsocket="/r/./s"',
            '[[device]] 2: socket = "/r/./s": /r/s is that of [[device]] 1: socket already',
        ),
        (
            '[daemon]\nruntime_dir="/r"\ncontrol_socket = "gpu0.sock"',
            '[[device]] 1: socket = "gpu0.sock": /r/gpu0.sock is that of [daemon]: control_socket',
        ),
        (f'[[device]]\nname = "a"\nsocket = "/{"x" * 107}"', "is longer than 107 bytes"),
        (
            '[[device]]\nname = "a"\nmemory_limit = "128MiB"',
            '[[device]] 1: memory_limit = "128MiB": must be window, "256MiB", or more, as',
        ),
        (
            '[[slot_policy]]\nmatch = { min_size = "8KiB" }\nlayout = "per-blob"',
            "[[device]] 1: its host blobs would get both layouts",
        ),
    ],
)
def test_a_fault_elsewhere(text: str, fault: str) -> None:
    [line] = faults(text)
    assert fault in line


def test_a_window_may_pass_the_limit_where_it_holds_nothing_by_itself() -> None:
    text = '[[device]]\nname = "a"\nmemory_limit = "128MiB"\n[[slot_policy]]\nlayout = "per-blob"'
    [spec] = Config.from_toml(text).device_specs()
    assert (spec.layout, spec.window, spec.memory_limit) == (Layout.PER_BLOB, 256 * MIB, 128 * MIB)


def test_all_faults_are_named_at_once() -> None:
    text = """
        [daemon]
        runtime_dir = "here"
        [[device]]
        name = "a"
        window = "3MiB"
        outputs = ["x", "640x480", "y"]
        [[device]]
        name = "b"
        memory_limit = "1MiB"
        [[device]]
        name = "b"
        socket = "c"
        [[slot_policy]]
        [[slot_policy]]
        [more]
    """
    found = "\n".join(faults(text))
    for part in ("more", "runtime_dir", "window", "outputs.0", "outputs.2", "] 2: memory_limit"):
        assert part in found
    assert "used more than once" in found
    assert "no later one has any effect" in found


PER_BLOB = '[[slot_policy]]\nlayout = "per-blob"\n'


@pytest.mark.parametrize(
    "text",
    [
        f'[[device]]\nname = "a"\nbuffers = "gem"\n{PER_BLOB}',
        f'[[device]]\nname = "a"\nbuffers = "udmabuf"\nslots = "agent"\n{PER_BLOB}',
        f'[[device]]\nname = "a"\nrender_node = "/dev/dri/renderD128"\n{PER_BLOB}',
        f'[[device]]\nname = "a"\nslots = "local"\n{PER_BLOB}allow_guest_ram = true',
        '[[device]]\nname = "a"\nslots = "local"\n',
        "[[slot_policy]]\nallow_guest_ram = false",
    ],
)
def test_what_goes_together(text: str) -> None:
    Config.from_toml(text)


def test_a_file_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text("[daemon]\n")
    monkeypatch.chdir(tmp_path)
    assert Config.load("a.toml").path == tmp_path / "a.toml"
    assert Config.default().path is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0KiB"), (4096, "4KiB"), (MIB, "1MiB"), (1536 * MIB, "1536MiB"), (2048 * MIB, "2GiB")],
)
def test_a_size_is_spelled_as_it_would_be_read(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_long_value_is_cut() -> None:
    [line] = faults(f'[[device]]\nname = "a"\nwindow = "{"9" * 10_000}"')
    assert len(line) < 300


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: can't be read: No such file"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        Config.load(tmp_path)
    (tmp_path / "latin").write_bytes(b"# caf\xe9\n[daemon]")
    with pytest.raises(ConfigError, match="latin: is not UTF-8"):
        Config.load(tmp_path / "latin")
    (tmp_path / "deep").write_text(f"x = {'[' * 5000}{']' * 5000}")
    with pytest.raises(ConfigError, match="deep: is not TOML that can be read: nested too deeply"):
        Config.load(tmp_path / "deep")
    (tmp_path / "digits").write_text(f"x = {'9' * 5000}")
    with pytest.raises(ConfigError, match="digits: is not TOML that can be read: Exceeds"):
        Config.load(tmp_path / "digits")


ACCESS = {"allow_users", "allow_groups", "grants"}
"""The keys of a device that are the control socket's."""


def test_every_key_of_a_device_but_its_socket_reaches_the_device() -> None:
    names = {field.name for field in fields(DeviceSpec)}
    sockets = {"socket", "socket_group", "socket_mode"}
    assert DeviceTable.model_fields.keys() - sockets - ACCESS == names - {"rules", "layout"}


@pytest.mark.parametrize(
    "name", ["my run", "Büro", "\u00a0", "family \U0001f468\u200d\U0001f469", "a\nb", "é", "*"]
)
def test_every_name_of_a_file_will_do(name: str) -> None:
    """The file system knows which names there are."""
    quoted, path = (json.dumps(text, ensure_ascii=False) for text in (name, f"/{name}"))
    config = Config.from_toml(f"[daemon]\nruntime_dir = {path}\ncontrol_socket = {quoted}")
    assert config.control_path == Path("/", name, name)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_file_from_another_editor(tmp_path: Path, before: bytes, end: bytes) -> None:
    """With a byte order mark, or with other line ends."""
    path = tmp_path / "vgpud.toml"
    path.write_bytes(before + end.join([b"[daemon]", b'log_level = "debug"', b""]))
    assert Config.load(path).daemon.log_level == "debug"
    path.write_bytes(before + end.join([b"[daemon]", b"log_level = debug", b""]))
    with pytest.raises(ConfigError, match="at line 2"):
        Config.load(path)


def test_text_with_a_byte_order_mark() -> None:
    assert Config.from_toml("\ufeff[daemon]\nlog_level = 'debug'").daemon.log_level == "debug"


def test_a_file_of_another_encoding_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "vgpud.toml"
    path.write_text("[daemon]\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="is not UTF-8 text, so save it as that"):
        Config.load(path)
