# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever the streams and the surroundings are: the right message and code, and no traceback."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.cli.test_bad_input import ENV, MTHP, ROOT, SCENARIO

VERBS = {
    "collapse": ("collapse", SCENARIO, "--json"),
    "diff": ("diff", "v16", "7.3"),
    "snap": ("snap", "--pid", "self", "-o", "x.npz", "--quiet"),
    "check": ("check", "--list"),
    "replay": ("replay", "nonsense"),
    "lab": ("lab", "list"),
    "help": ("--help",),
    "nothing": ("collapse",),
}
SILENT = {"snap"}
"""What prints nothing on stdout."""


def shell(
    tmp_path: Path, verb: str, before: str = "", after: str = "", **env: str
) -> tuple[int, str, str]:
    """Run it by bash: exit code, stdout, stderr. Without PYTHONUNBUFFERED, as people have it."""
    line = f"set -o pipefail; {before} {shlex.join([*MTHP, *VERBS[verb]])} {after}"
    clean = {name: value for name, value in ENV.items() if not name.startswith("PYTHONUN")}
    done = subprocess.run(
        ["bash", "-c", line], env={**clean, **env}, cwd=tmp_path, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr and "rror in" not in done.stderr, done.stderr
    # How long a run took is another time another number.
    return done.returncode, re.sub(r'"seconds": [\d.e-]+', "", done.stdout), done.stderr


def closed(tmp_path: Path, verb: str, redirection: str) -> None:
    """Without a stream, or with a full one, of which the rest is as without that."""
    usual, out, said = shell(tmp_path, verb)
    code, printed, err = shell(tmp_path, verb, after=redirection)
    if "1>" in redirection and verb not in SILENT and not usual:
        assert (code, printed) == (1, "")
        reason = "Bad file descriptor" if "&-" in redirection else "No space left on device"
        assert err.endswith(f": cannot write: {reason}\n") and err.count("\n") == 1
    else:
        assert (code, printed) == (usual, out)
        assert err == ("" if "2>" in redirection else said)
    if verb == "snap":
        assert (tmp_path / "x.npz").read_bytes()[:2] == b"PK", "not a stream's number"


REDIRECTIONS = ("<&-", "1>&-", "2>&-", "1>/dev/full", "2>/dev/full", "<&- 2>&-")
FEW = [("snap", "<&- 2>&-"), ("lab", "1>&-"), ("lab", "1>/dev/full"), ("nothing", "2>/dev/full")]


@pytest.mark.parametrize(("verb", "redirection"), FEW)
def test_a_stream_that_is_closed_or_full(tmp_path: Path, verb: str, redirection: str) -> None:
    closed(tmp_path, verb, redirection)


@pytest.mark.slow
@pytest.mark.parametrize("redirection", REDIRECTIONS)
@pytest.mark.parametrize("verb", VERBS)
def test_every_stream_of_every_verb(tmp_path: Path, verb: str, redirection: str) -> None:
    closed(tmp_path, verb, redirection)


def test_a_closed_stdout_is_nobodys_file(tmp_path: Path) -> None:
    """With all three closed, the snapshot is not taken for one of them."""
    code, *_ = shell(tmp_path, "snap", after="<&- >&- 2>&-")
    assert code == 0 and (tmp_path / "x.npz").read_bytes()[:2] == b"PK"


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    code, out, err = shell(tmp_path, "diff", after="| head -c 10")
    assert (code, len(out), err) in ((0, 10, ""), (1, 10, ""))  # all fits into the pipe, or not


WIDTHS = ("0", "-5", "abc", "1", "99999999999999999999")


@pytest.mark.parametrize(
    "width", [WIDTHS[0], *(pytest.param(w, marks=pytest.mark.slow) for w in WIDTHS[1:])]
)
def test_widths_that_no_terminal_has(tmp_path: Path, width: str) -> None:
    assert shell(tmp_path, "diff", COLUMNS=width) == shell(tmp_path, "diff", COLUMNS="80")


@pytest.mark.parametrize("most", [5, pytest.param(7, marks=pytest.mark.slow)])
def test_few_descriptors(tmp_path: Path, most: int) -> None:
    """Enough, or one line that says so."""
    for verb in ("collapse", "snap"):
        code, _, err = shell(tmp_path, verb, f"ulimit -n {most};")
        assert code == 0 or err == f"mthp {verb}: too many open files (ulimit -n)\n"
    assert code == 1, "that the snapshot needs more"


@pytest.mark.parametrize(
    "where",
    [
        "/" + "x" * 4095,
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("/nonexistent", "a file")),
    ],
)
def test_folders_for_temporary_files_that_are_none(tmp_path: Path, where: str) -> None:
    """Python's rule: the next of the usual ones is taken."""
    if where == "a file":
        where = str(tmp_path / "file")
        (tmp_path / "file").touch()
    assert shell(tmp_path, "snap", TMPDIR=where) == (0, "", "")


def test_a_user_without_a_home(tmp_path: Path) -> None:
    assert shell(tmp_path, "lab", HOME="relative", XDG_CACHE_HOME="") == (
        5,
        "",
        "mthp lab: no folder for the cache: 'relative/.cache' (MTHP_CACHE=DIR gives one)\n",
    )


@pytest.mark.parametrize("coding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_encodings_that_lack_characters(tmp_path: Path, coding: str) -> None:
    name = os.fsdecode(b"\xff\xc3\xa9.npz")
    shutil.copy(ROOT / "src/mthp/data/redis.npz", tmp_path / name)
    env = {**ENV, "PYTHONIOENCODING": coding, "LC_ALL": "C", "COLUMNS": "100"}
    done = subprocess.run(
        [*MTHP, "collapse", name, "--no-changes"], cwd=tmp_path, env=env, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"npz" in done.stdout


def test_ctrl_c_while_modules_are_loaded() -> None:
    with subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "mthp", "check", "--list"],
        env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    ) as run:  # fmt: skip
        assert run.stderr is not None
        while "argparse" not in run.stderr.readline():
            pass  # Python itself has started, and ours has begun
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
    assert "Traceback" not in said
    assert run.returncode == -signal.SIGINT or (run.returncode == 1 and "interrupted" in said)
