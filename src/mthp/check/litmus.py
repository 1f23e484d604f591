# SPDX-License-Identifier: GPL-2.0-or-later
"""What our store buffers say of the litmus tests, beside what herd7 says under the kernel's model."""

from __future__ import annotations

from pathlib import Path

from mthp.check.records import LitmusResult
from mthp.explore.explore import Explorer, Until
from mthp.explore.outcome import Extent
from mthp.lab.kernels.herd import run_herd
from mthp.machine.store_buffer import Model
from mthp.races.litmus import PATTERNS, Observation, Pattern, Publish


def observation(pattern: Pattern, model: Model) -> Observation:
    """Every execution of a pattern under a model of ours."""
    outcome = Explorer(lambda: Publish(model, pattern), until=Until.END).explore()
    assert outcome.coverage.kind is Extent.EXHAUSTIVE
    return Observation.of([finding.broken == 0 for finding in outcome.findings])


def compare(memory_model: Path | None) -> list[LitmusResult]:
    """Every pattern under every model of ours, and under the memory model in that folder, if any.

    LabError: herd7 is not on this host, or fails.
    """
    texts = {name: pattern.text for name, pattern in PATTERNS.items()}
    by_herd = run_herd(texts, memory_model) if memory_model is not None else {}
    return [
        LitmusResult(
            name,
            pattern.what,
            pattern.expected.value,
            tuple((model.value, observation(pattern, model).value) for model in Model),
            by_herd.get(name),
        )
        for name, pattern in PATTERNS.items()
    ]
