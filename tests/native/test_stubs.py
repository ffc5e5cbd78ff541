"""The stubs that mypy reads say what the compiled modules have."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = ("vgpud.native._native", "vgpud.uapi._linux", "vgpud.microvm._guest")


def stub(module: str) -> dict[str, int | None]:
    """The members of the stub's `_Lib`: of a function its number of arguments, else None."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".pyi").read_text())
    [lib] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Lib"]
    members: dict[str, int | None] = {}
    for node in lib.body:
        if isinstance(node, ast.FunctionDef):
            members[node.name] = len(node.args.posonlyargs or node.args.args) - 1
        else:
            assert isinstance(node, ast.AnnAssign)
            members[ast.unparse(node.target)] = None
    return members


@pytest.mark.parametrize("module", MODULES)
def test_a_stub_names_the_functions_and_constants_of_its_module(module: str) -> None:
    compiled = importlib.import_module(module)
    found: dict[str, int | None] = {}
    for name in dir(compiled.lib):
        value = getattr(compiled.lib, name)
        found[name] = None if isinstance(value, int) else len(compiled.ffi.typeof(value).args)
    assert stub(module) == found
