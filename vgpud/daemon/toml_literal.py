"""Values in TOML's notation, for messages about a file and for files."""

from __future__ import annotations

import json


def literal(value: object) -> str:
    """Return a value in TOML's notation, cut if it is too long for a line."""
    match value:
        case dict():
            text = ", ".join(f"{key} = {literal(of)}" for key, of in value.items())
            text = f"{{ {text} }}" if text else "{}"
        case list() | tuple():
            text = "[" + ", ".join(map(literal, value)) + "]"
        case str() | bool() | int() | float():
            text = json.dumps(value, ensure_ascii=False)
        case _:
            text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
