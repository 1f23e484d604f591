# SPDX-License-Identifier: GPL-2.0-or-later
"""What an image says of pages themselves: which hold nothing but zeros, and which folios wait to be split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mthp.mm.mem_map import MemMap
from mthp.worlds.arrays import TableArrays


def note_contents(
    mem: MemMap, tables: TableArrays, here: NDArray[np.bool_], frames: NDArray[np.int64]
) -> None:
    """Note both of the pages that tables map. here: which entries map one; frames: the frames of those.

    A folio is queued at the end of its list, as the kernel's order is not known.
    """
    if tables.zero_filled is not None:
        mem.content.view()[frames[tables.zero_filled[here]]] = 0
    if tables.queued is not None:
        heads = mem.head.view()[frames[tables.queued[here]]]
        for folio in dict.fromkeys(heads.tolist()):
            if mem.folio_order(folio) > 1:
                mem.deferred_split.add(folio, mem.sublist_of(folio))
