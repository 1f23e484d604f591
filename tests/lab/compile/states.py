# SPDX-License-Identifier: GPL-2.0-or-later
"""Small scenarios to compile."""

from __future__ import annotations

from typing import Any

from mthp.image.scenario import SCHEMA, Scenario, parse_scenario
from mthp.lab.program.program import BASE

ALL_ON = {"max_ptes_none": 511, "enabled": {"2048kB": "madvise", "global": "madvise"}}


def vma(folios: str, ptes: str | None, page: int = 0, **fields: Any) -> dict[str, Any]:
    """A mapping `page` pages above the base, as long as its state."""
    pages = sum(int(run.partition(":")[0]) for run in folios.split())
    start = BASE + page * 4096
    state = {"folios": folios, "ptes": ptes}
    return {"start": start, "pages": pages, "advice": "hugepage", "initial": state, **fields}


def scenario(*vmas: dict[str, Any], **fields: Any) -> Scenario:
    """A scenario of these mappings."""
    document = {
        "schema": SCHEMA,
        "id": "x",
        "settings": ALL_ON,
        "action": "khugepaged",
        "vmas": list(vmas),
        **fields,
    }
    return parse_scenario(document)
