# SPDX-License-Identifier: GPL-2.0-or-later
"""A given scenario on a real kernel: its state made anew, run, and compared with the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mthp.compare.fuzz import DraftVerdict, Trier
from mthp.image.scenario import Scenario, parse_scenario
from mthp.lab.compile import compile_state, differences, displacement

__all__ = ["Replayed", "replay"]


@dataclass(frozen=True)
class Replayed:
    """What came of it. differences: where the guest's state is not the one wanted."""

    scenario: Scenario
    verdict: DraftVerdict
    differences: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A scenario of `mthp lab run --json`. displacement: by how many bytes lower than the
        scenario's its addresses are in the guest."""
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


def replay(trier: Trier, scenario: Scenario) -> Replayed:
    """Make the scenario's state in the guest and run its passes there and on the engine.

    CannotBuild: no sequence of system calls is known that makes the state.
    """
    verdict = trier(compile_state(scenario))
    if verdict.record is None:
        return Replayed(scenario, verdict, ())
    built = parse_scenario(verdict.record)
    return Replayed(scenario, verdict, tuple(differences(scenario, built)))
