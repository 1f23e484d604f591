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

from mthp.image.capture.columns import DEEP_WIDTH
from mthp.lab.session.captures import without_deep

ZIP = Path(__file__).parent.parent / "data" / "captured-7.3.4.zip"
PASSING = ("time", "buddyinfo", "meminfo", "others")
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
