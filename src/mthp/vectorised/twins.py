# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of fast twins, which a Kernel is made with to run at speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mthp.khugepaged.copy import __collapse_huge_page_copy, folio_pte_batch
from mthp.khugepaged.daemon import collapse_scan_tables, vma_to_scan, wake_up
from mthp.khugepaged.isolate import isolate_ptes, release_pte_pages
from mthp.khugepaged.madvise import pass_by_tables
from mthp.khugepaged.scan import scan_ptes
from mthp.machine.task import P, R, Twins
from mthp.mm.folio import folio_batch_move_lru
from mthp.vectorised.collapse import (
    copy_at_once,
    folio_pte_batch_at_once,
    isolate_ptes_at_once,
    release_pte_pages_at_once,
    scan_ptes_at_once,
)
from mthp.vectorised.lru import folio_batch_move_lru_at_once
from mthp.vectorised.passed_by import (
    collapse_scan_tables_at_once,
    pass_by_tables_at_once,
    vma_to_scan_at_once,
    wake_up_at_once,
)

_Pair = tuple[Callable[..., Any], Callable[..., Any]]


def _twins(clear: Callable[P, R], fast: Callable[P, R]) -> _Pair:
    """Pair two functions of one signature."""
    return clear, fast


TWINS: Final[Twins] = dict(
    (
        _twins(wake_up, wake_up_at_once),
        _twins(pass_by_tables, pass_by_tables_at_once),
        _twins(vma_to_scan, vma_to_scan_at_once),
        _twins(collapse_scan_tables, collapse_scan_tables_at_once),
        _twins(scan_ptes, scan_ptes_at_once),
        _twins(isolate_ptes, isolate_ptes_at_once),
        _twins(release_pte_pages, release_pte_pages_at_once),
        _twins(__collapse_huge_page_copy, copy_at_once),
        _twins(folio_pte_batch, folio_pte_batch_at_once),
        _twins(folio_batch_move_lru, folio_batch_move_lru_at_once),
    )
)
