# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a program small after which kernel and engine differ: fewer operations, and usual settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

Document = Mapping[str, Any]


class MayDiffer(Protocol):
    """What came of a program."""

    @property
    def difference(self) -> Mapping[str, Any] | None:
        """The first operation after which something differs, and how."""


V = TypeVar("V", bound=MayDiffer)


def shrink_program(document: Document, run: Callable[[Document], V], budget: int) -> V:
    """The verdict on the smallest program found that still differs, beginning with this one; on this one if
    it does not differ. run is called at most `budget` times, and once before.
    """
    verdict = run(document)
    if verdict.difference is None:
        return verdict
    document = _until(document, verdict)
    found = True
    while found and budget > 0:
        found = False
        for simpler in simpler_programs(document):
            if budget == 0:
                break
            budget -= 1
            tried = run(simpler)
            if tried.difference is not None:
                document, verdict, found = _until(simpler, tried), tried, True
                break
    return verdict


def _until(document: Document, verdict: MayDiffer) -> Document:
    """The program without what came after the difference."""
    assert verdict.difference is not None
    return {**document, "steps": list(document["steps"][: verdict.difference["step"] + 1])}


def simpler_programs(document: Document) -> Iterator[Document]:
    """Programs with fewer operations, those that lose most first, and then with usual settings."""
    steps = document["steps"]
    size = len(steps) // 2
    while size:
        for first in range(0, len(steps), size):
            left = [*steps[:first], *steps[first + size :]]
            if left:
                yield {**document, "steps": left}
        size //= 2
    for i in range(len(document["pre"])):
        yield {**document, "pre": [*document["pre"][:i], *document["pre"][i + 1 :]]}
    if len(document["orders"]) > 1:
        for order in document["orders"]:
            yield {**document, "orders": [each for each in document["orders"] if each != order]}
