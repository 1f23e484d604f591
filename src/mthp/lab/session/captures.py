# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures the processes of a program in the guest as users do, by `mthp snap`, beside the lab's own reading.

One Python process stays in the guest for it, since starting one for each capture is slow there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mthp.lab.vm.channel import Channel, CommandFailed
from mthp.lab.vm.files import GuestFiles
from mthp.lab.vm.interpreter import CAPTURES, add_interpreter
from mthp.words.files import scratch

START_SECONDS = 300.0
"""For Python to start and compile the capture in a guest on a busy host."""
_SERVER = "captures"
_OUTPUT = "/tmp/captured.npz"
_COMMAND = "mthp.image.capture.command --quiet"


class CapturePath(StrEnum):
    """How users capture: `mthp snap`, or `mthp snap --deep`."""

    SNAP = "snap"
    DEEP = "deep"

    @property
    def options(self) -> str:
        """What it adds to the command."""
        return " --deep" if self is CapturePath.DEEP else ""


@dataclass(frozen=True)
class CaptureTools:
    """What a guest needs to capture. archive: files for its root; python: a path in it; paths: the
    captures to make of each state."""

    paths: tuple[CapturePath, ...]
    archive: Path
    python: str


@dataclass(frozen=True)
class Captured:
    """The captures of one state. pids: of its processes, in the order of the record. files: .npz by
    path; failed: why there is none, by path."""

    pids: tuple[int, ...]
    files: Mapping[CapturePath, bytes] = field(default_factory=dict)
    failed: Mapping[CapturePath, str] = field(default_factory=dict)


@contextlib.contextmanager
def capture_tools(paths: Sequence[CapturePath]) -> Iterator[CaptureTools | None]:
    """Pack Python and the capture for guests; the archive is removed when the block is left.

    None where no path is asked for. LabError (5): this Python cannot be copied.
    """
    if not paths:
        yield None
        return
    files = GuestFiles()
    python = add_interpreter(files)
    with scratch() as folder:
        yield CaptureTools(tuple(paths), files.pack(folder / "python.cpio"), python)


class Capturer:
    """The Python process of one guest."""

    def __init__(self, channel: Channel, tools: CaptureTools) -> None:
        """Start it. GuestGone: the guest ended."""
        self._channel = channel
        self._paths = tools.paths
        channel.ask(f"serve {_SERVER} {tools.python} -S {CAPTURES}")
        with channel.patient(START_SECONDS), contextlib.suppress(CommandFailed):
            channel.ask(
                f"{_SERVER} {_COMMAND} --pid {channel.ask('pid parked').decode()} -o /dev/null"
            )

    def __call__(self, processes: Sequence[str]) -> Captured:
        """Capture these processes together along every path."""
        pids = tuple(int(self._channel.ask(f"pid {name}")) for name in processes)
        files, failed = {}, {}
        for path in self._paths:
            try:
                files[path] = self._capture(path, pids)
            except CommandFailed as error:
                failed[path] = error.what
        return Captured(pids, files, failed)

    def _capture(self, path: CapturePath, pids: Sequence[int]) -> bytes:
        named = " ".join(f"--pid {pid}" for pid in pids)
        self._channel.ask(f"{_SERVER} {_COMMAND}{path.options} {named} -o {_OUTPUT}")
        return self._channel.ask(f"r {_OUTPUT}")
