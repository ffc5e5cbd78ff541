"""The size of a page on x86-64, the only architecture that vgpud runs on."""

from __future__ import annotations

from typing import Final

PAGE_SIZE: Final = 4096
"""Bytes. The kernel maps whole pages; addresses and sizes of KVM's memory slots are multiples."""
