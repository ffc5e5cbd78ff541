"""All attacks."""

from __future__ import annotations

from typing import Final

from tests.attacks.control import CONTROL_ATTACKS
from tests.attacks.front_end import FRONT_END_ATTACKS
from tests.attacks.guest import GUEST_ATTACKS

ATTACKS: Final = (*GUEST_ATTACKS, *FRONT_END_ATTACKS, *CONTROL_ATTACKS)
