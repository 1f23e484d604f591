# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump of a guest against a deep capture of the same stopped processes in it: the same in every member."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mthp.cli import main
from mthp.image.snapshot import Kpf, Snapshot, load
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.real_program import provide
from mthp.lab.session.recipes import Recipe
from mthp.lab.session.workload import PYTHON, Command, Workload
from mthp.lab.vm.monitor import DumpFormat
from mthp.predict.image import Image, reconfigured
from mthp.report.json_doc import outcome_document

from . import states
from .guests import kernel_or_skip

pytestmark = pytest.mark.lab
SECONDS, MEMORY = 120.0, 512
MEMBERS = (
    "table_address", "table_torn", "pte", "pfn", "kpageflags", "kpagecount", "folio_order", "pte_bits",
    "refcount", "folio_mapcount", "folio_state", "mm_ids", "mm_id_mapcounts", "node", "zero_filled",
)  # fmt: skip
CHANGES = {"pss", "locked"}
"""Of mappings: files that others mapped, which ended between the two, are then shared by fewer."""
NOT_IN_DUMPS = {"thp_eligible", "numa"}


class Both(NamedTuple):
    """A deep capture, and what was made of dumps of the same moment, by their format."""

    live: Snapshot
    dumped: dict[str, Snapshot]


@pytest.fixture(scope="module", params=["7.3", "6.18"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    program = "/states.py"
    recipe = Recipe(
        "states", Command((PYTHON, program)), files={program: Path(states.__file__).read_text()}
    )
    folder = tmp_path_factory.mktemp("vmcore")
    kernel = kernel_or_skip(request.param)
    guest_of = Guest(MEMORY, cpus=2, nodes=2, dumped=True)
    with (
        provide(recipe, (), MEMORY, lambda _: None) as made,
        booted(kernel, guest_of, (made.archive,)) as guest,
    ):
        workload = Workload(guest.machine.channel, guest.session, made.paths)
        workload.prepare()
        workload.start(recipe.start)
        look = f"import os; os.stat({states.READY!r})"
        workload.wait_for(Command((PYTHON, "-c", look)), SECONDS)
        pids = workload.stop()
        workload.snap(folder / "deep.npz", "--deep", "--zeros")
        assert guest.machine.monitor is not None
        for form in DumpFormat:
            guest.machine.monitor.dump(folder / form, form)
    dumped = {}
    for form in DumpFormat:
        options = [word for pid in pids for word in ("--pid", str(pid))]
        file = folder / f"{form}.npz"
        argv = ["snap", "--vmcore", str(folder / form), *options, "--zeros", "-o", str(file)]
        assert main(argv) == 0
        (folder / form).unlink()
        dumped[form.value] = load(file)
    yield Both(load(folder / "deep.npz"), dumped)


def test_every_member_is_the_same(both: Both) -> None:
    for form, snapshot in both.dumped.items():
        assert [each.pid for each in snapshot.processes] == [
            each.pid for each in both.live.processes
        ]
        for live, dumped in zip(both.live.processes, snapshot.processes, strict=True):
            for name in MEMBERS:
                ours, theirs = getattr(dumped, name), getattr(live, name)
                if name == "kpageflags":
                    theirs = _without_false_ksm(live.kpageflags)
                assert ours.shape == theirs.shape, (form, name)
                assert int(np.count_nonzero(ours != theirs)) == 0, (form, live.pid, name)
            assert dumped.deep == live.deep


def _without_false_ksm(kpageflags: Any) -> Any:
    """Linux 6.18 shows every anonymous page as merged by KSM."""
    ksm, anon = (np.uint64(1 << bit) for bit in (Kpf.KSM, Kpf.ANON))
    if np.all((kpageflags & ksm != 0) == (kpageflags & anon != 0)):
        return kpageflags & ~ksm
    return kpageflags


def test_mappings_and_what_is_said_of_processes(both: Both) -> None:
    for snapshot in both.dumped.values():
        for live, dumped in zip(both.live.processes, snapshot.processes, strict=True):
            for name in (
                "started",
                "forked",
                "comm",
                "cmdline",
                "exe",
                "cgroup",
                "memcg",
                "status",
            ):
                assert dumped.meta[name] == live.meta[name], name
            assert dumped.meta["thp_disable"] == live.meta["thp_disable"]
            assert len(dumped.vmas) == len(live.vmas)
            for ours, theirs in zip(dumped.meta["vmas"], live.meta["vmas"], strict=True):
                said = {k: v for k, v in theirs.items() if k not in CHANGES | NOT_IN_DUMPS}
                if ours["kind"] == "shmem" and theirs["path"].startswith("/"):
                    # The guest's root is a tmpfs that no mountinfo calls so.
                    said["kind"] = "shmem"
                assert {k: v for k, v in ours.items() if k not in CHANGES} == said


def test_settings_and_the_machine(both: Both) -> None:
    for snapshot in both.dumped.values():
        live = {k: v for k, v in both.live.sysfs.items() if "/stats/" not in k}
        assert dict(snapshot.sysfs) == live
        for name in (
            "hostname",
            "kernel",
            "version",
            "machine",
            "nodes",
            "khugepaged",
            "cpus",
            "la57",
        ):
            assert snapshot.meta[name] == both.live.meta[name], name
        for name in ("page_size", "pmd_size", "deep"):
            assert snapshot.meta[name] == both.live.meta[name], name
        swaps = [meta["swaps"].split() for meta in (snapshot.meta, both.live.meta)]
        assert swaps[0] == swaps[1]
        zones = [
            [line.split()[:4] for line in meta["buddyinfo"].splitlines()]
            for meta in (snapshot.meta, both.live.meta)
        ]
        assert zones[0] == zones[1]
        totals = [{k: meta["meminfo"][k] for k in ("MemTotal", "SwapTotal", "SwapFree")}
                  for meta in (snapshot.meta, both.live.meta)]  # fmt: skip
        assert totals[0] == totals[1]


def test_predictions(both: Both) -> None:
    live = _predicted(both.live)
    assert sum(live["successes"].values()) > 0
    for snapshot in both.dumped.values():
        assert _predicted(snapshot) == live


def _predicted(snapshot: Snapshot) -> dict[str, Any]:
    """What collapses with all sizes on and so much free memory, without where that comes from."""
    image = Image(replace(snapshot, free_memory=64 << 20), "a", "b")
    settings = reconfigured(image.settings, ["all=always"], None, None, {})
    document = outcome_document(image.run(settings).outcome)
    return {k: v for k, v in document.items() if k not in DIFFERENT}


DIFFERENT = {"unseen", "resident", "seconds", "others"}
"""Parts of an answer that tell where it comes from, or what others have."""
