# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs in the guest: starts, stops and captures them, and lets khugepaged collapse their memory.

Between two captures of the stopped processes khugepaged makes full scans until one changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, LabError
from mthp.lab.geometry import PMD_ORDER
from mthp.lab.program.program import SYSFS
from mthp.lab.session.memory_pressure import switch_file
from mthp.lab.session.observe import TRACING
from mthp.lab.session.pace import PacedRun, run_at_pace, set_alloc_sleep
from mthp.lab.session.session import ASLEEP, KHUGEPAGED, GuestSession
from mthp.lab.vm.channel import Channel, CommandFailed
from mthp.lab.vm.files import HOST, PROGRAM_FOLDERS
from mthp.lab.vm.interpreter import HELPER, LAB
from mthp.words.files import replacing
from mthp.words.settings import Settings

CGROUP = "/sys/fs/cgroup/subject"
JOBS = f"{LAB}/jobs"
SNAPSHOT = f"{LAB}/snap.npz"
START_MS = 300_000
PART = 4 << 20
MOST_SCANS = 64
SCAN_MS = 600_000
COMMAND_SECONDS = 900.0


LAST_LINES = 10
STOP_MS = 30_000
ATTEMPT_SECONDS = 30.0
"""What a command that is repeated has at least, however late it began."""

PYTHON = "@python"
"""As a program's name: the Python that runs this, which is copied into the guest."""


@dataclass(frozen=True)
class User:
    """Numbers of a user and of its group."""

    uid: int
    gid: int


ROOT = User(0, 0)


@dataclass(frozen=True)
class Command:
    """A command for the guest. argv[0]: a program's name. folder: where it is run."""

    argv: tuple[str, ...]
    user: User = ROOT
    folder: str = "/tmp"


class ProgramFailed(LabError):
    """Raised where a program in the guest fails. output: the last lines that it printed."""

    def __init__(self, message: str, output: Sequence[str]) -> None:
        super().__init__(BAD_INPUT, message)
        self.output = tuple(output)


class Workload:
    """The programs of one guest. Those of the subject, which is captured, are in a cgroup of their own."""

    def __init__(self, channel: Channel, session: GuestSession, paths: Mapping[str, str]) -> None:
        """paths: a program's name -> its path in the guest."""
        self._channel = channel
        self._session = session
        self._paths = paths
        self._jobs = 0
        self._subject = ""

    def prepare(self) -> None:
        """Start the helper that runs the programs, once after boot; nothing is traced."""
        self._session.write(f"{TRACING}/tracing_on", "0")
        self._channel.ask(f"mkdir {CGROUP}")
        self._channel.ask(f"mkdir {JOBS}")
        self._channel.ask(f"start {JOBS}/helper.out {self._paths[PYTHON]} -S {HELPER} {JOBS}")
        with self._channel.patient(START_MS / 1000 + 10):
            self._channel.ask(f"wait {JOBS}/helper.out 0 ready {START_MS}")
        self._call("furnish")

    # --- programs -------------------------------------------------------------------------

    def run(self, job: Command, seconds: float = COMMAND_SECONDS) -> None:
        """Run a command to its end. ProgramFailed: it failed, or takes longer."""
        self._do(" ".join(job.argv), self._document(job), seconds)

    def start(self, job: Command) -> None:
        """Start the subject in the background. ProgramFailed: it cannot be executed."""
        self._subject = self._begin({**self._document(job), "cgroup": CGROUP})

    def start_beside(self, job: Command) -> None:
        """Start a command in the background that is not the subject, such as its load."""
        self._begin(self._document(job))

    def _document(self, job: Command) -> dict[str, object]:
        """The job that guest/helper.py reads."""
        program, *arguments = job.argv
        return {
            "argv": [self._paths[program], *arguments],
            "user": [job.user.uid, job.user.gid],
            "folder": job.folder,
            "path": ":".join(HOST.programs if job.user == ROOT else PROGRAM_FOLDERS),
        }

    def _call(self, name: str, *args: str) -> str:
        """Call a function of the helper and return its output."""
        at = self._do(name, {"call": name, "args": args}, COMMAND_SECONDS)
        return self._channel.ask(f"r {at}.out").decode(errors="replace")

    def _do(self, name: str, document: Mapping[str, object], seconds: float) -> str:
        """Do a job to its end; returns where it is."""
        at = self._put(document)
        status = self._wait(at, "done", seconds, name)
        if status:
            raise ProgramFailed(f"{name}: {_how(status)}", self._last_lines(at))
        return at

    def _begin(self, document: Mapping[str, object]) -> str:
        """Start a job in the background; returns where it is, once it has been executed."""
        at = self._put({**document, "background": True})
        self._wait(at, "started", COMMAND_SECONDS, "the program")
        return at

    def _put(self, document: Mapping[str, object]) -> str:
        self._jobs += 1
        at, data = f"{JOBS}/{self._jobs}", json.dumps(document).encode()
        self._channel.ask(f"put {at}.json 0 {len(data)}", data)
        self._channel.ask(f"put {at}.done 0 0")
        self._channel.ask(f"put {at}.go 0 0")
        return at

    def _wait(self, at: str, word: str, seconds: float, name: str) -> int:
        """Wait for the word in a job's .done file and return the number after it. ProgramFailed: it
        comes too late."""
        with self._channel.patient(seconds + 10):
            try:
                self._channel.ask(f"wait {at}.done 0 {word} {int(seconds * 1000)}")
            except CommandFailed:
                why = f"{name}: not done after {seconds:.0f} s"
                raise ProgramFailed(why, self._last_lines(at)) from None
        return int(self._channel.ask(f"r {at}.done").split()[1])

    def wait_for(self, job: Command, seconds: float) -> None:
        """Repeat a command until it succeeds. ProgramFailed: it did not in that time, or the subject
        ended."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.run(job, max(ATTEMPT_SECONDS, end - time.monotonic()))
                return
            except ProgramFailed as error:
                self.check()
                if time.monotonic() > end:
                    why = f"not ready after {seconds:.0f} s: {error}"
                    printed = self._last_lines(self._subject) or ["nothing"]
                    output = [*error.output, "and the program itself:", *printed]
                    raise ProgramFailed(why, output) from None
            time.sleep(0.2)

    def check(self) -> None:
        """ProgramFailed: no process of the subject is left."""
        if not self.pids():
            status = self._wait(self._subject, "ended", COMMAND_SECONDS, "the program")
            why = f"{_how(status)} before it was to be stopped"
            raise ProgramFailed(why, self._last_lines(self._subject))

    def pids(self) -> list[int]:
        """The subject's processes, ascending."""
        text = self._channel.ask(f"r {CGROUP}/cgroup.procs").decode()
        return sorted(int(word) for word in text.split())

    def _last_lines(self, at: str) -> list[str]:
        """The last lines that a job printed."""
        text = self._channel.ask(f"r {at}.out").decode(errors="replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-LAST_LINES:]

    def stop(self) -> list[int]:
        """Stop every process of the subject by SIGSTOP; returns their pids. ProgramFailed: none is
        left, or one does not stop.

        They are frozen while they are told, so that none can start another meanwhile.
        """
        self._freeze(1)
        self.check()
        pids = self.pids()
        self._channel.ask_all([f"kill {pid} {int(signal.SIGSTOP)}" for pid in pids])
        self._freeze(0)
        end = time.monotonic() + STOP_MS / 1000
        while running := [pid for pid in pids if not self._is_stopped(pid)]:
            if time.monotonic() > end:
                raise ProgramFailed(f"process {running[0]} does not stop", ())
            time.sleep(0.02)
        return pids

    def resume(self) -> None:
        """Let the processes go on that were stopped."""
        self._channel.ask_all([f"kill {pid} {int(signal.SIGCONT)}" for pid in self.pids()])

    def _freeze(self, frozen: int) -> None:
        self._channel.ask(f"w {CGROUP}/cgroup.freeze {frozen}")
        if frozen:
            self._channel.ask(f"wait {CGROUP}/cgroup.events 3 1 {STOP_MS}")

    def _is_stopped(self, pid: int) -> bool:
        stat = self._channel.ask(f"r /proc/{pid}/stat").decode(errors="replace")
        return stat.rpartition(")")[2].split()[0] == "T"

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

    def snap(self, target: Path, *options: str) -> None:
        """Capture the subject's processes in the guest; the file comes to target. options: of snap."""
        self._call("mthp.image.capture.command", "--cgroup", CGROUP, "-o", SNAPSHOT, *options)
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

    def set_alloc_sleep(self, settings: Settings) -> None:
        """Set khugepaged's sleep after a failed allocation, before any size is enabled."""
        set_alloc_sleep(self._channel, self._session, settings)

    def at_pace(self, settings: Settings) -> PacedRun:
        """Let khugepaged sleep and scan as the settings say, until it has come to rest."""
        return run_at_pace(self._channel, self._session, settings, CGROUP)

    def shrink(self) -> None:
        """Have the kernel call its shrinkers until they free nothing more. Kernel: fs/drop_caches.c."""
        with self._channel.patient(SCAN_MS / 1000):
            self._session.write("/proc/sys/vm/drop_caches", "2")

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


def _how(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"it ended with exit status {status}"
    return f"it was killed by signal {-status}" + (" (more --memory?)" if status == -9 else "")
