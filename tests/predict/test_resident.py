# SPDX-License-Identifier: GPL-2.0-or-later
"""All resident memory of live programs, held against what the kernel says of it in smaps_rollup."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mthp.image.capture.host import THP
from mthp.image.capture.resident import resident_of
from mthp.image.snapshot import Snapshot
from mthp.predict.image import Image, Run, capture
from mthp.predict.measure import TlbModel, measure
from mthp.predict.records import PartlyMapped
from mthp.predict.resident import modelled, resident_memory
from mthp.words.resident import MappingKind, Resident, total

from ..image.children import PAGE, TABLE, child

pytestmark = pytest.mark.skipif(not os.path.isdir(THP), reason="no THP in this kernel")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20
PSS_SLACK = 64 << 10


def kernel_says(pid: int) -> dict[str, int]:
    """The sums of smaps_rollup and status, in bytes."""
    lines = ""
    for name in ("smaps_rollup", "status"):
        lines += Path(f"/proc/{pid}/{name}").read_text()
    return {key: int(kib) << 10 for key, kib in re.findall(r"(?m)^(\w+):\s+(\d+) kB$", lines)}


def accounted(image: Image) -> tuple[Resident, list[Resident]]:
    """In all, and of each process."""
    world, request = image.prepared(image.settings, image.profile, "")
    vmas = modelled(world.vmas)
    measured = measure(world.kernel, vmas, TlbModel.PLAIN)
    whole, each = resident_memory(world.kernel.mms, vmas, measured, request.snapshot)
    return whole, list(each.values())


def torn_bytes(snapshot: Snapshot) -> int:
    """What changed while it was read."""
    return int(snapshot.tearing["pages_changed"]) * PAGE


def hold_against_the_kernel(*pids: int) -> list[Resident]:
    """Capture and compare; what the programs change in the meantime may differ, and no more."""
    before = [kernel_says(pid) for pid in pids]
    image = capture(*pids)
    after = [kernel_says(pid) for pid in pids]
    assert isinstance(image.data, Snapshot)
    whole, each = accounted(image)
    torn = torn_bytes(image.data)
    for known, was, now in zip(each, before, after, strict=True):
        assert None not in known.bytes().values()
        anonymous = (known.anonymous or 0) + (known.anonymous_in_files or 0)
        rss = anonymous + (known.shmem or 0) + (known.file or 0)
        for ours, name in (
            (known.rss, "Rss"),
            (rss, "Rss"),
            (known.pss, "Pss"),
            (anonymous, "Anonymous"),
            (known.swap, "Swap"),
            (known.shmem, "RssShmem"),
            (known.file, "RssFile"),
            (known.page_tables, "VmPTE"),
            (known.hugetlb, "HugetlbPages"),
        ):
            low, high = sorted((was[name], now[name]))
            slack = torn + (high - low)
            if name == "Pss":  # other processes come to map a library's pages, this one too
                slack += PSS_SLACK
            assert low - slack <= (ours or 0) <= high + slack, (name, ours, was[name], now[name])
        assert known.unmodelled == (known.shmem or 0) + (known.file or 0) + (known.hugetlb or 0) + (
            known.device or 0
        )
        assert sum(mapping.bytes for mapping in known.mappings) == known.unmodelled
    assert whole.rss == sum(known.rss or 0 for known in each)
    assert whole.unmodelled == sum(known.unmodelled or 0 for known in each)
    return each


# Small programs

EVERYTHING = """
import tempfile, threading
memory = os.memfd_create("heap")
os.ftruncate(memory, 4 << 20)
heap = mmap.mmap(memory, 4 << 20)
heap[:] = b"x" * (4 << 20)
private_heap = mmap.mmap(memory, 1 << 20, flags=mmap.MAP_PRIVATE)
private_heap[:PAGE] = b"y" * PAGE
file = tempfile.TemporaryFile(dir=sys.argv[1] if len(sys.argv) > 1 else None)
file.write(b"z" * (4 << 20))
file.flush()
over = mmap.mmap(file.fileno(), 4 << 20, flags=mmap.MAP_PRIVATE)
for i in range(0, 4 << 20, PAGE):
    if i // PAGE % 4:
        over[i] = 1
    else:
        over[i]
shared = mmap.mmap(-1, 2 << 20)
shared[:] = b"s" * (2 << 20)
a = reserve(2 * TABLE)
advise(a, 2 * TABLE, MADV_NOHUGEPAGE)
write(a, 0, 512)
read(a, 512, 300)
pages = libc.mmap(None, 2 << 20, 3, 0x40022, -1, 0)
huge = 0
if pages not in (None, 2 ** 64 - 1):
    ctypes.memset(pages, 1, 1)
    huge = 2 << 20
for _ in range(20):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
write(a, 0, 128)
ready(a=a, huge=huge)
"""


def test_every_kind_of_memory(tmp_path: Path) -> None:
    with child(EVERYTHING) as kid:
        (known,) = hold_against_the_kernel(kid.pid)
    named = {(each.kind, each.name): each.bytes for each in known.mappings}
    assert named[MappingKind.SHMEM, "/memfd:heap"] >= 4 * MIB
    assert named[MappingKind.SHMEM, "/dev/zero"] >= 2 * MIB
    assert known.shmem is not None and known.shmem >= 6 * MIB
    assert known.anonymous_in_files is not None and known.anonymous_in_files >= 3 * MIB + PAGE
    assert known.hugetlb == kid.facts["huge"]
    assert not any(kind is MappingKind.ANONYMOUS for kind, _ in named)


REMAP = """
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p] + [ctypes.c_size_t] * 2 + [ctypes.c_int, ctypes.c_void_p]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
a = reserve(8 * TABLE)
"""
PROGRAMS = {
    "a private mapping of a memfd, written here and there": """
f = os.memfd_create("x\\n\\x1b[31m")
os.ftruncate(f, 16 * TABLE)
os.pwrite(f, b"a" * (4 * TABLE), 0)
a = reserve(16 * TABLE, flags=0x2, fd=f)
read(a, 0, 1500); write(a, 0, 700); write(a, 3000, 100)
b = reserve(16 * TABLE, flags=0x1, fd=f)
write(b, 4000, 50)
""",
    "parts of huge pages that were moved": REMAP + """
advise(a, 8 * TABLE, MADV_HUGEPAGE); write(a, 0, 8 * 512); advise(a, 8 * TABLE, MADV_COLLAPSE)
b = reserve(8 * TABLE)
for k in range(4):
    to = b + k * TABLE + 37 * PAGE
    assert libc.mremap(a + k * TABLE + 100 * PAGE, 200 * PAGE, 200 * PAGE, 3, to) == to
""",
    "memory that moved and left its mapping": REMAP + """
write(a, 0, 2048)
libc.mremap(a, 8 * TABLE, 8 * TABLE, 5, 0)
write(a, 0, 300)
""",
    "guards in huge pages": REMAP + """
advise(a, 6 * TABLE, MADV_HUGEPAGE); write(a, 0, 6 * 512); advise(a, 6 * TABLE, MADV_COLLAPSE)
for k in range(0, 3000, 64): advise(a + k * PAGE, PAGE, MADV_GUARD_INSTALL)
""",
    "memory that may not be touched any more": REMAP + """
write(a, 0, 3000)
libc.mprotect(a, 3 * TABLE, 0); libc.mprotect(a + 5 * TABLE, PAGE, 1)
""",
    "/dev/zero, private and shared": """
f = os.open("/dev/zero", 2)
write(libc.mmap(None, 4 * TABLE, 3, 2, f, 0), 0, 1500)
write(libc.mmap(None, 4 * TABLE, 3, 1, f, 0), 0, 777)
""",
    "System V shared memory": """
i = libc.shmget(0, 8 * TABLE, 0o1600)
libc.shmat.restype = ctypes.c_void_p
a = libc.shmat(i, None, 0)
libc.shmctl(i, 0, None)
write(a, 0, 1000)
""",
    "a stack that grew": """
a = libc.mmap(None, 64 * PAGE, 3, 0x122, -1, 0)
write(a, 0, 64)
ctypes.memset(a - PAGE + 8, 1, 1)
""",
    "64 TiB of which 40 pieces may be used": REMAP + """
a = libc.mmap(None, 64 << 40, 0, 0x4022, -1, 0)
for k in range(40):
    assert libc.mprotect(a + (k << 40), 64 * PAGE, 3) == 0
    write(a + (k << 40), 0, 64)
""",
    "zero pages, small and huge": """
a = reserve(64 * TABLE)
advise(a, 32 * TABLE, MADV_NOHUGEPAGE); read(a, 0, 30 * 512)
advise(a + 32 * TABLE, 32 * TABLE, MADV_HUGEPAGE); read(a + 32 * TABLE, 0, 10 * 512)
write(a, 0, 77)
""",
}  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_memory_of_a_program(program: str) -> None:
    with child(PROGRAMS[program] + "ready()") as kid:
        hold_against_the_kernel(kid.pid)


def test_several_processes_and_what_they_share() -> None:
    script = """
b = reserve(4 * TABLE)
advise(b, 4 * TABLE, MADV_NOHUGEPAGE)
write(b, 0, 2048)
kid = os.fork()
if kid == 0:
    write(b, 0, 512)
    sys.stdin.read()
    os._exit(0)
ready(kid=kid)
"""
    with child(script) as kid:
        pids = sorted((kid.pid, kid.facts["kid"]))
        one, two = hold_against_the_kernel(*pids)
    assert one.pss is not None and one.rss is not None and two.rss is not None
    assert one.rss > one.pss, "they share most of it"
    assert total((one, two)).rss == one.rss + two.rss


@needs_root
def test_partly_mapped_folios_hold_what_is_not_mapped() -> None:
    script = """
h = reserve(3 * TABLE)
advise(h, 3 * TABLE, MADV_HUGEPAGE)
write(h, 0, 1024)
huge = advise(h, 2 * TABLE, MADV_COLLAPSE)
advise(h, 3 * TABLE, MADV_NOHUGEPAGE)
advise(h, 500 * PAGE, MADV_DONTNEED)
advise(h + TABLE + PAGE, PAGE, MADV_DONTNEED)
ready(h=h, huge=huge)
"""
    with child(script) as kid:
        image = capture(kid.pid)
    if not kid.facts["huge"]:
        pytest.skip("MADV_COLLAPSE gave no huge page")
    outcome = image.run(passes=1).outcome
    assert outcome.partly_before.folios == 2
    assert outcome.partly_before.held == outcome.partly_before.reclaimable == 501 * PAGE
    assert outcome.resident is not None and outcome.resident.held_unmapped == 501 * PAGE
    assert outcome.orders_before[9].folios == 2
    assert outcome.orders_before[9].bytes == (1024 - 501) * PAGE


always = "[always]" in Path(THP, "enabled").read_text() if os.path.isdir(THP) else False
left_small = pytest.mark.skipif(always, reason="this host makes huge pages of everything")


def frames_used(run: Run) -> int:
    """By how many the free frames of the finite nodes of a snapshot's world became fewer."""
    free = sum(node.free_frames() for node in run.world.kernel.mem.allocator.nodes)
    world, _ = run.image.prepared(run.settings, run.image.profile, "")
    return sum(node.free_frames() for node in world.kernel.mem.allocator.nodes) - free


@needs_root
@left_small
@pytest.mark.parametrize("both", [False, True])
def test_a_collapse_that_unshares_pages_costs_frames(both: bool) -> None:
    """Half of each table is still shared with the child, whether that was captured or not."""
    script = """
b = reserve(3 * TABLE)
write(b, 0, 3 * 512)
wait, go = os.pipe()
kid = os.fork()
if kid == 0:
    read(b, 0, 3 * 512)
    os.write(go, b"x")
    sys.stdin.read()
    os._exit(0)
os.read(wait, 1)
for table in range(3):
    write(b, table * 512, 256)
ready(b=b, kid=kid)
"""
    with child(script) as kid:
        image = capture(*sorted((kid.pid, kid.facts["kid"])[: 1 + both]))
    run = image.run(image.configured(enabled="2048kB=always", max_ptes_none=0))
    uses = [each for each in run.mappings if each.start <= kid.facts["b"] < each.end]
    assert [9 in each.before for each in uses] == [False] * (1 + both)
    assert [each.after[9] for each in uses] == [3 * TABLE] * (1 + both)
    assert [each.memory_added for each in uses] == [3 * TABLE // 2, 0][: 1 + both]
    assert run.outcome.memory_added == frames_used(run) * PAGE


@needs_root
@left_small
def test_a_collapse_of_what_is_left_of_huge_pages_costs_none() -> None:
    """Seen on 6.18: the cgroup of such a process stays as it was."""
    script = """
h = reserve(4 * TABLE)
write(h, 0, 4 * 512)
huge = advise(h, 4 * TABLE, MADV_COLLAPSE)
for table in range(4):
    advise(h + table * TABLE + PAGE, TABLE - PAGE, MADV_DONTNEED)
ready(h=h, huge=huge)
"""
    with child(script) as kid:
        image = capture(kid.pid)
    if not kid.facts["huge"]:
        pytest.skip("MADV_COLLAPSE gave no huge page")
    run = image.run(image.configured(enabled="2048kB=always", max_ptes_none=511))
    before, after = run.outcome.partly_before, run.outcome.partly_after
    assert (before.folios, before.held) == (4, 4 * (TABLE - PAGE)) and after == PartlyMapped()
    (use,) = (each for each in run.mappings if each.start <= kid.facts["h"] < each.end)
    assert (use.before[9], use.after[9], use.memory_added) == (4 * PAGE, 4 * TABLE, 0)
    assert run.outcome.memory_added == frames_used(run) * PAGE


def test_the_anonymous_pages_of_a_file_mapping_are_in_the_world_and_stay_small(
    tmp_path: Path,
) -> None:
    """As cow.py of a snapshot's restore: a whole aligned file, every page of it written over."""
    with open(tmp_path / "image", "wb") as file:
        file.truncate(2 * TABLE)
    script = f"""
fd = os.open({str(tmp_path / "image")!r}, os.O_RDWR)
p = reserve(2 * TABLE, flags=0x2, fd=fd)
advise(p, 2 * TABLE, MADV_HUGEPAGE)
write(p, 0, 1024)
ready(p=p)
"""
    with child(script) as kid:
        image = capture(kid.pid)
    always = image.configured(enabled="all=always,always", max_ptes_none=511)
    run = image.run(always, "7.3")
    (use,) = (vma for vma in run.mappings if vma.start == kid.facts["p"])
    assert use.before == use.after == {0: 2 * TABLE} and "not an anonymous mapping" in use.gate
    mine = [each for each in run.refusals if each.covers(kid.facts["p"], PAGE)]
    assert [each.status.name for each in mine] == ["FILE"] and mine[0].mapped == 512
    folios = [each for each in run.folios() if kid.facts["p"] <= each.address < use.end]
    assert len(folios) == 1024 and {each.order for each in folios} == {0}


def test_what_an_old_snapshot_does_not_tell_is_unknown() -> None:
    """One from before the kinds: no Pss; a shared mapping without a name may be of either kind."""
    with child(EVERYTHING) as kid:
        image = capture(kid.pid)
    assert isinstance(image.data, Snapshot)
    (process,) = image.data.processes
    meta = dict(process.meta)
    del meta["rollup"]
    meta["vmas"] = [
        {key: value for key, value in vma.items() if key not in ("kind", "captured", "hugetlb")}
        for vma in meta["vmas"]
    ]
    named = resident_of(meta)
    assert named.pss is None and named.rss == resident_of(process.meta).rss
    assert named.shmem == resident_of(process.meta).shmem, "the names tell"
    assert named.hugetlb == (None if kid.facts["huge"] else 0)
    for vma in meta["vmas"]:
        vma["path"] = ""
    bare = resident_of(meta)
    assert bare.shmem is None and bare.file is None
    assert bare.unmodelled == (None if kid.facts["huge"] else named.unmodelled)


# Real programs

JAVA = """
public class Heap {
    static byte[][] kept;
    public static void main(String[] args) throws Exception {
        kept = new byte[100][];
        for (int i = 0; i < kept.length; i++) {
            kept[i] = new byte[1 << 20];
            java.util.Arrays.fill(kept[i], (byte) 1);
        }
        System.out.println("up");
        Thread.sleep(1000000);
    }
}
"""
THREADS = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *wait_for_ever(void *unused) { volatile char b[8192]; b[0] = b[4096] = 1; pause(); return 0; }
int main(void) {
    pthread_attr_t attr; pthread_t thread; int made = 0;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 2 << 20);
    while (made < 10000 && !pthread_create(&thread, &attr, wait_for_ever, 0)) made++;
    printf("%d\n", made);
    fflush(stdout);
    pause();
}
"""
MEMFD = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    int fd = memfd_create("guest", 0);
    if (ftruncate(fd, 64 << 20)) return 1;
    char *p = mmap(0, 64 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *q = mmap(0, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    memset(p, 1, 64 << 20);
    for (int i = 0; i < 16 << 20; i += 8192) q[i] = 2;
    puts("up");
    fflush(stdout);
    pause();
}
"""
FORKED = """
import os, sys, time
block = bytearray(64 << 20)
rows = [b"%d" % i * 50 for i in range(100_000)]
kids = []
for _ in range(4):
    pid = os.fork()
    if not pid:
        for i in range(0, len(block) // 4, 4096):
            block[i] = 1
        os.write(1, b"up\\n")
        time.sleep(1000)
    kids.append(pid)
time.sleep(1000)
"""
ARRAYS = """
import numpy, time
kept = [numpy.ones(size) for size in (1_000, 100_000, 1_000_000, 5_000_000)]
kept += [numpy.zeros(8_000_000), numpy.ones(2_000_000)[::512].copy()]
print("up", flush=True)
time.sleep(1000)
"""


@contextmanager
def running(
    argv: Sequence[str | Path], ready: Callable[[str], bool] = bool, **options: object
) -> Iterator[subprocess.Popen[str]]:
    """A program in a process group of its own, once a line of what it prints is the one waited for."""
    with subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        **options,  # type: ignore[call-overload]
    ) as process:
        try:
            said = ""
            for line in process.stdout:
                said += line
                if ready(line):
                    break
            else:
                pytest.fail(f"{argv[0]} did not come up: {said[-500:]}")
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def needs(*programs: str) -> None:
    """Skip where one of them is not here."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")


def built(tmp_path: Path, text: str) -> Path:
    """A C program, compiled."""
    needs("gcc")
    source = tmp_path / "program.c"
    source.write_text(text)
    subprocess.run(["gcc", "-O1", "-pthread", "-o", tmp_path / "program", source], check=True)
    return tmp_path / "program"


def children_of(pid: int) -> list[int]:
    return [int(kid) for kid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("collector", ["-XX:+UseZGC", "-XX:+UseG1GC"])
def test_a_java_heap(tmp_path: Path, collector: str) -> None:
    needs("java", "javac")
    (tmp_path / "Heap.java").write_text(JAVA)
    subprocess.run(["javac", "Heap.java"], cwd=tmp_path, check=True)
    with running(["java", collector, "-Xmx512m", "Heap"], cwd=tmp_path) as java:
        time.sleep(1)
        (known,) = hold_against_the_kernel(java.pid)
    assert known.shmem is not None and known.anonymous is not None
    if "ZGC" in collector:
        assert known.mappings[0].name == "/memfd:java_heap" and known.shmem >= 100 * MIB
    else:
        assert known.anonymous >= 100 * MIB


def as_user(name: str) -> dict[str, object]:
    """Options under which a server that refuses root runs."""
    if os.geteuid():
        return {}
    entry = pwd.getpwnam(name)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.mark.slow
def test_postgresql(tmp_path: Path) -> None:
    needs("postgres", "initdb")
    folder = Path("/var/tmp") / f"mthp-test-{os.getpid()}"
    folder.mkdir()
    try:
        if not os.geteuid():
            shutil.chown(folder, "postgres", "postgres")
        user = as_user("postgres")
        data = folder / "data"
        subprocess.run(
            ["initdb", "-D", data, "-A", "trust"],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )  # type: ignore[call-overload]
        command: list[str | Path] = [
            "postgres",
            "-D",
            data,
            "-k",
            folder,
            "-c",
            "shared_buffers=64MB",
        ]
        command += ["-c", "listen_addresses=", "-c", "huge_pages=off"]
        with running(
            command, lambda line: "ready to accept" in line, cwd=folder, **user
        ) as postgres:
            time.sleep(1)
            everyone = hold_against_the_kernel(*sorted([postgres.pid, *children_of(postgres.pid)]))
        assert len(everyone) > 4
        assert all(each.shmem for each in everyone)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_redis_while_it_saves(tmp_path: Path) -> None:
    needs("redis-server")
    command: list[str | Path] = [
        "redis-server",
        "--port",
        "0",
        "--unixsocket",
        tmp_path / "redis.sock",
    ]
    command += ["--dir", tmp_path, "--save", "", "--rdb-key-save-delay", "2000"]
    with (
        running(command, lambda line: "eady to accept" in line) as redis,
        socket.socket(socket.AF_UNIX) as line,
    ):
        line.connect(str(tmp_path / "redis.sock"))
        answers = line.makefile("rb")
        for k in range(50_000):
            line.sendall(b"SET key:%d %s\r\n" % (k, b"v" * 300))
            answers.readline()
        line.sendall(b"BGSAVE\r\n")
        assert b"started" in answers.readline()
        (saving,) = children_of(redis.pid)
        parent, kid = hold_against_the_kernel(*sorted((redis.pid, saving)))
    assert parent.rss is not None and parent.pss is not None and parent.pss < parent.rss
    assert kid.anonymous is not None and kid.anonymous > 10 * MIB


@pytest.mark.slow
def test_node() -> None:
    needs("node")
    script = "a=[];for(i=0;i<1e6;i++)a.push({i});console.log('up');setInterval(()=>a,1e6)"
    with running(["node", "-e", script]) as node:
        time.sleep(1)
        (known,) = hold_against_the_kernel(node.pid)
    assert known.file is not None and known.file > 20 * MIB


@pytest.mark.slow
def test_a_guests_memory_in_a_memfd(tmp_path: Path) -> None:
    with running([built(tmp_path, MEMFD)]) as guest:
        (known,) = hold_against_the_kernel(guest.pid)
    assert known.mappings[0][:2] == (MappingKind.SHMEM, "/memfd:guest")
    assert known.mappings[0].bytes >= 64 * MIB and known.anonymous_in_files is not None
    assert known.anonymous_in_files >= 8 * MIB


@pytest.mark.slow
def test_qemu() -> None:
    needs("qemu-system-x86_64")
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    command += ["-object", "memory-backend-memfd,id=m,size=64M,prealloc=on", "-monitor", "stdio"]
    with running(command, lambda line: "QEMU" in line, stdin=subprocess.PIPE) as qemu:
        time.sleep(1)
        (known,) = hold_against_the_kernel(qemu.pid)
    assert known.shmem is not None and known.shmem >= 64 * MIB


@pytest.mark.slow
def test_python_with_arrays() -> None:
    with running([sys.executable, "-c", ARRAYS]) as python:
        (known,) = hold_against_the_kernel(python.pid)
    assert known.anonymous is not None and known.anonymous > 48 * MIB


@pytest.mark.slow
def test_a_prefork_server() -> None:
    lines = 0

    def all_up(line: str) -> bool:
        nonlocal lines
        lines += line == "up\n"
        return lines == 4

    with running([sys.executable, "-c", FORKED], all_up) as server:
        everyone = hold_against_the_kernel(*sorted([server.pid, *children_of(server.pid)]))
    assert len(everyone) == 5
    assert sum(each.pss or 0 for each in everyone) < sum(each.rss or 0 for each in everyone) / 2


@pytest.mark.slow
def test_ten_thousand_threads(tmp_path: Path) -> None:
    with running([built(tmp_path, THREADS)]) as threads:
        (known,) = hold_against_the_kernel(threads.pid)
    assert known.page_tables is not None and known.page_tables > 4 * MIB
    assert known.anonymous is not None and known.anonymous >= 10_000 * 2 * PAGE
