# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab fuzz, run and record, as far as they get without a guest."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mthp.cli import main
from mthp.compare.campaign import CampaignSpec, open_campaign
from mthp.image.scenario import load_one
from mthp.lab.kernels.kernels import add_copy
from tests.cli.test_bad_input import refused
from tests.compare.test_campaign import LOG, RECORDS, WRONG, lines
from tests.lab.guests import children, kernel_or_skip
from tests.lab.synthetic import bzimage
from tests.report.strict_ktap import read_ktap

RELEASE = "7.4.0-mine"
DATA = Path(__file__).parent.parent / "data"
RECORDED = DATA / "linux-7.3.4-many-vmas.jsonl.xz"
RERUN = (
    "linux-7.3.4.jsonl.xz#a-0",
    "linux-7.3.4-many-vmas.jsonl.xz#ext-0",
    "lab-7.3.4.jsonl.xz#hand:softdirty-ro-16k",
)
Campaigns = Callable[[CampaignSpec], Path]


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, but for tests with real guests."""
    monkeypatch.chdir(tmp_path)
    if request.node.get_closest_marker("lab") is None:
        monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def kernel(tmp_path: Path) -> None:
    """The cache has a kernel (which would not boot)."""
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage(RELEASE))
    add_copy(image, None)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaigns:
    """Makes a folder in which six drafts were tried, one of which disagrees."""

    def make(spec: CampaignSpec) -> Path:
        made = open_campaign(spec, tmp_path / "campaign")
        made.log.write_text(lines(LOG))
        made.records.write_text(lines(RECORDS))
        return made.folder

    return make


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--family", "nope"), "--family nope: not one of plain"),
        (("--family", "plain "), "not one of"),
        (("--family", "nodes"), "--family nodes: goes with --nodes 2 or more"),
        (("--distance", "10"), "--distance: '10' is not"),
        (("--seed", "x"), "--seed: 'x' is not a whole number"),
        (("--seed", "-1"), "--seed"),
        (("--n", "1.5"), "--n: '1.5' is not a whole number"),
        (("--n", "٣"), "not a whole number"),
        (("--n", ""), "not a whole number"),
        (("--n", "1" * 13), "not a whole number"),
        (("--guests", "two"), "--guests: 'two' is not a whole number"),
        (("--shrink", "all"), "--shrink: 'all' is not a whole number"),
        (("--paths", "all"), "--paths: 'all' is not one of scenario, snap, deep"),
        (("--paths", ""), "--paths: '' is not one of"),
        (("surplus",), "surplus"),
        (("--json", "--ktap"), "not allowed with argument --json"),
    ],
)
def test_bad_options(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    assert says in refused(capfd, "lab", "fuzz", *argv)
    assert os.listdir() == [], "nothing was begun"


@pytest.mark.parametrize(
    "argv", [("fuzz", "--n", "1"), ("run", str(RECORDED)), ("record", str(RECORDED), "-o", "x")]
)
def test_no_kernel(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    assert "no kernel in the cache: run mthp lab setup" in refused(capfd, "lab", *argv, code=5)
    said = refused(capfd, "lab", *argv, "--kernel", "7.9", code=5)
    assert "run mthp lab setup --release 7.9" in said
    assert not Path("x").exists()


@pytest.mark.usefixtures("kernel")
def test_a_host_without_programs(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "no C compiler" in refused(capfd, "lab", "fuzz", "--n", "3", "--guests", "2", code=5)
    assert Path(f"lab-fuzz-{RELEASE}-1/log.jsonl").read_text() == ""
    assert "no C compiler" in refused(capfd, "lab", "run", f"{RECORDED}#ext-0", code=5)


@pytest.mark.usefixtures("kernel")
def test_a_finished_campaign_is_told_again(
    capfd: pytest.CaptureFixture[str], campaign: Campaigns
) -> None:
    folder = campaign(CampaignSpec(7, 6, RELEASE))
    argv = ["lab", "fuzz", "--seed", "7", "--n", "6", "-o", str(folder), "--shrink", "0"]
    argv += ["--paths", "scenario"]
    assert main(argv) == 3
    out, err = capfd.readouterr()
    assert err == ""
    assert out.startswith(
        f"kernel {RELEASE}, seed 7: 6 states drawn, 4 built; 4 of 5 passes agree (80.00%)\n"
    )
    assert "disagreements (2):\n  7-2 pass 0 errno: kernel 0, engine -11\n" in out
    assert main([*argv, "--json"]) == 3
    document = json.loads(capfd.readouterr().out)
    assert document["mismatches"][0] == WRONG
    assert (document["number"], document["schema_version"]) == (6, 1)
    assert main([*argv, "--ktap"]) == 3
    plain, swap = read_ktap(capfd.readouterr().out)
    assert (plain.name, plain.passed, swap.name, swap.passed) == ("plain", False, "swap", True)
    assert [part.name for part in plain.parts] == ["7-0", "7-2", "7-4", "7-5"]
    assert plain.parts[1].notes[0] == "7-2 pass 0 errno: kernel 0, engine -11"
    told = [(part.name, part.directive, part.data) for part in swap.parts]
    assert told == [("7-1", "SKIP", "not built: no such page"), ("7-3", "", "")]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("argv", [("--seed", "8"), ("--seed", "7", "--family", "swap")])
def test_another_campaigns_folder(
    capfd: pytest.CaptureFixture[str], campaign: Campaigns, argv: tuple[str, ...]
) -> None:
    folder = campaign(CampaignSpec(7, 6, RELEASE))
    said = refused(capfd, "lab", "fuzz", *argv, "--n", "6", "-o", str(folder))
    assert f"{folder} holds another campaign" in said


@pytest.mark.usefixtures("kernel")
def test_a_folder_that_cannot_be(capfd: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    for name in ("file", "file/below"):
        assert "file" in refused(capfd, "lab", "fuzz", "--n", "1", "-o", name)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("verb", [("run",), ("record", "-o", "out.jsonl")])
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("/nonexistent.jsonl", "No such file"),
        ("/nonexistent.jsonl#a", "No such file"),
        ("/tmp", "directory"),
        (f"{RECORDED}#nope", "no scenario 'nope'"),
        ("text.jsonl", "text.jsonl"),
        ("bytes.jsonl", "bytes.jsonl"),
        ("damaged.jsonl.xz", "damaged"),
    ],
)
def test_scenarios_that_cannot_be_read(
    capfd: pytest.CaptureFixture[str], verb: tuple[str, ...], spec: str, says: str
) -> None:
    Path("text.jsonl").write_text("{}\n")
    Path("bytes.jsonl").write_bytes(b"\xff\xfe\n")
    Path("damaged.jsonl.xz").write_bytes(RECORDED.read_bytes()[:100])
    assert says in refused(capfd, "lab", *verb, spec)
    assert not Path("out.jsonl").exists()


def test_no_scenario_at_all(capfd: pytest.CaptureFixture[str]) -> None:
    assert "SCENARIO" in refused(capfd, "lab", "run")
    assert "-o/--output" in refused(capfd, "lab", "record", str(RECORDED))


@pytest.mark.usefixtures("kernel")
@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_scenario_file_without_leave_to_read(capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine.jsonl").write_text("")
    Path("mine.jsonl").chmod(0)
    assert "Permission denied" in refused(capfd, "lab", "run", "mine.jsonl")


@pytest.mark.usefixtures("kernel")
def test_a_target_that_cannot_be_written(capfd: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(capfd, "lab", "record", str(RECORDED), "-o", "no/out.jsonl")


# --- a real guest ---------------------------------------------------------------------------


@pytest.mark.lab
def test_random_states_agree_and_come_out_the_same_twice(
    capfd: pytest.CaptureFixture[str],
) -> None:
    kernel = kernel_or_skip()
    argv = ["lab", "fuzz", "--seed", "1", "--n", "40", "--guests", "1", "--json", "-o"]
    documents = []
    for folder in ("first", "second"):
        assert main([*argv, folder]) == 0
        documents.append(json.loads(capfd.readouterr().out))
        assert children() == set()
    first, second = documents
    assert first == second
    assert (first["kernel"], first["number"]) == (kernel.release, 40)
    assert first["agreed"] == first["passes"] >= first["built"] >= 36
    assert Path("first/log.jsonl").read_bytes() == Path("second/log.jsonl").read_bytes()
    assert repeatable(Path("first/records.jsonl")) == repeatable(Path("second/records.jsonl"))
    assert Path("first/records.jsonl").read_text().count("\n") == first["built"]


def repeatable(path: Path) -> str:
    """The records of a file without what the guest's whole life decides: the numbers of processes, and
    how many free blocks there are of each order. The largest order that has any is drawn, and stays."""
    return re.sub(r'"free_blocks": \{[^}]*\}, |"pids": \[[^]]*\]', "", path.read_text())


@pytest.mark.lab
def test_khugepaged_has_the_oom_killer_take_a_process(capfd: pytest.CaptureFixture[str]) -> None:
    """docs/findings.md: the first of what was found in the kernel."""
    kernel_or_skip("7.3")
    finding = str(DATA.parents[1] / "docs/findings/oom-order-2.jsonl")
    assert main(["lab", "run", "--kernel", "7.3", "--json", finding]) == 3
    (ran,) = json.loads(capfd.readouterr().out)["scenarios"]
    (made,) = ran["passes"]
    assert made["kernel"]["killed"] and "no_process_for_page" in str(made["kernel"]["events"])
    assert children() == set()


@pytest.mark.lab
def test_recorded_scenarios_are_made_anew_and_agree(capfd: pytest.CaptureFixture[str]) -> None:
    kernel_or_skip("7.3")
    specs = [f"{DATA}/{spec}" for spec in RERUN]
    assert main(["lab", "run", "--json", "--kernel", "7.3", *specs]) == 0
    scenarios = json.loads(capfd.readouterr().out)["scenarios"]
    assert [each["id"] for each in scenarios] == [spec.partition("#")[2] for spec in RERUN]
    for spec, ran in zip(specs, scenarios, strict=True):
        assert (ran["not_built"], ran["state_differs"], ran["mismatches"]) == ("", [], [])
        recorded = load_one(spec)
        assert len(ran["passes"]) == len(recorded.passes)
        for before, now in zip(recorded.passes, ran["passes"], strict=True):
            assert now["engine"] == now["kernel"]["events"]
            assert len(now["kernel"]["events"]) == len(before.events) > 0
    assert children() == set()
