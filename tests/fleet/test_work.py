# SPDX-License-Identifier: GPL-2.0-or-later
"""One snapshot: its rows, where they go, and that what is done is not done again."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pyarrow import dataset

from mthp.fleet.records import Swept, Unusable
from mthp.fleet.schema import ANSWERS, CAPTURED
from mthp.fleet.work import FleetJob, sweep_snapshot
from mthp.image.snapshot import load
from mthp.plan.planner import Planner
from mthp.plan.sweep import front_of, grid
from mthp.words.profiles import PROFILES
from mthp.words.settings import Settings
from mthp.worlds.build import arrays_of
from tests.fleet.made import REDIS, on_host
from tests.image.made import BASE, PAGE, PMD, Made

DOCS = Path(__file__).parents[2] / "docs/fleet.md"


def swept(
    folder: Path, it: Made | Path, job: FleetJob | None = None, command: str = "a"
) -> Swept | Unusable:
    path = it if isinstance(it, Path) else folder / "a.npz"
    if isinstance(it, Made):
        path.write_bytes(it.packed())
    (folder / "out/done").mkdir(parents=True, exist_ok=True)
    return sweep_snapshot(str(path), str(folder / "out"), job or FleetJob(), command)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """All of a dataset, with what its folders are called."""
    parts = dataset.partitioning(
        pa.schema([("host", pa.string()), ("day", pa.date32())]), flavor="hive"
    )
    found: list[dict[str, Any]] = (
        dataset.dataset(folder / "out" / name, format="parquet", partitioning=parts)
        .to_table()
        .to_pylist()
    )
    return found


def test_a_row_for_each_captured_mapping(tmp_path: Path) -> None:
    done = swept(tmp_path, on_host("made"))
    assert isinstance(done, Swept) and done.anew
    first, second = rows(tmp_path, "captured")
    assert first | {"of_order": dict(first["of_order"])} == {
        "snapshot": done.digest, "path": str(tmp_path / "a.npz"), "host": "made",
        "time": datetime(2026, 1, 1, tzinfo=UTC), "day": datetime(2026, 1, 1).date(),
        "kernel": "7.3.4-made", "page_size": PAGE, "pmd_size": PMD, "pid": 100, "process": "made",
        "start": BASE, "end": BASE + 3 * PMD, "mapping": "", "kind": "anonymous",
        "mapped": (12 + 7 + 1 + 16) * PAGE, "of_order": {0: 13 * PAGE, 2: 7 * PAGE, 4: PMD},
        "by_pmd": PMD, "shared": 2 * PAGE, "zero": PAGE, "swapped": 2 * PAGE, "lazyfree": 0,
    }  # fmt: skip
    assert (second["pid"], second["mapped"], second["shared"]) == (101, 2 * PAGE, 2 * PAGE)


def test_a_capture_without_root_does_not_tell_all(tmp_path: Path) -> None:
    it = on_host("plain")
    for name in ("pfn", "kpageflags", "kpagecount", "folio_order"):
        del it.arrays[name]
    it.meta["privilege"].update(root=False, pfn=False, kpageflags=False, exclusive=False)
    swept(tmp_path, it)
    assert [(row["of_order"], row["shared"]) for row in rows(tmp_path, "captured")] == [
        (None, None)
    ] * 2


def test_the_answers_are_the_planners(tmp_path: Path) -> None:
    done = swept(tmp_path, REDIS, FleetJob(profile="7.3"))
    assert isinstance(done, Swept), done
    snapshot, profile = load(REDIS), PROFILES["7.3"]
    base = Settings.from_sysfs(snapshot.sysfs, snapshot.geometry)
    planner = Planner(arrays_of(snapshot), profile, base, snapshot)
    tried = [base, *grid(base.replace(max_ptes_none=511), profile)]
    plans = [planner.plan(settings) for settings in tried]
    answers = rows(tmp_path, "answers")
    assert [row["current"] for row in answers] == [True] + [False] * 99
    for row, plan in zip(answers, plans, strict=True):
        assert row["memory_added"] == plan.memory_added
        assert (row["mapped"], row["large"], row["tlb_entries"]) == (
            plan.mapped, plan.large, plan.translations
        )  # fmt: skip
        assert dict(row["after"]) == {order: size for order, size in plan.after.items() if size}
        assert row["last_collapse_ms"] == plan.last_collapse_ms
    priced = sorted(plans[1:], key=lambda plan: plan.price)
    pairs = zip(priced, front_of(priced), strict=True)
    best = {plan.price[:3] for plan, is_on in pairs if is_on}
    found = {plan.price[:3] for row, plan in zip(answers, plans, strict=True) if row["front"]}
    assert found == best and len(best) > 3


@pytest.mark.parametrize(
    ("host", "time", "where"),
    [
        ("a/../b=c %", "2026-01-02T23:59:59Z", "host=a%2F..%2Fb%3Dc%20%25/day=2026-01-02"),
        ("..", None, "host=../day=__HIVE_DEFAULT_PARTITION__"),
        (None, "2026-01-02T00:00:00Z", "host=__HIVE_DEFAULT_PARTITION__/day=2026-01-02"),
        ("0017", "2026-01-02T00:00:00Z", "host=0017/day=2026-01-02"),
    ],
)
def test_where_it_goes(tmp_path: Path, host: str | None, time: str | None, where: str) -> None:
    done = swept(tmp_path, on_host(host, time))
    assert isinstance(done, Swept)
    assert done.part == f"{where}/{done.digest}.parquet"
    for name in ("captured", "answers"):
        found = rows(tmp_path, name)
        assert {row["host"] for row in found} == {host}
        assert {row["day"] and str(row["day"]) for row in found} == {time and time[:10]}
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "out"}


@pytest.mark.parametrize(
    ("meta", "why"),
    [
        ({"schema": "mthp-snapshot/0"}, "schema 'mthp-snapshot/0' is not 'mthp-snapshot/1'"),
        ({"hostname": "a" * 65}, "hostname: longer than the 64 bytes that a kernel allows"),
        ({"time": "yesterday"}, "time: 'yesterday' is none in UTC, such as 2026-11-28T09:41:14Z"),
        ({"time": "2026-02-30T00:00:00Z"}, "time: '2026-02-30T00:00:00Z' is none in UTC"),
        ({"sysfs": {"khugepaged/max_ptes_none": "99"}}, "max_ptes_none: 99 is outside 0..15"),
    ],
)
def test_what_cannot_be_used_is_told_and_leaves_nothing(
    tmp_path: Path, meta: dict[str, Any], why: str
) -> None:
    it = on_host("made")
    it.meta.update(meta)
    done = swept(tmp_path, it)
    assert isinstance(done, Unusable) and why in done.why
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["done"]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(REDIS.read_bytes()[:-40])
    assert isinstance(done := swept(tmp_path, tmp_path / "a.npz"), Unusable)
    assert done.why and "\n" not in done.why
    assert isinstance(swept(tmp_path, tmp_path / "none.npz"), Unusable)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    first = swept(tmp_path, on_host("made"))
    assert isinstance(first, Swept)
    files = {each: each.stat().st_mtime_ns for each in (tmp_path / "out").rglob("*.*")}
    assert len([each for each in files if each.is_file()]) == 3
    path = path.rename(tmp_path / "b.npz")
    again = first._replace(path=str(path))
    assert swept(tmp_path, path) == again  # told twice, as where the worker that had it died
    assert swept(tmp_path, path, command="b") == again._replace(anew=False)
    assert files == {each: each.stat().st_mtime_ns for each in (tmp_path / "out").rglob("*.*")}

    (tmp_path / "out/answers" / first.part).unlink()  # as one that was killed leaves it
    assert swept(tmp_path, path) == again
    other = FleetJob(limits={"max_ptes_swap": 0})
    assert swept(tmp_path, path, other) == again
    assert {row["run"] for row in rows(tmp_path, "answers")} == {other.run}
    changed = on_host("made")
    changed.meta["cpus"] = 3
    done = swept(tmp_path, changed, other)
    assert isinstance(done, Swept) and done.digest != first.digest


def test_the_queries_of_the_documents_run_and_give_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(swept(tmp_path, REDIS, FleetJob(profile="7.3")), Swept)
    (tmp_path / "out").rename("answers")
    shown = re.findall(
        r"```sql\n(.*?)```\n\n```\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(shown) == 3
    for query, output in shown:
        columns = [each.strip() for each in output.splitlines()[1].strip("│").split("│")]
        found = duckdb.sql(query)
        assert found.columns == columns
        assert found.fetchall()


def test_the_documents_name_each_column_with_its_type() -> None:
    text = DOCS.read_text(encoding="utf-8")
    for title, schema in (("captured", CAPTURED), ("answers", ANSWERS)):
        section = text.partition(f"\n## `{title}/`")[2].partition("\n## ")[0]
        said = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
        assert said == [(each.name, str(each.type)) for each in schema], title
