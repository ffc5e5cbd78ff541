"""Addresses in somebody else's address space, which are not to be mixed up with each other."""

from __future__ import annotations

from typing import NewType

Gpa = NewType("Gpa", int)
"""A guest-physical address."""

Uva = NewType("Uva", int)
"""An address in the front-end's address space, which only the memory table gives a meaning."""
