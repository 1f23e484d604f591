# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own khugepaged selftest: compiled on this host, run in a guest, its output parsed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mthp.lab.errors import FAILED, LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.kernels.source import SELFTESTS
from mthp.lab.kernels.tools import compile_statically
from mthp.lab.session.boot import Guest, booted
from mthp.lab.session.session import GuestSession
from mthp.lab.vm.channel import Channel, CommandFailed, GuestGone
from mthp.lab.vm.qemu import VirtualMachine
from mthp.words.files import scratch

GUEST_MEMORY = 2560
"""MiB: one case holds 512 PMD-sized folios, 1 GiB, and wants each whole."""
PATIENCE_MS = 300_000
_PROGRAM = "/tmp/khugepaged"
_FLAGS = ("-U_FORTIFY_SOURCE", "-D_GNU_SOURCE=", "-w")
_UNITS = ("khugepaged.c", "vm_util.c", "hugepage_settings.c", "thp_settings.c")
"""Of these, the files that the tree has: the settings' unit was renamed."""


def arguments_for(mthp_order: int | None) -> tuple[str, ...]:
    """The program's arguments; None for its default run, khugepaged and MADV_COLLAPSE."""
    return () if mthp_order is None else ("-c", str(mthp_order), "mthp_khugepaged:anon")


def build(source: Path) -> bytes:
    """The program, linked statically with this host's compiler.

    source: a kernel's tree, or the parts of one. LabError (5): no compiler, or it fails.
    """
    tests, tools = source.absolute() / SELFTESTS, source.absolute() / "tools"
    units = [str(tests / "mm" / name) for name in _UNITS if (tests / "mm" / name).is_file()]
    include = [f"-I{tests}", f"-I{tools}/include/uapi", "-isystem", f"{tools}/include"]
    with scratch() as folder:
        out = folder / "khugepaged"
        arguments = (*_FLAGS, *include, "-o", str(out), *units)
        compile_statically(arguments, units[0], folder)
        return out.read_bytes()


@contextmanager
def guest_session(kernel: CachedKernel) -> Iterator[tuple[VirtualMachine, GuestSession]]:
    """A booted guest, swap on.

    LabError (5): it does not boot, or lacks what the lab needs; (1): it ended in the middle, or
    cannot do what is asked.
    """
    with booted(kernel, Guest(GUEST_MEMORY)) as guest:
        try:
            yield guest.machine, guest.session
        except GuestGone as error:
            raise LabError(FAILED, f"the guest: {error}; {guest.machine.why_it_ended()}") from None
        except CommandFailed as error:
            raise LabError(FAILED, f"the guest of {kernel.release} cannot do: {error}") from None


def run_selftest(
    guest: VirtualMachine,
    program: bytes,
    orders: Iterable[int | None],
    progress: Callable[[str], None],
) -> dict[int | None, Output]:
    """Run the program to its end, once for each mTHP order (None: its default run).

    progress: takes a line for each.
    """
    channel = guest.channel
    channel.ask(f"put {_PROGRAM} 0 {len(program)}", program)
    outputs = {}
    for order in orders:
        arguments = arguments_for(order)
        progress(" ".join(("running khugepaged", *arguments)))
        outputs[order] = _run(channel, arguments)
    return outputs


def _run(channel: Channel, arguments: Sequence[str]) -> Output:
    words = " ".join((_PROGRAM, *arguments))
    try:
        with channel.patient(PATIENCE_MS / 1000 + 30):
            answer = channel.ask(f"exec {PATIENCE_MS} {words}")
    except CommandFailed as error:
        if error.errno != errno.ETIMEDOUT:
            raise
        return Output(0, (), f"it did not end within {PATIENCE_MS // 1000} s")
    return parse_output(answer[8:].decode(errors="replace"))


# --- what the program prints (TAP, Documentation/dev-tools/ktap.rst) -------------------------


class Context(StrEnum):
    """How a case of the khugepaged selftest has memory collapsed."""

    KHUGEPAGED = "khugepaged"
    MADVISE = "madvise"
    MTHP = "mthp_khugepaged"


class CaseVerdict(StrEnum):
    """The result of a case. NOT_RUN: the run ended before it."""

    OK = "ok"
    NOT_OK = "not ok"
    SKIP = "skip"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class CaseResult:
    """One case. context, memory: as its heading names them, empty where it has none.

    complaints: the lines between its heading and its result that report a failure, also a child's;
    the verdict may be ok in spite of them.
    """

    number: int
    name: str
    verdict: CaseVerdict
    context: str = ""
    memory: str = ""
    complaints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """The output of one run. planned: how many cases it announced. bail_out: why it ended before
    the last."""

    planned: int
    cases: tuple[CaseResult, ...]
    bail_out: str = ""

    @property
    def passed(self) -> bool:
        """Whether every planned case ran, and each is ok or was skipped."""
        good = (CaseVerdict.OK, CaseVerdict.SKIP)
        ran = 0 < self.planned <= len(self.cases)
        return ran and all(case.verdict in good for case in self.cases)

    @property
    def complaints(self) -> tuple[str, ...]:
        """All lines that report a failure, each with its case."""
        found = [f"{case.name}: {line}" for case in self.cases for line in case.complaints]
        return (*found, *([f"ended early: {self.bail_out}"] if self.bail_out else []))


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PLAN = re.compile(r"1\.\.(\d{1,9})(?:\s+#\s*SKIP\b\s*(.*))?")
_HEADING = re.compile(r"# Run test: (\S+) \((\w+):(\w+)\)")
_RESULT = re.compile(r"(not )?ok (\d{1,9})\b(?: -)?(.*)")
_SKIPPED = re.compile(r"#\s*SKIP\b")
_TROUBLE = re.compile(r"Bail out! ?(.*)|.*\b(?:Fail\b.*|Timeout)")


def parse_output(text: str) -> Output:
    """Parse what a run printed. Where it has no results, bail_out is the last line it printed.

    A case that was begun and has no result counts as not ok.
    """
    lines = [_COLOUR.sub("", line).rstrip() for line in text.splitlines()]
    planned, skipped = _plan(lines)
    cases: list[CaseResult] = []
    heading, trouble = ("", "", ""), list[str]()
    for line in lines:
        if found := _HEADING.match(line):
            heading, trouble = (found[1], found[2], found[3]), []
        elif found := _RESULT.fullmatch(line):
            cases.append(_case(found, heading, trouble))
            heading, trouble = ("", "", ""), []
        elif _TROUBLE.fullmatch(line):
            trouble.append(line.lstrip("# "))
    if heading[0]:
        name, context, memory = heading
        number = len(cases) + 1
        cases.append(CaseResult(number, name, CaseVerdict.NOT_OK, context, memory, tuple(trouble)))
    early = not cases or len(cases) < planned or bool(heading[0])
    return Output(planned, tuple(cases), (skipped or _last_line(lines)) if early else "")


def _plan(lines: Sequence[str]) -> tuple[int, str]:
    """The number of planned cases, and why all of them are skipped (empty if they are not)."""
    for line in lines:
        if found := _PLAN.fullmatch(line):
            return int(found[1]), found[2] or ""
    return 0, ""


def _case(found: re.Match[str], heading: tuple[str, str, str], trouble: list[str]) -> CaseResult:
    rest = found[3]
    verdict = CaseVerdict.NOT_OK if found[1] else CaseVerdict.OK
    if _SKIPPED.search(rest):
        verdict = CaseVerdict.SKIP
    name, context, memory = heading
    name = name or _SKIPPED.sub("", rest).strip()
    return CaseResult(int(found[2]), name, verdict, context, memory, tuple(trouble))


def _last_line(lines: Sequence[str]) -> str:
    bails = [line.partition("! ")[2] for line in lines if line.startswith("Bail out!")]
    spoken = [line for line in lines if line]
    return (bails or spoken or ["it printed nothing"])[-1]
