# SPDX-License-Identifier: GPL-2.0-or-later
"""Record a program's life in memory into one .npz file (docs/recording-format.md).

On hosts it runs as one file, mthp-record.pyz, made by `mthp record --zipapp`; here as `mthp record`.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any, NamedTuple

from mthp.image.capture.host import host_facts, host_geometry
from mthp.image.capture.proc import FAILED, OK, USAGE, CaptureError, state
from mthp.image.record.child import Child, Signals, runnable
from mthp.image.record.columns import Sample, write_recording
from mthp.image.record.decode import Decoder, EventRows
from mthp.image.record.formats import Event, events_of
from mthp.image.record.options import add_arguments
from mthp.image.record.ring import RingPages
from mthp.image.record.tracefs import instance, tracefs
from mthp.image.record.tracer import Lost, Tracer, default_buffer, mappings, samples_of
from mthp.words.files import FileError, check_target, replacing
from mthp.words.streams import ended_in_order, failure, occupy, say
from mthp.words.units import human_bytes

SAMPLE_SECONDS = 0.1


class Traced(NamedTuple):
    """What a run left behind: what /proc said of it, how long it took, how many of its tasks went on, and
    what did not fit."""

    samples: list[Sample]
    seconds: float
    left: int
    lost: Lost


def trace(tracer: Tracer, child: Child, folder: str) -> Traced:
    """Run the command to its end, and keep what it does. CaptureError: it cannot be started."""
    samples: list[Sample] = []
    tracer.follow([child.pid])
    with tracer.opened(folder) as waiting, Signals(child) as signals:
        waiting.register(signals.woken)
        tracer.switch(True)
        began = time.monotonic()
        child.begin()
        while not child.ended() and not signals.enough:
            ready = [held for held, _ in waiting.poll(SAMPLE_SECONDS * 1000)]
            signals.heed()
            tracer.drain(ready)
            samples += samples_of(tracer.followed())
        took = time.monotonic() - began
        tracer.switch(False)
        left = sum(state(task) not in "ZX?" for task in tracer.followed())
        tracer.drain()
        return Traced(samples, took, left, tracer.lost())


def decoded(tracer: Tracer, events: dict[str, Event], shift: int, pid: int) -> tuple[Decoder, int]:
    """The rows of what was drained, and how many events the pages themselves say were lost."""
    decoder = Decoder(events, shift, pid)
    pages = [RingPages(spool, tracer.layout) for spool in tracer.spools.values()]
    decoder.decode([each.records() for each in pages])
    return decoder, sum(each.missed for each in pages)


def record(args: argparse.Namespace) -> list[str]:
    """Record as the arguments say; returns what to say. CaptureError: it cannot be done, or events were
    lost."""
    geometry = host_geometry()
    root = tracefs()
    path = runnable(args.command)
    check_target(args.output)
    events = events_of(root)
    kib = args.buffer or default_buffer()
    with instance(root) as own:
        tracer = Tracer(own, root, events, kib)
        child = Child(path, args.command)
        folder = os.path.dirname(os.path.abspath(args.output))
        traced = trace(tracer, child, folder)
    decoder, missed = decoded(tracer, events, geometry.page_shift, child.pid)
    lost = max(traced.lost.events, missed)
    if decoder.rows.processes:
        decoder.rows.processes[0].update(
            vmas=mappings(child.maps), arguments=child.arguments if child.maps else None
        )
    meta: dict[str, Any] = {
        **host_facts(),
        "tool": "mthp",
        "page_size": geometry.page_size,
        "pmd_size": geometry.pmd_size,
        "command": args.command,
        "exit_status": child.exit_status,
        "signal": child.signal,
        "seconds": traced.seconds,
        "lost": lost,
        "left": traced.left,
        "buffer_kib": kib,
        "huge_pages_off": True,
    }
    with replacing(args.output, 0o600) as file:
        write_recording(file, meta, decoder, traced.samples)
        size = file.tell()
    if lost:
        raise CaptureError(
            f"{args.output}: {lost} events were lost, as a buffer of {human_bytes(kib << 10)} was full: "
            f"--buffer {traced.lost.enough} would have sufficed",
            FAILED,
        )
    return [f"{args.output}: {summary(decoder.rows, size, traced)}", *remarks(child, traced)]


def summary(rows: EventRows, size: int, traced: Traced) -> str:
    """Say what is in the file."""
    return (
        f"{len(rows.processes)} process(es), {len(rows.task_pid)} task(s), {len(rows.kind)} events in "
        f"{traced.seconds:.2f} s, {size >> 10} KiB"
    )


def remarks(child: Child, traced: Traced) -> list[str]:
    """Say what one may not expect."""
    said = []
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
    try:
        if not args.command:
            raise CaptureError(f"no command ({prog} -o FILE -- COMMAND)", USAGE)
        with ended_in_order():
            lines = record(args)
        for line in () if args.quiet else lines:
            say(f"{prog}: {line}")
        return OK
    except (CaptureError, FileError) as error:
        say(f"{prog}: {error}")
        return error.code if isinstance(error, CaptureError) else USAGE
    except OSError as error:
        say(f"{prog}: {failure(error)}")
        return FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted, nothing written")
        return FAILED


def main(argv: list[str] | None = None, prog: str = "mthp-record") -> int:
    """Read the arguments, record, write, and return the exit code."""
    occupy()
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else USAGE
    return run(args, prog)
