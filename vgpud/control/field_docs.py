"""Descriptions of a model's fields: the docstrings below them in its source, read on demand.

pydantic can read them as it creates each model (`use_attribute_docstrings`), but that takes a fifth
of the daemon's start time, and only descriptions and schemas need them.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema


@cache
def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings of a model's fields by name, including those of its base classes."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        found |= _of_module(base.__module__).get(base.__name__, {})
    return {name: found[name] for name in model.model_fields if name in found}


class WithFieldDocs(GenerateJsonSchema):
    """A schema generator that describes properties by their fields' docstrings."""

    def model_schema(self, schema: Any) -> dict[str, Any]:
        made = super().model_schema(schema)
        for name, doc in field_docs(schema["cls"]).items():
            made["properties"][name].setdefault("description", doc)
        return made


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (OSError, TypeError):  # a built-in module has no source
        return {}
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_below_fields(node.body)) for node in classes}


def _below_fields(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, below in pairwise(body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(name)),
                ast.Expr(ast.Constant(str(doc))),
            ):
                yield name, inspect.cleandoc(doc)
