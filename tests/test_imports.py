"""Imports point one way, and the pure layers stay pure: read from every module's source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vgpud").rglob("*.py"))

# What a layer may import besides itself. A layer is the first name below `vgpud`.
BELOW = {
    "errors": set(),
    "wire": {"errors"},
    "uapi": {"errors"},
    "policy": {"errors", "wire"},
    "host": {"errors", "wire", "uapi"},
    "device": {"errors", "wire", "policy", "host"},
    "serve": {"errors", "wire", "policy", "host", "device"},
    "__init__": set(),
}
BELOW["client"] = {"errors", "wire", "host", "agent"}
BELOW["agent"] = {"errors", "wire", "host"}
BELOW["microvm"] = {"errors", "wire", "uapi", "policy", "host", "agent", "client"}
BELOW["demo"] = {"errors", "wire", "policy", "host", "microvm"}
BELOW["doctor"] = {"errors", "wire", "policy", "host", "microvm"}
BELOW["bench"] = {"errors", "wire", "uapi", "policy", "host", "microvm"}
BELOW["qemu_lines"] = set()
BELOW["config_tables"] = {"errors", "policy", "device"}
BELOW["config"] = BELOW["config_tables"] | {"config_tables", "wire"}
BELOW["logs"] = {"host"}
BELOW["reload"] = BELOW["config"] | {"config"}
BELOW["daemon"] = BELOW["reload"] | {"wire", "host", "serve", "logs", "reload"}
BELOW["stdout"] = {"errors"}
BELOW["ctl"] = {"errors", "wire", "host", "client", "config", "stdout"}
BELOW["completion"] = set()
BELOW["units"] = {"errors"}
BELOW["cli"] = {"errors", "config", "daemon", "demo", "doctor", "bench", "ctl"}
BELOW["foreground"] = {"errors", "daemon"}
BELOW["cli"] |= {"stdout", "completion", "qemu_lines", "units", "logs", "serve", "foreground"}
BELOW["backend_program"] = BELOW["cli"] | {"cli", "config_tables", "wire", "policy"}
BELOW["__main__"] = {"cli"}

PURE = {"wire", "policy"}
IMPURE = {"asyncio", "cffi", "mmap", "os", "socket"}


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
            # `from vgpud import cli` names a module, `from vgpud.cli import main` does not.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(source: str, package: str, layer: str) -> list[str]:
    """The imports that a module of `layer` must not have."""
    found = []
    for name in imports(source, package):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "vgpud" and target in BELOW:
            wrong = target != layer and target not in BELOW[layer]
        else:
            wrong = layer in PURE and top in IMPURE
        if wrong:
            found.append(name)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    assert not violations(path.read_text(), ".".join(parts[:-1]), parts[1])


@pytest.mark.parametrize(
    ("layer", "package", "source"),
    [
        ("wire", "vgpud.wire", "import os"),
        ("wire", "vgpud.wire", "from os import path"),
        ("wire", "vgpud.wire", "import os.path as p"),
        ("policy", "vgpud.policy", "def f():\n    from mmap import mmap"),
        ("policy", "vgpud.policy", "from vgpud.host import memfd"),
        ("wire", "vgpud.wire.gpu", "from ...uapi import native"),
        ("wire", "vgpud.wire.gpu", "from vgpud import host"),
        ("device", "vgpud.device", "from vgpud.uapi.native import full_fence"),
        ("device", "vgpud.device", "import vgpud.serve.control"),
        ("__init__", "vgpud", "from vgpud.errors import VgpudError"),
        ("serve", "vgpud.serve", "if True:\n    from vgpud.config import Config"),
        ("host", "vgpud.host", "from vgpud import cli"),
    ],
)
def test_a_wrong_import_is_noticed(layer: str, package: str, source: str) -> None:
    assert violations(source, package, layer)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("wire", "import struct\nfrom vgpud.errors import PeerError\nfrom .gpu import protocol"),
        ("host", "import os\nfrom vgpud.uapi import native\nfrom vgpud import errors"),
        ("cli", "import os\nfrom vgpud import __version__\nfrom vgpud.daemon import Daemon"),
    ],
)
def test_a_right_import_is_not(layer: str, source: str) -> None:
    assert not violations(source, f"vgpud.{layer}", layer)
