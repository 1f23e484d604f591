# SPDX-License-Identifier: GPL-2.0-or-later
"""What the steps of a collapse cost in time, each number with its source: published, or measured by
`mthp calibrate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from mthp.words.files import FileError, PathName
from mthp.words.reading import read_json

SCHEMA_VERSION = 1
MOST_NS: Final = 1e12
"""No step takes a quarter of an hour."""


class Cost(NamedTuple):
    """Nanoseconds, and where the number is from."""

    ns: float
    source: str


MEANING: Final = {
    "allocate": "a folio of PMD size, with its charge",
    "stop": "one collapse of PMD size, under mmap_lock for writing: what does not depend on its pages",
    "copy_page": "in it, each page that is there: isolated, copied, given back",
    "clear_page": "in it, each page that is not there",
    "scan_pte": "the scan, each PTE that maps a page",
    "flush_ipi": "a TLB flush that other CPUs must confirm, beyond one that none must",
    "refill": "one TLB entry that was flushed, when its page is used again",
    "fault_page": "a fault that maps a base page",
    "fault_pmd": "a fault that maps a huge page of PMD size",
    "zap_page": "to unmap and free a base page",
    "zap_pmd": "to unmap and free a huge page of PMD size",
    "pagemap_scan": "PAGEMAP_SCAN, each page",
    "copy_4k": "to copy 4 KiB, in user space, from memory to memory",
    "copy_64k": "the same for 64 KiB",
    "copy_2m": "the same for 2 MiB",
    "clear_4k": "to clear 4 KiB, in user space",
    "clear_64k": "the same for 64 KiB",
    "clear_2m": "the same for 2 MiB",
}
"""Each cost's name, and what it is the cost of."""


class CostTable(Mapping[str, Cost]):
    """Costs by their names, which are MEANING's; one that is not known is not in it."""

    def __init__(self, costs: Mapping[str, Cost]) -> None:
        self._costs = {name: costs[name] for name in MEANING if name in costs}

    def __getitem__(self, name: str) -> Cost:
        return self._costs[name]

    def __iter__(self) -> Any:
        return iter(self._costs)

    def __len__(self) -> int:
        return len(self._costs)

    def or_else(self, other: CostTable) -> CostTable:
        """These, and the other's where these have none."""
        return CostTable({**other._costs, **self._costs})

    def sum_ns(self, **times: float) -> float:
        """So many times each cost, added up. KeyError: one is not known."""
        return sum(n * self._costs[name].ns for name, n in times.items() if n)


class StopPoint(NamedTuple):
    """How long one collapse of PMD size took, in nanoseconds, where so many of its PTEs were empty."""

    empty: int
    ns: float


def fit_stop(
    points: Iterable[StopPoint], clear_page: float, ptrs: int = 512
) -> tuple[float, float]:
    """The fixed part and the part for each page that is there, by least squares: (stop, copy_page).

    A page that is not there costs clear_page. ValueError: fewer than two different points.
    """
    rows = [(ptrs - empty, ns - empty * clear_page) for empty, ns in points]
    n = len(rows)
    x, y = (sum(row[k] for row in rows) / max(n, 1) for k in (0, 1))
    spread = sum((present - x) ** 2 for present, _ in rows)
    if not spread:
        raise ValueError("one number of empty PTEs: no line goes through it alone")
    slope = sum((present - x) * (ns - y) for present, ns in rows) / spread
    return y - slope * x, slope


def stop_ns(costs: CostTable, empty: int, ptrs: int = 512) -> float:
    """How long one collapse of PMD size stops its process, by the table. KeyError: a cost is missing."""
    return costs.sum_ns(stop=1, copy_page=ptrs - empty, clear_page=empty)


PUBLISHED_STOPS: Final = tuple(
    StopPoint(empty, us * 1e3) for empty, us in ((511, 233), (384, 376), (256, 421), (128, 523))
)
_LIST = "published on linux-mm, March 2024, Core i5"
_CLEAR = (295 - 198) * 1e3 / 512
_STOP, _COPY = fit_stop(PUBLISHED_STOPS, _CLEAR)

PUBLISHED: Final = CostTable(
    {
        "allocate": Cost(198e3, _LIST),
        "stop": Cost(_STOP, f"{_LIST}: a line through its four stops"),
        "copy_page": Cost(_COPY, f"{_LIST}: a line through its four stops"),
        "clear_page": Cost(_CLEAR, f"{_LIST}: allocation with clearing, less that without"),
    }
)
"""What the list has. Of scanning, faults and TLBs it has no figure."""


def costs_document(costs: CostTable) -> dict[str, Any]:
    """The table as JSON has it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "costs": {
            name: {"ns": round(cost.ns, 1), "of": MEANING[name], "source": cost.source}
            for name, cost in costs.items()
        },
    }


def read_costs(path: PathName) -> CostTable:
    """The table in a file of `mthp calibrate --json`. FileError: it cannot be read, or is none."""
    document = read_json(path)
    try:
        version, rows = document["schema_version"], document["costs"]
        if version != SCHEMA_VERSION:
            raise FileError(
                f"{path}: schema_version is {json.dumps(version)}, not {SCHEMA_VERSION}"
            )
        costs = {name: Cost(float(row["ns"]), str(row["source"])) for name, row in rows.items()}
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path}: not a table of costs (mthp calibrate --json)") from None
    for name, cost in costs.items():
        if name not in MEANING:
            raise FileError(f"{path}: costs.{name}: no such cost")
        if not 0 <= cost.ns <= MOST_NS:
            raise FileError(
                f"{path}: costs.{name}.ns: {cost.ns:g} is not between 0 and {MOST_NS:g}"
            )
    return CostTable(costs)
