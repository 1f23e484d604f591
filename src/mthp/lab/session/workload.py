# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs in the guest: starts, stops and captures them, and lets khugepaged collapse their memory.

Between two captures of the stopped processes khugepaged makes full scans until one changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, LabError
from mthp.lab.geometry import PMD_ORDER
from mthp.lab.program.program import SYSFS
from mthp.lab.session.memory_pressure import switch_file
from mthp.lab.session.session import ASLEEP, KHUGEPAGED, TRACING, GuestSession
from mthp.lab.vm.channel import Channel, CommandFailed
from mthp.lab.vm.interpreter import HELPER
from mthp.words.files import replacing
from mthp.words.settings import Settings

CGROUP = "/sys/fs/cgroup/subject"
JOBS = "/tmp/jobs"
SNAPSHOT = "/tmp/snap.npz"
START_MS = 300_000
PART = 4 << 20
MOST_SCANS = 64
SCAN_MS = 600_000
COMMAND_SECONDS = 900.0


PYTHON = "python"
"""As a program's name: the Python that runs this, which is copied into the guest."""


@dataclass(frozen=True)
class Command:
    """A command for the guest, run in /tmp. argv[0]: a program's name. uid: 0 for root."""

    argv: tuple[str, ...]
    uid: int = 0


class Workload:
    """The programs of one guest. Those of the subject, which is captured, are in a cgroup of their own."""

    def __init__(self, channel: Channel, session: GuestSession, paths: Mapping[str, str]) -> None:
        """paths: a program's name -> its path in the guest."""
        self._channel = channel
        self._session = session
        self._paths = paths
        self._jobs = self._subject = 0
        self._output = ""

    def prepare(self) -> None:
        """Start the helper that runs the programs, once after boot; nothing is traced."""
        self._session.write(f"{TRACING}/tracing_on", "0")
        self._channel.ask(f"mkdir {CGROUP}")
        self._channel.ask(f"mkdir {JOBS}")
        self._channel.ask(f"start {JOBS}/helper.out {self._paths[PYTHON]} -S {HELPER} {JOBS}")
        with self._channel.patient(START_MS / 1000 + 10):
            self._channel.ask(f"wait {JOBS}/helper.out 0 ready {START_MS}")

    # --- programs -------------------------------------------------------------------------

    def run(self, job: Command, seconds: float = COMMAND_SECONDS) -> str:
        """Run a command to its end; returns its output. LabError: it failed; the text is the last
        line it printed."""
        return self._do(self._paths[job.argv[0]], self._document(job), seconds)

    def start(self, job: Command) -> None:
        """Start the subject in the background."""
        self._output, self._subject = self._begin({**self._document(job), "cgroup": CGROUP})

    def start_beside(self, job: Command) -> None:
        """Start a command in the background that is not the subject, such as its load."""
        self._begin(self._document(job))

    def _document(self, job: Command) -> dict[str, object]:
        """The job that guest/helper.py reads."""
        program, *arguments = job.argv
        return {"argv": [self._paths[program], *arguments], "uid": job.uid}

    def _call(self, name: str, *args: str) -> str:
        """Call a function of the helper and return its output."""
        return self._do(name, {"call": name, "args": args}, COMMAND_SECONDS)

    def _do(self, name: str, document: Mapping[str, object], seconds: float) -> str:
        at = self._put(document)
        done = self._wait(at, "done", seconds, name)
        text = self._channel.ask(f"r {at}.out").decode(errors="replace")
        if done:
            raise LabError(BAD_INPUT, f"{name} in the guest: {_last_line(text, done)}")
        return text

    def _begin(self, document: Mapping[str, object]) -> tuple[str, int]:
        at = self._put({**document, "background": True})
        return f"{at}.out", self._wait(at, "started", COMMAND_SECONDS, "the program")

    def _put(self, document: Mapping[str, object]) -> str:
        self._jobs += 1
        at, data = f"{JOBS}/{self._jobs}", json.dumps(document).encode()
        self._channel.ask(f"put {at}.json 0 {len(data)}", data)
        self._channel.ask(f"put {at}.done 0 0")
        self._channel.ask(f"put {at}.go 0 0")
        return at

    def _wait(self, at: str, word: str, seconds: float, name: str) -> int:
        """Wait for the word in a job's .done file and return the number after it. LabError: it
        comes too late."""
        with self._channel.patient(seconds + 10):
            try:
                self._channel.ask(f"wait {at}.done 0 {word} {int(seconds * 1000)}")
            except CommandFailed as error:
                why = f"{name} in the guest is not done after {seconds:.0f} s"
                raise LabError(BAD_INPUT, why) from error
        return int(self._channel.ask(f"r {at}.done").split()[1])

    def wait_for(self, job: Command, seconds: float) -> None:
        """Repeat a command until it succeeds. LabError: it did not in that time."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.run(job, seconds)
                return
            except LabError as error:
                if time.monotonic() > end:
                    raise LabError(error.code, f"{error}; {self.last_output_line()}") from None
            if not self._alive():
                raise LabError(BAD_INPUT, f"the program ended: {self.last_output_line()}")
            time.sleep(0.2)

    def _alive(self) -> bool:
        """Whether the program runs, or a process that it started."""
        with contextlib.suppress(CommandFailed):
            stat = self._channel.ask(f"r /proc/{self._subject}/stat").decode(errors="replace")
            if stat.rpartition(")")[2].split()[0] not in "ZX":
                return True
        return bool(self.pids())

    def pids(self) -> list[int]:
        """The subject's processes, ascending."""
        text = self._channel.ask(f"r {CGROUP}/cgroup.procs").decode()
        return sorted(int(word) for word in text.split())

    def last_output_line(self) -> str:
        """The last line that the subject printed, or a phrase that it printed nothing."""
        with contextlib.suppress(CommandFailed):
            return _last_line(self._channel.ask(f"r {self._output}").decode(errors="replace"), 0)
        return "it printed nothing"

    def stop(self) -> list[int]:
        """Stop every process of the subject by SIGSTOP; returns their pids. LabError: none is
        left."""
        pids = self.pids()
        if not pids:
            raise LabError(
                BAD_INPUT,
                f"the program has ended before its memory was read: {self.last_output_line()}",
            )
        self._channel.ask_all([f"kill {pid} 19" for pid in pids])
        self._channel.ask_all([f"wait /proc/{pid}/stat 2 T 30000" for pid in pids])
        return pids

    # --- khugepaged -----------------------------------------------------------------------

    def register(self, pids: list[int]) -> None:
        """Register stopped processes with khugepaged in that order. Their memory is not changed."""
        self._session.write(switch_file(PMD_ORDER), "madvise")
        self._call("register", *map(str, pids))
        self._session.write(switch_file(PMD_ORDER), "never")

    def apply(self, settings: Settings) -> None:
        """Write the settings except khugepaged's pace, which stays one full scan for each wakeup."""
        pace = {"khugepaged/pages_to_scan", "khugepaged/scan_sleep_millisecs", "hpage_pmd_size"}
        pace.add("khugepaged/alloc_sleep_millisecs")
        for path, text in settings.to_sysfs().items():
            if path not in pace:
                value = text.strip()
                chosen = value[value.index("[") + 1 : value.index("]")] if "[" in value else value
                with contextlib.suppress(CommandFailed):
                    self._session.write(f"{SYSFS}/{path}", chosen)

    def snap(self, target: Path) -> None:
        """Capture the subject's processes in the guest; the file comes to target."""
        self._call("mthp.image.capture.command", "--cgroup", CGROUP, "-o", SNAPSHOT)
        count = int(self._call("split", SNAPSHOT, str(PART)))
        parts = self._channel.ask_all([f"r {SNAPSHOT}.{index}" for index in range(count)])
        with replacing(target, 0o600) as file:
            file.writelines(parts)

    def scan_to_fixed_point(self) -> int:
        """Scan until a full scan collapses nothing; returns how many. LabError: it does not come to
        rest."""
        before = self._collapsed()
        for scans in range(1, MOST_SCANS + 1):
            self._full_scan()
            now = self._collapsed()
            if now == before:
                return scans
            before = now
        raise LabError(BAD_INPUT, f"khugepaged does not come to rest in {MOST_SCANS} full scans")

    def _collapsed(self) -> int:
        return int(self._channel.ask(f"r {KHUGEPAGED}/pages_collapsed"))

    def _full_scan(self) -> None:
        """Do what GuestSession.full_scan() does, without its trace, which would be large."""
        pid = int(self._channel.ask("pidof khugepaged"))
        asleep = f"wait /proc/{pid}/stat 2 S {SCAN_MS}"
        done = int(self._channel.ask(f"r {KHUGEPAGED}/full_scans"))
        with self._channel.patient(SCAN_MS / 1000 + 10):
            self._channel.ask_all(
                [
                    asleep,
                    f"w {KHUGEPAGED}/scan_sleep_millisecs {ASLEEP}",
                    f"wait {KHUGEPAGED}/full_scans 0 {done + 1} {SCAN_MS}",
                    asleep,
                ]
            )


def _last_line(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"it ended with {status} and printed nothing"
