# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a draft, or a given scenario, on a real kernel and on the engine, and finds the differences."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mthp.compare.conformance import run_scenario
from mthp.compare.paths import PathVerdict, along_all
from mthp.compare.records import Conformance, Mismatch, MismatchKind
from mthp.image.fields import ScenarioError
from mthp.image.scenario import Scenario, parse_scenario
from mthp.lab.compile import compile_state, differences, displacement
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.program.program import Draft
from mthp.lab.session.boot import Booted, Guest, booted
from mthp.lab.session.captures import Captured, Capturer, CaptureTools
from mthp.lab.session.record import NotBuilt, record
from mthp.lab.vm.channel import CommandFailed, GuestGone
from mthp.words.profiles import profile_for_release

MEMORY = 256
"""MiB of a guest: programs need little, and memory pressure fills the rest."""
MEMORY_WITH_PYTHON = MEMORY + 128
"""Python's files lie in the guest's memory."""


@dataclass(frozen=True)
class DraftVerdict:
    """The outcome of one draft.

    record: the scenario as the kernel ran it; None where it was not built, for the reason in not_built.
    mismatches: as Mismatch.to_json() gives them. engine: the engine's events, pass by pass. captured:
    None where nothing was. paths: what came of it along each path.
    """

    draft: Draft
    record: Mapping[str, Any] | None = None
    not_built: str = ""
    mismatches: Sequence[Mapping[str, Any]] = ()
    passes: int = 0
    agreed: int = 0
    engine: Sequence[Sequence[Mapping[str, Any]]] = ()
    captured: Captured | None = None
    paths: Mapping[str, PathVerdict] = field(default_factory=dict)

    @property
    def disagrees(self) -> bool:
        return bool(self.mismatches)


def compare_with_engine(
    draft: Draft, document: Mapping[str, Any], captured: Captured | None = None
) -> DraftVerdict:
    """Compare a recorded scenario with the engine, under the profile of the kernel that recorded it.

    captured: of its state, whose predictions are then held against the same passes.
    """
    score = Conformance()
    try:
        scenario = parse_scenario(document)
    except ScenarioError as error:
        wrong = Mismatch(draft.id, 0, MismatchKind.STATE, None, str(error)).to_json()
        passes = document["passes"]
        return DraftVerdict(draft, document, "", [wrong], len(passes), 0, [[] for _ in passes])
    profile = profile_for_release(scenario.kernel)
    results = run_scenario(scenario, profile, score)
    found: list[Mapping[str, Any]] = [each.to_json() for each in score.mismatches]
    events = [result.events for result in results]
    return DraftVerdict(
        draft,
        document,
        mismatches=found,
        passes=score.passes,
        agreed=score.agreed,
        engine=events,
        captured=captured,
        paths=along_all(scenario, results, captured, profile),
    )


class DraftRunner:
    """Runs one draft after another in a guest, which is booted again when it has ended.

    A draft is tried at most twice: one that ends two guests counts as not built.
    """

    def __init__(
        self, kernel: CachedKernel, tools: CaptureTools | None = None, guest: Guest | None = None
    ) -> None:
        """tools: to capture each state too. guest: what it runs in, but for its memory."""
        self._kernel = kernel
        self._tools = tools
        memory = MEMORY if tools is None else MEMORY_WITH_PYTHON
        self._made_of = replace(guest or Guest(), memory=memory)
        self._stack = contextlib.ExitStack()
        self._booted: Booted | None = None
        self._capturer: Capturer | None = None

    def __enter__(self) -> DraftRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the guest."""
        self._booted = None
        self._stack.close()

    def __call__(self, draft: Draft) -> DraftVerdict:
        """Record the draft and compare it with the engine. LabError: no guest can be booted."""
        verdict = self.record(draft)
        if verdict.record is None:
            return verdict
        return compare_with_engine(draft, verdict.record, verdict.captured)

    def record(self, draft: Draft) -> DraftVerdict:
        """Record the draft, without comparing it. LabError: no guest can be booted."""
        reason = ""
        captured: list[Captured] = []

        def capture(processes: Sequence[str]) -> None:
            if self._capturer is not None:
                captured.append(self._capturer(processes))

        for _ in range(2):
            guest = self._guest()
            try:
                document = record(guest.session, draft, self._kernel.release, capture)
                if not captured:
                    return DraftVerdict(draft, document)
                document["pids"] = list(captured[-1].pids)
                return DraftVerdict(draft, document, captured=captured[-1])
            except (NotBuilt, CommandFailed) as error:
                return DraftVerdict(draft, not_built=str(error))
            except GuestGone as error:
                reason = f"the guest is gone: {error}; {guest.machine.why_it_ended()}"
                self.close()
        return DraftVerdict(draft, not_built=reason)

    def _guest(self) -> Booted:
        if self._booted is None:
            extra = () if self._tools is None else (self._tools.archive,)
            self._booted = self._stack.enter_context(booted(self._kernel, self._made_of, extra))
            if self._tools is not None:
                self._capturer = Capturer(self._booted.machine.channel, self._tools)
        return self._booted


# --- a given scenario -----------------------------------------------------------------------


@dataclass(frozen=True)
class Rerun:
    """What came of a scenario, run on a kernel and on the engine. differences: where the guest's
    state is not the one that the scenario declares."""

    scenario: Scenario
    verdict: DraftVerdict
    differences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """An entry of `mthp lab run --json`. displacement: how much lower the addresses are in the
        guest, in bytes."""
        record = self.verdict.record or {}
        return {
            "id": self.scenario.id,
            "kernel": record.get("kernel", ""),
            "displacement": displacement(self.scenario),
            "state_differs": list(self.differences),
            "not_built": self.verdict.not_built,
            "passes": [
                {"kernel": recorded, "engine": list(ours)}
                for recorded, ours in zip(
                    record.get("passes", []), self.verdict.engine, strict=True
                )
            ],
            "mismatches": list(self.verdict.mismatches),
        }


def run_again(runner: DraftRunner, scenario: Scenario) -> Rerun:
    """Make the scenario's state in the guest and run its passes there and on the engine.

    CannotBuild: no sequence of system calls is known that makes the state.
    """
    verdict = runner(compile_state(scenario))
    if verdict.record is None:
        return Rerun(scenario, verdict, ())
    built = parse_scenario(verdict.record)
    return Rerun(scenario, verdict, tuple(differences(scenario, built)))
