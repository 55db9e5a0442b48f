"""Markdown as the tests of our documents read it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, and the text between it and the next one."""

    language: str
    code: str
    after: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found = list(_BLOCK.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return [
        Block(match[1], match[2], text[match.end() : end])
        for match, end in zip(found, ends, strict=True)
    ]


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level, up to the next one."""
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
