# SPDX-License-Identifier: GPL-2.0-or-later
"""Machine code that Numba keeps on disk is found again while nothing has changed, and only then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SUMS = """
from shapes import FACTOR

def total(shape):
    return FACTOR * shape.sides[0]
"""
SHAPES = """
from typing import Any, NamedTuple
FACTOR = {factor}

class {name}(NamedTuple):
    sides: Any

Shape = {name}
"""
CALL = """
import numpy, shapes, sums
from mthp.explore.compiled.jit import machine_code

total = machine_code(["total"], sums, shapes)["total"]
print(total(shapes.Shape(numpy.array([7]))), sum(total.stats.cache_hits.values()))
"""


def call(folder: Path, factor: int, name: str, **variables: str) -> str:
    (folder / "shapes.py").write_text(SHAPES.format(factor=factor, name=name))
    path = os.pathsep.join((str(folder), *sys.path))
    kept = str(folder / "kept")
    environment = {**os.environ, "PYTHONPATH": path, "NUMBA_CACHE_DIR": kept, **variables}
    # Python's own byte code would be taken for a file that changes twice a second.
    done = subprocess.run(
        [sys.executable, "-B", "-c", CALL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kept_code_is_used_until_a_file_changes_that_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    assert call(tmp_path, 2, "Square") == "14 0"
    assert call(tmp_path, 2, "Square") == "14 1"
    assert call(tmp_path, 3, "Square") == "21 0"
    assert call(tmp_path, 3, "Rectangle") == "21 0"


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "__pycache__").write_text("no folder")
    (tmp_path / "kept").write_text("no folder")
    assert call(tmp_path, 2, "Square", HOME=os.devnull, XDG_CACHE_HOME=os.devnull) == "14 0"
