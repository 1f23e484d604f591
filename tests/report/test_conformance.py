# SPDX-License-Identifier: GPL-2.0-or-later
"""The score, printed and as a document."""

from __future__ import annotations

import json
from typing import Any

from mthp.compare.records import Conformance, Mismatch, MismatchKind
from mthp.report.conformance import (
    MISMATCHES_SHOWN,
    conformance_document,
    mismatch_kinds,
    render_conformance,
)
from tests.report.samples import console, golden, printed

OUTCOMES = {
    ("attempt", ""): 40,
    ("mm_collapse_huge_page", "succeeded"): 31,
    ("mm_collapse_huge_page", "exceed_none_pte"): 9,
    ("mm_collapse_huge_page_swapin", "1"): 2,
}
EVENT: dict[str, Any] = {"event": "mm_collapse_huge_page", "status": "succeeded", "order": 4}
WRONG = [
    Mismatch("base-17", 0, MismatchKind.EVENTS, EVENT, {**EVENT, "status": "page_locked"}, 3),
    Mismatch("base-17", 0, MismatchKind.PTES, ["x" * 400], None, 0),
    Mismatch("swap-2", 1, MismatchKind.EVENTS, None, EVENT, 0),
]


def text_of(score: Conformance) -> str:
    page = console()
    render_conformance(score, page)
    return printed(page)


def test_all_agree() -> None:
    golden("conformance-agreed.txt", text_of(Conformance(40, 40, [], OUTCOMES)))


def test_some_differ() -> None:
    golden("conformance-differs.txt", text_of(Conformance(40, 38, WRONG, OUTCOMES)))


def test_many_mismatches_are_cut_and_said() -> None:
    many = [Mismatch(f"s{i}", 0, MismatchKind.ERRNO, 0, -11) for i in range(MISMATCHES_SHOWN + 5)]
    assert "… and 5 more" in text_of(Conformance(20, 5, many))


def test_nothing_compared_is_no_agreement() -> None:
    text = text_of(Conformance())
    assert "nothing was compared" in text
    assert "agree with" not in text


def test_document() -> None:
    score = Conformance(40, 38, WRONG, OUTCOMES)
    document = conformance_document(score)
    assert json.loads(json.dumps(document)) == document
    assert (document["passes"], document["agreed"]) == (40, 38)
    assert document["mismatches"] == [mismatch.to_json() for mismatch in WRONG]
    assert document["mismatch_kinds"] == mismatch_kinds(score) == {"events": 2, "final.ptes": 1}
    assert {"event": "attempt", "status": "", "count": 40} in document["outcomes"]
