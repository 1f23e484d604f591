# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole fleets, on real workers: killed ones, damaged files, what is there already, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from threading import Timer
from typing import Any

import dask
import pytest
from benchmarks.fleet import make_fleet
from distributed import Client, LocalCluster, WorkerPlugin
from pyarrow import dataset

from mthp.cli import main
from tests.cli.test_bad_input import ENV, MTHP
from tests.cli.test_kills import of_session
from tests.fleet.made import REDIS, on_host, write_fleet
from tests.report.test_plan_json import complaints

RECORDED = Path(__file__).parents[1] / "data/captured-7.3.4.zip"


class Deadly(WorkerPlugin):  # type: ignore[misc]
    """A snapshot of this name kills its worker: where there is a file to note it in, once and at once; else
    as often as it comes, a third of a second later, while it waits for the worker's thread: Dask does not
    replace a worker that dies before it is quite there."""

    def __init__(self, name: str, once: Path | None = None) -> None:
        self.snapshot, self.once = name, once

    def setup(self, worker: Any) -> None:
        """Know the worker."""
        self.worker = worker

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """Set the clock where it begins."""
        if finish == "executing" and str(key).startswith(self.snapshot):
            if self.once is None:
                self.worker.executors["default"].submit(time.sleep, 9)
                Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
            elif not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Two workers, of which one may die under a snapshot before that is suspected."""
    few = {"distributed.scheduler.allowed-failures": 1}
    with (
        dask.config.set(few),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as local,
    ):
        yield local.scheduler_address


class Run:
    """A command that was run: its exit code, its document, and what it said on stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *words: object) -> None:
        capsys.readouterr()
        self.code = main(["sweep", "--fleet", *map(str, words)])
        out, self.said = capsys.readouterr()
        self.document = json.loads(out) if out else {}
        if out:
            assert complaints("fleet", self.document) == []


def content(folder: Path) -> list[dict[str, Any]]:
    """All rows of both datasets, in some order that does not depend on the run."""
    found = []
    for name in ("captured", "answers"):
        table = dataset.dataset(folder / name, format="parquet", partitioning="hive").to_table()
        found += sorted(table.to_pylist(), key=repr)
    return found


def test_a_worker_that_is_killed_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str
) -> None:
    fleet, ends = write_fleet(tmp_path / "fleet", 6), ["--json", "--scheduler", scheduler]
    (fleet / "host-3" / "a.npz").rename(fleet / "host-3" / "killer.npz")
    calm = Run(capsys, fleet, "-o", tmp_path / "calm", *ends)
    assert calm.code == 0 and not calm.said
    with Client(scheduler) as client:
        client.register_plugin(Deadly("killer.npz", tmp_path / "died"), name="deadly")
    shaken = Run(capsys, fleet, "-o", tmp_path / "shaken", *ends)
    assert (tmp_path / "died").exists()
    assert shaken.code == 0 and not shaken.said
    assert shaken.document | {"folder": ""} == calm.document | {"folder": ""}
    assert shaken.document["done_anew"] == shaken.document["groups"][0]["machines"] == 6
    assert content(tmp_path / "shaken") == content(tmp_path / "calm")

    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("calm/**/*.*")}
    # Where all is done no worker is needed.
    gone = ["--json", "--scheduler", "nobody:1"]
    again = Run(capsys, fleet, "-o", tmp_path / "calm", *gone, "--min-large", "20")
    assert again.document["done_anew"] == 0 and again.document["found"] == 6
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("calm/**/*.*")}


@pytest.mark.slow
def test_what_kills_each_worker_is_named_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str
) -> None:
    fleet = write_fleet(tmp_path / "fleet", 4)
    deadly = fleet / "host-2" / "deadly.npz"
    with zipfile.ZipFile(RECORDED) as archive:
        deadly.write_bytes(archive.read("captures/13-2.snap.npz"))
    with Client(scheduler) as client:
        client.register_plugin(Deadly("deadly.npz"), name="deadly")
    run = Run(capsys, fleet, "-o", tmp_path / "out", "--json", "--scheduler", scheduler)
    why = "each worker that had it was killed (out of memory?)"
    assert run.code == 1 and run.said == f"mthp sweep: {deadly}: {why}\n"
    assert run.document["unusable"] == [{"path": str(deadly), "why": why}]
    assert run.document["groups"][0]["machines"] == 4


def test_mixed_and_damaged_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str
) -> None:
    fleet = write_fleet(tmp_path / "fleet", 2)
    (fleet / "old.npz").write_bytes(on_host("old", kernel="6.12.1").packed())
    (fleet / "redis.npz").write_bytes(REDIS.read_bytes())
    (fleet / "same.npz").write_bytes(REDIS.read_bytes())
    (fleet / "cut.npz").write_bytes(REDIS.read_bytes()[:999])
    (fleet / "older.npz").write_bytes(on_host("a", schema="mthp-snapshot/0").packed())
    words = (fleet, "-o", tmp_path / "out", "--scheduler", scheduler)
    run = Run(capsys, *words, "--json")
    assert run.code == 1
    lines = run.said.splitlines()
    assert [line.partition(".npz: ")[0] for line in lines] == [
        f"mthp sweep: {fleet}/cut", f"mthp sweep: {fleet}/older"
    ]  # fmt: skip
    assert lines[1].endswith("schema 'mthp-snapshot/0' is not 'mthp-snapshot/1'")
    kinds = [
        (each["profile"], each["pmd_size"], each["machines"]) for each in run.document["groups"]
    ]
    assert sorted(kinds) == [("7.3", 65536, 2), ("pmd-only", 65536, 1), ("pmd-only", 2 << 20, 1)]
    assert (run.document["found"], run.document["same_content"]) == (7, 1)

    assert main(["sweep", "--fleet", *map(str, words), "--max-added", "0"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "7 snapshots, 4 answered; 4 of them by an earlier run; 1 with the same content" in shown
    assert "2 could not be used; 3 groups that cannot be compared" in shown
    assert "kernels: 6.12.1 (1)" in shown and "pages of 4K, PMDs of 64K" in shown
    assert "holds on the most machines, with at most 0 % more memory: on 2 of 2" in shown

    part = next((tmp_path / "out" / "answers").glob("host=host-1/*/*.parquet"))
    part.write_bytes(b"PAR1")
    run = Run(capsys, *words, "--json")
    assert f"host-1/a.npz: {part}: " in run.said and "remove it to have it done again" in run.said
    assert run.code == 1 and run.said.count("\n") == 3
    part.unlink()
    assert Run(capsys, *words, "--json").document["done_anew"] == 1


def test_a_pattern_and_a_wish_that_nothing_holds_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scheduler: str
) -> None:
    fleet = write_fleet(tmp_path / "fleet", 3)
    words = (f"{fleet}/**/a.npz", "-o", tmp_path / "out", "--scheduler", scheduler)
    run = Run(capsys, *words, "--json", "--min-large", "100", "--min-reach", "100")
    assert run.code == 1 and not run.said
    (group,) = run.document["groups"]
    assert group["machines"] == 3 and not any(each["chosen"] for each in group["settings"])
    assert {each["machine"] for each in group["worst"]} == {"host-0", "host-1", "host-2"}
    assert {"large", "reach"} <= {miss["wanted"] for miss in group["worst"][0]["missed"]}


def test_ctrl_c_leaves_what_was_done(tmp_path: Path) -> None:
    fleet, out = write_fleet(tmp_path / "fleet", 1), tmp_path / "out"
    for number in range(30):
        path = fleet / f"r{number}.npz"
        path.write_bytes(on_host(f"r{number}", cpus=number + 1).packed())
    words = [*MTHP, "sweep", "--fleet", str(fleet), "-o", str(out), "--jobs", "1", "--json"]
    with subprocess.Popen(
        words,
        env=ENV,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        while not [*out.glob("done/*.json")] and run.poll() is None:
            time.sleep(0.005)
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in of_session(run.pid)]
        assert sum(b"spawn_main" in each for each in commands) == 1
        os.killpg(run.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
        shown, said = run.communicate(timeout=60)
    assert (run.returncode, shown, said) == (1, "", "mthp sweep: interrupted\n")
    done = len([*out.glob("done/*.json")])
    assert 0 < done < 31
    assert not [*out.glob("**/*.part")]
    assert len({row["snapshot"] for row in content(out) if "front" in row}) >= done
    end = time.monotonic() + 10
    while (left := of_session(run.pid)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left, "processes are left"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--fleet", "DIR", "-o", "out"], 2, "DIR: no snapshot (.npz) found"),
        (["--fleet", "DIR/*.npz", "-o", "out"], 2, "DIR/*.npz: no snapshot (.npz) found"),
        (["--fleet", "DIR"], 2, "--fleet needs -o FOLDER, for what is found of each snapshot"),
        (
            ["--fleet", "DIR", "-o", "out", "--all"],
            2,
            "--fleet names the snapshots: give no other target",
        ),
        (
            ["--fleet", "DIR", "-o", "out", "--html", "a"],
            2,
            "--html is of one target, not of --fleet",
        ),
        (["a.npz", "-o", "out"], 2, "-o and --scheduler go with --fleet"),
        (["--fleet", str(REDIS), "-o", str(REDIS)], 2, f"{REDIS}: Not a directory"),
        (
            ["--fleet", str(REDIS), "-o", "out", "--enabled", "64kB=often"],
            2,
            "--enabled 64kB: 'often'",
        ),
        (["--fleet", str(REDIS), "-o", "out", "--scheduler", "no"], 5, "scheduler no: "),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").mkdir()
    assert main(["sweep", *words]) == code
    out, line = capsys.readouterr()
    assert line.startswith(f"mthp sweep: {said}") and line.count("\n") == 1 and not out


@pytest.mark.parametrize("missing", ["pyarrow", "distributed"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["sweep", "--fleet", str(REDIS), "-o", str(tmp_path / "out")]) == 5
    said = (
        f"mthp sweep: --fleet needs {missing}, which is not installed: pip install 'mthp[fleet]'\n"
    )
    assert capsys.readouterr().err == said
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_thousand_snapshots_are_not_held_in_memory_and_a_worker_may_die(tmp_path: Path) -> None:
    make_fleet(tmp_path / "fleet", 1000, seed=1)
    code = (
        "import resource, sys; from mthp.cli import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    words = ["sweep", "--fleet", str(tmp_path / "fleet"), "-o", str(tmp_path / "out"), "--json"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], env=ENV, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        while len([*tmp_path.glob("out/done/*.json")]) < 300 and run.poll() is None:
            time.sleep(0.1)
        worker = max(of_session(run.pid))
        os.kill(worker, signal.SIGKILL)
        shown, said = run.communicate()
    document = json.loads(shown)
    assert run.returncode == 0 and document["done_anew"] == document["found"] == 1000
    assert sorted(group["machines"] for group in document["groups"])[-1] > 300
    assert int(said) < 300 << 10  # KiB


def test_help_does_not_load_them() -> None:
    code = "import sys; from mthp.cli import main; main(['sweep', '--help']); print(sys.modules.keys())"
    out = subprocess.run(
        [sys.executable, "-c", code], env=ENV, capture_output=True, text=True
    ).stdout
    assert "--fleet" in out
    assert not any(f"'{name}'" in out for name in ("pyarrow", "distributed", "dask", "numpy"))
