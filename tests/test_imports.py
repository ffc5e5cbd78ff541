"""Imports point down, and the pure modules stay pure: read from the source of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vgpud").rglob("*.py"))

# What a package may import besides itself. A package is the first name below `vgpud`.
_GROUND = {"errors", "pace", "printable", "publish", "sorted_numbers"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "pace": set(),
    "publish": set(),
    "printable": set(),
    "sorted_numbers": set(),
    "native": _GROUND,
    "unix": _GROUND | {"native"},
    "uapi": _GROUND | {"unix", "native"},
}
BELOW["memory"] = _GROUND | {"unix", "uapi", "native"}
BELOW["coherency"] = BELOW["memory"] | {"memory"}
BELOW["vhost"] = BELOW["coherency"] | {"coherency"}
BELOW["slots"] = BELOW["vhost"] | {"vhost"}
BELOW["control"] = BELOW["gpu"] = BELOW["slots"] | {"slots"}
BELOW["client"] = {"errors", "printable", "publish", "unix", "uapi", "slots", "control"}
BELOW["microvm"] = BELOW["gpu"] | {"gpu", "control", "client"}
BELOW["daemon"] = BELOW["gpu"] | {"gpu", "control"}
BELOW["cli"] = BELOW["daemon"] | {"daemon", "client", "microvm"}
BELOW["__main__"] = {"cli"}
BELOW["__init__"] = set()

# Modules that compute and have no effects: they import none of these.
EFFECTS = {"asyncio", "cffi", "mmap", "os", "select", "socket", "subprocess", "threading"}
PURE = {
    *("coherency/facts", "coherency/kvm_mode", "coherency/plan"),
    *("coherency/planner", "coherency/slot_policy"),
    *(
        "control/field_docs",
        "control/grants",
        "control/methods",
        "control/models",
        "control/openrpc",
    ),
    *("control/params", "control/rpc", "control/slot_calls"),
    *("gpu/display/damage", "gpu/display/display", "gpu/display/messages", "gpu/display/png"),
    *("gpu/display/tiles", "gpu/rects"),
    *("gpu/errors", "gpu/memory_types", "gpu/quota", "gpu/spec", "gpu/state", "gpu/work"),
    *(f"gpu/wire/{name}" for name in ("command_codec", "cvt", "displayid", "dma", "edid")),
    *(f"gpu/wire/{name}" for name in ("formats", "header", "mem_entries", "protocol", "responses")),
    *(f"gpu/wire/{name}" for name in ("commands", "value")),
    *("memory/addresses", "memory/backing", "memory/window_map"),
    *("slots/entries", "slots/errors", "slots/ranges", "slots/table"),
    *("printable", "publish", "sorted_numbers"),
    *("uapi/memslot", "uapi/page", "uapi/registers"),
    *("vhost/ring_life", "vhost/split_ring"),
    *("vhost/wire/back_end_channel", "vhost/wire/connection", "vhost/wire/header"),
    *("vhost/wire/messages", "vhost/wire/payload", "vhost/wire/protocol"),
    *("vhost/wire/replies", "vhost/wire/requests"),
}


def imports(source: str, package: str) -> Iterator[str]:
    """Every module that the source of a module in `package` imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            # `from vgpud import cli` names a module, `from vgpud.cli import main` may not.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, module: str) -> list[str]:
    """The imports that a module must not have; `module` is its path below vgpud, without .py."""
    package = module.partition("/")[0]
    found = []
    for name in imports(source, ".".join(["vgpud", *module.split("/")[:-1]])):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "vgpud" and target in BELOW:
            wrong = target != package and target not in BELOW[package]
        else:
            wrong = module in PURE and top in EFFECTS
        if wrong:
            found.append(name)
    return found


# Test code that must work without vgpud: it runs before vgpud is installed, or what it computes is
# compared with what vgpud does.
ALONE = {
    *("guest/pictures", "kernel/build", "kernel/machine", "kernel/slot_trials"),
    *("rig/build", "rig/chroot", "rig/image", "rig/libvirt", "rig/peer", "rig/qemu"),
    *("support/ring_driver", "control/plain_client"),
}

# What the tests' front-end may use of vgpud: the codec of messages, and the types of addresses.
CODEC = ("vgpud.vhost.wire", "vgpud.memory.addresses", "vgpud.errors")


def _test_imports(module: str) -> list[str]:
    """The names of vgpud that a module below tests/ imports."""
    source = (ROOT / "tests" / f"{module}.py").read_text()
    package = ".".join(["tests", *module.split("/")[:-1]])
    return [name for name in imports(source, package) if name.partition(".")[0] == "vgpud"]


@pytest.mark.parametrize("module", sorted(ALONE))
def test_code_that_stands_alone_imports_nothing_of_vgpud(module: str) -> None:
    assert _test_imports(module) == []


@pytest.mark.parametrize("module", ["support/front_end", "support/back_end_requests"])
def test_the_front_end_shares_only_the_codec(module: str) -> None:
    found = _test_imports(module)
    assert found
    assert [name for name in found if not name.startswith(CODEC)] == []


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT / "vgpud").with_suffix(""))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    assert not violations(path.read_text(), _name(path))


def test_every_pure_module_is_there() -> None:
    assert {_name(path) for path in MODULES} >= PURE


def test_every_package_has_its_arrows() -> None:
    assert {_name(path).partition("/")[0] for path in MODULES} == set(BELOW)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpu/wire/command_codec", "import os"),
        ("gpu/wire/command_codec", "from os import path"),
        ("gpu/wire/command_codec", "import os.path as p"),
        ("coherency/planner", "def f():\n    from mmap import mmap"),
        ("coherency/planner", "from vgpud.vhost import session"),
        ("vhost/session", "from ..gpu import gpu"),
        ("vhost/session", "from vgpud import gpu"),
        ("gpu/gpu", "from vgpud.control.rpc import Call"),
        ("gpu/gpu", "import vgpud.daemon.daemon"),
        ("__init__", "from vgpud.errors import VgpudError"),
        ("gpu/gpu", "if True:\n    from vgpud.daemon.config import Config"),
        ("client/client", "from vgpud.daemon import Daemon"),
        ("client/client", "from vgpud.native import spans"),
        ("memory/mapping", "from vgpud import cli"),
    ],
)
def test_a_wrong_import_is_noticed(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpu/wire/dma", "import struct\nfrom vgpud.errors import PeerError\nfrom . import header"),
        ("memory/mapping", "import os\nfrom vgpud.native import spans\nfrom vgpud import errors"),
        ("cli/main", "import os\nfrom vgpud import __version__\nfrom vgpud.daemon import Daemon"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert not violations(source, module)
