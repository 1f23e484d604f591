# SPDX-License-Identifier: GPL-2.0-or-later
"""The public face: what it exports, what it raises, and that policies are held to the rules."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mthp
import mthp.api
from mthp.words.events import OrderWalk

REDIS = Path(__file__).parent.parent / "src/mthp/data/redis.npz"


def test_every_exported_name_is_there_and_documented() -> None:
    assert len(set(mthp.api.__all__)) == len(mthp.api.__all__)
    for name in mthp.api.__all__:
        assert getattr(mthp, name) is getattr(mthp.api, name)
        assert name in dir(mthp)
    functions = [name for name in mthp.api.__all__ if name[0].islower()]
    assert all(getattr(mthp, name).__doc__ for name in functions)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'collapse_everything'"):
        _ = mthp.collapse_everything


def test_importing_it_is_cheap() -> None:
    """NumPy and the engine wait until they are asked for."""
    code = "import sys, mthp; mthp.__version__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_live_process_is_captured_and_run() -> None:
    image = mthp.capture()
    run = image.run(image.configured(enabled="all=always,always"), "7.3", passes=1)
    assert run.outcome.processes == 1
    assert sum(folio.pages for folio in run.folios()) > 0


def test_errors_are_those_that_are_said(tmp_path: Path) -> None:
    with pytest.raises(mthp.FileError):
        mthp.load(tmp_path / "missing.npz")
    with pytest.raises(mthp.FileError):
        mthp.load(f"{tmp_path}/missing.jsonl#a")
    with pytest.raises(mthp.CaptureError, match="no process"):
        mthp.capture(1 << 22)
    with pytest.raises(mthp.SettingsError):
        mthp.example().configured(max_ptes_none=512)
    with pytest.raises(ValueError, match=r"no profile '9\.9'"):
        mthp.example().run(profile="9.9")
    with pytest.raises(ValueError, match="no rival 'nobody'"):
        mthp.check_protocol("nobody")
    with pytest.raises(ValueError, match="holds this 0 times"):
        mthp.check_protocol("fault", protocol=[mthp.Edit("khugepaged.collapse", "_replace", "x")])
    with pytest.raises(mthp.VariantError):
        mthp.check_protocol("fault", protocol=_written(tmp_path, "x = 1\n"))


def _written(folder: Path, text: str) -> Path:
    path = folder / "protocol.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("window", "complaint"),
    [((0, 1), "order 1"), ((0, 10), "order 10"), ((8, 4), "PTE 8"), ((512, 4), "PTE 512")],
)
def test_a_policy_cannot_ask_for_what_no_folio_can_be(
    window: tuple[int, int], complaint: str
) -> None:
    redis = mthp.load(REDIS)
    settings = redis.configured(enabled="all=always,always")
    with pytest.raises(ValueError, match=complaint):
        redis.run(settings, "7.3", policy=lambda _: [window])


def test_a_policy_is_told_each_result_and_every_page_has_a_refusal() -> None:
    """What it does not choose is refused as such; the results it is sent are those of the events."""
    told = []

    def first_quarter(table: OrderWalk):  # type: ignore[no-untyped-def]
        told.append((yield 0, 7))

    redis = mthp.load(REDIS)
    run = redis.run(redis.configured(enabled="all=always,always"), "7.3", policy=first_quarter)
    ends = [event.status for event in run.events if isinstance(event, mthp.CollapseHugePage)]
    assert told == ends
    assert mthp.ScanResult.SUCCEED in told
    assert mthp.WindowGate.NOT_CHOSEN in {each.status for each in run.refusals}
    assert all(folio.order in (0, 7) for folio in run.folios())


def endless(_: OrderWalk) -> Iterator[tuple[int, int]]:
    while True:
        yield 0, 4


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (lambda _: None, "gave None, not pairs"),
        (lambda _: (0, 4), "chose 0, not a PTE and an order"),
        (lambda _: [(0.0, 4)], r"chose \(0.0, 4\), not a PTE and an order"),
        (lambda _: [(0, 4, 1)], r"chose \(0, 4, 1\), not a PTE"),
        (endless, "without end"),
    ],
)
def test_a_policy_that_is_none_is_told_so(policy: Any, says: str) -> None:
    redis = mthp.example()
    settings = redis.configured(enabled="all=always,always")
    with pytest.raises(ValueError, match=says):
        redis.run(settings, "7.3", policy=policy)


def test_a_run_is_asked_for_in_the_right_words() -> None:
    redis: Any = mthp.example()
    for wrong in ({"profile": 7.3}, {"passes": 0}, {"young": "old"}):
        with pytest.raises(
            ValueError, match=r"no profile 7\.3|passes: 0|'old' is not a valid Young"
        ):
            redis.run(**wrong)
    with pytest.raises(TypeError, match=r"settings: '7\.3' is not what"):
        redis.run("7.3")
    with pytest.raises(mthp.SettingsError, match="is not a text such as"):
        redis.configured(enabled=["always"])


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ({}, "replace nothing"),
        ({"khugepaged.collapse": mthp.source_of("khugepaged.collapse")}, "replace nothing"),
        ({"khugepaged.collapse": "def ("}, "khugepaged.collapse: SyntaxError"),
        ({"no_such": "x = 1"}, "no_such: ModuleNotFoundError"),
    ],
)
def test_texts_that_are_no_protocol(texts: dict[str, str], says: str) -> None:
    with pytest.raises(mthp.VariantError, match=says):
        mthp.check_protocol("migrate-neighbour", protocol=texts, executions=1)


def test_what_there_is_not() -> None:
    with pytest.raises(ValueError, match="no module 'no_such' below mthp"):
        mthp.source_of("no_such")
    with pytest.raises(ValueError, match="executions: 0 is not"):
        mthp.check_protocol("fault", executions=0)


def test_all_of_it_is_imported_with_a_star() -> None:
    names: dict[str, Any] = {}
    exec("from mthp import *", names)
    assert set(mthp.api.__all__) == set(names) - {"__builtins__"}
