"""Checks of the guest programs' output, which it parses, and of the guest driver's messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from tests.rig.qemu import Guest, Result

SCENES: Final = (
    *("mode", "flips", "dirty", "offset", "offset-dirty", "small"),
    *("cursor", "no-cursor", "off"),
)

BLOBS: Final = (
    *("parameters", "blob-alignment", "capset", "new-blob-zero", "write-combining"),
    *("copy-host-host", "copy-guest-host", "copy-host-guest", "copy-guest-guest"),
    *("host3d-guest", "unmapped-blob", "fill-host", "fill-guest"),
    *("unaligned-host-host", "unaligned-guest-host", "unaligned-host-guest"),
    *("overlap-host", "overlap-guest"),
    *("blit-host-host", "blit-guest-host", "blit-host-guest"),
    *("blit-overlap-host", "blit-overlap-guest", "crc32-host", "crc32-guest"),
    *("close-while-mapped", "reused-offsets", "export-with-uuid"),
)

BAD_PACKETS: Final = (
    *("bad-unknown-opcode", "bad-last-opcode", "bad-no-length", "bad-fill-without-length"),
    *("bad-fill-too-short", "bad-fill-too-long", "bad-copy-too-short", "bad-copy-cut"),
    *("bad-fill-cut-in-a-dword", "bad-half-a-header", "bad-length-leaves-the-stream"),
    *("bad-fill-past-the-end", "bad-fill-behind-the-end", "bad-fill-wraps", "bad-fill-endless"),
    *("bad-copy-from-past-the-end", "bad-copy-to-past-the-end", "bad-copy-from-wraps"),
    *("bad-copy-to-wraps", "bad-copy-endless", "bad-crc32-from-past-the-end"),
    *("bad-crc32-from-wraps", "bad-crc32-to-past-the-end", "bad-crc32-to-wraps"),
    *("bad-blit-from-past-the-end", "bad-blit-to-past-the-end", "bad-blit-last-row-by-a-byte"),
    *("bad-blit-from-wraps", "bad-blit-to-wraps", "bad-blit-huge-strides", "bad-blit-huge-rows"),
    *("bad-blit-target-stride-short", "bad-no-resource-0", "bad-no-such-resource"),
    *("bad-copy-from-no-resource", "bad-copy-to-no-resource", "bad-fill-foreign"),
    *("bad-copy-from-foreign", "bad-copy-to-foreign", "foreign-blob-untouched", "max-packets"),
)

FENCES: Final = (
    *("fence-after-work", "ring-fences-in-order", "ring-events", "answers-while-working"),
)

LIVE: Final = ("all-new-zero", "all-whole", "all-whole-after-dma", "all-whole-after-change")
ROUNDS: Final = ("rounds-zero",)
LIMIT: Final = ("limit-no-strange-bytes", "limit-freed-again")


def checks(result: Result) -> dict[str, str]:
    """The CHECK lines by name: "ok", or what failed; nothing of a program that did not end well."""
    found = {}
    for line in result.lines:
        if match := re.fullmatch(r"CHECK (\S+) (ok|FAIL .*)", line):
            found[match[1]] = match[2]
    if result.status != 0:
        found["status"] = f"{result.status}: {result.lines[-1:]}"
    return found


def assert_checks(result: Result, expected: tuple[str, ...]) -> None:
    """Every expected check was made and is ok, and the program ended well."""
    assert checks(result) == dict.fromkeys(expected, "ok"), result.text


def scenes(guest: Guest, command: str) -> Iterator[str]:
    """Run a program that stops to be looked at, and go through its stops by name."""
    guest.start(command)
    while True:
        line = guest.wait_line(r"^(READY|DIED|RIG rc=) ?(.*)$")
        if line[1] != "READY":
            assert line[0] == "RIG rc=0", line[0]
            return
        yield line[2]
        guest.start("")


def driver_errors(guest: Guest) -> tuple[str, ...]:
    """What the guest's virtio_gpu driver complained about since its boot."""
    result = guest.run("dmesg | grep -E 'virtio|drm' | grep -iE 'error|fail|warn|timed? ?out'")
    return result.lines
