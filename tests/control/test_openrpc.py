"""The description of the control API: complete, consistent, and of one piece with the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from vgpud.control.methods import METHODS
from vgpud.control.openrpc import document
from vgpud.control.rpc import ErrorCode

DOCUMENT: Any = document().model_dump(mode="json")


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _refs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _refs(inner)


def test_every_reference_leads_somewhere() -> None:
    refs = set(_refs(DOCUMENT))
    assert len(refs) > 15
    for ref in refs:
        root, *names = ref.split("/")
        assert root == "#"
        target = DOCUMENT
        for name in names:
            target = target[name]


def test_every_method_is_there_with_its_parameters() -> None:
    assert [method["name"] for method in DOCUMENT["methods"]] == [*METHODS]
    for method in DOCUMENT["methods"]:
        model = METHODS[method["name"]].params
        assert [param["name"] for param in method["params"]] == [*model.model_fields]
        for param in method["params"]:
            assert param["required"] == model.model_fields[param["name"]].is_required()
            assert param["schema"].keys() & {"type", "anyOf"}
        assert method.get("x-fd") == METHODS[method["name"]].fd


@pytest.mark.parametrize("name", METHODS)
def test_a_result_is_described_as_its_model(name: str) -> None:
    [method] = [method for method in DOCUMENT["methods"] if method["name"] == name]
    ref = method["result"]["schema"]["$ref"]
    schema = DOCUMENT["components"]["schemas"][ref.rpartition("/")[2]]
    fields = METHODS[name].result.model_fields
    if "root" not in fields:
        assert schema.get("properties", {}).keys() == fields.keys()
        assert schema.get("required", []) == [*fields]
        assert schema["additionalProperties"] is False


def test_errors_have_their_codes_and_kinds() -> None:
    errors = DOCUMENT["components"]["errors"]
    assert {error["code"] for error in errors.values()} == {int(code) for code in ErrorCode}
    kinds = DOCUMENT["components"]["schemas"]["ErrorKind"]["enum"]
    assert "too-large" in kinds


def test_what_comes_unasked_is_described_too() -> None:
    [event] = DOCUMENT["x-notifications"]
    assert [param["name"] for param in event["params"]][:2] == ["sequence", "time"]
    assert [method["name"] for method in DOCUMENT["x-callbacks"]] == ["slot.set", "slot.delete"]
    assert "x-fd" in DOCUMENT["x-callbacks"][0]


def test_it_fits_into_a_datagram() -> None:
    assert len(json.dumps(DOCUMENT, separators=(",", ":"))) < 48 << 10
