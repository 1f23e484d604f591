# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp doctor: this host, a live process, a snapshot, a scenario; what it prints and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mthp.cli import main
from mthp.image.capture.host import THP
from mthp.words.settings import TRANSPARENT_HUGEPAGE
from tests.cli.test_bad_input import REDIS, ROOT

OOM = str(ROOT / "docs/findings/oom-order-2.jsonl")
SETTINGS_HERE = pytest.mark.skipif(
    not Path(THP, "enabled").exists(), reason="no settings to read here"
)
UNDER_7_3 = ("--profile", "7.3", "--enabled", "64kB=always")


def doctor(capfd: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The document of a run; its exit code is 0 whatever is found."""
    assert main(["doctor", "--json", *argv]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    document: dict[str, Any] = json.loads(out)
    return document


def rules(document: dict[str, Any]) -> list[str]:
    """What was found."""
    return [finding["rule"] for finding in document["findings"]]


@SETTINGS_HERE
def test_this_host_and_a_live_process(capfd: pytest.CaptureFixture[str]) -> None:
    host = doctor(capfd)
    assert host["target"] == "this host" and host["profile_reason"].startswith(
        "that of the running"
    )
    assert {each["why"] for each in host["not_looked_for"]} >= {"needs a target"}
    here = doctor(capfd, "--pid", "self")
    assert here["settings"] == host["settings"]
    assert not any("target" in each["why"] for each in here["not_looked_for"])


@SETTINGS_HERE
def test_what_one_is_about_to_write(capfd: pytest.CaptureFixture[str]) -> None:
    none = doctor(capfd, *UNDER_7_3, "--max-ptes-none", "409")
    assert "counts-as-zero" in rules(none)
    assert "memory-is-only-added" in rules(doctor(capfd, *UNDER_7_3, "--max-ptes-none", "511"))
    assert "thp-anon" in rules(doctor(capfd, "--thp-anon", "64K:always"))
    assert "thp-anon" not in rules(doctor(capfd, "--thp-anon", "64K:always;2M:inherit"))
    assert main(["doctor", "--max-ptes-none", "512"]) == 2
    assert capfd.readouterr().err == "mthp doctor: max_ptes_none: 512 is outside 0..511\n"


def test_a_snapshot_and_a_scenario(capfd: pytest.CaptureFixture[str]) -> None:
    redis = doctor(capfd, str(REDIS), *UNDER_7_3, "--max-ptes-none", "409")
    assert rules(redis) == ["underused-is-split", "counts-as-zero", "no-mapping"]
    assert [each["what"] for each in redis["not_looked_for"]] == ["thp_anon= at boot"]
    command = re.compile(
        rf"echo \w+ (> {TRANSPARENT_HUGEPAGE}/\S+|\| tee( {TRANSPARENT_HUGEPAGE}/\S+)+)"
    )
    for finding in redis["findings"]:
        assert finding["write"] is None or command.fullmatch(finding["write"])
        assert finding["kernel"].endswith("()") and finding["means"] and finding["matters"]
    assert rules(doctor(capfd, OOM))[0] == "oom-for-khugepaged"


def test_a_snapshot_without_settings(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with np.load(REDIS) as arrays:
        members = dict(arrays)
    meta = json.loads(members["meta"].tobytes())
    meta["sysfs"] = {}
    members["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    bare = tmp_path / "bare.npz"
    np.savez(bare, **members)
    assert main(["doctor", str(bare)]) == 2
    assert capfd.readouterr().err == (
        f"mthp doctor: {bare}: it has no settings of transparent_hugepage\n"
    )


def test_one_place_for_the_settings() -> None:
    assert THP == TRANSPARENT_HUGEPAGE
