# SPDX-License-Identifier: GPL-2.0-or-later
"""The columns of the two datasets, which docs/fleet.md explains. host and day are the folders' names."""

from __future__ import annotations

import pyarrow as pa

VERSION = 1
"""Of the columns' meaning: what was written under another is done again."""
NOWHERE = "__HIVE_DEFAULT_PARTITION__"
"""What a folder is called whose value is null, for whoever reads datasets."""

_OF_ORDER = pa.map_(pa.int32(), pa.int64())
_SNAPSHOT = [
    ("snapshot", pa.string()),
    ("path", pa.string()),
    ("time", pa.timestamp("s", "UTC")),
    ("kernel", pa.string()),
    ("page_size", pa.int64()),
    ("pmd_size", pa.int64()),
]

CAPTURED = pa.schema(
    [
        *_SNAPSHOT,
        ("pid", pa.int32()),
        ("process", pa.string()),
        ("start", pa.uint64()),
        ("end", pa.uint64()),
        ("mapping", pa.string()),
        ("kind", pa.string()),
        ("mapped", pa.int64()),
        ("of_order", _OF_ORDER),
        ("by_pmd", pa.int64()),
        ("shared", pa.int64()),
        ("zero", pa.int64()),
        ("swapped", pa.int64()),
        ("lazyfree", pa.int64()),
    ]
)

ANSWERS = pa.schema(
    [
        *_SNAPSHOT,
        ("run", pa.string()),
        ("profile", pa.string()),
        ("current", pa.bool_()),
        ("enabled", pa.string()),
        ("max_ptes_none", pa.int32()),
        ("pages_to_scan", pa.int64()),
        ("before", _OF_ORDER),
        ("after", _OF_ORDER),
        ("collapses", _OF_ORDER),
        ("mapped_before", pa.int64()),
        ("mapped", pa.int64()),
        ("large", pa.int64()),
        ("memory_added", pa.int64()),
        ("tlb_entries", pa.int64()),
        ("reach", pa.float64()),
        ("copied", pa.int64()),
        ("last_collapse_ms", pa.int64()),
        ("front", pa.bool_()),
        ("counted_tables", pa.int64()),
        ("engine_tables", pa.int64()),
        ("all_engine", pa.string()),
    ]
)
