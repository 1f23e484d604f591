# SPDX-License-Identifier: GPL-2.0-or-later
"""What is at an address is said, also where it is no anonymous page."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mthp.image.capture.host import THP
from mthp.image.snapshot import Snapshot
from mthp.predict.image import Image, capture
from mthp.predict.records import PageAt, PageIs
from mthp.predict.why import find_mapping, page_at
from mthp.words.resident import MappingKind
from tests.predict.test_changes import scenario

from ..image.children import PAGE, child

LIVE = """
memory = os.memfd_create("heap")
os.ftruncate(memory, TABLE)
m = reserve(TABLE, flags=1, fd=memory)
write(m, 0)
a = reserve(TABLE)
advise(a, TABLE, MADV_NOHUGEPAGE)
write(a, 0)
read(a, 1)
fd = os.open(sys.executable, os.O_RDONLY)
f = reserve(4 * PAGE, flags=2, fd=fd)
write(f, 0)
read(f, 1)
ready(m=m, a=a, f=f)
"""


@pytest.fixture(scope="module")
def live() -> Iterator[tuple[Image, dict[str, int]]]:
    if not os.path.isdir(THP):
        pytest.skip("no THP in this kernel")
    with child(LIVE) as kid:
        yield capture(kid.pid), kid.facts


def there(image: Image, address: int) -> PageAt:
    world, request = image.prepared(image.settings, image.profile, "")
    vma = find_mapping(world, address)
    assert vma is not None
    return page_at(world, vma, address, request.snapshot)


def test_pages_of_a_live_process(live: tuple[Image, dict[str, int]]) -> None:
    image, at = live
    assert there(image, at["a"]) == PageAt(PageIs.FOLIO, 0)
    assert there(image, at["a"] + PAGE + 7) == PageAt(PageIs.ZERO)
    assert there(image, at["a"] + 2 * PAGE) == PageAt(PageIs.NONE)
    assert there(image, at["f"]) == PageAt(PageIs.FOLIO, 0)
    assert there(image, at["f"] + PAGE) == PageAt(PageIs.FILE)
    assert there(image, at["m"]) == PageAt(PageIs.SHMEM)
    assert isinstance(image.data, Snapshot)
    special = [v for v in image.data.processes[0].vmas if v.kind is MappingKind.SPECIAL]
    assert special and all(there(image, v.start) == PageAt(PageIs.SPECIAL) for v in special)


@pytest.mark.parametrize(
    ("token", "what"),
    [
        ("F0.LaB.x.m1", PageIs.FOLIO),
        ("Z", PageIs.ZERO),
        ("W0", PageIs.SWAP),
        ("W24", PageIs.HWPOISON),
        ("W26", PageIs.MIGRATION),
        ("W28", PageIs.PRIVATE),
        ("W31.w", PageIs.MARKER),
        ("G", PageIs.GUARD),
        ("-", PageIs.NONE),
    ],
)
def test_every_kind_of_entry(token: str, what: PageIs) -> None:
    entry = {"-": "-", "F": "PWAD", "Z": "P"}.get(token[0], "s")
    image = Image(scenario(f"512:{token}", f"512:{entry}", orders={}), "", "")
    assert there(image, image.data.vmas[0].start + 3 * PAGE).what is what  # type: ignore[union-attr]
