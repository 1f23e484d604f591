# SPDX-License-Identifier: GPL-2.0-or-later
"""What exploration found in the profiles as they are: breaches that are the kernel's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mthp.laws.broken import Broken, Kind
from mthp.races.stage import Layout, Size
from mthp.races.world import Hook, RaceWorld


@dataclass(frozen=True)
class Finding:
    """what: is found. shows: in which worlds. law: the one that it breaks. kinds: of these objects."""

    id: str
    what: str
    shows: Callable[[RaceWorld], bool]
    law: int
    kinds: frozenset[Kind]

    def is_it(self, broken: Broken) -> bool:
        """Whether a breach is this finding."""
        return broken.law == self.law and broken.object.kind in self.kinds


_MIGRATES = frozenset({"migrate", "move-pages", "poisoned"})
"""Rivals that migrate the page which the soft-dirty rival stores to."""


def _is_read_only_window(world: RaceWorld) -> bool:
    is_read_only = world.layout is Layout.READ_ONLY or "mprotect" in world.rivals
    return world.size is Size.WINDOW and is_read_only


# fmt: off
_FINDINGS = (
    Finding("A18a",
        "the PTEs are set before the PMD is back, and the architecture's hook walks the table",
        lambda world: world.profile == "v16" and world.hook is Hook.WALKS, 9, frozenset({Kind.PMD})),
    Finding("S1", "below PMD order, a mapping that may not be written loses its soft-dirty marks",
        _is_read_only_window, 8,
        frozenset({Kind.SOFT_DIRTY_MARK, Kind.DIRTIED})),
    Finding("D1",
        "below PMD order, a mapping that may not be written loses its dirty bits (and no data: reclaim "
        "writes every swap-backed folio that has no slot yet)",
        _is_read_only_window, 16,
        frozenset({Kind.DIRTY_BIT})),
    Finding("M1",
        "clear_refs leaves a migration entry writable: the page comes back writable and not soft-dirty",
        lambda world: "soft-dirty" in world.rivals and not _MIGRATES.isdisjoint(world.rivals), 8,
        frozenset({Kind.DIRTIED})),
    Finding("K1",
        "KSM replaces a page that userfaultfd write-protects by an entry without the protection",
        lambda world: {"uffd-wp", "ksm"} <= {*world.rivals}, 8, frozenset({Kind.WRITE_PROTECTED})),
)
# fmt: on
FINDINGS: Mapping[str, Finding] = MappingProxyType({each.id: each for each in _FINDINGS})


def findings_of(world: RaceWorld) -> tuple[Finding, ...]:
    """What is expected of a world."""
    return tuple(each for each in _FINDINGS if each.shows(world))


def tolerated(world: RaceWorld) -> frozenset[int]:
    """Laws that a world breaks as it is, while all others must hold in it."""
    return frozenset(each.law for each in findings_of(world))
