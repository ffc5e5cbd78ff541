"""The project's Markdown pages, as tests read them: blocks, commands, links and paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0]}"

    @property
    def commands(self) -> list[str]:
        """The simple commands of a shell block, without comments, continued lines joined."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [part for line in lines for part in simple_commands(line)]


@dataclass(frozen=True)
class Page:
    """A page by its path below the project's root."""

    name: str

    @cached_property
    def text(self) -> str:
        """The whole page."""
        return (ROOT / self.name).read_text()

    @cached_property
    def prose(self) -> str:
        """The page without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def blocks(self) -> list[Block]:
        """All fenced blocks."""
        found = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [Block(self.name, language, text) for language, text in found]

    @cached_property
    def anchors(self) -> set[str]:
        """What a link to a part of the page may name, as GitHub derives it from headings."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        return {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in headings}

    @cached_property
    def links(self) -> list[str]:
        """The targets of links and pictures, without those on other machines."""
        found = re.findall(r"\]\(([^)]+)\)", self.prose) + re.findall(r'src="([^"]+)"', self.prose)
        return [target for target in found if "://" not in target]

    @cached_property
    def spans(self) -> list[str]:
        """The inline code, in which a line break is a space."""
        return re.findall(r"`([^`]+)`", " ".join(self.prose.split()))


def simple_commands(line: str) -> list[str]:
    """Split a line of shell at its operators, without its comment; quoted operators stay."""
    line = re.sub(r"(^|\s)#\s.*$", "", line)
    parts = re.findall(r"(?:'[^']*'|\"[^\"]*\"|[^'\"&;|>])+", line)
    return [part.strip() for part in parts if part.strip()]


PAGES = [
    Page(str(path.relative_to(ROOT)))
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
]


def blocks(language: str) -> list[Block]:
    """All blocks of a language, on any page."""
    return [block for page in PAGES for block in page.blocks if block.language == language]
