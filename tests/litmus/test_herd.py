# SPDX-License-Identifier: GPL-2.0-or-later
"""The publish pattern as LKMM litmus tests: our models agree with what each file says, and so does
herd7 where it is installed together with the kernel's memory model (LKMM_DIR)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mthp.machine.store_buffer import Model
from mthp.schedulers.explore import Explorer, Until
from tests.litmus.test_store_buffer import Between, Publish, barrier, locks, nothing

FILES = Path(__file__).parents[2] / "docs" / "litmus"
PATTERNS: dict[str, Between] = {
    "publish-wmb": barrier,
    "publish-no-wmb": nothing,
    "publish-locks": locks,
}


def said(name: str) -> bool:
    """Whether the file says that stale contents can be seen."""
    text = (FILES / f"{name}.litmus").read_text(encoding="utf-8")
    found = re.search(r"Result: (Never|Sometimes)", text)
    assert found is not None
    return found[1] == "Sometimes"


def test_every_file_has_its_pattern() -> None:
    assert {path.stem for path in FILES.glob("*.litmus")} == PATTERNS.keys()


@pytest.mark.parametrize("name", PATTERNS)
def test_our_lkmm_machine_agrees(name: str) -> None:
    between = PATTERNS[name]
    outcome = Explorer(lambda: Publish(Model.LKMM, between), until=Until.END).explore()
    stale = any(finding.broken[0][1] == (1, 0) for finding in outcome.findings)
    assert stale == said(name)


@pytest.mark.skipif(
    shutil.which("herd7") is None or "LKMM_DIR" not in os.environ,
    reason="herd7, or LKMM_DIR (tools/memory-model of a kernel), is not at hand",
)
@pytest.mark.parametrize("name", PATTERNS)
def test_herd7_agrees(name: str) -> None:
    command = ["herd7", "-conf", "linux-kernel.cfg", str(FILES / f"{name}.litmus")]
    ran = subprocess.run(
        command, cwd=os.environ["LKMM_DIR"], capture_output=True, text=True, check=True
    )
    assert ("Observation" in ran.stdout) and ((" Never " not in ran.stdout) == said(name))
