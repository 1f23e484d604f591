# SPDX-License-Identifier: GPL-2.0-or-later
"""Who can be in one world with whom, and what is expected of a world."""

from __future__ import annotations

import pytest

from mthp.races.cast.all import LAWFUL, RIVALS, get_along
from mthp.races.cast.rival import StagePart
from mthp.races.findings import FINDINGS, findings_of, tolerated
from mthp.races.stage import Size
from mthp.races.world import Hook, RaceWorld


@pytest.mark.parametrize(
    ("a", "b", "both"),
    [
        ("swap-in", "uffd-wp", False),  # both change the hole
        ("ksm-zero", "zap-locked", False),  # both change the first page
        ("mremap", "uffd-move", False),  # both use the place elsewhere
        ("large", "store", False),
        ("exit", "store", False),  # nobody stores when the last thread has left
        ("exit", "exec-shift", False),
        ("exit", "migrate", True),
        ("ksm", "zap", True),
        ("uffd-move", "swap-in", True),
    ],
)
def test_get_along(a: str, b: str, both: bool) -> None:
    assert get_along(a, b) is both
    assert get_along(b, a) is both


def test_whoever_prepares_says_what() -> None:
    untouched = {
        *("fork", "fork-fails", "fork-store", "guest"),  # they add an mm or an MMU of their own
        *("any-fault", "huge-fault", "huge-zero-fault", "large-fault", "table-fault"),
        "reuse",
    }
    """Pages stay what they are: faults may give more, or a right is asked for again."""
    plain = RIVALS["store"].prepare
    for name in LAWFUL:
        rival = RIVALS[name]
        assert (rival.prepare is plain) is (not rival.takes) or name in untouched


def test_the_whole_window_is_nobody_elses() -> None:
    whole = [name for name in LAWFUL if StagePart.WINDOW in RIVALS[name].takes]
    assert {"large", "split-large", "swap-in-large"} <= set(whole)
    assert not any(get_along(a, b) for a in whole for b in LAWFUL if a != b)


def test_what_is_expected_of_a_world() -> None:
    read_only = RaceWorld(Size.WINDOW, "7.3", ("mprotect",))
    assert findings_of(read_only) == (FINDINGS["S1"], FINDINGS["D1"])
    assert tolerated(read_only) == {8, 16}
    assert findings_of(RaceWorld(Size.PMD, "7.3", ("mprotect",))) == ()
    early = RaceWorld(Size.WINDOW, "v16", (), Hook.WALKS)
    assert findings_of(early) == (FINDINGS["A18a"],)
    assert tolerated(early) == {9}
