# SPDX-License-Identifier: GPL-2.0-or-later
"""What `mthp plan` says is what the planner says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.image.snapshot import load
from mthp.plan.planner import Planner
from mthp.plan.records import TlbKind
from mthp.report.sweep import plan_values
from mthp.words.costs import Cost, CostTable, costs_document
from mthp.words.profiles import PROFILES
from mthp.words.settings import Enabled, Settings
from mthp.words.units import human_bytes
from mthp.worlds.build import arrays_of

REDIS = str(Path(__file__).parents[2] / "src/mthp/data/redis.npz")
GIVEN = ("--enabled", "64kB=always,2048kB=always", "--max-ptes-none", "63")


def run(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["plan", REDIS, "--profile", "7.3", *flags]) == 0
    return capsys.readouterr().out


def test_the_document_has_both_plans(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, *GIVEN, "--json"))
    image = load(REDIS)
    settings = Settings.from_sysfs(image.sysfs, image.geometry)
    given = settings.replace(
        sizes={**settings.sizes, 4: Enabled.ALWAYS, 9: Enabled.ALWAYS},
        max_ptes_none=63,
    )
    planner = Planner(arrays_of(image), PROFILES["7.3"], settings, image)
    for name, each in (("now", settings), ("given", given)):
        plan = planner.plan(each)
        values = json.loads(json.dumps(plan_values(plan)))
        assert {key: found[name][key] for key in values} == values
        assert found[name]["flushes"] == plan.flushes
        assert found[name]["ipis"] == plan.flushes * (planner.cpus - 1)
    assert plan.flushes == sum(plan.windows.values()) > 0
    assert planner.cpus > 1
    assert [each["value"] for each in found["writes"]] == ["always", "always", "63"]


def test_the_page_has_the_figures_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, *GIVEN)
    values = json.loads(run(capsys, *GIVEN, "--json"))
    for name in ("memory added", "copied", "cleared"):
        key = name.replace(" ", "_") + ("_bytes" if "added" not in name else "")
        (row,) = (line for line in text.splitlines() if line.startswith(name + " "))
        assert row.endswith(human_bytes(values["given"][key]))
        assert human_bytes(values["now"][key]) in row
    for kind in TlbKind:
        entries = sum(values["given"]["tlb_entries"][kind.name.lower()].values())
        assert f" {entries:,}\n" in text
    assert "echo 63 > /sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none" in text


def test_without_settings_it_is_about_those_that_are_set(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = run(capsys)
    assert "with the settings as they are" in text
    assert "echo" not in text


def test_a_setting_that_cannot_be_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", REDIS, "--max-ptes-none", "512"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.splitlines()) == 1


def test_time_is_reckoned_by_the_costs_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "costs.json"
    document = costs_document(
        CostTable({"scan_pte": Cost(10.0, "made up"), "stop": Cost(0, "too")})
    )
    path.write_text(json.dumps(document))
    found = json.loads(run(capsys, *GIVEN, "--costs", str(path), "--json"))
    assert found["costs"]["scan_pte"] == {**document["costs"]["scan_pte"]}
    assert found["costs"]["copy_page"]["source"].startswith("published")
    assert found["given"]["spent_ns"]["scanning"] > 0
    assert "scan_pte: made up" in " ".join(run(capsys, *GIVEN, "--costs", str(path)).split())
    path.write_text("{}")
    assert main(["plan", REDIS, "--costs", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_memory_against_time_is_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, *GIVEN, "--json", "--timeline", "--quiet"))
    assert main(["collapse", REDIS, "--profile", "7.3", *GIVEN, "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert found["timelines"] == {"now": [], "given": document["timeline"]}
    assert found["partly_mapped"] == document["partly_mapped"]["before"]
    text = run(capsys, *GIVEN, "--timeline", "--quiet")
    assert "Memory against time, as given" in text and "as set (since" not in text
    assert json.loads(run(capsys, *GIVEN, "--json"))["timelines"] is None
