# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads a page that was written: its elements, and that they are closed."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

VOID = {"meta", "br"}
HOSTILE = (
    "</title></pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e&amp;"
)


class Page(HTMLParser):
    """A page as its elements: (tag, attributes, text inside of it, tags around it)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs))
        element: tuple[str, dict[str, str], list[str]] = (
            tag,
            {name: value or "" for name, value in attrs},
            [],
        )
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def texts(self, tag: str, kind: str = "") -> list[str]:
        """What is inside of the elements of a tag, and a class."""
        return [
            "".join(text)
            for found, attributes, text in self.found
            if found == tag and kind in attributes.get("class", "")
        ]


def stands_alone(text: str) -> Page:
    """A page that loads nothing, and whose policy lets its own script alone run; AssertionError if not."""
    page = Page(text)
    page_alone = re.sub('"runs":"[^"]*"', "", text)
    assert not re.search(
        r"\w://|//\w|@import|url\(|\s(src|href|on\w+)=|<(link|img|iframe|object)", page_alone
    )
    values, script = page.texts("script")
    assert values.startswith("{")
    policy = next(
        attributes["content"]
        for tag, attributes, _ in page.found
        if tag == "meta" and "http-equiv" in attributes
    )
    digest = b64encode(sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return page
