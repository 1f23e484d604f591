# SPDX-License-Identifier: GPL-2.0-or-later
"""Write what khugepaged would find in live processes into one .npz file (docs/snapshot-format.md).

On hosts it runs as one file, mthp-snap.pyz, made by `mthp snap --zipapp`; here as `mthp snap`. It
only reads /proc and /sys, and on purpose it needs nothing but the standard library of Python 3.8.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from typing import IO, Any, Callable, ContextManager, Iterator

from mthp.image.capture.columns import NEVER, Columns, redact, write_file
from mthp.image.capture.frames import Frames
from mthp.image.capture.freeze import check_none_is_ours, confirm_freeze, frozen
from mthp.image.capture.host import every_pid, numbers_of_cgroup, pids_of_cgroup
from mthp.image.capture.options import add_arguments
from mthp.image.capture.pagemap import PRESENT
from mthp.image.capture.pages import YOUNG, Pages
from mthp.image.capture.proc import (
    USAGE,
    CaptureError,
    LeftOut,
    open_pagemap,
    read_status,
    text,
)
from mthp.image.capture.program import exit_code, run_with_arguments
from mthp.image.capture.resident import resident_of
from mthp.image.capture.run import (
    CaptureOptions,
    CaptureRun,
    ProcessReader,
    describe_process,
)
from mthp.image.capture.series import Series, Survivors
from mthp.words.files import replacing
from mthp.words.resident import resident_lines, total
from mthp.words.streams import say


def read_processes(session: CaptureRun, pids: list[int]) -> Iterator[dict[str, Any]]:
    """Each process described; what cannot be had of several is left out, counted and said."""
    why: dict[str, list[LeftOut]] = {}
    index = 0
    for pid in pids:
        reader = ProcessReader(pid, index, session)
        rows = len(session.columns.address)
        try:
            status = read_status(pid)
            # Before the pages: where it was swapped out, this brings it back.
            command = text(f"/proc/{pid}/cmdline") or ""
            reader.read()
            described = describe_process(reader, status, command)
        except LeftOut as error:
            why.setdefault(error.why, []).append(error)
            session.columns.truncate(rows)
            continue
        index += 1
        yield described
    for reason, errors in why.items():
        if not index:
            raise errors[-1]
        session.left_out[reason] = len(errors)
        said = str(errors[0]) if len(errors) == 1 else f"{len(errors)} processes left out: {reason}"
        session.not_seen(said)


@contextlib.contextmanager
def captured(
    pids: list[int], options: CaptureOptions, folder: str | None = None
) -> Iterator[tuple[dict[str, Any], Columns]]:
    """Capture the processes: the document of the file, and its columns, which then are gone.

    folder: as for CaptureRun. CaptureError: a process cannot be read.
    """
    if len(pids) > 65535:
        raise CaptureError("more than 65535 processes", USAGE)
    with contextlib.closing(CaptureRun(options, folder)) as session:
        with frozen(pids) if options.freeze else contextlib.nullcontext():
            processes = list(read_processes(session, pids))
        meta = session.meta(processes)
        if options.redact:
            redact(meta, session.columns)
        yield meta, session.columns


def capture_into(
    file: IO[bytes], pids: list[int], options: CaptureOptions, folder: str | None = None
) -> list[str]:
    """Capture the processes into a file; returns a line on what was done and not seen, and lines on
    where their resident memory is.

    folder: as for CaptureRun. CaptureError: a process cannot be read.
    """
    return write_captured(file, captured(pids, options, folder))


def write_captured(
    file: IO[bytes], captured: ContextManager[tuple[dict[str, Any], Columns]]
) -> list[str]:
    """Write what is captured, by a document and columns; returns what capture_into() does."""
    began = time.monotonic()
    with captured as (meta, columns):
        write_file(file, meta, columns)
        deep = [deep_line(meta, columns)] if meta["privilege"]["deep"] else []
        size, tables = file.tell(), len(columns.address)
    torn, processes = meta["tearing"], meta["processes"]
    memory = [
        (f"{each['comm'] or 'process'} ({each['pid']})", resident_of(each)) for each in processes
    ]
    whole = total(resident for _, resident in memory)
    done = (
        f"{len(processes)} process(es), {tables} tables, {size >> 10} KiB in "
        f"{time.monotonic() - began:.2f} s; {torn['tables_changed']} tables changed while they were "
        f"read, {torn['tables_torn']} each time; "
        f"not seen: {'; '.join(sentence.replace(NEVER, '') for sentence in meta['unseen'])}"
    )
    return [done, *deep, *resident_lines(whole, memory)]


_NOT_YOUNG = bytes(bits for bits in range(256) if not bits & YOUNG)
_NOT_PRESENT = bytes(low for low in range(256) if not low & PRESENT)


def deep_line(meta: dict[str, Any], columns: Columns) -> str:
    """Say what a deep capture saw that others do not."""
    young = sum(
        len(part.translate(None, _NOT_YOUNG)) for part in columns.files["pte_bits"].chunks()
    )
    present = sum(
        len(part[::2].translate(None, _NOT_PRESENT)) for part in columns.files["pte"].chunks()
    )
    listed = sum(process["deep"]["registered"] is not None for process in meta["processes"])
    return (
        f"deep: {young} of {present} pages are young; khugepaged's list has {meta['deep']['mms']} "
        f"mm(s), {listed} of these {len(meta['processes'])} process(es) among them"
    )


def pids_asked_for(args: argparse.Namespace) -> list[int]:
    """The processes that --pid, --cgroup or --all name; CaptureError where --pid names none."""
    if args.all:
        return every_pid()
    if args.cgroup is not None:
        return pids_of_cgroup(args.cgroup)
    for pid in args.pid:
        read_status(pid)
        os.close(open_pagemap(pid))
    return sorted(set(args.pid))


def hidden_of(args: argparse.Namespace) -> int:
    """How many more processes are in the cgroup, which have no number in our PID namespace."""
    return numbers_of_cgroup(args.cgroup).count(0) if args.cgroup is not None else 0


def capture(args: argparse.Namespace, pids: list[int], output: str) -> list[str]:
    """Capture the processes as the arguments say; returns what to say on stderr."""
    options = CaptureOptions(
        redact=args.redact,
        exclusive=not args.no_exclusive,
        reader=args.reader,
        freeze=args.freeze,
        hidden=hidden_of(args),
        frames=args.frames,
        deep=args.deep,
        zeros=args.zeros,
        pages=args.pages,
    )
    with replacing(output, 0o600) as file:
        said = capture_into(file, pids, options, os.path.dirname(os.path.abspath(output)))
    return [f"{output}: {said[0]}", *said[1:]]


def capture_as_asked(args: argparse.Namespace, say: Callable[[str], None]) -> list[str]:
    """Make the capture, or all of a series; returns the last lines to say."""
    if args.span and not args.every:
        raise CaptureError("--for needs --every", USAGE)
    if args.deep and args.no_exclusive:
        raise CaptureError("--deep needs what --no-exclusive skips", USAGE)
    if args.zeros and not args.deep:
        raise CaptureError("--zeros goes with --deep", USAGE)
    if args.all and args.freeze:
        raise CaptureError("--freeze with --all would stop what this runs in", USAGE)
    pids = pids_asked_for(args)
    if args.freeze:
        check_none_is_ours(pids)
        if not args.yes:
            confirm_freeze(pids)

    def one(pids: list[int], output: str) -> str:
        return capture(args, pids, output)[0]

    if not args.every:
        return capture(args, pids, args.output)
    again = Survivors(pids, say) if args.pid else lambda: pids_asked_for(args)
    return [Series(args.every, args.span, again, one, say).run(args.output)]


def run(args: argparse.Namespace, prog: str = "mthp snap") -> int:
    """Capture, say on stderr what was done or why not, and return the exit code."""

    def tell(line: str) -> None:
        if not args.quiet:
            say(f"{prog}: {line}")

    def work() -> Callable[[], None]:
        line, *more = capture_as_asked(args, tell)

        def done() -> None:
            tell(line)
            for each in () if args.quiet else more:
                say(each, "  ")

        return done

    return exit_code(prog, work)


def main(argv: list[str] | None = None, prog: str = "mthp-snap") -> int:
    """Read the arguments, capture, write, and return the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n")[0])
    parser.set_defaults(frames=Frames, pages=Pages)
    add_arguments(parser)
    return run_with_arguments(parser, argv, run)
