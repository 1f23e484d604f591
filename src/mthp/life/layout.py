# SPDX-License-Identifier: GPL-2.0-or-later
"""What a process's memory looks like from outside, in the tokens of recorded programs."""

from __future__ import annotations

from mthp.image.runs import FolioToken, PageKind
from mthp.life.program import BASE
from mthp.mm.mm_types import Mm
from mthp.worlds.render import Renderer

_NONE = FolioToken(PageKind.NONE)


def layout(mm: Mm, *ranges: range) -> list[list[FolioToken]]:
    """The tokens of ranges of pages, folio identities shared among them."""
    renderer = Renderer(mm.kernel)
    return [_tokens(mm, renderer, pages) for pages in ranges]


def _tokens(mm: Mm, renderer: Renderer, pages: range) -> list[FolioToken]:
    """The tokens of one range; a page of no mapping shows as one of which nothing is there."""
    shift = mm.geometry.page_shift
    start, end = BASE + (pages.start << shift), BASE + (pages.stop << shift)
    tokens: list[FolioToken] = []
    for vma in mm.for_each_vma(start):
        first, last = max(vma.vm_start, start), min(vma.vm_end, end)
        if first >= end:
            break
        tokens += [_NONE] * (((first - start) >> shift) - len(tokens))
        tokens += renderer.pages(vma, first, last)[0]
    return tokens + [_NONE] * (len(pages) - len(tokens))
