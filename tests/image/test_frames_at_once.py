# SPDX-License-Identifier: GPL-2.0-or-later
"""NumPy's look at frames comes to what that of a host without NumPy does, on files made here."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.image.capture.frames import KPF_HEAD, KPF_TAIL, Frames
from mthp.image.capture.pagemap import EXCLUSIVE, PRESENT
from mthp.image.frames_at_once import NEAR, FramesAtOnce
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


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(runs, st.data())
def test_both_find_the_same(
    tmp_path: Path, of: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    words = frames_file(of)
    words.extend([0] * (TINY.ptrs_per_pte - len(words) % TINY.ptrs_per_pte))
    counts = array("Q", range(5, 5 + len(words)))
    files: list[int] = []
    for name, row in (("flags", words), ("counts", counts)):
        (tmp_path / name).write_bytes(row.tobytes())
        files.append(os.open(tmp_path / name, os.O_RDONLY))
    some = st.just(0) | st.integers(TINY.ptrs_per_pte, len(words) - 1)
    pfns = array("Q", data.draw(st.lists(some, min_size=1, max_size=64)))
    low = bytes(
        data.draw(st.sampled_from([PRESENT, PRESENT | EXCLUSIVE])) if pfn else 0 for pfn in pfns
    )
    try:
        found = [
            kind(files[0], files[1], TINY).look_up(pfns, low) for kind in (Frames, FramesAtOnce)
        ]
        assert found[0] == found[1]
    finally:
        for file in files:
            os.close(file)


@pytest.mark.parametrize("gap", [1, NEAR, NEAR + 1, 10 * NEAR])
def test_frames_near_and_far(tmp_path: Path, gap: int) -> None:
    (tmp_path / "flags").write_bytes(array("Q", range(4096)).tobytes())
    file = os.open(tmp_path / "flags", os.O_RDONLY)
    pfns = array("Q", [0, 100, 100 + gap, 100 + 2 * gap, 100, 0])
    flags, counts, orders = FramesAtOnce(file, None, TINY).look_up(pfns, bytes(6))
    os.close(file)
    assert array("Q", flags).tolist() == list(pfns)
    assert (set(counts), set(orders)) == ({0}, {0})
