# SPDX-License-Identifier: GPL-2.0-or-later
"""All rivals by name, and which of them can be in one world."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mthp.races.cast.accesses import ACCESSES
from mthp.races.cast.collapsers import SECOND_COLLAPSERS
from mthp.races.cast.faults import FAULTS
from mthp.races.cast.folios import FOLIOS
from mthp.races.cast.mappings import MAPPINGS
from mthp.races.cast.rival import Rival
from mthp.races.cast.swap import SWAP
from mthp.races.cast.uffd import UFFD

SUBJECTS: Mapping[str, tuple[Rival, ...]] = MappingProxyType(
    {
        "loads, stores and walks": ACCESSES,
        "faults of every order": FAULTS,
        "mappings": MAPPINGS,
        "swap and reclaim": SWAP,
        "folios": FOLIOS,
        "userfaultfd": UFFD,
        "a second collapser": SECOND_COLLAPSERS,
    }
)
RIVALS: Mapping[str, Rival] = MappingProxyType(
    {rival.name: rival for rivals in SUBJECTS.values() for rival in rivals}
)
UNLAWFUL = frozenset({"fault-unlocked"})
"""Rivals that keep no rules; only mutants have them."""
LAWFUL = tuple(name for name in RIVALS if name not in UNLAWFUL)


def get_along(a: str, b: str) -> bool:
    """Whether two rivals can be in one world."""
    return RIVALS[a].gets_along(RIVALS[b])
