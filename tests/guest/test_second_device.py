"""A device that is no GPU, on the same vhost-user session: the entropy device of a stock guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig.build import Rig
from tests.rig.qemu import Guest
from tests.vhost.toy_rng import RngServer

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    "device", ["vhost-user-rng-pci", "vhost-user-test-device-pci,virtio-id=4,num_vqs=1"]
)
def test_a_stock_guest_takes_entropy_from_a_toy(
    rig: Rig, short_directory: Path, device: str
) -> None:
    path = short_directory / f"{device[:14]}.sock"
    arguments = (
        # The guest's own graphics, which its init waits for.
        *("-device", "virtio-gpu-pci"),
        *("-chardev", f"socket,id=c,path={path}"),
        *("-device", f"{device},chardev=c"),
    )
    with RngServer(path), Guest(rig, "inproc", device_arguments=arguments) as guest:
        guest.wait_boot()
        assert guest.run("cat /sys/class/misc/hw_random/rng_current").text == "virtio_rng.0"
        seen = guest.run(
            "dd if=/dev/hwrng bs=64 count=4 2>/dev/null | hexdump -v -e '1/1 \"%d \"'; echo"
        )
        numbers = [int(word) for word in seen.text.split()]
        # The driver asks for more than it hands on, and keeps the rest for the next reader.
        assert len(numbers) == 256
        assert 0 not in numbers
        assert numbers == sorted(numbers)
        # The guest's driver lets go of the device, and takes it again.
        driver = "/sys/bus/virtio/drivers/virtio_rng"
        name = guest.run(f"cd {driver}; echo virtio*").text
        assert guest.run(f"echo {name} > {driver}/unbind").status == 0
        assert guest.run(f"echo {name} > {driver}/bind").status == 0
        assert guest.run("dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c").text == "16"
