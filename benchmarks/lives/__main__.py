# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs recorded once, predicted under several settings, and then really run under them, in guests.

Run as: python -m benchmarks.lives -o FOLDER [PROGRAM ...], after `mthp lab setup`. It needs what the programs
are of: redis-server, openjdk-17-jdk-headless, nodejs, golang-go, libjemalloc2, libtcmalloc-minimal4, gcc. A
guest is booted for each program; this host's settings are not touched. What was recorded and seen stays in
the folder, from which --again makes the tables without a guest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lives.plot import picture_of
from benchmarks.lives.programs import GUEST, PROGRAMS, Program
from benchmarks.lives.seen import (
    SETTINGS,
    AtMark,
    Life,
    Under,
    read_seen,
    recording_of,
    write_seen,
)
from benchmarks.lives.table import ASKED, HEAD, MARKS, asked_of, marks_of, table_of
from benchmarks.lives.trace import FORMATS, at_mark, real_life
from mthp.image.recording import load_recording
from mthp.image.zipped import RECORD, write_zipapp
from mthp.lab.kernels.kernels import CachedKernel, find
from mthp.lab.session.boot import Booted, Guest, booted
from mthp.lab.session.real_program import EXPECTED
from mthp.lab.session.workload import PYTHON, Command, ProgramFailed, Workload
from mthp.lab.vm.files import HOST, GuestFiles, Root
from mthp.lab.vm.interpreter import LAB, add_interpreter
from mthp.words.settings import TRANSPARENT_HUGEPAGE

SECONDS = 3600.0


@contextlib.contextmanager
def packed(program: Program, memory: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """The program's files as an archive, and where the guest has Python."""
    files = GuestFiles((memory << 20) // 2)
    paths = {PYTHON: add_interpreter(files)}
    for name in EXPECTED:
        if HOST.find(name):
            files.add_tree(HOST, name)
    files.add_bytes(f"{LAB}/guest.py", (Path(__file__).parent / "guest.py").read_bytes())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_zipapp(folder / "record.pyz", RECORD)
        files.add_bytes(f"{LAB}/record.pyz", (folder / "record.pyz").read_bytes())
        made = Root(folder / "root")
        place = made.at(GUEST)
        place.mkdir(parents=True)
        if program.build is not None:
            program.build(place)
        files.add_folder(made, GUEST)
        for path in sorted(place.iterdir()):
            if path.is_file():
                files.add_tree(made, f"{GUEST}/{path.name}")
        if not program.argv[0].startswith(GUEST):
            files.add_program(HOST, program.told()["argv"][0])
        for tool in program.tools:
            files.add_program(HOST, tool)
        for at, text in program.texts.items():
            files.add_bytes(at, text.encode())
        for tree, skip in program.trees.items():
            files.add_tree(HOST, tree, skip)
        yield files.pack(folder / "files.cpio"), paths


class Room:
    """A guest with the program in it."""

    def __init__(self, guest: Booted, workload: Workload, program: Program) -> None:
        self._guest, self._workload, self._program = guest, workload, program
        events = "/sys/kernel/tracing/events"
        self._formats = {name: self._read(f"{events}/{name}").decode() for name in FORMATS}

    def record(self, target: Path) -> tuple[AtMark, ...]:
        """Record it to a file of this host, with every size off; what it had at its marks."""
        ((seen, data),) = self._perform(
            "recorded", SETTINGS["none"], 1, f"{GUEST}/out-recording.npz"
        )
        target.write_bytes(data)
        began = int(load_recording(target).meta["began"])
        return tuple(at_mark(mark, began) for mark in seen["marks"])

    def run(self, name: str, under: Under, runs: int) -> list[Life]:
        """Run it so often under a setting."""
        return [
            real_life(data, seen, self._formats) for seen, data in self._perform(name, under, runs)
        ]

    def _perform(
        self, name: str, under: Under, runs: int, recording: str = ""
    ) -> list[tuple[dict[str, Any], bytes]]:
        """What guest.py saw of each run, and the file that came of it."""
        pace = ("khugepaged/scan_sleep", "khugepaged/pages_to_scan")
        skipped = ("khugepaged/alloc_sleep", "hpage_pmd_size", *(() if under.khugepaged else pace))
        chosen = {
            f"{TRANSPARENT_HUGEPAGE}/{path}": text.partition("[")[2].partition("]")[0]
            or text.strip()
            for path, text in under.settings.to_sysfs().items()
            if not path.startswith(skipped)
        }
        spec = {
            "program": self._program.told(),
            "files": {"/proc/sys/kernel/randomize_va_space": "0", **chosen},
            "khugepaged": under.khugepaged,
            "runs": runs,
            "recorder": f"{LAB}/record.pyz",
            "recording": recording,
            "out": f"{GUEST}/out-{name}".replace(" ", "-").replace(",", ""),
        }
        text, place = (
            json.dumps(spec).encode(),
            f"{LAB}/{name}.json".replace(" ", "-").replace(",", ""),
        )
        self._guest.machine.channel.ask(f"put {place} 0 {len(text)}", text)
        self._workload.run(Command((PYTHON, "-S", f"{LAB}/guest.py", place)), SECONDS)
        seen = json.loads(self._read(f"{spec['out']}.json"))
        return [
            (each, b"".join(self._read(f"{each['file']}.{part}") for part in range(each["parts"])))
            for each in seen
        ]

    def _read(self, path: str) -> bytes:
        return self._guest.session.ask(f"r {path}")


def run_program(program: Program, kernel: CachedKernel, runs: int, folder: Path) -> None:
    """Record a program, and run it under all settings, in one guest; NAME.npz (NAME-2.npz and so on, where it
    is recorded more than once) and NAME.json of the folder are what comes of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        packed(program, program.memory) as (archive, paths),
        booted(kernel, Guest(program.memory), (archive,)) as guest,
    ):
        workload = Workload(guest.machine.channel, guest.session, paths)
        workload.prepare()
        room = Room(guest, workload, program)
        print(f"{program.name}: recorded", file=sys.stderr, flush=True)
        recorded = [
            room.record(recording_of(folder, program.name, number))
            for number in range(program.recordings)
        ]
        real: dict[str, list[Life]] = {}
        for name, under in program.settings.items():
            print(f"{program.name}: {name}", file=sys.stderr, flush=True)
            real[name] = room.run(name, under, runs)
            write_seen(folder / f"{program.name}.json", program.title, recorded, real)


def main(words: Sequence[str] | None = None) -> None:
    """Run them, and print the tables."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.lives", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("program", nargs="*", help=f"of {', '.join(PROGRAMS)} (default: all)")
    parser.add_argument("--kernel", help="a release of the cache, or its beginning")
    parser.add_argument("--runs", type=int, default=5, help="of each setting (default: 5)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder")
    parser.add_argument(
        "--again", action="store_true", help="only the tables, of what is in the folder"
    )
    parser.add_argument("--marks", action="store_true", help="a table of what was at each mark")
    parser.add_argument("--svg", type=Path, metavar="FOLDER", help="a picture of each program, too")
    args = parser.parse_args(words)
    head: tuple[str, ...] = ()
    for name in args.program or PROGRAMS:
        if not args.again:
            try:
                run_program(PROGRAMS[name], find(args.kernel), args.runs, args.output)
            except ProgramFailed as error:
                raise SystemExit("\n".join((str(error), *error.output))) from None
        seen = read_seen(args.output, name)
        columns, rows = (
            (MARKS, marks_of)
            if args.marks
            else (ASKED, asked_of)
            if seen.asked
            else (HEAD, table_of)
        )
        if columns != head:
            print("\n".join(("", *columns) if head else columns))
            head = columns
        print("\n".join(rows(seen)), flush=True)
        if args.svg is not None:
            (args.svg / f"life-{name}.svg").write_text(picture_of(seen))


if __name__ == "__main__":
    main()
