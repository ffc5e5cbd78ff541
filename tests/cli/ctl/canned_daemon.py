"""A control socket with canned answers, also with answers that no daemon would give."""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import BaseModel

from tests.cli.ctl import answers
from vgpud.control.rpc import RpcError

PATIENCE: Final = 10.0


@dataclass(frozen=True)
class File:
    """A result with a descriptor, which the caller of the test keeps."""

    value: Any
    fd: int


@dataclass
class CannedDaemon:
    """Answers calls from `answers` by their method: with a value, a model, a File, or an RpcError;
    a function is called with the parameters for one of these."""

    path: Path
    answers: dict[str, Any]
    calls: list[tuple[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(os.fspath(self.path))
        self._sock.settimeout(0.05)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()
        self.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Be gone, and leave the socket's file."""
        self._ended.set()
        self._thread.join(PATIENCE)
        self._sock.close()

    def announce(self, *events: BaseModel) -> None:
        """Send events to the last caller."""
        for event in events:
            self.announce_raw(event.model_dump(mode="json"))

    def announce_raw(self, params: Any) -> None:
        """Send the last caller what may be no event."""
        message = {"jsonrpc": "2.0", "method": "event", "params": params}
        with suppress(OSError):  # Client or test may have ended.
            self._sock.sendto(json.dumps(message).encode(), self._last)

    def _main(self) -> None:
        while not self._ended.is_set():
            try:
                message, self._last = self._sock.recvfrom(1 << 20)
            except TimeoutError:
                continue
            call = json.loads(message)
            self.calls.append((call["method"], call.get("params", {})))
            if "id" in call:
                self._answer(call)

    def _answer(self, call: dict[str, Any]) -> None:
        answer = self.answers.get(call["method"])
        if callable(answer):
            answer = answer(call.get("params", {}))
        fds: list[int] = []
        if isinstance(answer, File):
            answer, fds = answer.value, [answer.fd]
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": call["id"]}
        if isinstance(answer, RpcError):
            error = {"code": answer.code, "message": answer.message, "data": answer.data}
            reply["error"] = error
        else:
            reply["result"] = (
                answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer
            )
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([json.dumps(reply).encode()], ancillary, 0, self._last)


def paged(items: list[BaseModel], limit: int) -> Callable[[dict[str, Any]], Any]:
    """A listing that never gives more than `limit` items at once."""

    def page(params: dict[str, Any]) -> Any:
        offset = params.get("offset", 0)
        shown = items[offset : offset + limit]
        values = [item.model_dump(mode="json") for item in shown]
        return {"items": values, "offset": offset, "total": len(items)}

    return page


def usual() -> dict[str, Any]:
    """The answers of a daemon with one device."""
    return {
        "daemon.info": answers.info(),
        "device.list": paged([answers.device()], 1000),
        "device.get": answers.device(),
        "blob.list": paged([answers.blob()], 1000),
        "slot.list": paged([answers.slot()], 1000),
        "events.subscribe": {"kinds": ["*"], "device": None, "sequence": 0},
    }
