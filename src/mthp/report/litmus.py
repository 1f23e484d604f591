# SPDX-License-Identifier: GPL-2.0-or-later
"""The litmus tests' verdicts as text and as a document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mthp.check.records import LitmusResult
from mthp.report.phrases import aligned

SCHEMA_VERSION = 1


def litmus_lines(results: Sequence[LitmusResult]) -> list[str]:
    """Tabulates the tests: whether stale contents are seen under each model, and by herd7."""
    models = [f"ours: {model}" for model, _ in results[0].ours]
    rows = [["test", "expected", *models, "herd7", "", "between the two stores"]]
    for each in results:
        verdict = "agree" if each.agrees else "DIFFER"
        ours = [observation for _, observation in each.ours]
        rows.append([each.name, each.expected, *ours, each.herd or "-", verdict, each.what])
    return aligned(rows)


def litmus_document(results: Sequence[LitmusResult]) -> dict[str, Any]:
    """The results as a document of plain JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "litmus": [
            {
                "name": each.name,
                "what": each.what,
                "expected": each.expected,
                "ours": dict(each.ours),
                "herd7": each.herd,
                "agrees": each.agrees,
            }
            for each in results
        ],
    }
