# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a given scenario on a real kernel: builds its state, and compares the passes with the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mthp.compare.fuzz import DraftRunner, DraftVerdict
from mthp.image.scenario import Scenario, parse_scenario
from mthp.lab.compile import compile_state, differences, displacement


@dataclass(frozen=True)
class Rerun:
    """The outcome. differences: where the guest's state is not the one that the scenario declares."""

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
