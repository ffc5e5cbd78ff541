"""Video timings for displays of any size, as VESA's CVT computes them with reduced blanking.

Specification: VESA Coordinated Video Timings 1.2, reduced blanking version 1: version 2 keeps the
whole vertical blanking in the front porch, which an EDID's detailed timing has too few bits for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Final

_H_BLANK: Final = 160
_H_FRONT: Final = 48
_H_SYNC: Final = 32
_V_FRONT: Final = 3
_V_BACK_MIN: Final = 6
_V_BLANK_MIN_US: Final = 460
_V_SYNC: Final = {(4, 3): 4, (16, 9): 5, (16, 10): 6, (5, 4): 7, (15, 9): 7}
_V_SYNC_OTHER: Final = 10
_CLOCK_STEP_KHZ: Final = 250
_FINE_STEP_KHZ: Final = 10
_FINE_BELOW_KHZ: Final = 25_000


@dataclass(frozen=True, slots=True)
class Timing:
    """A video timing: pixels across, lines down, the pixel clock in kHz."""

    clock_khz: int
    h_active: int
    h_blank: int
    h_front: int
    h_sync: int
    v_active: int
    v_blank: int
    v_front: int
    v_sync: int

    @property
    def h_khz(self) -> float:
        """Lines a millisecond."""
        return self.clock_khz / (self.h_active + self.h_blank)

    @property
    def v_hz(self) -> float:
        """Frames a second."""
        return self.h_khz * 1000 / (self.v_active + self.v_blank)


def reduced(width: int, height: int, refresh: float, max_clock_khz: int) -> Timing:
    """Compute a timing for `width` x `height` pixels at about `refresh` Hz, 1 to 255.

    CVT wants the width to be a multiple of 8; here it need not be. CVT steps the pixel clock by 250
    kHz; below 25 MHz that would shift the rate by more than 1 %, so small pictures get the steps of
    10 kHz that an EDID can express. A clock above `max_clock_khz` is cut to it: the rate falls.
    """
    v_sync = _V_SYNC.get(aspect(width, height), _V_SYNC_OTHER)
    line_us = (1e6 / refresh - _V_BLANK_MIN_US) / height
    v_blank = max(int(_V_BLANK_MIN_US / line_us) + 1, _V_FRONT + v_sync + _V_BACK_MIN)
    exact_khz = refresh * (width + _H_BLANK) * (height + v_blank) / 1000
    if exact_khz < _FINE_BELOW_KHZ:
        clock_khz = max(round(exact_khz / _FINE_STEP_KHZ), 1) * _FINE_STEP_KHZ
    else:
        clock_khz = int(exact_khz // _CLOCK_STEP_KHZ) * _CLOCK_STEP_KHZ
    return Timing(
        clock_khz=min(clock_khz, max_clock_khz),
        h_active=width,
        h_blank=_H_BLANK,
        h_front=_H_FRONT,
        h_sync=_H_SYNC,
        v_active=height,
        v_blank=v_blank,
        v_front=_V_FRONT,
        v_sync=v_sync,
    )


def aspect(width: int, height: int) -> tuple[int, int]:
    """Return the exact aspect ratio in the terms of VESA's tables, where 8:5 is 16:10 and 5:3 is
    15:9."""
    divisor = gcd(width, height)
    ratio = (width // divisor, height // divisor)
    return {(8, 5): (16, 10), (5, 3): (15, 9)}.get(ratio, ratio)
