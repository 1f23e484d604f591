# SPDX-License-Identifier: GPL-2.0-or-later
"""The plain capture that is in a deep one, against those that were made beside it in a guest."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mthp.compare.fuzz import DraftRunner
from mthp.image.capture.columns import DEEP_WIDTH
from mthp.lab.draw.program_builder import DECOY
from mthp.lab.program.program import ALL_OFF, BASE, Draft, parse, registration
from mthp.lab.session.captures import CapturePath, capture_tools, without_deep
from mthp.words.settings import Enabled
from tests.lab.guests import kernel_or_skip

ZIP = Path(__file__).parent.parent / "data" / "captured-7.3.4.zip"
PASSING = ("time", "buddyinfo", "pagetypeinfo", "meminfo", "others")
"""What was another when the second of the two was made: the kernel's own memory, for one."""


def ids() -> list[str]:
    with zipfile.ZipFile(ZIP) as file:
        names = [name for name in file.namelist() if name.endswith(".deep.npz")]
    return [name.removeprefix("captures/").removesuffix(".deep.npz") for name in names]


def told(data: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document, but for what passes, and the columns."""
    arrays = dict(np.load(io.BytesIO(data)))
    meta = json.loads(arrays.pop("meta").tobytes())
    return {name: each for name, each in meta.items() if name not in PASSING}, arrays


@pytest.mark.parametrize("name", ids())
def test_it_is_what_a_plain_capture_reads(name: str) -> None:
    with zipfile.ZipFile(ZIP) as file:
        plain, deep = (file.read(f"captures/{name}.{path}.npz") for path in ("snap", "deep"))
    meta, arrays = told(without_deep(deep))
    wanted, columns = told(plain)
    assert meta == wanted
    assert arrays.keys() == columns.keys() and not arrays.keys() & DEEP_WIDTH.keys()
    for member, column in columns.items():
        assert (arrays[member].dtype, arrays[member].tobytes()) == (column.dtype, column.tobytes())


PROGRAM = ("new", f"s base {BASE}", "s mmap 512 1024", "s wr 512 700", "s adv 600 4 20")
WITH_64K = ALL_OFF.replace(sizes={**ALL_OFF.sizes, 4: Enabled.ALWAYS})


@pytest.mark.lab
def test_nothing_in_a_plain_capture_tells_whether_khugepaged_has_a_process() -> None:
    """Of two that differ in nothing else: one was registered by a mapping that is gone. In one of them the
    kernel collapses, in the other it does not."""
    seen = []
    with (
        capture_tools([CapturePath.SNAP]) as tools,
        DraftRunner(kernel_or_skip(), tools) as runner,
    ):
        for registers in ((), registration("s", DECOY)):
            made = (*parse(PROGRAM), *registers)
            verdict = runner.record(Draft("x", "x", made, settings=WITH_64K))
            assert verdict.record is not None and verdict.captured is not None
            meta, arrays = told(verdict.captured.files[CapturePath.SNAP])
            assert meta["khugepaged"]["started"] < meta["processes"][0]["started"]
            own = arrays["table_address"] >= BASE
            vmas = [each for each in meta["processes"][0]["vmas"] if each["start"] >= BASE]
            columns = {
                name: arrays[name][own].tolist()
                for name in ("table_address", "pte", "folio_order", "kpagecount", "kpageflags")
            }
            seen.append((vmas[0], columns))
            assert bool(verdict.record["passes"][0]["events"]) == bool(registers)
    assert seen[0] == seen[1]
