"""The QEMU of this host: its version, and whether it has the option honor-guest-pat.

Found by running the program and asking over QMP, without a machine: a version number would not show
what a distribution has added. Source: QEMU's docs/interop/qmp-spec.rst and qapi/qom.json.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

PROGRAMS: Final = ("qemu-system-x86_64", "qemu-kvm", "/usr/libexec/qemu-kvm", "kvm")
"""Names and paths of QEMU; the second and the third are Red Hat's, the last is Proxmox's."""

PATIENCE: Final = 5.0
"""Seconds to wait. It takes 0.03, and seconds on a busy machine."""

_DEFAULTS: Final = {(11, 1): "off"}
"""The default of honor-guest-pat by version, as seen in the EPT entries of a VM of QEMU 11.1.3. The
option's description is not used, since that version says "auto" there."""

_ARGUMENTS: Final = (
    *("-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-qmp", "stdio"),
)
_QUESTIONS: Final = (
    {"execute": "qmp_capabilities"},
    {"execute": "qom-list-properties", "arguments": {"typename": "kvm-accel"}, "id": "kvm"},
    {"execute": "quit"},
)


@dataclass(frozen=True, slots=True)
class QemuFacts:
    """A QEMU that was found.

    `honor_guest_pat` is whether -accel kvm has that option, `default` its default value if that is
    known of this version; `problem` says why neither is known.
    """

    path: str
    version: str | None = None
    honor_guest_pat: bool | None = None
    default: str | None = None
    problem: str = ""


def probe(programs: Iterable[str] = PROGRAMS, *, patience: float = PATIENCE) -> QemuFacts | None:
    """Return facts about the first of `programs` that exists; None if none does. Raises nothing."""
    for program in programs:
        path = shutil.which(program)
        if path is not None:
            return _ask(path, patience)
    return None


def _ask(path: str, patience: float) -> QemuFacts:
    try:
        done = subprocess.run(  # noqa: S603 - a program of this host, and fixed arguments
            [path, *_ARGUMENTS],
            input="".join(json.dumps(question) + "\n" for question in _QUESTIONS),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return QemuFacts(path, problem=f"no answer in {patience:g} seconds")
    except OSError as error:
        return QemuFacts(path, problem=error.strerror or str(error))
    version, default, properties = None, None, None
    for line in done.stdout.splitlines():
        answer = _parsed(line)
        if "QMP" in answer:
            number = answer["QMP"]["version"]["qemu"]
            version = f"{number['major']}.{number['minor']}.{number['micro']}"
            default = _DEFAULTS.get((number["major"], number["minor"]))
        elif answer.get("id") == "kvm":
            properties = answer.get("return", [])
    if version is None or properties is None:
        words = done.stderr.strip().splitlines()
        return QemuFacts(path, version, problem=words[-1] if words else "it did not answer QMP")
    if any(entry.get("name") == "honor-guest-pat" for entry in properties):
        return QemuFacts(path, version, True, default)
    return QemuFacts(path, version, False)


def _parsed(line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
