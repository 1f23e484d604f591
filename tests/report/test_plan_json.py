# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON documents of plans, sweeps, checkups and calibrations are what their published schema says."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from mthp.cli import main
from mthp.words.profiles import PROFILES
from tests.report.test_json_doc import places

jsonschema = pytest.importorskip("jsonschema")
referencing = pytest.importorskip("referencing")
ROOT = Path(__file__).parents[2]
REDIS = str(ROOT / "src/mthp/data/redis.npz")


@cache
def schemas() -> dict[str, Any]:
    """The published schemas by their file names."""
    return {
        path.name: json.loads(path.read_text("utf-8"))
        for path in sorted((ROOT / "docs" / "schema").glob("*.json"))
    }


def complaints(kind: str, document: Any) -> list[str]:
    """What is wrong with a document of plans.schema.json, of a kind."""
    known = [
        (name, referencing.Resource.from_contents(schema)) for name, schema in schemas().items()
    ]
    registry = referencing.Registry().with_resources(known)
    schema = {"$ref": f"plans.schema.json#/$defs/{kind}_document"}
    validator = jsonschema.Draft202012Validator(schema, registry=registry)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


DOCUMENTS = {
    "plan": ("plan", REDIS, "--profile", "7.3", "--enabled", "64kB=always", "--timeline"),
    "plan-as-set": ("plan", REDIS),
    "sweep": ("sweep", REDIS, "--profile", "7.3", "--vary", "profile", "--within", "15"),
    "sweep-missed": ("sweep", REDIS, "--min-large", "99"),
    "doctor": (
        "doctor",
        REDIS,
        "--profile",
        "7.3",
        "--enabled",
        "64kB=always",
        "--max-ptes-none",
        "409",
    ),
    "doctor-host": ("doctor",),
    "calibrate": ("calibrate", "--rounds", "4", "--quiet"),
}


@pytest.fixture(scope="module", params=DOCUMENTS)
def made(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A document and its kind."""
    import contextlib
    import io

    words = [*DOCUMENTS[request.param], "--json"]
    if words[0] in ("plan", "sweep"):
        words.append("--quiet")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    assert code == (request.param == "sweep-missed")
    return words[0], json.loads(out.getvalue())


def test_documents_keep_the_schema(made: tuple[str, Any]) -> None:
    assert complaints(*made) == []


def test_the_schema_notices_a_wrong_type_a_missing_key_and_one_too_many(
    made: tuple[str, Any],
) -> None:
    kind, document = made
    every = [path for path in places(document) if "settings" not in path]
    for path in every[:: max(len(every) // 16, 1)]:
        wrong = copy.deepcopy(document)
        at = wrong
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = [None]
        assert complaints(kind, wrong), path


@pytest.mark.parametrize("kind", ["plan", "sweep", "doctor", "calibrate", "fleet"])
def test_the_page_names_every_key(kind: str) -> None:
    page = (ROOT / "docs" / "json-schema.md").read_text("utf-8")
    schema = schemas()["plans.schema.json"]
    assert {"$ref": f"#/$defs/{kind}_document"} in schema["oneOf"]
    for key in schema["$defs"][f"{kind}_document"]["properties"]:
        assert f"`{key}`" in page, key


def test_the_schema_is_a_schema() -> None:
    schema = schemas()["plans.schema.json"]
    jsonschema.Draft202012Validator.check_schema(schema)
    for kind in ("plan", "sweep"):
        profile = schema["$defs"][f"{kind}_document"]["properties"]["profile"]
        assert set(profile["enum"]) == set(PROFILES)


def test_other_kernels_have_the_plan_that_they_have_by_themselves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def document(*flags: str) -> Any:
        assert main(["sweep", REDIS, "--quiet", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    here = document("--profile", "7.3", "--vary", "profile")
    assert here["elsewhere"].keys() == {*PROFILES} - {"7.3"}
    for name, plan in here["elsewhere"].items():
        (chosen,) = (each for each in document("--profile", name)["plans"] if each["chosen"])
        assert plan == {key: value for key, value in chosen.items() if key in plan}
    assert main(["sweep", REDIS, "--profile", "7.3", "--vary", "profile", "--quiet"]) == 0
    assert "With the kernel of profile v16: 2048kB, max_ptes_none=63" in capsys.readouterr().out
    assert main(["sweep", REDIS, "--vary", "weather"]) == 2
    assert "'weather' is none of defrag, rate, profile" in capsys.readouterr().err
