"""What QEMU has KVM write into its page tables, by its option honor-guest-pat, as one JSON object;
runs in the built host, on an Intel processor.

    python3 -m tests.kernel.qemu_trials

The guest is a firmware of a few bytes: it writes to RAM, and has QEMU exit.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Final

from tests.kernel.ept import memory_types, traced

FIRMWARE: Final = 64 << 10
EXIT_PORT: Final = 0xF4
CODE: Final = bytes.fromhex(
    "31c0 8ed8"  # xor ax, ax; mov ds, ax
    "a30010 a30070"  # mov [0x1000], ax; mov [0x7000], ax
    "e6f4 f4"  # out 0xf4, al; hlt
)
RESET: Final = FIRMWARE - 16
"""The offset of the reset vector, which is 16 bytes before the end of the firmware."""
TOUCHED: Final = (0x1000, 0x8000)
OPTIONS: Final = {
    "on": ",honor-guest-pat=on",
    "off": ",honor-guest-pat=off",
    "default": "",
}


def firmware() -> bytes:
    """The code at the reset vector jumps to the start of the image."""
    jump = b"\xe9" + (0x10000 - RESET - 3 & 0xFFFF).to_bytes(2, "little")
    image = bytearray(FIRMWARE)
    image[: len(CODE)] = CODE
    image[RESET : RESET + len(jump)] = jump
    return bytes(image)


def main() -> None:
    Path("firmware").write_bytes(firmware())
    report: dict[str, object] = {}
    qemu = "qemu-system-x86_64"
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    report["version"] = version.stdout.split()[3].partition("(")[0]
    for name, option in OPTIONS.items():
        arguments = (
            *("-nodefaults", "-no-user-config", "-display", "none", "-M", "pc", "-m", "16"),
            *("-bios", "firmware", "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"),
        )
        with traced() as entries:
            done = subprocess.run(
                [qemu, "-accel", f"kvm{option}", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        report[name] = {
            "status": done.returncode,
            "said": done.stderr,
            "ram": memory_types(entries, *TOUCHED),
            "entries": len(entries),
        }
    Path("out/qemu_trials.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
