# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs recorded on this kernel, and nothing left switched on, however it ends.

tracefs is mounted for the recorder alone, in a mount namespace of its own: what the host has is not changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from mthp.image.recording import (
    EventKind,
    FaultFlag,
    HowBegun,
    Recording,
    RecordingError,
    load_recording,
)
from mthp.image.zipped import write_zipapp
from tests.image.children import PRELUDE

ROOT = Path(__file__).parent.parent.parent
TRACING = "/sys/kernel/tracing"
MOUNT = f"umount {TRACING} 2>/dev/null; mount -t tracefs nodev {TRACING}"
IN_ORDER = (
    "import os, sys; sys.exit('x' if os.readlink('/proc/self/ns/pid') != 'pid:[4026531836]' else 0)"
)


def _can_trace() -> bool:
    if os.geteuid() or not shutil.which("unshare") or not os.path.isdir(TRACING):
        return False
    test = (
        f"{MOUNT} && test -d {TRACING}/events/exceptions/page_fault_user -a -d {TRACING}/instances"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", test], check=False, capture_output=True)
    inside = subprocess.run([sys.executable, "-c", IN_ORDER], check=False, capture_output=True)
    return done.returncode == 0 and inside.returncode == 0


CAN_TRACE = _can_trace()
pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("alone_in_tracefs"),
    pytest.mark.skipif(not CAN_TRACE, reason="needs root, and tracefs with page fault events"),
]
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
MTHP = (sys.executable, "-m", "mthp")
SHELL = ("unshare", "-m", "sh", "-c")


def shell(*words: str | Path, mounts: str = MOUNT) -> list[str]:
    return [*SHELL, f'{mounts}; exec "$@"', "sh", *map(str, words)]


def record(out: Path, *command: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a recording."""
    words = shell(*MTHP, "record", "-o", out, *options, "--", *command)
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=ENV, timeout=60)
    assert "Traceback" not in done.stderr
    assert instances() == []
    return done.returncode, done.stdout, done.stderr


def instances() -> list[str]:
    found = subprocess.run(
        [*SHELL, f"{MOUNT}; ls {TRACING}/instances"], check=True, capture_output=True, text=True
    )
    return [name for name in found.stdout.split() if name.startswith("mthp-")]


def recorded(out: Path, script: str) -> tuple[Recording, str]:
    code, said, error = record(out, sys.executable, "-c", PRELUDE + script)
    assert code == 0, error
    return load_recording(out), said


def pages_written(recording: Recording) -> set[int]:
    written = (recording.kind == EventKind.FAULT) & (recording.flags & FaultFlag.WRITE != 0)
    return set(recording.value[written].tolist())


def test_every_page_and_call_is_there_and_huge_pages_are_off(tmp_path: Path) -> None:
    earliest = time.monotonic_ns()
    recording, said = recorded(
        tmp_path / "a.npz",
        """
at = reserve(2 * TABLE)
advise(at, 2 * TABLE, MADV_HUGEPAGE)
write(at, 0, 300)
read(at, 600, 7)
write(at, 1023)
os.pread(os.open("/dev/zero", os.O_RDONLY), 0, 0)
file = os.open("/proc/self/exe", os.O_RDONLY)
libc.read(file, ctypes.c_void_p(at + 700 * PAGE), 3 * PAGE)
advise(at, 10 * PAGE, MADV_DONTNEED)
print(at // PAGE, open("/proc/self/smaps").read().count("AnonHugePages:         0 kB"),
      open("/proc/self/smaps").read().count("AnonHugePages:"))
""",
    )
    assert earliest < recording.meta["began"] < time.monotonic_ns() - int(recording.time[-1])
    first, small, mappings = map(int, said.split())
    assert small == mappings
    here = {*range(first, first + 1024)}
    assert pages_written(recording) & here == {
        first + page for page in (*range(300), 1023, 700, 701, 702)
    }
    faults = recording.kind == EventKind.FAULT
    by_kernel = faults & (recording.flags & FaultFlag.USER == 0)
    assert {first + 700, first + 701, first + 702} <= set(recording.value[by_kernel].tolist())
    names = [recording.calls[kind] for kind in recording.call_kind]
    given = [
        tuple(args[:3])
        for name, args in zip(names, recording.call_args.tolist(), strict=True)
        if name == "madvise"
    ]
    assert (first << 12, 4 << 20, 14) in given and (first << 12, 10 << 12, 4) in given
    assert recording.meta["huge_pages_off"] is True and recording.meta["exit_status"] == 0


def test_samples_say_what_the_process_had(tmp_path: Path) -> None:
    recording, _ = recorded(
        tmp_path / "a.npz",
        """
at = reserve(8 * TABLE)
write(at, 0, 4096)
time.sleep(0.5)
""",
    )
    assert 4096 < recording.sample_anon.max() < 4096 + 4096
    assert recording.sample_anon.max() <= len(pages_written(recording)) + 3  # exec's arguments


def test_programs_that_others_start_have_their_first_mappings(tmp_path: Path) -> None:
    recording, _ = recorded(
        tmp_path / "a.npz",
        """
os.execv("/bin/sh", ["sh", "-c", "x=1; sleep 0.8; y=$x"])
""",
    )
    last = next(each for each in recording.processes if each.program == "/bin/sh")
    assert last.parent == 0 and last.vmas is not None and last.arguments is not None
    paths = {vma.path for vma in last.vmas if not vma.path.startswith("[v")}
    loader = next(path for path in paths if "/ld-" in path)
    assert paths == {os.path.realpath("/bin/sh"), loader, "[stack]", ""}
    stack = next(vma for vma in last.vmas if vma.path == "[stack]")
    assert stack.start <= last.arguments < stack.end
    # Nothing else is touched but what the program itself mapped.
    began = [(vma.start >> 12, vma.end >> 12) for vma in last.vmas if vma.path != "[stack]"]
    began.append((stack.end - (8 << 20) >> 12, stack.end >> 12))
    names = [recording.calls[kind] for kind in recording.call_kind]
    calls = zip(names, recording.call_args.tolist(), recording.call_result.tolist(), strict=True)
    mapped = [
        (result >> 12, result + args[1] + 4095 >> 12)
        for name, args, result in calls
        if name == "mmap"
    ]
    heap = recording.call_result[[name == "brk" for name in names]]
    began += [*mapped, (int(heap.min()) >> 12, int(heap.max()) >> 12)]
    ours = recording.task == 0
    ours[: last.began] = False
    for page in recording.value[ours & (recording.kind == EventKind.FAULT)].tolist():
        assert any(start <= page < end for start, end in began), hex(page << 12)


def test_children_threads_and_programs(tmp_path: Path) -> None:
    recording, _ = recorded(
        tmp_path / "a.npz",
        """
import threading
at = reserve(TABLE)
write(at, 0, 8)
if not os.fork():
    write(at, 0, 4)
    os._exit(0)
os.wait()
thread = threading.Thread(target=write, args=(at, 100, 5))
thread.start()
thread.join()
os.execv("/bin/true", ["true"])
""",
    )
    how = [each.how for each in recording.processes]
    assert how[0] is HowBegun.EXEC and HowBegun.FORK in how and how[-1] is HowBegun.EXEC
    assert recording.processes[-1].program == "/bin/true"
    assert recording.processes[-1].parent == 0
    copied = (recording.kind == EventKind.FAULT) & (
        recording.flags & 7 == FaultFlag.PRESENT | FaultFlag.WRITE | FaultFlag.USER
    )
    child = how.index(HowBegun.FORK)
    in_child = recording.task_process[recording.task] == child
    assert np.count_nonzero(copied & in_child) >= 4
    ends = np.count_nonzero(recording.kind == EventKind.END)
    assert ends == len(recording.task_pid) == np.count_nonzero(recording.kind == EventKind.TASK) + 1


CLEARS = """
at = reserve(4 * TABLE)
write(at, 0, 1000)
ctypes.memset(at + 200 * PAGE, 0, 300 * PAGE)
read(at, 1024, 50)
print(at // PAGE, flush=True)
time.sleep(1.2)
write(at, 300, 20)
time.sleep(0.6)
"""


def seen_of(recording: Recording, first: int, count: int) -> list[tuple[int, dict[int, bool]]]:
    """(time, what was seen of these pages: page -> whether it was zero) of each look at one of them."""
    found, at = [], 0
    for time_of, runs in zip(
        recording.look_time.tolist(), recording.look_runs.tolist(), strict=True
    ):
        seen = {}
        for k in range(at, at + runs):
            page, pages = int(recording.run_page[k]) - first, int(recording.run_pages[k])
            zero = bool(recording.run_zero[k])
            seen.update(dict.fromkeys(range(max(page, 0), min(page + pages, count)), zero))
        at += runs
        if seen:
            found.append((time_of, seen))
    return found


def test_which_pages_are_zero_is_seen_and_nothing_else_of_them(tmp_path: Path) -> None:
    words = (sys.executable, "-c", PRELUDE + CLEARS)
    code, said, error = record(tmp_path / "a.npz", *words, options=("--zero", "0.2"))
    assert code == 0 and "which pages are zero, at " in error, error
    recording = load_recording(tmp_path / "a.npz")
    looks = seen_of(recording, int(said), 2048)
    assert len(looks) >= 2
    last, before = {}, {}
    for time_of, seen in looks:
        last.update(seen)
        if time_of < 800_000_000:
            before.update(seen)
    cleared = {*range(200, 500)}
    assert {*last} == {*range(1000)}  # what is not there, or the zero page, is not looked at
    assert {page for page, zero in last.items() if zero} == cleared - {*range(300, 320)}
    assert {page for page, zero in before.items() if zero} == cleared
    told = recording.meta["looks"]
    assert told["seconds"] == 0.2 and told["count"] >= 2 and told["pages"] > 2000
    assert 0 < told["spent"] < 5 and not told["full"]
    assert b"\x5a" * 8 not in (tmp_path / "a.npz").read_bytes()


THERE = """
with open("/proc/self/pagemap", "rb") as file:
    file.seek(at // PAGE * 8)
    print(sum(word >> 63 for word in memoryview(file.read(8 * 2048)).cast("Q")), flush=True)
"""


def test_looks_bring_nothing_in(tmp_path: Path) -> None:
    words = (sys.executable, "-c", PRELUDE + CLEARS + THERE)
    code, said, error = record(tmp_path / "a.npz", *words, options=("--zero", "0.1"))
    assert code == 0, error
    first, there = map(int, said.split())
    assert there == 1000 + 50  # what was written, and the zero page where it was only read
    recording = load_recording(tmp_path / "a.npz")
    assert recording.meta["looks"]["pages"] > 2000
    here = {*range(first, first + 2048)}
    assert pages_written(recording) & here == {*range(first, first + 1000)}


@pytest.mark.parametrize("seconds", ["0", "0.05", "-1", "1e3", "nan", "1h", ""])
def test_times_between_looks_that_are_none_are_refused(seconds: str, tmp_path: Path) -> None:
    code, _, error = record(tmp_path / "a.npz", "true", options=(f"--zero={seconds}",))
    assert code == 2 and "is not a number of seconds from 0.1 to 86400" in error


def test_lost_events_are_said_with_what_would_have_sufficed(tmp_path: Path) -> None:
    script = f"""{PRELUDE}
os.kill(os.getppid(), signal.SIGSTOP)
at = reserve(16 * TABLE)
ctypes.memset(at, 1, 16 * TABLE)
os.kill(os.getppid(), signal.SIGCONT)
"""
    out = tmp_path / "a.npz"
    code, _, error = record(out, sys.executable, "-c", script, options=("--buffer", "64"))
    assert code == 1 and "events were lost" in error and error.count("\n") == 1
    with pytest.raises(RecordingError, match="events were lost while it was recorded"):
        load_recording(out)
    enough = error.split("--buffer ")[1].split()[0]
    assert record(out, sys.executable, "-c", script, options=("--buffer", enough))[0] == 0
    load_recording(out)


@contextmanager
def at_work(out: Path, *command: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A recorder whose command has begun, and its instance's folder as it sees it."""
    began = out.with_suffix(".began")
    words = shell(
        *MTHP, "record", "-o", out, "--", "sh", "-c", f"touch {began}; {' '.join(command)}"
    )
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENV) as recorder:
        while not began.exists():
            time.sleep(0.01)
        (name,) = instances()
        assert name.startswith(f"mthp-{recorder.pid}.")
        try:
            yield recorder, Path(f"/proc/{recorder.pid}/root{TRACING}/instances/{name}")
        finally:
            recorder.kill()


def gone(seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while instances():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def end(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_killed_it_leaves_nothing(tmp_path: Path) -> None:
    with at_work(tmp_path / "a.npz", "exec sleep 20") as (recorder, _):
        below = children_of(recorder.pid)
        recorder.kill()
        recorder.wait()
        assert gone()
        end(below)
    assert not (tmp_path / "a.npz").exists()


def commands_of(pids: list[int]) -> list[bytes]:
    return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]


def test_what_a_killed_watchdog_leaves_the_next_run_removes(tmp_path: Path) -> None:
    with at_work(tmp_path / "a.npz", "exec sleep 20") as (recorder, folder):
        command = b"sleep\x0020\x00"  # until then it has the recorder's words, or the shell's
        until = time.monotonic() + 20
        while command not in (of := commands_of(below := children_of(recorder.pid))):
            assert time.monotonic() < until
        asleep = below[of.index(command)]
        end([pid for pid in below if pid != asleep])
        assert (folder / "tracing_on").read_text() == "1\n"
        recorder.kill()
        recorder.wait()
        end([asleep])
        assert len(instances()) == 1
    assert record(tmp_path / "b.npz", "true")[0] == 0


def test_told_to_end_it_tells_the_command_and_writes_the_file(tmp_path: Path) -> None:
    with at_work(tmp_path / "a.npz", "exec sleep 20") as (recorder, _):
        recorder.send_signal(signal.SIGTERM)
        _, error = recorder.communicate(timeout=20)
    assert recorder.returncode == 0
    assert "the command was ended by signal 15" in error
    assert load_recording(tmp_path / "a.npz").meta["signal"] == 15
    assert gone(0)


def test_a_command_that_will_not_end_is_left(tmp_path: Path) -> None:
    with at_work(tmp_path / "a.npz", "trap '' TERM; exec sleep 20") as (recorder, _):
        below = children_of(recorder.pid)
        recorder.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert recorder.poll() is None
        recorder.send_signal(signal.SIGTERM)
        recorder.wait(timeout=20)
        end(below)
        _, error = recorder.communicate(timeout=20)
    assert recorder.returncode == 0
    assert "the command goes on, without huge pages, and is not recorded any more" in error
    load_recording(tmp_path / "a.npz")


def test_what_outlives_the_command_is_said(tmp_path: Path) -> None:
    code, _, error = record(tmp_path / "a.npz", "sh", "-c", "sleep 3 >/dev/null 2>&1 & exit 4")
    assert code == 0
    assert "1 task(s) that it started go on" in error and "the command's exit code was 4" in error
    assert load_recording(tmp_path / "a.npz").meta["left"] == 1


def test_who_else_traces_is_not_disturbed(tmp_path: Path) -> None:
    script = f"""
cd {TRACING}; mkdir instances/other; cd instances/other
echo 1 > events/exceptions/page_fault_user/enable; echo 300 > buffer_size_kb
"$@" || exit 9
cat events/exceptions/page_fault_user/enable buffer_size_kb tracing_on ../../tracing_on ../../current_tracer
cat ../../events/exceptions/page_fault_user/enable ../../set_event_pid
grep -c page_fault_user trace; cd ../..; rmdir instances/other
"""
    words = [*SHELL, f"{MOUNT}; {script}", "sh", *MTHP, "record", "--quiet", "-o"]
    done = subprocess.run(
        [*words, str(tmp_path / "a.npz"), "--", "true"], check=False, capture_output=True, text=True, env=ENV
    )  # fmt: skip
    said = done.stdout.split()
    assert done.stderr == "" and said[0] == "1" and int(said[1]) >= 300
    assert said[2:6] == ["1", "1", "nop", "0"] and int(said[6]) > 100


def test_the_file_for_other_hosts_does_the_same(tmp_path: Path) -> None:
    write_zipapp(tmp_path / "r.pyz", "image/record")
    words = shell(sys.executable, "-I", tmp_path / "r.pyz", "-o", tmp_path / "a.npz", "true")
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("mthp-record: ") and "1 process(es), 1 task(s)" in done.stderr
    assert load_recording(tmp_path / "a.npz").command == ("true",)


GROWS = """
at = reserve(4 * TABLE)
advise(at, TABLE, MADV_HUGEPAGE)
advise(at + TABLE, 3 * TABLE, MADV_NOHUGEPAGE)
write(at, 0)
write(at, 600, 100)
print(at // PAGE, flush=True)
sys.stdin.readline()
write(at, 650, 100)
write(at, 1024, 50)
advise(at + 1024 * PAGE, 20 * PAGE, MADV_DONTNEED)
print("done", flush=True)
sys.stdin.readline()
"""


def test_a_process_that_runs_already_is_recorded_from_then_on(tmp_path: Path) -> None:
    python = [sys.executable, "-c", PRELUDE + GROWS]
    pipe = subprocess.PIPE
    with subprocess.Popen(python, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        first = int(process.stdout.readline())
        words = shell(*MTHP, "record", "--pid", str(process.pid), "-o", tmp_path / "a.npz")
        with subprocess.Popen(words, stderr=pipe, text=True, env=ENV) as recorder:
            while not instances():
                time.sleep(0.01)
            time.sleep(1)  # so that it has captured, as far as this test looks at what was there
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            time.sleep(0.3)
            recorder.send_signal(signal.SIGINT)
            _, error = recorder.communicate(timeout=20)
        process.communicate("\n")
    assert recorder.returncode == 0, error
    assert instances() == []
    recording = load_recording(tmp_path / "a.npz")
    assert recording.was_there and not recording.huge_pages_off
    pages = recording.start_page.tolist()
    assert {*range(first + 600, first + 700)} <= {*pages}
    large = dict(zip(pages, recording.start_order.tolist(), strict=True)).get(first + 5)
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert large == (None if "[never]" in huge else 9)
    if large:
        assert "512 of the" in error and "cannot be known" in error
    here = {*range(first + 512, first + 2048)}
    new = {*range(first + 700, first + 750), *range(first + 1024, first + 1074)}
    assert pages_written(recording) & here == new


NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"
BAD: dict[str, tuple[list[str], str, str, int]] = {
    "no command": ([], MOUNT, "no command", 2),
    "an unknown command": (["nosuchthing"], MOUNT, "nosuchthing: no such command", 2),
    "a file that is no program": (["/etc/passwd"], MOUNT, "/etc/passwd: is not executable", 2),
    "no interpreter": (["./broken"], MOUNT, "broken: No such file or directory", 2),
    "no tracefs": (
        ["true"],
        f"umount {TRACING} 2>/dev/null; true",
        "tracefs is not mounted here (mount -t",
        5,
    ),
    "a command and a process": (["--pid", "1", "true"], MOUNT, "give one of them", 2),
    "a process that is not there": (["--pid", "4194303"], MOUNT, "no process 4194303", 2),
    "a span of a command": (["--for", "1", "true"], MOUNT, "--for is for --pid", 2),
    "set-uid": (["./setuid"], MOUNT, "setuid: is set-uid", 2),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_recorded_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    command, mounts, why, code = BAD[name]
    (tmp_path / "broken").write_text("#!/no/such/interpreter\n")
    (tmp_path / "broken").chmod(0o755)
    shutil.copy("/bin/true", tmp_path / "setuid")
    (tmp_path / "setuid").chmod(0o4755)
    dashes = () if command[:1] == ["--pid"] or command[:1] == ["--for"] else ("--",)
    words = shell(*MTHP, "record", "-o", "a.npz", *dashes, *command, mounts=mounts)
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=ENV, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1 and why in done.stderr
    assert not (tmp_path / "a.npz").exists()
    assert instances() == []


def test_without_root_it_says_so() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        program = Path(name) / "r.pyz"
        write_zipapp(program, "image/record")
        words = [*NOBODY.split(), "/usr/bin/python3", str(program), "-o", "/tmp/x.npz", "true"]
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd="/")
    assert done.returncode == 2 and "needs root" in done.stderr
