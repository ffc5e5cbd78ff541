"""Drives every method of the control API with `socket` and `json` alone, as any language could.

    python3 -I plain_client.py CONTROL_SOCKET OWN_SOCKET PLAIN_DEVICE AGENT_DEVICE

Every answer is validated against the schema that rpc.discover gives for it, every descriptor is
looked into. Both devices have a front-end; the second one's memory slots are ours to set. What was
seen is printed as JSON; anything wrong is an AssertionError.
"""

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

TIMEOUT = 10.0
MAX_DATAGRAM = 1 << 20
NON_COHERENT_DMA = 8
EINVAL = 22
PAGE = 4096
BAR = 0x1_0000_0000

control, own, plain, agent = sys.argv[1:]

TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


class Client:
    """One bound socket: calls go out; what comes back is an answer, an event, or a call to us."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.bind(own)
        Path(own).chmod(0o666)
        self.document: Any = None
        self.driven: set[str] = set()
        self.events: list[Any] = []
        self.slots: dict[int, Any] = {}
        self.asked: list[Any] = []
        self.refuse_flag = True
        self.calls = 0

    def call(self, method: str, params: Any = None) -> tuple[Any, Any]:
        """The result of a method and the descriptor that came with it, or None."""
        message: Any = {"jsonrpc": "2.0", "method": method, "id": self._next()}
        if params is not None:
            message["params"] = params
        self.send(message)
        answer, fds = self.answer(message["id"])
        assert "error" not in answer, (method, params, answer)
        assert set(answer) == {"jsonrpc", "id", "result"}
        if self.document is not None:
            described = self.described(method)
            self.validate(answer["result"], described["result"]["schema"])
            assert len(fds) == ("x-fd" in described), (method, fds)
        self.driven.add(method)
        assert len(fds) <= 1
        return answer["result"], fds[0] if fds else None

    def error(self, method: str, params: Any = None) -> Any:
        """The error that a method ends with."""
        message: Any = {"jsonrpc": "2.0", "method": method, "id": self._next()}
        if params is not None:
            message["params"] = params
        self.send(message)
        answer, fds = self.answer(message["id"])
        assert not fds
        return answer["error"]

    def send(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.sock.sendto(data, control)

    def answer(self, number: int | None) -> tuple[Any, list[int]]:
        """Waits for the answer with this id; what else comes is dealt with."""
        while True:
            message, fds = self.receive()
            if isinstance(message, list) or ("method" not in message and message["id"] == number):
                return message, fds
            self.deal_with(message, fds)

    def receive(self) -> tuple[Any, list[int]]:
        data, fds, flags, address = socket.recv_fds(self.sock, MAX_DATAGRAM, 4)
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        assert address == control, address
        return json.loads(data), fds

    def deal_with(self, message: Any, fds: list[int]) -> None:
        assert message["jsonrpc"] == "2.0"
        match message["method"]:
            case "event":
                assert not fds
                assert "id" not in message
                self.validate_params(message, self.document["x-notifications"])
                self.events.append(message["params"])
            case "slot.set":
                params = message["params"]
                self.asked.append(params)
                self.validate_params(message, self.document["x-callbacks"])
                [fd] = fds
                assert os.fstat(fd).st_size >= params["fd_offset"] + params["memory_size"]
                os.close(fd)
                if params["flags"] & NON_COHERENT_DMA and self.refuse_flag:
                    error: Any = {"code": -32000, "message": "KVM: Invalid argument"}
                    error["data"] = {"kind": "host", "errno": EINVAL}
                    self.send({"jsonrpc": "2.0", "id": message["id"], "error": error})
                    return
                assert params["slot"] not in self.slots
                self.slots[params["slot"]] = params
                self.send({"jsonrpc": "2.0", "id": message["id"], "result": {}})
            case "slot.delete":
                assert not fds
                self.validate_params(message, self.document["x-callbacks"])
                del self.slots[message["params"]["slot"]]
                self.send({"jsonrpc": "2.0", "id": message["id"], "result": {}})
            case other:
                raise AssertionError(f"the daemon calls {other}")

    def wait_for(self, kind: str, device: str | None = None) -> Any:
        """The first event of this kind and device, also one that came before."""
        while True:
            for event in self.events:
                if event["kind"] == kind and device in (None, event["device"]):
                    return event
            self.deal_with(*self.receive())

    def described(self, method: str) -> Any:
        [found] = [each for each in self.document["methods"] if each["name"] == method]
        return found

    def validate_params(self, message: Any, described: Any) -> None:
        [found] = [each for each in described if each["name"] == message["method"]]
        schemas = {each["name"]: each["schema"] for each in found["params"]}
        assert {each["name"] for each in found["params"] if each["required"]} <= set(
            message["params"]
        )
        for name, value in message["params"].items():
            self.validate(value, schemas[name])

    def validate(self, value: Any, schema: Any) -> None:
        """As much of JSON Schema as the document has; anything else in it fails."""
        schema = dict(schema)
        for note in ("title", "description", "default", "examples", "format"):
            schema.pop(note, None)
        if "$ref" in schema:
            node = self.document
            for part in schema.pop("$ref").removeprefix("#/").split("/"):
                node = node[part]
            self.validate(value, node)
        if "anyOf" in schema:
            errors = []
            for option in schema.pop("anyOf"):
                try:
                    self.validate(value, option)
                    break
                except AssertionError as error:
                    errors.append(str(error))
            else:
                raise AssertionError(f"{value!r}: {errors}")
        if "type" in schema:
            kind = schema.pop("type")
            assert isinstance(value, TYPES[kind]), (value, kind)
            assert isinstance(value, bool) == (kind == "boolean"), (value, kind)
        if "enum" in schema:
            assert value in schema.pop("enum")
        if "const" in schema:
            assert value == schema.pop("const")
        if "minimum" in schema:
            assert value >= schema.pop("minimum")
        if "maximum" in schema:
            assert value <= schema.pop("maximum")
        if "exclusiveMaximum" in schema:
            assert value < schema.pop("exclusiveMaximum")
        if "exclusiveMinimum" in schema:
            assert value > schema.pop("exclusiveMinimum")
        if "pattern" in schema:
            assert re.search(schema.pop("pattern"), value)
        if "minLength" in schema:
            assert len(value) >= schema.pop("minLength")
        if "maxLength" in schema:
            assert len(value) <= schema.pop("maxLength")
        if "minItems" in schema:
            assert len(value) >= schema.pop("minItems")
        if "maxItems" in schema:
            assert len(value) <= schema.pop("maxItems")
        prefix = schema.pop("prefixItems", [])
        for item, each in zip(value[: len(prefix)] if prefix else [], prefix, strict=False):
            self.validate(item, each)
        if "items" in schema:
            rest = schema.pop("items")
            for item in value[len(prefix) :]:
                self.validate(item, rest)
        properties = schema.pop("properties", {})
        for name in schema.pop("required", []):
            assert name in value, (name, value)
        more = schema.pop("additionalProperties", True)
        if isinstance(value, dict):
            for name, item in value.items():
                if name in properties:
                    self.validate(item, properties[name])
                elif more is not True:
                    assert more is not False, f"{name} is not in the schema"
                    self.validate(item, more)
        assert not schema, f"not understood: {schema}"

    def _next(self) -> int:
        self.calls += 1
        return self.calls


client = Client()
call = client.call

# What there is
client.document, _ = call("rpc.discover")
assert client.document["openrpc"].startswith("1.")
methods = [method["name"] for method in client.document["methods"]]
assert len(set(methods)) == len(methods)

info, _ = call("daemon.info")
assert {device["name"] for device in info["devices"]} == {plain, agent}
os.kill(info["pid"], 0)

subscribed, _ = call("events.subscribe", {"kinds": ["*"]})

# Listings, page by page
first, _ = call("device.list", {"offset": 0, "limit": 1})
second, _ = call("device.list", [1, 1])
beyond, _ = call("device.list", {"offset": 2})
assert first["total"] == second["total"] == beyond["total"] == 2
assert [page["items"][0]["name"] for page in (first, second)] == [plain, agent]
assert beyond["items"] == []
device, _ = call("device.get", {"device": plain})
assert device["connected"]
assert device["front_end_pid"] == os.getppid()

# The text of metrics is whole lines, in pages if need be
text = ""
while True:
    page, _ = call("metrics.get", {"offset": len(text)})
    text += page["text"]
    if len(text) == page["total"]:
        break
assert text.endswith("# EOF\n")
assert f'device="{plain}"' in text

# A picture, in a file of its own
shot, fd = call("device.screenshot", {"device": plain})
with os.fdopen(fd, "rb") as file:
    picture = file.read()
assert len(picture) == shot["size"]
assert picture.startswith(b"\x89PNG\r\n\x1a\n")
assert int.from_bytes(picture[16:20], "big") == shot["width"]
assert int.from_bytes(picture[20:24], "big") == shot["height"]

resized, _ = call("device.resize", {"device": plain, "width": 1024, "height": 768})
assert resized == {"device": plain, "scanout": 0, "width": 1024, "height": 768}
assert client.wait_for("device.resized", plain)["data"]["width"] == 1024
device, _ = call("device.get", {"device": plain})
assert (device["outputs"][0]["width"], device["outputs"][0]["height"]) == (1024, 768)

# A blob of our own, in a window that the front-end maps
blob, _ = call("blob.create", {"device": plain, "size": 4 * PAGE})
assert blob["origin"] == "vmm"
mapped, _ = call("blob.map", {"device": plain, "blob": blob["blob"]})
assert mapped["mapped"]
assert mapped["offset"] == device["window"] - 4 * PAGE
export, fd = call("blob.export", {"device": plain, "blob": blob["blob"]})
assert export["size"] == 4 * PAGE
os.pwrite(fd, b"a word from the VMM", export["fd_offset"])
again, other = call("blob.export", {"device": plain, "blob": blob["blob"]})
assert os.pread(other, 19, again["fd_offset"]) == b"a word from the VMM"
os.close(fd)
os.close(other)
listed, _ = call("blob.list", {"device": plain})
assert mapped in listed["items"]
slots, _ = call("slot.list", {"device": plain})
assert [slot["owner"] for slot in slots["items"]] == ["frontend"]

# The same on a device whose slots are ours to set, and whose flag we refuse
attach = {"device": agent, "guest_phys_addr": BAR, "first_slot": 8, "slot_count": 16}
attached, _ = call("agent.attach", attach)
assert attached["flag_accepted"] is False
assert client.asked[0]["flags"] == NON_COHERENT_DMA
assert not client.slots
refused = client.wait_for("slot.refused", agent)
assert refused["data"]["errno"] == EINVAL
theirs, _ = call("blob.create", {"device": agent, "size": PAGE})
call("blob.map", {"device": agent, "blob": theirs["blob"], "offset": 0})
[ours] = client.slots.values()
assert ours["guest_phys_addr"] >= BAR
assert not ours["flags"]
slots, _ = call("slot.list", {"device": agent})
assert [slot["slot"] for slot in slots["items"]] == [ours["slot"]]
moved, _ = call("agent.attach", attach | {"guest_phys_addr": 2 * BAR})
assert moved["guest_phys_addr"] == 2 * BAR
[there] = client.slots.values()
assert there["guest_phys_addr"] - ours["guest_phys_addr"] == BAR
call("blob.unmap", {"device": agent, "blob": theirs["blob"]})
call("blob.destroy", {"device": agent, "blob": theirs["blob"]})
detached, _ = call("agent.detach", {"device": agent})
assert detached["slots"] == list(client.slots)

# Taken back, a blob is unknown
call("blob.unmap", {"device": plain, "blob": blob["blob"]})
call("blob.destroy", {"device": plain, "blob": blob["blob"]})
stale = client.error("blob.map", {"device": plain, "blob": blob["blob"]})
assert stale["code"] == -32000
assert stale["data"]["kind"] == "no-blob"

reloaded, _ = call("config.reload")
assert set(reloaded) == {"applied", "next_connection", "restart"}

# Batches and notifications
client.send(
    [
        {"jsonrpc": "2.0", "method": "daemon.info", "id": "one"},
        {"jsonrpc": "2.0", "method": "daemon.info"},
        {"jsonrpc": "2.0", "method": "no.such", "id": "two"},
        7,
    ]
)
answers, _ = client.answer(None)
assert [answer["id"] for answer in answers] == ["one", "two", None]
assert [answer.get("error", {}).get("code") for answer in answers] == [None, -32601, -32600]
client.send(b"{")
assert client.answer(None)[0]["error"]["code"] == -32700

ended, _ = call("events.unsubscribe")
assert ended == {"was_subscribed": True}
numbers = [event["sequence"] for event in client.events]
assert numbers == sorted(set(numbers))
assert all(number > subscribed["sequence"] for number in numbers)

assert client.driven == set(methods), client.driven ^ set(methods)
assert not any(name.startswith("vgpud") for name in sys.modules)
Path(own).unlink()
print(json.dumps({"methods": methods, "events": sorted({e["kind"] for e in client.events})}))
