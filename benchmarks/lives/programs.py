# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that are recorded and run, as the guest is told to run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.lives.seen import BLOAT, PRESSURE, SETTINGS, Under
from mthp.lab.vm.files import HOST

SOURCES = Path(__file__).parent / "sources"
GUEST = "/lab/lives"
"""Where our own programs lie in the guest."""
SOCKET = f"{GUEST}/socket"
JAVA = "/usr/lib/jvm/java-17-openjdk-amd64"
JAVA_UNUSED = (
    "src.zip",
    "jmods",
    "man",
    "legal",
    "include",
    "demo",
    "docs",
    "ct.sym",
    "javac",
    "jshell",
)
JEMALLOC, TCMALLOC = "libjemalloc.so.2", "libtcmalloc_minimal.so.4"


@dataclass(frozen=True)
class Program:
    """argv: its command in the guest; the first word is a program of this host, or lies in GUEST. work: what
    guest.py does to it. more: of what guest.py is told. trees: files and folders that come along -> names
    left out. tools: other programs that do. texts: path -> what a file there says. build: makes its files in
    a folder. memory: the guest's, in MiB. recordings: how often it is recorded, more than once where it does
    not do the same each time. settings: what it is run under."""

    name: str
    title: str
    argv: tuple[str, ...]
    work: str = "marks"
    more: Mapping[str, Any] = field(default_factory=dict)
    trees: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tools: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    build: Callable[[Path], None] | None = None
    memory: int = 1024
    recordings: int = 1
    settings: Mapping[str, Under] = field(default_factory=lambda: SETTINGS)

    def told(self) -> dict[str, Any]:
        """What the guest is told of it."""
        program = self.argv[0]
        path = program if program.startswith("/") else HOST.required(program)
        words = [path, *self.argv[1:]]
        return {"name": self.name, "argv": words, "work": self.work, **self.more}


def compiled(*words: str) -> Callable[[Path], None]:
    """What runs a compiler in the folder of the program's files. {sources}: ours."""

    def build(folder: Path) -> None:
        command = [word.format(sources=SOURCES) for word in words]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": str(folder / ".cache")}
        subprocess.run(command, check=True, cwd=folder, env=environment)

    return build


def copied(name: str) -> Callable[[Path], None]:
    """What takes a source as it is."""

    def build(folder: Path) -> None:
        (folder / name).write_bytes((SOURCES / name).read_bytes())

    return build


def _java(name: str, title: str, *words: str, marks: int, recordings: int = 1) -> Program:
    return Program(
        name,
        title,
        (f"{JAVA}/bin/java", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", GUEST, *words),
        more={"marks": marks, "settle": 1.0},
        trees={JAVA: JAVA_UNUSED, "/etc/java-17-openjdk": ()},
        build=compiled(
            f"{JAVA}/bin/javac", "-d", ".", "{sources}/Heap.java", "{sources}/Threads.java"
        ),
        memory=1280,
        recordings=recordings,
    )


def _redis(
    name: str,
    title: str,
    work: str = "redis",
    settings: Mapping[str, Under] = SETTINGS,
    **more: Any,
) -> Program:
    words = (
        *("redis-server", "--port", "0", "--unixsocket", SOCKET, "--save", "", "--dir", GUEST),
        *("--disable-thp", "no", "--enable-debug-command", "yes", "--rdbcompression", "no"),
    )
    remove = [SOCKET, f"{GUEST}/dump.rdb"]
    told = {"socket": SOCKET, "remove": remove, **more}
    return Program(name, title, words, work, told, settings=settings)


def _churn(name: str, title: str, library: str) -> Program:
    return Program(
        name,
        title,
        (f"{GUEST}/churn",),
        more={"marks": 5},
        build=compiled(
            "gcc", "-O1", "-fno-builtin", "-o", "churn", "{sources}/churn.c", f"-l:{library}"
        ),
        trees={f"/usr/lib/x86_64-linux-gnu/{library}": ()},
    )


def _stacks(name: str, title: str, *compiler: str) -> Program:
    return Program(
        name, title, (f"{GUEST}/stacks", "400"), more={"marks": 1},
        build=compiled(*compiler, "-O1", "-o", "stacks", "{sources}/stacks.c", "-lpthread"),
    )  # fmt: skip


_POSTGRES = "/usr/lib/postgresql/15"
_DATA, _UID = f"{GUEST}/pg", 70
_OPTIONS = (
    "listen_addresses= unix_socket_directories=/tmp fsync=off jit=off shared_buffers=16MB work_mem=64MB "
    "max_parallel_workers_per_gather=0 max_connections=10 autovacuum=off"
)
_AS_USER = ("setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups")


def _postgres() -> Program:
    setpriv = HOST.required("setpriv")
    server = [f"{_POSTGRES}/bin/postgres", "-D", _DATA]
    return Program(
        "postgres",
        "PostgreSQL: a backend groups and sorts",
        (*_AS_USER, *server, *(word for each in _OPTIONS.split() for word in ("-c", each))),
        "postgres",
        {
            "psql": f"{_POSTGRES}/bin/psql",
            "end": int(signal.SIGINT),
            "made": _DATA,
            "owner": _UID,
            "setup": [
                setpriv, *_AS_USER[1:], f"{_POSTGRES}/bin/initdb", "-D", _DATA, "-A", "trust",
                "--no-locale", "-E", "UTF8", "--no-sync",
            ],
        },
        trees={
            "/usr/share/postgresql/15": ("man", "contrib"),
            f"{_POSTGRES}/lib": ("bitcode", "pgxs", "llvmjit*"),
        },
        tools=tuple(f"{_POSTGRES}/bin/{name}" for name in ("postgres", "psql", "initdb")),
        texts={
            "/etc/passwd": f"root:x:0:0::/root:/bin/sh\npostgres:x:{_UID}:{_UID}::{GUEST}:/bin/sh\n",
            "/etc/group": f"root:x:0:\npostgres:x:{_UID}:\n",
        },
    )  # fmt: skip


_PYTHON = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
_NO_CLOCK = {"MALLOC_CONF": "background_thread:false,dirty_decay_ms:-1,muzzy_decay_ms:-1"}
_HASH = {"PYTHONHASHSEED": "0"}

PROGRAMS = {
    program.name: program
    for program in (
        _redis("redis", "Redis: filled, half deleted, filled again, written to while it saves"),
        _redis(
            "redis-steady",
            "Redis, the same, jemalloc without its clock",
            environment=_NO_CLOCK,
        ),
        _redis(
            "hawkeye",
            "Redis, HawkEye's case",
            "bloat",
            BLOAT,
            environment=_NO_CLOCK,
            settle=2.0,
            pressure=PRESSURE,
            record=["--zero", "1"],
        ),
        _java(
            *("g1", "JVM, G1", "-XX:+UseG1GC", "-Xms24m", "-Xmx128m", "Heap"),
            marks=3,
            recordings=5,
        ),
        _java(
            *("g1-steady", "JVM, G1, compiled at once, with sizes and threads that are fixed"),
            *("-Xbatch", "-XX:+UseG1GC", "-XX:ParallelGCThreads=1", "-XX:ConcGCThreads=1"),
            *("-Xms128m", "-Xmx128m", "-Xmn32m", "-XX:TLABSize=16k", "-XX:-ResizeTLAB", "Heap"),
            marks=3,
        ),
        _java(
            *("zgc", "JVM, ZGC, interpreted: what is not its heap", "-Xint", "-XX:+UseZGC"),
            *("-XX:ConcGCThreads=1", "-XX:ParallelGCThreads=1", "-Xms64m", "-Xmx640m"),
            *("-XX:-ZUncommit", "Heap"),
            marks=3,
        ),
        _java(
            *("shenandoah", "JVM, Shenandoah, interpreted", "-Xint", "-XX:+UseShenandoahGC"),
            *("-XX:+UnlockDiagnosticVMOptions", "-XX:ShenandoahGCHeuristics=static"),
            *("-XX:ConcGCThreads=1", "-XX:ParallelGCThreads=1", "-Xms128m", "-Xmx128m", "Heap"),
            marks=3,
        ),
        _java(
            *("threads", "JVM, interpreted, 1,000 threads that wait", "-Xint", "-XX:+UseSerialGC"),
            *("-Xmx64m", "Threads", "1000"),
            marks=1,
        ),
        Program(
            "go", "Go: filled, dropped, scavenged, filled again", (f"{GUEST}/scavenge",),
            more={"marks": 5},
            build=compiled("go", "build", "-o", "scavenge", "{sources}/scavenge.go"),
        ),
        _churn("jemalloc", "jemalloc: filled, freed, decayed, purged, filled", JEMALLOC),
        _churn("tcmalloc", "tcmalloc: filled, freed, purged, filled", TCMALLOC),
        Program(
            "node", "node: a tree, two thirds dropped, buffers",
            ("node", "--expose-gc", f"{GUEST}/tree.js"),
            more={"marks": 3, "settle": 1.0},
            build=copied("tree.js"),
        ),
        Program(
            "prefork", "a prefork server in CPython, four workers",
            (_PYTHON, f"{GUEST}/prefork.py", SOCKET), "prefork",
            {"socket": SOCKET, "remove": [SOCKET], "workers": 4, "environment": _HASH},
            build=copied("prefork.py"),
        ),
        Program(
            "python", "CPython: a tree, JSON, blobs", (_PYTHON, f"{GUEST}/tree.py"),
            more={"marks": 3, "environment": _HASH},
            build=copied("tree.py"),
        ),
        Program(
            "sort", "a sort in C", (f"{GUEST}/sort",),
            more={"marks": 3},
            build=compiled("gcc", "-O1", "-o", "sort", "{sources}/sort.c"),
        ),
        _postgres(),
        _stacks("stacks-glibc", "400 threads, glibc", "gcc"),
        _stacks("stacks-musl", "400 threads, musl", "musl-gcc", "-static"),
    )
}  # fmt: skip
