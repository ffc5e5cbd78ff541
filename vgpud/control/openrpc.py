"""The control API's description as an OpenRPC document, generated from its models.

Source: the OpenRPC specification, 1.3. What the specification does not cover is in members that
begin with "x-".
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from vgpud import __version__
from vgpud.control import models, slot_calls
from vgpud.control.field_docs import WithFieldDocs
from vgpud.control.methods import METHODS, OpenRpcDocument
from vgpud.control.rpc import ErrorCode
from vgpud.publish import Json

_SCHEMAS: Final = "#/components/schemas/"
_ERRORS: Final = "#/components/errors/"

_ABOUT: Final = (
    "JSON-RPC 2.0 on a unix datagram socket, one message a datagram. Answers and notifications go"
    " to the address that the caller's socket is bound to, with a descriptor (SCM_RIGHTS) where"
    " x-fd says so. x-notifications are sent to subscribers, x-callbacks are calls to an attached"
    " slot agent, both over the same socket."
)
_MEANINGS: Final = {
    ErrorCode.PARSE_ERROR: "not JSON",
    ErrorCode.INVALID_REQUEST: "not a call",
    ErrorCode.METHOD_NOT_FOUND: "no such method",
    ErrorCode.INVALID_PARAMS: "parameters that the method does not take",
    ErrorCode.INTERNAL_ERROR: "a bug in vgpud",
    ErrorCode.VGPUD: "can't be done; data.kind says why",
}
_OF_METHODS: Final = (ErrorCode.INVALID_PARAMS, ErrorCode.INTERNAL_ERROR, ErrorCode.VGPUD)


class ErrorData(BaseModel):
    """The `data` of an error -32000; its other members depend on the kind."""

    kind: models.ErrorKind


class _Untitled(WithFieldDocs):
    """A schema generator that omits fields' titles, which would repeat their names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def document() -> OpenRpcDocument:
    """Return the OpenRPC document, the result of `rpc.discover`."""
    results = {method.result for method in METHODS.values()} | {ErrorData}
    refs, schemas = models_json_schema(
        [(model, "serialization") for model in sorted(results, key=lambda model: model.__name__)],
        ref_template=_SCHEMAS + "{model}",
        schema_generator=_Untitled,
    )
    methods = [
        _method(method.name, method.about, method.params, refs[method.result, "serialization"])
        | {"x-grant": str(method.grant)}
        | ({"x-fd": method.fd} if method.fd else {})
        for method in METHODS.values()
    ]
    event = {
        "name": "event",
        "summary": "An event happened that the client has subscribed to.",
        "paramStructure": "by-name",
        "params": _params(models.Event),
    }
    done = refs[models.Done, "serialization"]
    slot_set = _method(
        slot_calls.SLOT_SET, "Set a slot that does not exist yet.", slot_calls.SlotSet, done
    ) | {"x-fd": "comes with the call: the file that the slot's memory is in"}
    slot_delete = _method(slot_calls.SLOT_DELETE, "Delete a slot.", slot_calls.SlotDelete, done)
    return OpenRpcDocument(
        {
            "openrpc": "1.3.2",
            "info": {"title": "vgpud", "version": __version__, "description": _ABOUT},
            "methods": methods,
            "x-notifications": [event],
            "x-callbacks": [slot_set, slot_delete],
            "components": {
                "schemas": schemas["$defs"],
                "errors": {code.name.lower(): _error(code) for code in ErrorCode},
            },
        }
    )


def _method(name: str, about: str, model: type[BaseModel], result: Json) -> dict[str, Json]:
    return {
        "name": name,
        "summary": about,
        "description": model.model_json_schema()["description"],
        "paramStructure": "either",
        "params": _params(model),
        "result": {"name": "result", "schema": result},
        "errors": [{"$ref": _ERRORS + code.name.lower()} for code in _OF_METHODS],
    }


def _params(model: type[BaseModel]) -> list[Json]:
    schema = model.model_json_schema(schema_generator=_Untitled)
    required = schema.get("required", [])
    return [
        {"name": name, "required": name in required, "schema": field}
        for name, field in schema.get("properties", {}).items()
    ]


def _error(code: ErrorCode) -> dict[str, Json]:
    value: dict[str, Json] = {"code": int(code), "message": _MEANINGS[code]}
    if code is ErrorCode.VGPUD:
        value["x-data-schema"] = {"$ref": _SCHEMAS + ErrorData.__name__}
    return value
