# SPDX-License-Identifier: GPL-2.0-or-later
"""Each verb, ended by each signal at random moments: nothing is lost, nothing is stopped, nothing is
left. (Of snap --freeze: tests/image/test_freeze.py.)"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mthp.image.snapshot import load
from tests.cli.test_bad_input import ENV, MTHP
from tests.image.children import MIXED, child
from tests.lab.guests import kernel_or_skip

ENDINGS = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]
ENDINGS += [signal.SIGABRT, signal.SIGPIPE, signal.SIGSEGV, signal.SIGUSR1, signal.SIGBUS]
IN_ORDER = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""After these it says so in one line, with exit code 1, unless it was at its end already."""


def of_session(leader: int) -> set[int]:
    """The processes of a session that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(") ")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == leader and state not in "ZX":
            found.add(int(stat.parent.name))
    return found


class Ended:
    """A command that was ended by a signal. code, said: its exit code, and what it said on stderr."""

    def __init__(self, folder: Path, words: Sequence[str], ending: int, moment: float) -> None:
        (folder.parent / "tmp").mkdir(exist_ok=True)
        env = {**ENV, "TMPDIR": str(folder.parent / "tmp")}
        with subprocess.Popen(
            [*MTHP, *words], cwd=folder, env=env, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as run:  # fmt: skip
            end = time.monotonic() + moment
            while run.poll() is None and time.monotonic() < end:
                time.sleep(0.005)
            self.was_running = run.poll() is None
            run.send_signal(ending)
            if ending == signal.SIGPIPE:  # Python ignores it; what then goes on may take long
                run.send_signal(signal.SIGTERM)
            try:
                _, self.said = run.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(run.pid, signal.SIGKILL)
                raise
            self.code = run.returncode
            end = time.monotonic() + 10
            while (left := of_session(run.pid)) and time.monotonic() < end:
                time.sleep(0.01)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, "processes are left"
        # Until our first line has run, Ctrl-C is Python's own matter.
        own = "_run_code" in self.said and "import signal\n" not in self.said
        assert "Traceback" not in self.said or not own, self.said
        if ending in IN_ORDER and self.was_running:
            # Python itself ends by SIGINT what was interrupted within exec(), as dataclasses use it.
            assert self.code in (0, 1, 3, 4, -ending, -signal.SIGINT), self.said
            assert "Traceback" in self.said or self.said.count("\n") <= 3


def moments(
    draw: random.Random, most: float, endings: Sequence[int]
) -> Iterator[tuple[int, float]]:
    for ending in endings:
        yield ending, draw.random() * most


def killed(
    tmp_path: Path,
    words: Sequence[str],
    endings: Sequence[int],
    most: float,
    look: Callable[[Path], None],
) -> None:
    """End it by each of these, in one folder; then look: nothing is lost, and the last run, which is
    let go on, has left what is wanted alone."""
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    for ending, moment in moments(random.Random(f"{words} {len(endings)}"), most, endings):
        Ended(folder, words, ending, moment)
        look(folder)


def snapped(folder: Path) -> None:
    load(folder / "x.npz")


def snap(tmp_path: Path, endings: Sequence[int]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with child(MIXED) as kid:
        words = ["snap", "--pid", str(kid.pid), "-o", "x.npz", "--reader", "pagemap", "--quiet"]
        assert Ended(folder, words, 0, 60).code == 0
        killed(tmp_path, words, endings, 0.5, snapped)
        assert Ended(folder, words, 0, 60).code == 0
    assert os.listdir(folder) == ["x.npz"] and os.listdir(tmp_path / "tmp") == []


def collapse(tmp_path: Path, endings: Sequence[int]) -> None:
    with child(MIXED) as kid:

        def look(_: Path) -> None:
            status = Path(f"/proc/{kid.pid}/stat").read_text()
            assert status.rpartition(") ")[2][0] in "RSD"

        killed(tmp_path, ["collapse", "--pid", str(kid.pid)], endings, 1.5, look)
    assert os.listdir(tmp_path / "folder") == os.listdir(tmp_path / "tmp") == []


CHECK = ["check", "--all", "--executions", "2000", "--jobs", "2", "--resume", "r.json", "--quiet"]


def kept(folder: Path) -> None:
    if (folder / "r.json").exists():
        assert json.loads((folder / "r.json").read_text())["format"]


def check(tmp_path: Path, endings: Sequence[int], most: float) -> None:
    killed(tmp_path, CHECK, endings, most, kept)
    for seconds in (4, 16, 64):  # on a busy machine it is still being loaded at first
        ended = Ended(tmp_path / "folder", CHECK, signal.SIGINT, seconds)
        if "goes on" in ended.said:
            break
    assert ended.code == 1 and "; the same command goes on" in ended.said
    assert os.listdir(tmp_path / "folder") == ["r.json"] and os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("verb", [snap, collapse])
def test_a_verb_ended_at_a_random_moment(
    tmp_path: Path, verb: Callable[[Path, Sequence[int]], None]
) -> None:
    verb(tmp_path, ENDINGS[:2])


@pytest.mark.slow
def test_check_ended_at_a_random_moment(tmp_path: Path) -> None:
    check(tmp_path, [signal.SIGKILL], 3)


@pytest.mark.slow
@pytest.mark.parametrize("verb", [snap, collapse])
def test_a_verb_ended_at_many_moments(
    tmp_path: Path, verb: Callable[[Path, Sequence[int]], None]
) -> None:
    verb(tmp_path, ENDINGS * 10)


@pytest.mark.slow
def test_check_ended_at_many_moments(tmp_path: Path) -> None:
    check(tmp_path, ENDINGS * 3, 12)


@pytest.mark.lab
def test_lab_ended_at_many_moments(tmp_path: Path) -> None:
    """Guests end with the command, the campaign goes on where it was, and no folder is left."""
    kernel_or_skip()
    words = ["lab", "fuzz", "--n", "40", "--guests", "1", "--shrink", "0", "-o", "campaign"]
    killed(tmp_path, words, ENDINGS, 20, lambda _: None)
    folder = tmp_path / "folder"
    last = Ended(folder, [*words[:3], "4", *words[4:]], 0, 300)
    assert last.code == 0, last.said
    files = {"campaign.json", "captures", "log.jsonl", "records.jsonl"}
    assert set(os.listdir(folder / "campaign")) == files and os.listdir(tmp_path / "tmp") == []


@pytest.mark.slow
def test_a_closed_terminal_is_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    for seconds in (3, 12, 48):  # on a busy machine it is still being loaded at first
        ended = Ended(tmp_path, [*CHECK[:-3], "--quiet"], signal.SIGHUP, seconds)
        if ended.code != -signal.SIGHUP:
            break
    assert (ended.code, ended.said) == (1, "mthp check: interrupted\n")
