# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: runs a program as often as asked, recorded or watched, and writes down what its memory was.

Run by the host as `python -S guest.py SPEC`, SPEC being JSON; the standard library alone is there. A program
stops at marks, where it does nothing until we let it go on; the memory it has is read there. While it runs,
every change of its anonymous memory is traced (kmem:rss_stat), for which it needs no help of the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from typing import IO, Any

Document = dict[str, Any]

THP = "/sys/kernel/mm/transparent_hugepage"
TRACING = "/sys/kernel/tracing"
OURS = f"{TRACING}/instances/lives"
PR_SET_THP_DISABLE = 41
PAGE_KIB = 4
PART = 4 << 20
COUNTED = ("nr_anon", "anon_fault_alloc", "nr_anon_partially_mapped")
SECONDS = 600.0


def read(path: str) -> str:
    """A file's text."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write a file of the kernel's."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def huge_pages_off(off: int) -> None:
    """For this process, and what it starts."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, off, 0, 0, 0)


def counters() -> dict[str, dict[str, int]]:
    """What the kernel counts of each size: counter -> size in kB -> number."""
    found: dict[str, dict[str, int]] = {name: {} for name in COUNTED}
    for folder in glob.glob(f"{THP}/hugepages-*"):
        for name in COUNTED:
            with contextlib.suppress(OSError):
                found[name][folder.split("-")[1][:-2]] = int(read(f"{folder}/stats/{name}"))
    return found


def anonymous(pid: int) -> int:
    """RssAnon of a process, in pages; 0 if it is gone."""
    with contextlib.suppress(OSError):
        match = re.search(r"^RssAnon:\s+(\d+)", read(f"/proc/{pid}/status"), re.M)
        return int(match[1]) // PAGE_KIB if match else 0
    return 0


_PRESENT, _FRAME = 1 << 63, (1 << 55) - 1
_ANON, _LARGE = 1 << 12, 3 << 15
"""Bits of pagemap and of kpageflags: an anonymous page; the head or a tail of a folio."""


def daemons() -> list[str]:
    """The kernel's threads that change programs' memory: khugepaged."""
    found = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if read(path).strip() == "khugepaged":
                found.append(path.split("/")[2])
    return found


def small_pages(pids: list[int]) -> int:
    """How many anonymous pages these processes map that are folios of their own."""
    flags = array("Q")
    with open("/proc/kpageflags", "rb", 0) as file:
        while data := file.read(1 << 20):
            flags.frombytes(data)
    frames: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/pagemap", "rb", 0) as table:
            for line in read(f"/proc/{pid}/maps").splitlines():
                addresses, perms, _ = line.split(None, 2)
                start, end = (int(each, 16) >> 12 for each in addresses.split("-"))
                if perms[3] == "p" and perms[:3] != "---" and "[v" not in line:
                    frames |= _mapped(table, start, end)
    return sum(1 for frame in frames if flags[frame] & (_ANON | _LARGE) == _ANON)


def _mapped(pagemap: IO[bytes], start: int, end: int) -> set[int]:
    """The frames that a range maps."""
    found: set[int] = set()
    for at in range(start, end, 1 << 16):
        pagemap.seek(at * 8)
        data = pagemap.read((min(end, at + (1 << 16)) - at) * 8)
        if any(data):
            found |= {each & _FRAME for each in array("Q", data) if each & _PRESENT}
    return found


class Run:
    """One run of a program. marks: what was seen at each."""

    def __init__(
        self, program: Document, process: Started, followed: str, before: Document
    ) -> None:
        self.program, self.process = program, process
        self._followed, self._before = followed, before
        self.marks: list[Document] = []

    def pids(self) -> list[int]:
        """The program's processes; the first is the command's own."""
        found: list[int] = []
        for task in sorted({*read(self._followed).split()} - {*daemons()}, key=int):
            with contextlib.suppress(OSError):
                match = re.search(r"^Tgid:\s+(\d+)", read(f"/proc/{task}/status"), re.M)
                if match and int(match[1]) not in found:
                    found.append(int(match[1]))
        return found

    def mark(self, name: str) -> None:
        """Write down what its memory is; it does nothing meanwhile."""
        pids, began = self.pids(), time.monotonic_ns()
        rss = {pid: anonymous(pid) for pid in pids}
        now = counters()
        changed = {
            counter: {size: value - self._before[counter][size] for size, value in sizes.items()}
            for counter, sizes in now.items()
        }
        self.marks.append(
            {"name": name, "began": began, "rss": rss, "small": small_pages(pids), **changed}
        )

    # --- what is done to programs ---------------------------------------------------------

    def work_marks(self) -> None:
        """The program says itself where it is."""
        for _ in range(self.program["marks"]):
            line = self.process.stdout.readline().decode()
            if not line.startswith("mark "):
                raise RuntimeError(f"{self.program['name']} says {line!r}")
            time.sleep(self.program.get("settle", 0.2))
            self.mark(line[5:].strip())
            with contextlib.suppress(OSError):
                self.process.stdin.write(b"\n")
                self.process.stdin.flush()

    def work_redis(self) -> None:
        """Fill, delete half in runs, fill again, and write to it while its child saves."""
        redis = Redis(self.program["socket"])
        redis.ask("debug", "populate", "24000", "key", "700")
        self.mark("filled")
        redis.ask("eval", _FORGET, "0")
        self.mark("half deleted")
        redis.ask("debug", "populate", "8000", "other", "300")
        self.mark("filled again")
        server = self.pids()[0]
        redis.ask("bgsave")
        (child,) = [pid for pid in self.pids() if pid != server]
        os.kill(child, signal.SIGSTOP)
        self.mark("saves")
        redis.ask("eval", _CHANGE, "0")
        self.mark("written to while it saves")
        os.kill(child, signal.SIGCONT)
        while b"rdb_bgsave_in_progress:1" in redis.ask("info", "persistence"):
            time.sleep(0.2)
        self.mark("saved")

    def work_bloat(self) -> None:
        """Insert values of 4 kB, delete most, have what is free given back, insert values of 2 MB, and
        ask for memory; khugepaged has time to come to rest before each mark."""
        redis, settle = Redis(self.program["socket"]), self.program["settle"]
        steps = (
            ("4 kB values", ("eval", _INSERT, "0")),
            ("80 % deleted", ("eval", _DELETE, "0")),
            ("purged", ("memory", "purge")),
            ("2 MB values", ("eval", _INSERT_LARGE, "0")),
        )
        for name, words in steps:
            redis.ask(*words)
            time.sleep(settle)
            self.mark(name)
        time.sleep(settle)
        for _ in range(8):
            write("/proc/sys/vm/drop_caches", "2")
        time.sleep(settle)
        self.mark(self.program["pressure"])

    def work_prefork(self) -> None:
        """Ask the workers."""
        path = self.program["socket"]
        wait_for(path)
        until = time.monotonic() + SECONDS
        while len(self.pids()) <= self.program["workers"]:
            if time.monotonic() > until:
                raise RuntimeError("its workers do not begin")
            time.sleep(0.1)
        time.sleep(1.0)
        self.mark("forked")
        for turn in range(160):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(path)
                peer.sendall(b"%d" % (turn * 7919 % 19_000))
                peer.recv(16)
        time.sleep(0.2)
        self.mark("160 requests")

    def work_postgres(self) -> None:
        """Sort and group in one backend, which keeps its memory while cursors are open."""
        words = [self.program["psql"], "-qAt", "-h", "/tmp", "-U", "postgres", "postgres"]
        until = time.monotonic() + SECONDS
        while subprocess.run(
            [*words, "-c", "select 1"], capture_output=True, check=False
        ).returncode:
            if time.monotonic() > until:
                raise RuntimeError("PostgreSQL does not begin")
            time.sleep(0.5)
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as psql:
            assert psql.stdin is not None and psql.stdout is not None
            for name, query in _QUERIES:
                psql.stdin.write(f"{query}\n\\echo done\n".encode())
                psql.stdin.flush()
                for line in psql.stdout:
                    if line == b"done\n":
                        break
                time.sleep(0.3)
                self.mark(name)
            psql.kill()


_QUERIES = (
    (
        "grouped",
        "select count(*) from (select md5(n::text) from generate_series(1, 60000) n group by 1) g;",
    ),
    (
        "sorted",
        "begin; declare s no scroll cursor for select n, repeat(md5(n::text), 2) t from "
        "generate_series(1, 100000) n order by t; fetch 10 from s;",
    ),
)
_FORGET = """
for n = 0, 23999 do
  if math.floor(n / 200) % 2 == 0 then redis.call('del', 'key:' .. n) end
end
"""
_INSERT = """
local value = string.rep('v', 4096)
for n = 0, 7999 do redis.call('set', 'small:' .. n, value) end
"""
_DELETE = """
math.randomseed(1)
for n = 0, 7999 do
  if math.random(100) <= 80 then redis.call('del', 'small:' .. n) end
end
"""
_INSERT_LARGE = """
local value = string.rep('w', 2 * 1024 * 1024)
for n = 0, 15 do redis.call('set', 'large:' .. n, value) end
"""
_CHANGE = """
for n = 200, 23999, 8 do
  if math.floor(n / 200) % 2 == 1 then redis.call('setrange', 'key:' .. n, 0, 'changed') end
end
"""


def wait_for(path: str) -> None:
    """Wait until a socket is there and listens."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
            if os.path.exists(path):
                peer.connect(path)
                return
        time.sleep(0.1)
    raise RuntimeError(f"nobody listens at {path}")


class Redis:
    """What speaks to a server of that name."""

    def __init__(self, path: str) -> None:
        wait_for(path)
        self._peer = socket.socket(socket.AF_UNIX)
        self._peer.connect(path)
        self._file = self._peer.makefile("rwb")

    def ask(self, *words: str) -> bytes:
        """Ask, and have the answer's last part. RuntimeError: it is an error."""
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        self._file.write(f"*{len(words)}\r\n{''.join(parts)}".encode())
        self._file.flush()
        answer = self._file.readline()
        if answer[:1] == b"-":
            raise RuntimeError(f"{words[0]}: {answer!r}")
        if answer[:1] == b"$" and int(answer[1:]) >= 0:
            return self._file.read(int(answer[1:]) + 2)
        return answer


class Started:
    """A program that waits to begin: forked, with pipes for its input and output. recorder: what comes before
    its words where it is recorded."""

    def __init__(self, program: Document, recorder: list[str]) -> None:
        waits, self._go = os.pipe()
        given, stdin = os.pipe()
        stdout, told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                for source, target in ((given, 0), (told, 1), (told, 2)):
                    os.dup2(source, target)
                os.read(waits, 1)
                os.closerange(3, 1 << 10)
                _become(program, recorder)
            finally:
                os._exit(127)
        for each in (waits, given, told):
            os.close(each)
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb")

    def go(self) -> None:
        """Have it begin."""
        os.write(self._go, b"x")
        os.close(self._go)

    def end(self) -> None:
        """Wait for its end."""
        self.stdin.close()
        self.stdout.close()
        os.waitpid(self.pid, 0)


def _become(program: Document, recorder: list[str]) -> None:
    """Be the program, or its recorder. Does not return."""
    if not recorder:
        huge_pages_off(0)
    os.chdir("/tmp")
    words = [*recorder, *program["argv"]]
    os.execve(words[0], words, {**os.environ, **program.get("environment", {})})


@contextlib.contextmanager
def watched(program: Document) -> Iterator[Started]:
    """The program, about to begin, with a trace of its memory."""
    os.mkdir(OURS)
    try:
        settings = {
            "trace_clock": "mono", "buffer_size_kb": "32768", "options/overwrite": "0",
            "options/event-fork": "1", "events/kmem/rss_stat/filter": "member == 1",
        }  # fmt: skip
        for name, value in settings.items():
            write(f"{OURS}/{name}", value)
        started = Started(program, [])
        write(f"{OURS}/set_event_pid", " ".join((str(started.pid), *daemons())))
        write(f"{OURS}/events/kmem/rss_stat/enable", "1")
        yield started
    finally:
        os.rmdir(OURS)


def drained(out: str) -> int:
    """Write the trace to a file; how many events were lost."""
    write(f"{OURS}/tracing_on", "0")
    held = os.open(f"{OURS}/per_cpu/cpu0/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
    with open(out, "wb") as file:
        while True:
            try:
                data = os.read(held, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                break
            file.write(data)
    os.close(held)
    stats = read(f"{OURS}/per_cpu/cpu0/stats")
    return sum(map(int, re.findall(r"^(?:overrun|dropped events): (\d+)$", stats, re.M)))


def perform(program: Document, started: Started, followed: str) -> list[Document]:
    """Have it run through its marks, and end it."""
    for path in program.get("remove", ()):
        with contextlib.suppress(OSError):
            os.unlink(path)
    before = counters()
    started.go()
    until = time.monotonic() + SECONDS
    while not (found := glob.glob(followed)) or not read(found[0]).split():
        if time.monotonic() > until:
            raise RuntimeError("it does not begin")
        time.sleep(0.05)
    run = Run(program, started, found[0], before)
    try:
        getattr(run, f"work_{program['work']}")()
    except (OSError, RuntimeError):
        os.set_blocking(started.stdout.fileno(), False)
        print((started.stdout.read() or b"").decode(errors="replace")[-800:])
        raise
    end_all(run.pids(), program.get("end", signal.SIGKILL))
    started.end()
    return run.marks


def end_all(pids: list[int], number: int) -> None:
    """Tell the first process to end, or all of them at once, and wait until they are gone."""
    for pid in pids if number == signal.SIGKILL else pids[:1]:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    until = time.monotonic() + SECONDS
    while any(alive(pid) for pid in pids):
        if time.monotonic() > until:
            raise RuntimeError("it does not end")
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process has memory."""
    with contextlib.suppress(OSError):
        return read(f"/proc/{pid}/stat").rpartition(")")[2].split()[0] not in "ZX"
    return False


def run_recorded(spec: Document) -> list[Document]:
    """Record it once, with huge pages off for it."""
    program = spec["program"]
    recorder = [sys.executable, "-S", spec["recorder"], "--quiet", "--buffer", "65536"]
    recorder += program.get("record", [])
    started = Started(program, [*recorder, "-o", spec["recording"], "--"])
    return perform(program, started, f"{TRACING}/instances/mthp-*/set_event_pid")


def in_parts(path: str) -> int:
    """Cut a file into parts that the agent can hand over; how many there are."""
    count = 0
    with open(path, "rb") as file:
        while data := file.read(PART):
            with open(f"{path}.{count}", "wb") as part:
                part.write(data)
            count += 1
    os.unlink(path)
    return count


def main() -> None:
    """Do what the SPEC says."""
    spec = json.loads(read(sys.argv[1]))
    huge_pages_off(1)
    with contextlib.suppress(OSError):
        os.mkdir("/tmp", 0o1777)
    asleep = read(f"{THP}/khugepaged/scan_sleep_millisecs")
    for path, value in spec["files"].items():
        with contextlib.suppress(FileNotFoundError):
            write(path, value)
    for path in glob.glob(f"{os.path.dirname(spec['out'])}/out-*"):
        os.unlink(path)
    program = spec["program"]
    if "setup" in program and not os.path.exists(program["made"]):
        os.mkdir(program["made"])
        os.chown(program["made"], program["owner"], program["owner"])
        subprocess.run(program["setup"], check=True, cwd="/tmp")
    result = []
    for number in range(spec["runs"]):
        collapsed = read(f"{THP}/khugepaged/pages_collapsed")
        if spec.get("recording"):
            marks, lost, out = run_recorded(spec), 0, spec["recording"]
        else:
            out = f"{spec['out']}.{number}"
            with watched(spec["program"]) as started:
                marks = perform(spec["program"], started, f"{OURS}/set_event_pid")
                lost = drained(out)
        if not spec["khugepaged"] and read(f"{THP}/khugepaged/pages_collapsed") != collapsed:
            raise RuntimeError("khugepaged collapsed something meanwhile")
        result.append({"marks": marks, "lost": lost, "file": out, "parts": in_parts(out)})
    for path in glob.glob(f"{THP}/hugepages-*/enabled"):
        write(path, "never")  # for what hands the files over
    write(f"{THP}/khugepaged/scan_sleep_millisecs", asleep)
    with open(f"{spec['out']}.json", "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
