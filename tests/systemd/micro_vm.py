"""A micro-VM against a running daemon: its front-end at a device's socket, its slots set by an
agent over the control socket, in this process. Prints what came of it, as JSON.

    micro_vm.py CONTROL_SOCKET DEVICE_SOCKET DEVICE
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import zlib
from pathlib import Path

from vgpud.client import Client
from vgpud.microvm.vmm import Attach, run_front_end
from vgpud.publish import Json


def main(control: str, path: str, device: str) -> None:
    """Run the guest; meanwhile another client listens to what the daemon tells of it."""
    events: list[Json] = []
    with Client(control, timeout=60) as listener:
        coming = listener.events(device=device)
        thread = threading.Thread(target=lambda: events.extend(coming))
        thread.start()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        outcome = run_front_end(connection, agent=Attach(Path(control), device))
        with Client(control, timeout=60) as other:
            found = other.call("device.get", {"device": device})
        listener.stop()
        thread.join()
    said = {
        "device": found,
        "events": events,
        "map_info": [mapped.map_info for mapped in outcome.mapped],
        "slot_flags": [slot.flags for slot in outcome.slots],
        "holds": [made.dma.holds for made in outcome.rounds],
        "seen": [zlib.crc32(outcome.seen.tobytes()), outcome.rounds[-1].dma.picture_crc],
        "copied": [zlib.crc32(outcome.copied.tobytes()), outcome.rounds[-1].dma.copy_crc],
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
