# SPDX-License-Identifier: GPL-2.0-or-later
"""Record a program's life in memory into one .npz file (docs/recording-format.md).

On hosts it runs as one file, mthp-record.pyz, made by `mthp record --zipapp`; here as `mthp record`.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any, Callable, NamedTuple

from mthp.image.capture.host import host_facts, host_geometry
from mthp.image.capture.proc import FAILED, USAGE, CaptureError, state
from mthp.image.capture.program import exit_code, run_with_arguments
from mthp.image.record.attached import ZERO_PAGE, Attached
from mthp.image.record.child import Child, Signals, runnable
from mthp.image.record.columns import Sample, write_recording
from mthp.image.record.decode import Decoder, EventRows
from mthp.image.record.formats import Event, events_of
from mthp.image.record.looks import Looks
from mthp.image.record.options import add_arguments
from mthp.image.record.programs import Programs
from mthp.image.record.ring import RingPages
from mthp.image.record.tracefs import instance, tracefs
from mthp.image.record.tracer import Lost, Tracer, default_buffer, samples_of
from mthp.words.files import check_target, replacing
from mthp.words.streams import say
from mthp.words.units import human_bytes

SAMPLE_SECONDS = 0.1


class Traced(NamedTuple):
    """What a run left behind: what /proc said of it, the programs that it was seen to run, how long it took,
    how many of its tasks went on, and what did not fit."""

    samples: list[Sample]
    programs: Programs
    seconds: float
    left: int
    lost: Lost


def trace(tracer: Tracer, subject: Child | Attached, folder: str, looks: Looks | None) -> Traced:
    """Keep what it does to its end. looks: at which pages are zero. CaptureError: it cannot be started, or
    read."""
    samples: list[Sample] = []
    programs = Programs()
    pids: list[int] = []
    due = 0.0
    tracer.follow(subject.tasks())
    with tracer.opened(folder) as waiting, Signals(subject.tell) as signals:
        waiting.register(signals.woken)
        tracer.switch(True)
        began = time.monotonic()
        subject.begin()
        while not subject.ended() and not signals.enough:
            until = due if looks is None else min(due, looks.due)
            ready = [held for held, _ in waiting.poll(max(0.0, until - time.monotonic()) * 1000)]
            signals.heed()
            tracer.drain(ready)
            if time.monotonic() >= due:
                due = time.monotonic() + SAMPLE_SECONDS
                now = [*samples_of(tracer.followed())]
                samples += now
                pids = [each.pid for each in now]
                programs.look(pids)
            if looks is not None:
                looks.go_on(pids)
        if looks is not None:
            looks.once_more(pids, tracer.drain)
        took = time.monotonic() - began
        tracer.switch(False)
        left = sum(state(task) not in "ZX?" for task in tracer.followed())
        tracer.drain()
        return Traced(samples, programs, took, left, tracer.lost())


def decoded(
    tracer: Tracer, events: dict[str, Event], shift: int, subject: Child | Attached
) -> tuple[Decoder, int]:
    """The rows of what was drained, and how many events the pages themselves say were lost."""
    decoder = Decoder(events, shift, subject.pid)
    if isinstance(subject, Attached):
        process = decoder.rows.process(subject.pid, "there", None)
        decoder.begin(subject.began)
        for task in subject.known:
            decoder.start_task(task, process)
    pages = [RingPages(spool, tracer.layout) for spool in tracer.spools.values()]
    decoder.decode([each.records() for each in pages])
    return decoder, sum(each.missed for each in pages)


def record(args: argparse.Namespace) -> list[str]:
    """Record as the arguments say; returns what to say. CaptureError: it cannot be done, or events were
    lost."""
    geometry = host_geometry()
    root = tracefs()
    path = None if args.pid is not None else runnable(args.command)
    check_target(args.output)
    events = events_of(root)
    kib = args.buffer or default_buffer()
    looks = Looks(args.zero, geometry) if args.zero else None
    with instance(root) as own:
        tracer = Tracer(own, root, events, kib)
        subject = Child(path, args.command) if path else Attached(args.pid, args.span)
        command = subject.command() if isinstance(subject, Attached) else args.command
        folder = os.path.dirname(os.path.abspath(args.output))
        traced = trace(tracer, subject, folder, looks)
    decoder, missed = decoded(tracer, events, geometry.page_shift, subject)
    lost = max(traced.lost.events, missed)
    if decoder.rows.processes:
        first = decoder.rows.processes[0]
        first.update(vmas=subject.vmas, arguments=subject.arguments)
        first["program"] = first["program"] or command[0]
    traced.programs.tell(decoder)
    meta: dict[str, Any] = {
        **host_facts(),
        "tool": "mthp",
        "page_size": geometry.page_size,
        "pmd_size": geometry.pmd_size,
        "command": command,
        "exit_status": subject.exit_status if isinstance(subject, Child) else None,
        "signal": subject.signal if isinstance(subject, Child) else None,
        "began": decoder.began,
        "seconds": traced.seconds,
        "lost": lost,
        "left": traced.left,
        "buffer_kib": kib,
        "huge_pages_off": isinstance(subject, Child) or subject.huge_pages_off,
    }
    start = subject if isinstance(subject, Attached) else None
    with replacing(args.output, 0o600) as file:
        write_recording(file, meta, decoder, traced.samples, start, looks)
        size = file.tell()
    if lost:
        raise CaptureError(
            f"{args.output}: {lost} events were lost, as a buffer of {human_bytes(kib << 10)} was full: "
            f"--buffer {traced.lost.enough} would have sufficed",
            FAILED,
        )
    return [
        f"{args.output}: {summary(decoder.rows, size, traced)}",
        *remarks(subject, traced, looks),
    ]


def summary(rows: EventRows, size: int, traced: Traced) -> str:
    """Say what is in the file."""
    return (
        f"{len(rows.processes)} process(es), {len(rows.task_pid)} task(s), {len(rows.kind)} events in "
        f"{traced.seconds:.2f} s, {size >> 10} KiB"
    )


def remarks(child: Child | Attached, traced: Traced, looks: Looks | None) -> list[str]:
    """Say what one may not expect."""
    said = []
    if looks is not None:
        said.append(
            f"looked {looks.count} time(s) which pages are zero, at {looks.read} pages, in "
            f"{looks.spent:.2f} s of CPU time"
            + ("; no more after that: what was seen would not fit" if looks.full else "")
        )
    if isinstance(child, Attached):
        large = sum(1 for order in child.order if 0 < order < ZERO_PAGE)
        if not child.huge_pages_off:
            size = "" if child.has_frames else " of PMD size (others are hidden here)"
            said.append(
                f"huge pages were on for it: {large} of the {len(child.page)} pages that it had were in "
                f"large folios{size}, and which pages of such it touches cannot be known"
            )
        return said
    if child.status is None:
        said.append("the command goes on, without huge pages, and is not recorded any more")
    elif traced.left:
        said.append(
            f"{traced.left} task(s) that it started go on, without huge pages, and are not recorded any more"
        )
    if child.signal is not None:
        said.append(f"the command was ended by signal {child.signal}")
    elif child.exit_status:
        said.append(f"the command's exit code was {child.exit_status}")
    return said


def run(args: argparse.Namespace, prog: str = "mthp record") -> int:
    """Record, say on stderr what was done or why not, and return the exit code."""
    if args.command[:1] == ["--"]:
        del args.command[0]

    def work() -> Callable[[], None]:
        if not args.command and args.pid is None:
            raise CaptureError(f"no command ({prog} -o FILE -- COMMAND)", USAGE)
        if args.command and args.pid is not None:
            raise CaptureError("a command and --pid: give one of them", USAGE)
        if args.span is not None and args.pid is None:
            raise CaptureError("--for is for --pid: a command is recorded to its end", USAGE)
        lines = record(args)

        def done() -> None:
            for line in () if args.quiet else lines:
                say(f"{prog}: {line}")

        return done

    return exit_code(prog, work)


def main(argv: list[str] | None = None, prog: str = "mthp-record") -> int:
    """Read the arguments, record, write, and return the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_with_arguments(parser, argv, run)
