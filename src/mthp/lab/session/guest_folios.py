# SPDX-License-Identifier: GPL-2.0-or-later
"""What only the memory of the guest's kernel tells of a folio: which mms a large one knows, and which slots
one in the swap cache stands for.

Kernel: include/linux/mm_types.h, struct folio.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence, Set
from typing import Any

from mthp.image.capture.btf import Btf, BtfError
from mthp.image.capture.kernel import BTF
from mthp.image.scenario_values import KnownMm
from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.session.observe import (
    KPF_MMAP,
    TRACING,
    FolioNames,
    flag_letters,
    values_traced,
)
from mthp.lab.vm.channel import Channel, CommandFailed

_SHARED = 1 << 63
_ID, _COUNT = (1 << 31) - 1, (1 << 32) - 1
_WORDS_AT_ONCE = 60
_SWP_TYPE_SHIFT = 58
"""Kernel: include/linux/swapops.h."""
_PROBE = "base"


class GuestFolios:
    """Where one kernel keeps it: Linux 6.15 and later."""

    def __init__(self, channel: Channel) -> None:
        """Look it up. LabError (5): it is another kernel."""
        self._channel = channel
        try:
            btf = Btf(channel.ask(f"r {BTF}"))
            self._page = btf.size("page")
            self._ids = btf.offset("folio", "_mm_ids")
            self._counts = btf.offset("folio", "_mm_id_mapcount")
            self._of_mm = btf.offset("mm_struct", "mm_id")
            self._slot = btf.offset("folio", "swap")
            self._vmemmap = self._base()
        except (BtfError, CommandFailed) as error:
            raise LabError(HOST_LACKS, f"the guest's kernel has no mm ids: {error}") from None

    def _base(self) -> int:
        """Where struct pages are. Kernel: arch/x86/mm/kaslr.c, vmemmap_base."""
        probe = f"p:mthp/{_PROBE} show_map_vma at=@vmemmap_base:x64"
        switch = f"w {TRACING}/events/mthp/{_PROBE}/enable"
        self._channel.ask_all([f"a {TRACING}/kprobe_events {probe}", f"{switch} 1"])
        read = [f"w {TRACING}/trace", "r /proc/self/maps", f"r {TRACING}/trace"]
        trace = self._channel.ask_all(read)[-1].decode()
        self._channel.ask_all([f"{switch} 0", f"a {TRACING}/kprobe_events -:mthp/{_PROBE}"])
        return values_traced(trace, _PROBE, "at")[0]

    def known(
        self, folios: Mapping[int, int], mms: Sequence[int]
    ) -> dict[int, tuple[KnownMm, ...]]:
        """Of each large folio that counts as shared, by its name, the processes that it knows.

        folios: first frame -> name. mms: addresses of the processes' mm_structs.
        """
        own = self._words([mm + self._of_mm for mm in mms])
        numbers = {word & _COUNT: number for number, word in enumerate(own)}
        starts = [self._vmemmap + frame * self._page for frame in folios]
        words = self._words([at + of for at in starts for of in (self._ids, self._counts)])
        found = {}
        for name, ids, counts in zip(folios.values(), words[::2], words[1::2], strict=True):
            if ids & _SHARED:
                halves = ((ids >> by & _ID, counts >> by & _COUNT) for by in (0, 32))
                found[name] = tuple(KnownMm(numbers.get(each), n + 1) for each, n in halves if each)
        return found

    def in_swap_cache(self, slots: Set[tuple[int, int]], names: FolioNames) -> list[dict[str, Any]]:
        """The folios in the swap cache that stand for one of these slots (device and offset), as a scenario
        has them. What nobody maps has no name."""
        data = self._channel.ask("cached")
        found = list(struct.iter_unpack("<2Q", data))
        places = self._slots([folio >> 8 for folio, _ in found])
        cached = []
        for (folio, flags), (device, offset) in zip(found, places, strict=True):
            frame, order = folio >> 8, folio & 0xFF
            own = {(device, page) for page in range(offset, offset + (1 << order))}
            name = names.large.get(frame)
            if own & slots and (name is not None or not flags & KPF_MMAP):
                letters = flag_letters(flags & names.trusted)
                of = {"type": device, "offset": offset, "order": order, "flags": letters}
                cached.append(of | ({} if name is None else {"folio": name}))
        return cached

    def _slots(self, folios: Sequence[int]) -> list[tuple[int, int]]:
        """The swap device and the offset in it, in pages, of the first page of each folio. folios: first
        frames, of what is in the swap cache."""
        words = self._words([self._vmemmap + frame * self._page + self._slot for frame in folios])
        return [(word >> _SWP_TYPE_SHIFT, word & (1 << _SWP_TYPE_SHIFT) - 1) for word in words]

    def _words(self, addresses: Sequence[int]) -> list[int]:
        """The 64-bit words at these addresses of the kernel's."""
        parts = range(0, len(addresses), _WORDS_AT_ONCE)
        lines = (addresses[first : first + _WORDS_AT_ONCE] for first in parts)
        answers = self._channel.ask_all([" ".join(map(str, ("words", *line))) for line in lines])
        return [word for answer in answers for (word,) in struct.iter_unpack("<Q", answer)]
