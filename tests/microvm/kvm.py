"""What the tests of the micro-VM share: /dev/kvm or a reason, and a back-end to talk to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

KVM = Path("/dev/kvm")

needs_kvm = pytest.mark.skipif(
    not os.access(KVM, os.R_OK | os.W_OK),
    reason="/dev/kvm is not there, or not for this user",
)
