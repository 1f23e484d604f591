# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures that no kernel can have shown: what a snapshot is refused for.

Each check raises FileError with the place in the file and one sentence. What can come of a process
that ran while it was read is let through, where the capture does not say that nothing did.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mthp.image.capture.columns import ADDRESS_LIMIT, DEEP_WIDTH, ZERO_FILLED
from mthp.image.capture.pagemap import EXCLUSIVE, FILE, GUARD, HUGE, PRESENT, SWAPPED, ZERO
from mthp.image.capture.pages import DIRTY, PROT_NONE, WRITABLE, YOUNG
from mthp.image.fields import Fields, short
from mthp.image.page_types import page_types
from mthp.words.files import FileError
from mthp.words.resident import MappingKind
from mthp.words.units import Geometry, human_bytes

MOST_NODES = 1 << 10
MOST_CPUS = 1 << 13
"""Kernel: CONFIG_NODES_SHIFT and CONFIG_NR_CPUS at most."""
MOST_PID = 1 << 22
"""Kernel: include/linux/threads.h, PID_MAX_LIMIT."""
MOST_MAPPINGS = 1 << 31
"""Of all pages of a folio. Kernel: an atomic_t counts them."""
PHYSICAL_BITS = 52
"""Bits of a physical address. Kernel: MAX_PHYSMEM_BITS of x86, arm64."""
MOST_OF_A_LINE = 200
"""Characters of a line of /proc/PID/status."""
_KPF_ANON = np.uint64(1 << 12)
_ROWS = 1024
"""Tables looked at together; what is needed for that lives no longer."""

Arrays = Mapping[str, NDArray[Any]]


# The document


def check_meta(meta: Fields) -> None:
    """Check what is said of the host and of the capture, but for the processes."""
    meta.take("kernel", str)
    texts = "tool", "time", "hostname", "version", "machine", "buddyinfo", "pagetypeinfo", "swaps"
    for key in texts:
        if not meta.is_null(key):
            meta.take(key, str)
    if not meta.is_null("cpus"):
        meta.number("cpus", 1, MOST_CPUS)
    for key in ("frozen", "redacted"):
        meta.take(key, bool)
    meta.take("la57", bool, False)
    for key in meta.table("sysfs", str):
        if not re.fullmatch(r"[-\w./]{1,200}", key, re.ASCII):
            raise FileError(f"sysfs: {short(key)} is no file's name there")
    for key in ("meminfo", "others", "left_out"):
        _check_amounts(meta, key)
    for key in ("processes", "anonymous"):
        if key not in (meta.document.get("others") or {key: 0}):
            raise FileError(f"others.{key}: missing")
    thread = Fields(
        {} if meta.is_null("khugepaged") else meta.take("khugepaged", dict), "khugepaged."
    )
    if not thread.is_null("started"):
        thread.number("started", 0, 2**63 - 1)
    check_buddyinfo(meta.document.get("buddyinfo") or "")
    for zone in meta.objects("zones", what="a list of zones", default=()):
        zone.take("zone", str)
        zone.number("node", 0, MOST_NODES - 1)
        for key in ("min", "kept", "pcp_high"):
            zone.number(key, 0, 2**48)
    check_pagetypeinfo(meta.document.get("pagetypeinfo"))
    nodes = Fields({} if meta.is_null("nodes") else meta.take("nodes", dict), "nodes.")
    if not nodes.is_null("distance"):
        for name, row in nodes.table("distance", list).items():
            if not all(type(each) is int and 0 <= each < 256 for each in row):
                raise FileError(f"nodes.distance.{name[:40]}: {short(row)} are no distances")
    if not nodes.is_null("zone_reclaim_mode"):
        nodes.number("zone_reclaim_mode", 0, 2**31 - 1)
    meta.take("tearing", dict)
    if not all(isinstance(each, str) for each in meta.take("unseen", list)):
        raise FileError("unseen: not a list of sentences")


def _check_amounts(fields: Fields, key: str) -> None:
    """Check an object of whole numbers, which may lack."""
    if fields.has(key):
        amounts = Fields(fields.take(key, dict), f"{fields.where}{key}.")
        for name in amounts.rest():
            amounts.number(name, 0, 2**63 - 1)


_ZONE = re.compile(r"Node\s+(\d{1,4}), zone\s+\S{1,40}(?:\s+\d{1,15}){1,64}\s*")


def check_buddyinfo(text: str) -> None:
    """Check that each line is a zone of a node that there can be."""
    for line in text.splitlines():
        zone = _ZONE.fullmatch(line)
        if line.strip() and (zone is None or int(zone[1]) >= MOST_NODES):
            raise FileError(f"buddyinfo: {short(line)} is no zone of a node below {MOST_NODES}")


def check_pagetypeinfo(text: str | None) -> None:
    """Check the same of free blocks by type."""
    try:
        types = page_types(text)
    except ValueError as error:
        raise FileError(f"pagetypeinfo: {short(str(error))} is no zone of a node") from None
    if types is not None and any(node >= MOST_NODES for node, _ in types.free):
        raise FileError(f"pagetypeinfo: a node that is not below {MOST_NODES}")


def check_privilege(privilege: Mapping[str, bool], members: Iterable[str]) -> None:
    """Check that the members are those that the capture says it could read."""
    members = set(members)
    needed = dict.fromkeys(("kpageflags", "folio_order"), "kpageflags")
    needed.update(dict.fromkeys(DEEP_WIDTH, "deep"))
    for name, needs in {"pfn": "pfn", **needed}.items():
        if privilege[needs] != (name in members):
            has = "has" if name in members else "lacks"
            raise FileError(
                f"privilege.{needs} is {privilege[needs]}, and the file {has} member {name}"
            )
    if "kpagecount" in members and not privilege["kpageflags"]:
        raise FileError("privilege.kpageflags is False, and the file has member kpagecount")
    if ZERO_FILLED in members and not privilege["deep"]:
        raise FileError(f"privilege.deep is False, and the file has member {ZERO_FILLED}")
    if privilege["kpageflags"] and not privilege["pfn"]:
        raise FileError("privilege: kpageflags were read, and no pfn that leads to them")
    if privilege["deep"] and not privilege["kpageflags"]:
        raise FileError("privilege: the capture is deep, and kpageflags were not read")


def check_khugepaged(list_of: Fields) -> None:
    """Check what a deep capture says of khugepaged's list."""
    mms = list_of.number("mms", 0, MOST_PID)
    if not list_of.is_null("at"):
        list_of.number("at", 0, mms - 1)
    list_of.number("address", 0, 2**64 - 1)


def check_process(process: Fields) -> None:
    """Check what is said of a process, but for its VMAs."""
    process.number("pid", 1, MOST_PID)
    for key in ("comm", "exe", "cgroup"):
        if not process.is_null(key):
            process.take(key, str)
    if not process.is_null("cmdline"):
        words = process.take("cmdline", list)
        if not all(isinstance(each, str) for each in words):
            raise FileError(f"{process.where}cmdline: not a list of texts")
    for key in ("thp_disable", "forked"):
        if not process.is_null(key):
            process.flag(key)
    if not process.is_null("started"):
        process.number("started", 0, 2**63 - 1)
    for key, text in process.table("status", str).items():
        if len(text) > MOST_OF_A_LINE:
            raise FileError(f"{process.where}status.{key[:40]}: {short(text)}")
    _check_amounts(process, "rollup")
    take_ranges(process, "pins", [])
    for waiting in process.take("piped", list, []):
        if type(waiting) is not int or not 0 < waiting < 2**31:
            raise FileError(f"{process.where}piped: {short(waiting)} is not what a pipe holds")
    process.take("tearing", dict)
    if not process.is_null("memcg"):
        memcg = Fields(process.take("memcg", dict), f"{process.where}memcg.")
        if not memcg.is_null("path"):
            memcg.take("path", str)
        for key in memcg.rest():
            if not memcg.is_null(key):
                memcg.number(key, 0, 2**63 - 1)


def take_ranges(fields: Fields, key: str, *default: list[Any]) -> tuple[tuple[int, int], ...]:
    """Take [[start, end], ...], ascending."""
    before, ranges = 0, []
    for pair in fields.take(key, list, *default):
        numbers = pair if isinstance(pair, list) and all(type(each) is int for each in pair) else []
        if len(numbers) != 2 or not before <= numbers[0] < numbers[1] < 2**64:
            raise FileError(
                f"{fields.where}{key}: {short(pair)} is no range, or not after the last"
            )
        before = numbers[1]
        ranges.append((numbers[0], numbers[1]))
    return tuple(ranges)


NUMBERS = (
    "start", "end", "offset", "inode", "rss", "anonymous", "referenced", "swap", "anon_huge",
    "lazyfree", "locked", "thp_eligible", "hugetlb",
)  # fmt: skip
"""The numbers of a VMA; start and end are always there."""
_PLACES = frozenset({"start", "end", "offset", "inode"})
"""Those of them that are no size of what a process has."""
_KINDS = frozenset(kind.value for kind in MappingKind)
_NEEDED = {"start", "end", "perms", "path", "flags", "skipped"}
_TEXT = frozenset({str})
_VMA_FIELDS: dict[str, tuple[object, frozenset[type], str]] = {
    **dict.fromkeys(NUMBERS, (0, frozenset({int}), "a whole number from 0 up")),
    **dict.fromkeys(("perms", "path", "flags", "dev"), ("", _TEXT, "a text")),
    "skipped": (None, _TEXT | {type(None)}, "a text"),
    "kind": (MappingKind.FILE.value, _TEXT, "a kind"),
    "captured": (True, frozenset({bool}), "true or false"),
    "numa": ([], frozenset({list}), "a list of texts"),
}
"""What a VMA has where it has no such field, of which types the field is, and what that is."""


def check_vma_fields(vmas: list[Any], where: str, deep: bool) -> dict[str, list[Any]]:
    """Check the types and ranges of the VMAs of a process, and return each field of all of them.

    They are looked at field by field, as there may be many, all of them alike. where: what they are in the
    document. deep: of a deep capture, which knows anon_vmas.
    """
    for index, vma in enumerate(vmas):
        if not isinstance(vma, dict):
            raise FileError(f"{where}[{index}]: {short(vma)} is not an object")
        if not vma.keys() >= _NEEDED:
            raise FileError(f"{where}[{index}]: no {min(_NEEDED - vma.keys())}")
    there = _fields_of_all(vmas)
    columns: dict[str, list[Any]] = {}

    def check(key: str, what: str, fine: Callable[[Any], bool]) -> None:
        for index, value in enumerate(columns[key]):
            if not fine(value):
                raise FileError(f"{where}[{index}].{key}: {short(value)} is not {what}")

    anon_vma = None, frozenset({bool if deep else type(None)}), "what such a capture says"
    for key, (default, types, what) in {**_VMA_FIELDS, "anon_vma": anon_vma}.items():
        columns[key] = there.get(key) or [vma.get(key, default) for vma in vmas]
        kinds = [*map(type, columns[key])]
        if not types.issuperset(kinds):
            k = next(k for k, kind in enumerate(kinds) if kind not in types)
            raise FileError(f"{where}[{k}].{key}: {short(columns[key][k])} is not {what}")
        end = 2**64 if key in _PLACES else ADDRESS_LIMIT + 1
        if key in NUMBERS and vmas and not 0 <= min(columns[key]) <= max(columns[key]) < end:
            check(key, f"{what}, below {end:#x}", range(end).__contains__)
    if any(columns["numa"]):
        check("numa", "a list of texts", lambda words: all(isinstance(each, str) for each in words))
    check("kind", "a kind", _KINDS.__contains__)
    rights = {each for each in {*columns["perms"]} if re.fullmatch("[-r][-w][-x][ps]", each)}
    check("perms", "what permissions look like", rights.__contains__)
    return columns


def _fields_of_all(vmas: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The fields of all VMAs at once, if they have those of the first; none if one lacks any."""
    keys = [key for key in _VMA_FIELDS if vmas and key in vmas[0]]
    try:
        columns = zip(*map(itemgetter(*keys), vmas), strict=True) if keys else ()
    except KeyError:
        return {}
    return dict(zip(keys, map(list, columns), strict=True))


def address_limit(meta: Mapping[str, Any]) -> int:
    """The first address that no process of such a machine has."""
    is_short = meta.get("machine") == "x86_64" and not meta.get("la57") and not meta.get("redacted")
    return 1 << 47 if is_short else ADDRESS_LIMIT


def check_vma_ranges(
    where: str, vmas: Mapping[str, list[Any]], geometry: Geometry, limit: int
) -> None:
    """Check that the VMAs of a process stand in a row, where a process has addresses. vmas: their fields."""
    starts, ends = vmas["start"], vmas["end"]
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        if start < end:
            raise FileError(f"{where}: VMAs overlap or are unsorted at {start:#x}")
    for start, end, path in zip(starts, ends, vmas["path"], strict=True):
        if start >= end or (start | end) % geometry.page_size:
            raise FileError(f"{where}: impossible VMA {start:#x}-{end:#x}")
        if end > limit and path != "[vsyscall]":
            raise FileError(f"{where}: no process has the addresses {start:#x}-{end:#x}")


# The tables


def check_addresses(where: str, address: NDArray[np.uint64], geometry: Geometry) -> None:
    """Check the addresses of one process's tables."""
    if np.any(address % np.uint64(geometry.pmd_size)):
        raise FileError(f"{where}: a table address is not a multiple of {geometry.pmd_size}")
    if len(address) > 1 and np.any(address[1:] <= address[:-1]):
        k = int(np.argmax(address[1:] <= address[:-1])) + 1
        raise FileError(f"{where}: tables are not ascending at {int(address[k]):#x}")


class Entries:
    """The page-table entries of one process, to be checked some tables at a time.

    table_torn among the arrays: tables of which the capture says that they changed while they were
    read. What stands in them is as bounded as elsewhere, and need not agree.
    """

    def __init__(self, where: str, arrays: Arrays, geometry: Geometry, *, redacted: bool) -> None:
        self.where = where
        self.arrays = arrays
        self.geometry = geometry
        self.address = arrays["table_address"]
        torn = arrays.get("table_torn", np.zeros(len(self.address), np.uint8))
        self.is_torn: NDArray[np.bool_] = np.asarray(torn != 0)
        moved = 1 << 30 + geometry.pmd_order if redacted else 0  # columns.redact() moves no further
        self.frames = (1 << PHYSICAL_BITS - geometry.page_shift) + moved

    def check(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> None:
        """Check all of them. starts, ends: of the VMAs whose entries are in the file."""
        for first in range(0, len(self.address), _ROWS):
            some = {name: self.arrays[name][first : first + _ROWS] for name in self.arrays}
            self._check_bits(first, some["pte"])
            if "pfn" in some:
                self._check_frames(first, some["pte"], some["pfn"])
            if "folio_order" in some:
                self._check_folios(first, some)
            if "pte_bits" in some:
                self._check_deep(first, some)
        self._check_places(starts, ends)

    def _check_places(self, starts: NDArray[np.uint64], ends: NDArray[np.uint64]) -> None:
        """Check that whatever is there lies in one of the VMAs."""
        populated = self.arrays["pte"].reshape(-1) != 0
        inside = np.zeros(len(populated) + 1, np.int8)
        np.add.at(inside, self._indexes(starts), 1)
        np.add.at(inside, self._indexes(ends), -1)
        np.cumsum(inside, out=inside)
        self._refuse(0, populated & (inside[:-1] == 0), "is in no VMA whose entries are captured")

    def _indexes(self, addresses: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Where addresses stand among all entries, or those after them do."""
        geometry = self.geometry
        base = addresses & ~np.uint64(geometry.pmd_size - 1)
        row = np.asarray(np.searchsorted(self.address, base))
        known = np.append(self.address, np.uint64(1))[row] == base
        column = (addresses - base >> np.uint64(geometry.page_shift)).astype(np.intp)
        return (row << geometry.pmd_order) + np.where(known, column, 0)

    def _check_bits(self, first: int, pte: NDArray[np.uint16]) -> None:
        there = pte & np.uint16(PRESENT | SWAPPED)
        self._refuse(first, there == PRESENT | SWAPPED, "is both present and swapped")
        self._refuse(first, pte > GUARD * 2 - 1, "has bits that mean nothing")
        self._refuse(
            first, (pte != 0) & (there == 0), "has bits and is neither present nor swapped"
        )
        for bit, what in ((ZERO, "of the zero page"), (HUGE, "under a huge PMD")):
            self._refuse(
                first, (pte & bit != 0) & (there != PRESENT), f"is {what}, and not present"
            )
        guard = (pte & GUARD != 0) & (there != SWAPPED)
        self._refuse(first, guard, "is a guard, and present")
        owned = (pte & ZERO != 0) & (pte & np.uint16(FILE | EXCLUSIVE) != 0)
        self._refuse(first, owned, "is of the zero page, and of a file or of this process alone")
        huge = pte & HUGE != 0
        beside = (pte != 0) & ~huge & huge.any(axis=1)[:, None]
        self._refuse(first, beside, "is not under the huge PMD that its table's others are under")

    def _check_frames(self, first: int, pte: NDArray[np.uint16], pfn: NDArray[np.uint64]) -> None:
        present = pte & PRESENT != 0
        self._refuse(first, present & (pfn == 0), "is present, and its frame is 0")
        far = present & (pfn >= np.uint64(self.frames))
        self._refuse(first, far, "maps a frame beyond any memory")
        huge = np.flatnonzero((pte & HUGE != 0).all(axis=1))
        row = pfn[huge, :1] + np.arange(self.geometry.ptrs_per_pte, dtype=np.uint64)
        wrong = np.zeros(pfn.shape, np.bool_)
        wrong[huge] = (row != pfn[huge]) | (row[:, :1] % np.uint64(self.geometry.ptrs_per_pte) != 0)
        self._refuse_sound(first, wrong, "is under a huge PMD, and its frame is not in its row")

    def _check_folios(self, first: int, some: Arrays) -> None:
        pte, order = some["pte"], some["folio_order"]
        pmd_order = self.geometry.pmd_order
        self._refuse(first, order > pmd_order, "is of a folio of no such order")
        if "kpagecount" in some:
            often = some["kpagecount"] >= MOST_MAPPINGS >> pmd_order
            self._refuse(first, often, "is of a page that is mapped more often than can be counted")
        orders = np.zeros(256, np.bool_)
        orders[[0, *self.geometry.anon_orders]] = True
        mapped = pte & (PRESENT | ZERO) == PRESENT
        anonymous = mapped & (some["kpageflags"] & _KPF_ANON != 0)
        self._refuse_sound(
            first, anonymous & ~orders[order], "is of an anonymous folio of no such order"
        )
        huge = mapped & (pte & HUGE != 0) & (order != pmd_order)
        self._refuse_sound(first, huge, "is under a huge PMD, and of a smaller folio")
        rows = np.flatnonzero(order.any(axis=1))
        folios = _folios(mapped[rows], some["pfn"][rows], order[rows])
        clash = np.zeros(pte.shape, np.bool_)
        clash[rows, 0] = _clashes(np.sort(folios, axis=1)).any(axis=1)
        self._refuse_sound(first, clash, "begins a table with two folios on one frame")

    def _check_deep(self, first: int, some: Arrays) -> None:
        pte, bits, state = some["pte"], some["pte_bits"], some["folio_state"]
        self._refuse(first, bits >= PROT_NONE << 2, "has bits of its entry that mean nothing")
        self._refuse(first, (pte == 0) & (bits != 0), "is nothing, and its entry has bits")
        used = bits & np.uint8(YOUNG | DIRTY | WRITABLE | PROT_NONE) != 0
        self._refuse(first, used & (pte & PRESENT == 0), "is young or the like, and not present")
        mapped = pte & (PRESENT | ZERO) == PRESENT
        for name in DEEP_WIDTH.keys() - {"pte_bits"}:
            of_none = ~mapped & (some[name] != 0)
            self._refuse(first, of_none, f"is of no folio, which has a {name}")
        self._refuse(first, state >= 1 << 9, "is of a folio in a state that means nothing")
        if ZERO_FILLED in some:
            filled = some[ZERO_FILLED]
            wrong = (filled > 1) | ~mapped & (filled != 0)
            self._refuse(first, wrong, f"has a {ZERO_FILLED} that means nothing")
        large = some["folio_order"] != 0
        for name in ("mm_ids", "mm_id_mapcounts"):
            self._refuse(
                first, ~large & (some[name] != 0), f"is of a small folio, which has {name}"
            )
        locked = some["mm_ids"] & np.uint64(1 << 31) != 0
        self._refuse(first, locked, "is of a folio of no such mm ids")
        few = some["folio_mapcount"]
        self._refuse_sound(first, mapped & (few == 0), "is of a folio that is not mapped")
        fewer = some["refcount"] < few
        self._refuse_sound(first, fewer, "is of a folio that is mapped more often than referenced")

    def _refuse_sound(self, first: int, wrong: NDArray[np.bool_], why: str) -> None:
        """Do what _refuse() does, for tables that did not change while they were read."""
        self._refuse(first, wrong & ~self.is_torn[first : first + len(wrong)][:, None], why)

    def _refuse(self, first: int, wrong: NDArray[np.bool_], why: str) -> None:
        """Raise FileError if any is wrong. first: the table that the array begins with."""
        if wrong.any():
            row, column = divmod(int(np.argmax(wrong)), self.geometry.ptrs_per_pte)
            at = int(self.address[first + row]) + column * self.geometry.page_size
            raise FileError(f"{self.where}: the PTE at {at:#x} {why}")


_ORDER_BITS = 5
_SMALL = np.uint64(31)
"""The bits of a folio of order 0; there are lower ones for larger folios."""
_NO_FOLIO = np.uint64(2**64 - 1)


def _distinct(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sort, and drop doubles: as np.unique, which loads NumPy's masked arrays for it."""
    ordered = np.sort(values)
    changes = np.diff(ordered, prepend=~ordered[:1]) != 0
    distinct: NDArray[np.uint64] = ordered[changes]
    return distinct


def _folios(
    mapped: NDArray[np.bool_], pfn: NDArray[np.uint64], order: NDArray[np.uint8]
) -> NDArray[np.uint64]:
    """The folio of each page as one number, by which they are sorted: its first frame, and then the
    larger ones first."""
    wide = order.astype(np.uint64)
    folios = (pfn >> wide << wide + np.uint64(_ORDER_BITS)) | (_SMALL - wide)
    return np.where(mapped, folios, _NO_FOLIO)


def _clashes(folios: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether another folio begins where each, of sorted ones, has not ended yet.

    Folios are aligned to their size: one that is in another's frames comes right after it, or after
    one that is so too.
    """
    head = folios >> np.uint64(_ORDER_BITS)
    end = head + (np.uint64(1) << (_SMALL - (folios & _SMALL)))
    clash = np.zeros(folios.shape, np.bool_)
    clash[..., :-1] = (head[..., 1:] < end[..., :-1]) & (folios[..., 1:] != folios[..., :-1])
    return clash


def folios_of(where: str, arrays: Arrays, tearing: Mapping[str, Any]) -> NDArray[np.uint64]:
    """The large folios of a process, each once; FileError if two folios are on one frame.

    A folio that is split, moved or given back meanwhile may be seen in two places: only of a process
    whose tables were all looked at twice, and had not changed, can that not be.
    """
    changed = ("vmas_changed", "tables_changed", "pages_changed")
    is_still = tearing.get("tables_read_again") == tearing.get("tables") and all(
        tearing.get(name) == 0 for name in changed
    )
    folios = [np.zeros(0, np.uint64)]
    for first in range(0, len(arrays["pte"]), _ROWS):
        names = ("pte", "pfn", "folio_order")
        pte, pfn, order = (arrays[name][first : first + _ROWS] for name in names)
        mapped = pte & (PRESENT | ZERO) == PRESENT
        if is_still or order.any():
            which = mapped if is_still else mapped & (order != 0)
            folios.append(_distinct(_folios(which, pfn, order)[which]))
    every = _distinct(np.concatenate(folios))
    clash = _clashes(every)
    if is_still and clash.any():
        frame = int(every[np.argmax(clash)]) >> _ORDER_BITS
        raise FileError(
            f"{where}: two folios are on the frame {frame:#x}, and nothing changed meanwhile"
        )
    large: NDArray[np.uint64] = every[every & _SMALL != _SMALL]
    return large


def check_memory_held(folios: Iterable[NDArray[np.uint64]], total: int, page_shift: int) -> int:
    """Check that the host had the memory for these folios of all processes, or for half of them, as
    some may be seen in two places; returns how many pages they have."""
    every = _distinct(np.concatenate([*folios, np.zeros(0, np.uint64)]))
    pages = int(np.sum(np.uint64(1) << _SMALL - (every & _SMALL)))
    if total and pages << page_shift > 2 * total:
        held = human_bytes(pages << page_shift)
        raise FileError(f"its folios hold {held}, and the host has {human_bytes(total)}")
    return pages
