# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON document is what its published schema and its page say."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mthp.predict.records import Bounds, Outcome, RefusedAt, Unknown, Verified
from mthp.report.json_doc import SCHEMA_VERSION, outcome_document
from mthp.words.profiles import PROFILES
from mthp.words.settings import Settings
from mthp.words.units import Geometry
from tests.report.samples import OUTCOME
from tests.report.test_text import EMPTY

jsonschema = pytest.importorskip("jsonschema")
DOCS = Path(__file__).parent.parent.parent / "docs"
SCHEMA: dict[str, Any] = json.loads((DOCS / "schema" / "collapse.schema.json").read_text("utf-8"))

TINY = replace(OUTCOME, settings=Settings(geometry=Geometry(4, 3)), page_size=16, pmd_order=3)
CLOSED = replace(OUTCOME, highest_order=None, alternatives={"always": OUTCOME})
OPEN = replace(
    OUTCOME, bounds=Bounds((Unknown.YOUNG,), (0, 4096)), registered={1: None, 2: True, 3: False}
)
UNKNOWN = replace(OUTCOME, highest_order=None, memory_added=-4096, counters={"x": {"y": -1}})


def complaints(document: Any) -> list[str]:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    return [error.json_path for error in validator.iter_errors(document)]


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"]["const"] == SCHEMA_VERSION
    assert set(SCHEMA["properties"]["profile"]["enum"]) == set(PROFILES)
    refusal = SCHEMA["$defs"]["refusal"]["properties"]
    assert refusal["stage"]["enum"] == [stage.value for stage in RefusedAt]
    assert refusal["verified"]["enum"] == [each.name.lower() for each in Verified]


@pytest.mark.parametrize(
    "outcome",
    [OUTCOME, EMPTY, TINY, CLOSED, UNKNOWN, OPEN],
    ids=["full", "empty", "tiny", "closed", "odd", "open"],
)
def test_documents_keep_the_schema(outcome: Outcome) -> None:
    document = outcome_document(outcome)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert complaints(document) == []


def test_what_processes_are_taken_for() -> None:
    document = outcome_document(
        replace(OPEN, registered={**OPEN.registered, 4: None}, taken_off=frozenset({4}))
    )
    assert [(each["registered"], each["taken"]) for each in document["registered"]] == [
        (None, True),
        (True, True),
        (False, False),
        (None, False),
    ]


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, but not of the free text in extra and counters."""
    if path[:1] in {("extra",), ("counters",)}:
        return
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("some", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_the_schema_notices_a_wrong_type_anywhere_and_a_missing_key(some: int) -> None:
    document = outcome_document(CLOSED)
    for path in [*places(document)][::some]:
        wrong = copy.deepcopy(document)
        at = wrong
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = [None]
        assert complaints(wrong), path
        size = path[-1] if isinstance(path[-1], str) else "0"
        named_by_data = size[0].isdigit() and (size.isdigit() or "settings" in path)
        if isinstance(at, dict) and not named_by_data:
            del at[path[-1]]
            assert complaints(wrong), path
        if isinstance(at, dict):
            at["surprise!"] = 1
            assert complaints(wrong), path


def test_what_the_issue_asks_for_by_name() -> None:
    document = outcome_document(OUTCOME)
    assert document["orders_before"]["4"] == {
        "folios": 64,
        "bytes": 4 * 1024 * 1024,
        "held": 4 * 1024 * 1024,
    }
    assert document["alloc_wasted"] == {"attempts": 4, "bytes": 4 * 1024 * 1024}
    assert document["flushed_bytes"] == 152 * 1024 * 1024
    assert document["ipis"] == 76
    first = document["refusals"][0]
    assert {"address", "pages", "order", "status", "reason", "change"} <= set(first)
    assert first["verified"] == "group"


def test_the_page_names_every_key() -> None:
    page = (DOCS / "json-schema.md").read_text("utf-8")
    for key in outcome_document(OUTCOME):
        assert f"`{key}`" in page, key
