# SPDX-License-Identifier: GPL-2.0-or-later
"""How many random one-line mutations of the engine and its laws do the tests notice?

    python -m tests.mutation --n 300 --seed 1 --jobs 2

Each mutation is applied in a private copy of the commit that is checked out, and the tests that
run through its block are run, the quickest first, until one fails. What is known is kept under
build/mutants and not asked again, so an interrupted campaign goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from tests.mutation import plugin
from tests.mutation.edits import Mutation, lines_of, mutations
from tests.mutation.plugin import Chosen
from tests.mutation.recorder import instrument, record

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "mutants"
ROOMS = [f"src/mthp/{room}" for room in ("khugepaged", "laws", "machine", "mm")]
NOT_ASKED = ("tests/lab/", "tests/mutation/", "tests/benchmarks/", "tests/test_")
"""Test files about other rooms, or about how the project is written."""
IMPORTED_ONCE = ("greenlet", "jsonschema", "numpy", "rich.console", "rich.table")
"""What every child would import."""
MOST_MEMORY = 4 << 30


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def copy_of_the_commit(commit: str) -> Path:
    """The commit's files below BUILD. What has not changed keeps its date, and with it what Python
    and Numba have compiled of it."""
    base, new = BUILD / "base", BUILD / "new"
    if (base / "commit").exists() and (base / "commit").read_text() == commit:
        return base
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-x"], cwd=new, check=True, input=archive.stdout)
    for path in [path for path in base.rglob("*") if path.is_file()]:
        kept = path.parent.name == "__pycache__" or (new / path.relative_to(base)).exists()
        if not kept:
            path.unlink()
    for path in [path for path in new.rglob("*") if path.is_file()]:
        old = base / path.relative_to(new)
        if not old.exists() or not filecmp.cmp(path, old, shallow=False):
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, old)
    shutil.rmtree(new)
    # What is compiled for the first time takes minutes: once, before there are copies of it.
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/explore/test_compiled.py"],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(base / "src")},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (base / "commit").write_text(commit)
    return base


def write_source(path: Path, source: bytes) -> None:
    """Write a module, so that none compiled in the same second is taken for it."""
    path.write_bytes(source)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def fork(where: Path, body: Callable[[], int]) -> int:
    """The process id of a child that runs body in a copy, in a process group of its own."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        os.chdir(where)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(where / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PYTHONPATH"] = str(where / "src")
        sys.path[:0] = [str(where), str(where / "src")]
        sys.modules["tests"].__path__ = [str(where / "tests")]
        status = body()
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


@dataclass
class Pool:
    """A few children at a time, each in its own copy of the project."""

    copies: list[Path]
    running: dict[int, tuple[Path, float, Callable[[int], None]]] = field(default_factory=dict)

    def start(
        self, body: Callable[[Path], Callable[[], int]], limit: float, done: Callable[[int], None]
    ) -> None:
        """Run body(copy) when a copy is free. done: hears the exit code, plugin.HANGS if killed."""
        while len(self.running) == len(self.copies):
            self.wait()
        busy = [copy for copy, _, _ in self.running.values()]
        copy = next(each for each in self.copies if each not in busy)
        pid = fork(copy, body(copy))
        self.running[pid] = copy, time.monotonic() + limit, done

    def wait(self) -> None:
        """Wait until a child has ended, of itself or by its limit."""
        while True:
            for pid, (_, deadline, done) in list(self.running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                late = time.monotonic() > deadline
                if ended or late:
                    _end_group(pid)
                    if not ended:
                        os.waitpid(pid, 0)
                    del self.running[pid]
                    done(os.waitstatus_to_exitcode(status) if ended else plugin.HANGS)
                    return
            time.sleep(0.02)

    def finish(self) -> None:
        while self.running:
            self.wait()


def _end_group(pid: int) -> None:
    """Whatever a test has left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# Which tests run through which blocks


def coverage_map(pool: Pool, base: Path, folders: tuple[str, ...]) -> dict[str, Any]:
    """test -> its seconds and the blocks it runs through; each test file is asked once."""
    source = git("rev-parse", *(f"HEAD:{room}" for room in ROOMS), "HEAD:tests/small_worlds.py")
    names = git("ls-tree", "-r", "--format=%(objectname) %(path)", "HEAD", "tests").splitlines()
    tests: dict[str, Any] = {}
    kept: list[Path] = []
    found: list[tuple[str, int]] = []
    for copy in pool.copies:
        shutil.copytree(base, copy)
        found = instrument(copy, ROOMS)
    for blob, path in (line.split(" ", 1) for line in names):
        if not Path(path).name.startswith("test_") or path.startswith(NOT_ASKED):
            continue
        if not path.startswith(folders):
            continue
        known = BUILD / "map" / f"{blob[:12]}-{hash_of(source + path)}.json"
        kept.append(known)
        if not known.exists():
            print(f"which blocks does {path} run through?", flush=True)
            pool.start(_recording(path, found, known), 1800, _must_be_0)
    pool.finish()
    for each in kept:
        if each.exists():
            tests |= json.loads(each.read_text(encoding="utf-8"))
    return tests


def hash_of(text: str) -> str:
    return subprocess.run(
        ["git", "hash-object", "--stdin"], input=text, text=True, check=True, capture_output=True
    ).stdout[:12]


def _recording(
    path: str, found: list[tuple[str, int]], known: Path
) -> Callable[[Path], Callable[[], int]]:
    return lambda copy: lambda: record(path, found, known)


def _must_be_0(status: int) -> None:
    if status:
        raise SystemExit(
            f"a test file could not be recorded: exit code {status}; see {BUILD}/*/log"
        )


class Choice:
    """Chooses the tests for a mutation."""

    def __init__(self, tests: dict[str, Any], budget: float) -> None:
        self.budget = budget
        self.seconds = {test: known["seconds"] for test, known in tests.items()}
        self.by_block: dict[tuple[str, int], set[str]] = {}
        for test, known in tests.items():
            for path, lines in known["blocks"].items():
                for line in lines:
                    self.by_block.setdefault((path, line), set()).add(test)

    def tests(self, mutation: Mutation) -> tuple[list[Chosen], int]:
        """Those within the budget, and how many were left out. Quick ones first, by the file, so
        that a file's fixtures are not made anew for each test."""
        room, module = Path(mutation.path).parts[-2:]
        own = f"tests/{room}/test_{module}"
        if mutation.block:
            found = self.by_block.get((mutation.path, mutation.block), set())
        else:
            places = [place for place in self.by_block if place[0] == mutation.path]
            found = {test for place in places for test in self.by_block[place]}
            found |= {test for test in self.seconds if test.startswith(own)}

        def place(test: str) -> tuple[bool, int, str, float]:
            seconds = self.seconds[test]
            tier = (seconds > 0.1) + (seconds > 1)
            return not test.startswith(own), tier, test.partition("::")[0], seconds

        ordered = sorted(found, key=place)
        chosen: list[Chosen] = []
        spent = 0.0
        for test in ordered:
            spent += self.seconds[test]
            if spent > self.budget and chosen:
                break
            chosen.append(Chosen(test, self.seconds[test]))
        return chosen, len(ordered) - len(chosen)


# The campaign


def every_line(base: Path) -> Iterator[list[Mutation]]:
    """The mutations of each line that has some."""
    for room in ROOMS:
        for path in sorted((base / room).rglob("*.py")):
            yield from lines_of(mutations(str(path.relative_to(base)), path.read_bytes()))


def sample(base: Path, seed: int) -> Iterator[Mutation]:
    """Random lines, each once, and one random mutation of each.

    What a line comes to depends on its own text and function alone, so that a commit that changes
    others leaves it in the sample, or out of it.
    """
    drawn: list[tuple[float, Mutation]] = []
    alike: Counter[tuple[str, ...]] = Counter()
    for line in every_line(base):
        name = line[0].path, line[0].function, line[0].before
        dice = random.Random(f"{seed} {name} {alike[name]}")
        alike[name] += 1
        drawn.append((dice.random(), dice.choice(line)))
    for _, mutation in sorted(drawn, key=itemgetter(0)):
        if mutation.is_another_module((base / mutation.path).read_bytes()):
            yield mutation


def equivalents() -> dict[tuple[str, ...], str]:
    """Mutations that change nothing anybody could see, and why."""
    with open(Path(__file__).parent / "equivalent.toml", "rb") as file:
        listed = tomllib.load(file).get("equivalent", [])
    return {(e["path"], e["function"], e["before"], e["after"]): e["why"] for e in listed}


class Records:
    """What was found out, one JSON line for each mutation of a commit."""

    def __init__(self, commit: str) -> None:
        self.commit = commit
        self.file = BUILD / "results.jsonl"
        self.known: dict[tuple[Any, ...], dict[str, Any]] = {}
        self.lived_before: set[tuple[str, ...]] = set()
        for line in self.file.read_text().splitlines() if self.file.exists() else []:
            each = json.loads(line)
            key = tuple(each["mutation"])
            if each["commit"] == commit:
                self.known[(*key, each["start"])] = each
            elif each["result"] == "lived":
                self.lived_before.add(key)
            else:
                self.lived_before.discard(key)

    def result(self, mutation: Mutation) -> str | None:
        """How it ended at this commit; None if it is not known."""
        known = self.known.get((*mutation.key, mutation.start))
        return None if known is None else str(known["result"])

    def add(self, mutation: Mutation, result: str, **more: Any) -> None:
        each: dict[str, Any] = {"commit": self.commit, "mutation": mutation.key}
        each |= {"line": mutation.line, "start": mutation.start}
        each |= {"result": result, **more}
        self.known[(*mutation.key, mutation.start)] = each
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(each) + "\n")
        print(f"{result}: {mutation.path}:{mutation.line} {more.get('by', '')}", flush=True)
        if result == "lived":
            print(f"    {mutation.before}\n    {mutation.after}", flush=True)


def try_mutation(pool: Pool, base: Path, choice: Choice, records: Records, each: Mutation) -> None:
    """Apply it in a free copy, and run its tests there."""
    chosen, left_out = choice.tests(each)
    if not chosen:
        records.add(each, "lived", tests=0, left_out=0)
        return
    sound = (base / each.path).read_bytes()
    began = time.monotonic()
    place: list[Path] = []

    def body(copy: Path) -> Callable[[], int]:
        place.append(copy)
        write_source(copy / each.path, each.apply(sound))
        return lambda: _tests(chosen, copy / "told")

    def done(status: int) -> None:
        told = place[0] / "told"
        by = told.read_text() if told.exists() else "import"
        told.unlink(missing_ok=True)
        write_source(place[0] / each.path, sound)
        result = {0: "lived", plugin.HANGS: "hangs"}.get(status, "killed")
        more = {} if result == "lived" else {"by": by}
        seconds = round(time.monotonic() - began, 1)
        records.add(each, result, tests=len(chosen), left_out=left_out, seconds=seconds, **more)

    pool.start(body, 60 + 10 * sum(test.seconds for test in chosen), done)


def _tests(chosen: list[Chosen], told: Path) -> int:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    return plugin.run(chosen, told)


def report(wanted: list[Mutation], records: Records) -> float:
    """Print the score; what is equivalent does not count."""
    excused = equivalents()
    results = Counter(records.result(each) for each in wanted)
    lived = [each for each in wanted if records.result(each) == "lived"]
    equivalent = [each for each in lived if each.key in excused]
    print("\nlived:")
    for each in lived:
        if each.key not in excused:
            print(f"  {each.path}:{each.line} in {each.function or 'the module'}")
            print(f"      {each.before}\n      {each.after}")
    counted = len(wanted) - len(equivalent)
    noticed = results["killed"] + results["hangs"]
    score = 100 * noticed / max(counted, 1)
    print(
        f"\n{len(wanted)} mutations: {noticed} noticed ({results['hangs']} of them because a test"
        f" hung), {len(lived) - len(equivalent)} lived, {len(equivalent)} are equivalent:"
        f" {score:.1f} %"
    )
    return score


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="how many mutations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests for a mutation")
    parser.add_argument("--tests", nargs="+", default=["tests/"], help="tests below these alone")
    parser.add_argument(
        "--lived", action="store_true", help="only those that lived at a commit before"
    )
    parser.add_argument("--least", type=float, default=97, help="the score that is good enough")
    options = parser.parse_args()
    if git("status", "--porcelain", "src", "tests"):
        print("commit src and tests first: what is found out is kept by commit", file=sys.stderr)
        return 2
    commit = git("rev-parse", "HEAD")
    base = copy_of_the_commit(commit)
    copies = [BUILD / f"copy{n}" for n in range(options.jobs)]
    records = Records(commit)
    if options.lived:
        everything = chain.from_iterable(every_line(base))
        wanted = [each for each in everything if each.key in records.lived_before]
    else:
        wanted = list(islice(sample(base, options.seed), options.n))
    for name in IMPORTED_ONCE:
        importlib.import_module(name)
    pool = Pool(copies)
    for copy in copies:
        shutil.rmtree(copy, ignore_errors=True)
    choice = Choice(coverage_map(pool, base, tuple(options.tests)), options.budget)
    for copy in copies:
        shutil.rmtree(copy)
        shutil.copytree(base, copy)
    for each in wanted:
        if records.result(each) is None:
            try_mutation(pool, base, choice, records, each)
    pool.finish()
    return 0 if report(wanted, records) >= options.least else 1


if __name__ == "__main__":
    sys.exit(main())
