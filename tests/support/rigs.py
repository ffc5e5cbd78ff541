"""What tests boot: the guest rig and the patched kernel's host, built if a chosen test needs them.

Building takes minutes, root, and a Debian mirror. So it is done only where `tests/run` or a CI asks
for it, only for the tests that were chosen, and before the first of them runs, as no test's timeout
would hold for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from tests.kernel import build as kernel_build
from tests.rig import build as rig_build
from tests.rig.chroot import RigUnavailableError


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a rig is opened, and how it is built; both raise RigUnavailableError with the reason."""

    open: Callable[[], object]
    build: Callable[[], object]


RECIPES: Final[dict[str, Recipe]] = {
    "rig": Recipe(rig_build.open_rig, rig_build.build),
    "kernel_host": Recipe(kernel_build.open_host, kernel_build.build),
}
"""By the name of the fixture that hands it to tests."""


def in_ci() -> bool:
    """Return whether a continuous integration runs the tests: there a skip is a failure."""
    return os.environ.get("CI") == "true"


def may_build() -> bool:
    """Return whether what is missing is built: in a CI, and where `tests/run` runs as root."""
    return in_ci() or os.environ.get("VGPUD_BUILD_RIGS") == "true"


def build_missing(
    fixtures: Collection[str], recipes: Mapping[str, Recipe] = RECIPES
) -> dict[str, str]:
    """Build the rigs that are among `fixtures` and can't be opened as they are.

    Returns the reason for each that could not be built, by its fixture's name.
    """
    reasons = {}
    for name, recipe in recipes.items():
        if name not in fixtures:
            continue
        try:
            recipe.open()
        except RigUnavailableError:
            try:
                recipe.build()
            except (RigUnavailableError, subprocess.CalledProcessError) as error:
                reasons[name] = str(error)
    return reasons
