"""libvirt starts `vhost-user-vgpu` by its JSON file, and ends it again.

The domain is that of docs/libvirt.md. The picture is looked at through QEMU's
screendump, which is what `virsh screenshot` shows.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest import checks
from tests.guest.pictures import picture, settled_difference
from tests.rig.build import Rig
from tests.rig.libvirt import Domain
from tests.support.until import until

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DESCRIPTION = ROOT / "config" / "40-vgpud.json"
PROGRAM = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "vgpud.cli.backend_program")

PICTURES = {
    "mode": picture(1, 0, 0, 1280, 800),
    "offset": picture(6, 37, 21, 1280, 800),
    "small": picture(8, 0, 0, 800, 600),
}
"""What is to be on the screen in those scenes of `kms` that draw all of it."""


def documented_domain() -> str:
    """The one domain that docs/libvirt.md has in full."""
    text = (ROOT / "docs" / "libvirt.md").read_text()
    [xml] = re.findall(r"^```xml\n(<domain .*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(xml)


@pytest.fixture
def domain(rig: Rig) -> Iterator[Domain]:
    """The documented domain, up and with its driver bound."""
    with Domain(rig, documented_domain(), DESCRIPTION, PROGRAM) as started:
        started.wait_boot()
        yield started


def gone(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        # An orphan that its new parent is slow to reap has ended, too.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_the_guest_draws_and_destroying_the_domain_ends_the_back_end(domain: Domain) -> None:
    seen = {}
    for scene in checks.scenes(domain, "kms"):
        if scene in PICTURES:
            seen[scene] = settled_difference(PICTURES[scene], domain.screendump)[1]
    assert seen == dict.fromkeys(PICTURES, "")
    assert checks.driver_errors(domain) == ()
    assert "vhost-user-vga" in domain.log
    capabilities, service = domain.back_end_calls
    assert capabilities == ["--print-capabilities"]
    assert [word.split("=")[0] for word in service] == ["--fd"]
    back_end, qemu = domain.back_end_pid, domain.pid
    assert "vgpud.cli.backend_program" in Path(f"/proc/{back_end}/cmdline").read_text()
    domain.start("kms loop")
    domain.wait_line(r"^ROUND 0")
    assert domain.destroy() == 0
    until(lambda: gone(qemu))
    until(lambda: gone(back_end))


def test_the_back_end_ends_with_a_qemu_that_was_killed(domain: Domain) -> None:
    """libvirt's SIGTERM comes late or never then; the connection's end must do."""
    back_end = domain.back_end_pid
    domain.start("kms loop")
    domain.wait_line(r"^ROUND 0")
    os.kill(domain.pid, signal.SIGKILL)
    until(lambda: gone(back_end))


def test_the_domain_is_one_by_libvirts_schema(rig: Rig, short_directory: Path) -> None:
    path = short_directory / "domain.xml"
    path.write_text(documented_domain())
    command = rig.chroot.command("virt-xml-validate", str(path), "domain")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
