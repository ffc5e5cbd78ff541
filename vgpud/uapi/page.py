"""The size of a page, on the one architecture that there is: x86-64."""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 4096
"""Bytes. What the kernel maps, and what addresses and sizes of KVM's memory slots are multiples
of."""
