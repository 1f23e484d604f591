# SPDX-License-Identifier: GPL-2.0-or-later
"""What a law yields: which law is broken, of which object, and what was seen."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What a law is broken of."""

    PAGE = "page"
    FOLIO = "folio"
    TABLE = "table"
    PTE = "PTE"
    PMD = "PMD"
    ADDRESS = "address"
    SOFT_DIRTY_MARK = "soft-dirty mark"
    YOUNG_BIT = "young bit"
    DIRTY_BIT = "dirty bit"
    DIRTIED = "address stored to"
    WRITE_PROTECTED = "write-protected address"
    CPU = "CPU"
    TASK = "task"
    LOCK = "lock"
    ANON_VMA = "anon_vma"
    VMA = "VMA"
    MM = "mm"
    COUNTER = "counter"
    MM_LIST = "khugepaged's list of mms"


class Thing(NamedTuple):
    """One object. name: what tells it from others of its kind."""

    kind: Kind
    name: int | str


class Broken(NamedTuple):
    """A law was broken. law: its number. text: what was seen."""

    law: int
    object: Thing
    text: str
