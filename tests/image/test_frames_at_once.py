# SPDX-License-Identifier: GPL-2.0-or-later
"""Both looks at frames, with NumPy and without, find what files made here say of each frame."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.image import frames_as_needed, frames_at_once
from mthp.image.capture.frames import (
    BROKEN,
    KPF_HEAD,
    KPF_TAIL,
    NEXT,
    OTHER,
    PREVIOUS,
    Frames,
    runs_of,
)  # fmt: skip
from mthp.image.capture.pagemap import EXCLUSIVE, HUGE, PRESENT, SWAPPED
from mthp.image.frames_as_needed import FramesAsNeeded
from mthp.image.frames_at_once import NEAR, FramesAtOnce, KnownFlags
from mthp.words.units import Geometry

TINY = Geometry(12, 4)
BITS = (0, 1 << 5, 1 << 12, 1 << 63)
runs = st.lists(
    st.tuples(
        st.sampled_from(["small", "folio", "head", "tail"]), st.integers(0, 4), st.integers(0, 15)
    ),
    min_size=1,
    max_size=40,
)

HERE = (PRESENT, PRESENT | EXCLUSIVE, PRESENT | EXCLUSIVE | HUGE)
mapped = st.lists(
    st.tuples(st.integers(1, 400), st.integers(1, 20), st.sampled_from([-1, 0, 1, 1, 7])),
    min_size=1,
    max_size=12,
)
"""Where a row of frames begins, how many there are, and how far each is from that before."""


def frames_file(of: list[tuple[str, int, int]]) -> array[int]:
    """kpageflags: small pages, folios (tails with and without their head's flags), stray heads, tails."""
    words = array("Q", [0] * TINY.ptrs_per_pte)
    for kind, order, bits in of:
        flags = sum(bit for k, bit in enumerate(BITS) if bits >> k & 1)
        if kind == "folio":
            words.extend([0] * (-len(words) % (1 << order)))
            tails = flags if bits & 1 else 0
            words.extend([flags | KPF_HEAD] + [tails | KPF_TAIL] * ((1 << order) - 1))
        else:
            words.extend([flags | {"small": 0, "head": KPF_HEAD, "tail": KPF_TAIL}[kind]] * order)
    return words


def said_of(
    words: array[int], counts: array[int], tells_huge: bool, pfn: int, low: int
) -> tuple[int, int, int]:
    """Flags, mapcount and order of one PTE, by the definition."""
    if not low & PRESENT:
        return 0, 0, 0
    flags, nr = words[pfn] if pfn < len(words) else 0, TINY.ptrs_per_pte
    count = counts[pfn] if pfn < len(counts) else 0
    compound = flags & (KPF_HEAD | KPF_TAIL)
    if low & EXCLUSIVE and not (low & HUGE if tells_huge else compound):
        count = 1
    if not compound:
        return flags, count, 0
    first, stop = pfn, pfn + 1
    while words[first] & KPF_TAIL and first % nr and words[first - 1] & (KPF_HEAD | KPF_TAIL):
        first -= 1
    while stop % nr and words[stop] & KPF_TAIL:
        stop += 1
    size = stop - first
    if not words[first] & KPF_HEAD or size == 1 or size & (size - 1) or first % size:
        return flags, count, BROKEN
    lent = words[first] & ~KPF_HEAD
    if pfn > first and lent & ~words[first + 1]:
        flags |= lent
    return flags, count, size.bit_length() - 1


class Ahead(FramesAtOnce):
    """The same, where the frames were looked up before, with those of another batch."""

    def look_up(
        self, pfns: array[int], low: bytes, known: KnownFlags | None = None
    ) -> tuple[bytes, bytes, bytes]:
        words = array(
            "Q", [pfn | (bits & PRESENT) << 63 for pfn, bits in zip(pfns, low, strict=True)]
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames_at_once, "_FEW", 1)
            known = self.ahead([bytearray(words), bytearray(array("Q", [3 | 1 << 63, 7]))])
        assert known is not None
        return super().look_up(pfns, low, known)


class AsNeeded(FramesAsNeeded):
    """The same, by who loads NumPy first."""

    def look_up(
        self, pfns: array[int], low: bytes, known: Any = None
    ) -> tuple[bytes, bytes, bytes]:
        if self._twin is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(frames_as_needed, "MANY_ROWS", 1)
                self.ahead([bytearray(array("Q", range(3 | 1 << 63, 1 << 63 | 999, 7)))])
            assert self._twin is not None
            self._twin = Ahead(self.flags, self.counts, self.geometry, self.tells_huge)
        return super().look_up(pfns, low, known)


both = pytest.mark.parametrize("kind", [Frames, FramesAtOnce, Ahead, AsNeeded])


@both
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(runs, mapped, st.booleans(), st.data())
def test_each_pte_has_what_the_files_say(
    kind: type[Frames],
    tmp_path: Path,
    of: list[tuple[str, int, int]],
    rows: list[tuple[int, int, int]],
    tells_huge: bool,
    data: st.DataObject,
) -> None:
    words = frames_file(of)
    words.extend([0] * (TINY.ptrs_per_pte - len(words) % TINY.ptrs_per_pte))
    counts = array("Q", range(5, 5 + len(words)))
    files: list[int] = []
    for name, row in (("flags", words), ("counts", counts)):
        (tmp_path / name).write_bytes(row.tobytes())
        files.append(os.open(tmp_path / name, os.O_RDONLY))
    pfns = array("Q")
    for start, nr, step in rows:
        first = start % (len(words) + 2)
        pfns.extend(max(1, first + k * step) for k in range(nr))
    some = data.draw(st.sampled_from([HERE, HERE[1:], (0, *HERE), (0, 0, 0, SWAPPED, PRESENT)]))
    drawn = data.draw(st.binary(min_size=len(pfns), max_size=len(pfns)))
    low = bytes(some[value % len(some)] for value in drawn)
    try:
        flags, mapcounts, orders = kind(files[0], files[1], TINY, tells_huge).look_up(pfns, low)
    finally:
        for file in files:
            os.close(file)
    found = zip(array("Q", flags), array("I", mapcounts), orders, strict=True)
    assert list(found) == [
        said_of(words, counts, tells_huge, *pte) for pte in zip(pfns, low, strict=True)
    ]


@both
@pytest.mark.parametrize("gap", [1, NEAR, NEAR + 1, 10 * NEAR])
def test_frames_near_and_far(kind: type[Frames], tmp_path: Path, gap: int) -> None:
    (tmp_path / "flags").write_bytes(array("Q", range(4096)).tobytes())
    file = os.open(tmp_path / "flags", os.O_RDONLY)
    pfns = array("Q", [0, 100, 100 + gap, 100 + 2 * gap, 100, 0])
    low = bytes(PRESENT * (pfn > 0) for pfn in pfns)
    flags, counts, orders = kind(file, None, TINY).look_up(pfns, low)
    os.close(file)
    assert array("Q", flags).tolist() == list(pfns)
    assert (set(counts), set(orders)) == ({0}, {0})


far = st.lists(
    st.tuples(
        st.sampled_from([0, 250, 65_530, 1 << 24, (1 << 32) - 3, 1 << 40]), st.integers(0, 12)
    ),
    min_size=1,
    max_size=60,
)


@given(far, st.data())
def test_what_a_frame_is_to_the_one_before(of: list[tuple[int, int]], data: st.DataObject) -> None:
    pfns = array("Q", [near + step for near, step in of])
    there = bytes(
        data.draw(st.lists(st.sampled_from([0, 255]), min_size=len(of), max_size=len(of)))
    )
    steps = {1: NEXT, -1: PREVIOUS}
    expected = [
        steps.get(pfn - before, OTHER) if here else 0
        for pfn, before, here in zip(pfns, [0, *pfns], there, strict=False)
    ]
    assert list(runs_of(pfns, there)) == expected


def test_without_address_space_each_batch_is_looked_up_by_itself(tmp_path: Path) -> None:
    """The frames are those of more memory than a process has addresses for."""
    (tmp_path / "flags").write_bytes(b"")
    file = os.open(tmp_path / "flags", os.O_RDONLY)
    many = range(1 << 50, (1 << 50) + 8192)
    assert (
        FramesAtOnce(file, None, TINY).ahead([bytearray(array("Q", (k | 1 << 63 for k in many)))])
        is None
    )
    os.close(file)
