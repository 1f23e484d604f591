# SPDX-License-Identifier: GPL-2.0-or-later
"""Files are replaced whole or not at all, never through a link, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mthp.words.files import (
    LINE_LENGTH,
    FileError,
    append_to,
    check_target,
    copy_new,
    one_line,
    put_in_place,
    recording,
    replace_text,
    replacing,
    scratch,
    shown,
    spooled,
    write_new,
)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "one\n")
    with replacing(path) as file:
        file.write(b"two\n")
        file.flush()
        assert path.read_text() == "one\n"
    assert path.read_text() == "two\n"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("mode", "umask", "wanted"), [(0o666, 0o027, 0o640), (0o600, 0, 0o600)])
def test_the_mode_is_that_asked_for_less_the_umask(
    tmp_path: Path, mode: int, umask: int, wanted: int
) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file", mode):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == wanted


def test_what_was_private_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for mode, wanted in ((0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o444, 0o444)):
        replace_text(path, "x")
        path.chmod(mode)
        replace_text(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == wanted
        path.unlink()


def test_other_names_of_a_file_keep_what_they_had(tmp_path: Path) -> None:
    """A hard link, which somebody else may have planted, is not written through."""
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "file").hardlink_to(tmp_path / "victim")
    with pytest.raises(FileError, match="has other names too"):
        append_to(tmp_path / "file")
    replace_text(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_text() == "kept"


def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != str(tmp_path))
    with pytest.raises(FileError, match="its folder cannot be written to"):
        check_target(tmp_path / "file")


def test_a_file_too_large_is_named(tmp_path: Path) -> None:
    """As on a full disk: the limit of a file's size stands for it."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9))\n"
        "from mthp.words.files import replace_text\n"
        "try:\n    replace_text(sys.argv[1], 'x' * 10)\n"
        "except OSError as error:\n    print(error.filename, error.strerror)\n"
    )
    path = tmp_path / "file"
    replace_text(path, "before")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.stdout == f"{path} File too large\n"
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_nothing_is_left_of_a_body_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "before")
    for error in (OSError("no space left"), KeyboardInterrupt()):
        with pytest.raises(type(error)), replacing(path) as file:
            file.write(b"after")
            raise error
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def link(path: Path) -> None:
    (path.parent / "target").write_text("kept")
    path.symlink_to("target")


def dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [link, dangling, os.mkfifo, os.mkdir])
def test_only_regular_files_are_replaced_or_added_to(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "file"
    make(path)
    before = sorted(os.listdir(tmp_path))
    for write in (check_target, lambda path: replace_text(path, "x"), append_to):
        with pytest.raises(FileError, match=f"^{path}: not a regular file$"):
            write(path)
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_IFMT(path.lstat().st_mode) != stat.S_IFREG
    if make is link:
        assert (tmp_path / "target").read_text() == "kept"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/proc/self/fd/1"])
def test_devices_stay_what_they_are(path: str) -> None:
    before = os.lstat(path).st_mode
    with pytest.raises(FileError, match="not a regular file"):
        replace_text(path, "x")
    assert os.lstat(path).st_mode == before


def test_places_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in (
        ("no/file", "No such file"),
        ("file/x", "Not a directory"),
        ("new/", "No such"),
    ):
        with pytest.raises(FileError, match=why):
            replace_text(tmp_path / "x" if path == "" else f"{tmp_path}/{path}", "x")
    with pytest.raises(FileError, match="No such file"):
        replace_text("", "x")
    assert os.listdir(tmp_path) == ["file"]


def test_a_planted_link_at_the_temporary_name_is_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one who guessed the name wins nothing: the file is only made where nothing is."""
    monkeypatch.setattr("os.urandom", bytes)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f".file.{'0' * 16}.part").symlink_to(victim)
    with pytest.raises(FileError, match="File exists"):
        replace_text(tmp_path / "file", "x")
    assert victim.read_text() == "kept"


KILLED = """
import os, signal, sys
from mthp.words.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    print("ready", flush=True)
    signal.pause()
"""


def test_what_a_killed_run_left_is_cleared_by_the_next_and_a_live_one_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", KILLED, str(path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for run in runs:
            assert run.stdout is not None and run.stdout.readline() == b"ready\n"
        assert len(os.listdir(tmp_path)) == 2
        os.kill(runs[0].pid, signal.SIGKILL)
        runs[0].wait()
        (tmp_path / ".file.part").write_text("not ours")
        replace_text(tmp_path / "other", "")
        assert len(os.listdir(tmp_path)) == 4
        replace_text(path, "whole")
        left = {name for name in os.listdir(tmp_path) if name.startswith(".file.")}
        assert len(left) == 2 and ".file.part" in left  # the live one's, and not ours
        assert path.read_text() == "whole"
    finally:
        for run in runs:
            run.kill()
            run.wait()


SCRATCH = """
import signal, sys
from mthp.words.files import scratch, write_new
with scratch(sys.argv[1]) as folder:
    write_new(folder / "file", b"x")
    print(folder.name, flush=True)
    signal.pause()
"""


def test_a_folder_that_a_killed_run_left_is_cleared_and_one_at_work_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRATCH, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        names = [run.stdout.readline().strip() for run in runs if run.stdout is not None]
        assert set(os.listdir(tmp_path)) == set(names)
        runs[0].kill()
        runs[0].wait()
        (tmp_path / "mthp-of.part").mkdir()
        (tmp_path / "mthp-planted1.part").symlink_to(tmp_path / names[1])
        with scratch(tmp_path) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            write_new(folder / "file", b"x")
            copy_new(folder / "file", folder / "copy")
            with pytest.raises(FileExistsError):
                write_new(folder / "copy", b"y")
            left = set(os.listdir(tmp_path)) - {folder.name}
        assert left == {names[1], "mthp-of.part", "mthp-planted1.part"}
        assert set(os.listdir(tmp_path)) == left
        assert os.listdir(tmp_path / names[1]) == ["file"]
    finally:
        for run in runs:
            run.kill()
            run.communicate()


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for text in ("old", "new"):
        with scratch(tmp_path) as work:
            (work / "made").mkdir()
            write_new(work / "made" / "file", text.encode())
            put_in_place(work / "made", place)
        assert (place / "file").read_text() == text
        assert os.listdir(tmp_path) == ["place"]


def test_a_spooled_file_has_no_name(tmp_path: Path) -> None:
    with spooled(str(tmp_path)) as file:
        file.write(bytes(5 << 20))
        assert file.fileno() and os.listdir(tmp_path) == []


def test_a_long_name_fits(tmp_path: Path) -> None:
    replace_text(tmp_path / ("ü" * 127), "x")
    assert os.listdir(tmp_path) == ["ü" * 127]


def test_lines_are_added(tmp_path: Path) -> None:
    for line in ("one\n", "two\n"):
        with append_to(tmp_path / "log") as file:
            file.write(line)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_recording_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_text(path, "before")
    with recording(path) as file:
        file.write(b"new")
        assert path.read_text() == "before"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_what_was_recorded_before_a_failure_is_kept_and_never_overwritten(tmp_path: Path) -> None:
    path, part = tmp_path / "file", tmp_path / "file.part"
    with pytest.raises(KeyboardInterrupt), recording(path):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []  # nothing was recorded
    with pytest.raises(KeyboardInterrupt), recording(path) as file:
        file.write(b"precious")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["file.part"]
    with pytest.raises(FileError, match=r"file\.part: is in the way"), recording(path):
        pass
    assert part.read_text() == "precious"


def test_what_was_recorded_survives_a_kill(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        KILLED.replace("replacing", "recording"),
        str(tmp_path / "file"),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert run.stdout is not None and run.stdout.readline() == b"ready\n"
    run.kill()
    run.wait()
    run.stdout.close()
    assert (tmp_path / "file.part").read_text() == "half"


def test_files_of_lines_are_not_executable(tmp_path: Path) -> None:
    append_to(tmp_path / "lines").close()
    with recording(tmp_path / "recorded"):
        pass
    for name in ("lines", "recorded"):
        assert not stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o111


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain \u00fc \u2192 \u6f22", "plain \u00fc \u2192 \u6f22"),
        ("a\nb\rc\td\0", "a?b?c?d?"),
        ("\x1b[31m\x9b2J", "?[31m?2J"),
        ("\u202ea\u2066\u200b\ufeff\u061c\u00ad", "?a?????"),
        ("\u3164\u115f\ufe0f\u034f\U000e0100", "?????"),
        ("\ud800\udcff\ue000\U000f0000", "????"),
    ],
)
def test_only_what_one_sees_is_shown(text: str, seen: str) -> None:
    assert shown(text) == seen
    assert str(FileError(text)) == seen


def test_a_message_is_one_line_of_bounded_length() -> None:
    line = one_line("begin" + "\n" * 10**6 + "end")
    assert line.startswith("begin?") and line.endswith("?end") and len(line) == LINE_LENGTH
    assert one_line("x" * LINE_LENGTH) == "x" * LINE_LENGTH
