"""Types of addresses in other address spaces than this process's."""

from __future__ import annotations

from typing import NewType

Gpa = NewType("Gpa", int)
"""A guest-physical address."""

Uva = NewType("Uva", int)
"""A front-end virtual address, which the memory table translates."""
