# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scenario's declared state to the program that makes it in the guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mthp.image.scenario import Scenario
from mthp.image.scenario_values import Action, ScenarioVma
from mthp.lab.compile.inheritance import build_group, fork_groups
from mthp.lab.compile.mappings import merge, prctl, vma_attributes
from mthp.lab.compile.wanted import CannotBuild, WantedProcess, wanted_processes
from mthp.lab.geometry import GEOMETRY, PMD_PAGES
from mthp.lab.program.declared import DeclaredVma, declare
from mthp.lab.program.program import BASE, Draft, Operation, ProgramError, Target, Verb
from mthp.lab.program.space import Uffd

_GROUP = "g"
_SMALLEST_TAKEN = 2
"""A guest cannot run without free blocks of order 1."""
_NO_LIMIT = 1 << 38
"""A memory cgroup's limit of so many pages or more counts as none."""


def compile_state(scenario: Scenario) -> Draft:
    """The program that makes the scenario's initial state, and what is then to be run over it.

    The program that built the state once (built_by) is not used. CannotBuild: no known sequence of
    system calls makes some part of it.
    """
    _check_whole(scenario)
    wants = wanted_processes(scenario)
    draft = Draft(
        id=scenario.id,
        family="compiled",
        ops=tuple(_build(scenario, wants)),
        finish=tuple(_finish(scenario, wants)),
        settings=scenario.settings,
        action=scenario.action,
        target=_target(scenario, wants),
        passes=max(1, len(scenario.passes)),
    )
    _check_declared(draft, wants)
    return draft


def _build(scenario: Scenario, wants: Sequence[WantedProcess]) -> list[Operation]:
    highest = max(vma.end for want in wants for vma in want.vmas)
    decoy = (highest // PMD_PAGES + 4) * PMD_PAGES
    ops: list[Operation] = []
    for want in (want for want in wants if not want.parent):
        ops.append(Operation(Verb.NEW, () if want.name == "s" else (want.name,)))
        ops.append(Operation(Verb.BASE, (BASE,), want.name))
        if scenario.memcg is not None:
            ops.append(Operation(Verb.CGROUP, (_GROUP,), want.name))
    for group in fork_groups(wants):
        ops += build_group(group, decoy)
    ops += merge(list(wants))
    for want in wants:
        ops += vma_attributes(want)
    return ops


def _finish(scenario: Scenario, wants: Sequence[WantedProcess]) -> list[Operation]:
    ops = [op for want in wants for op in prctl(want)]
    memcg = scenario.memcg
    if memcg is not None and memcg.limit_pages < _NO_LIMIT:
        slack = memcg.limit_pages - memcg.usage_pages
        if slack < 0:
            raise CannotBuild(f"memcg: {-slack} pages over its limit")
        ops.append(Operation(Verb.MEMCG, (_GROUP, slack)))
    if scenario.free_blocks is not None:
        if max(scenario.free_blocks, default=0) > scenario.largest_block:
            raise CannotBuild("free_blocks: larger ones than can arise are not counted out")
        ops.append(_take_blocks(scenario.free_blocks))
    return ops


def _take_blocks(free_blocks: Mapping[int, int]) -> Operation:
    """Take every free block of a higher order than the scenario's largest; smaller ones stay plentiful.

    CannotBuild: the largest is of PMD order or above, of which there may always be more.
    """
    largest = max((order for order, count in free_blocks.items() if count), default=0)
    if largest >= GEOMETRY.pmd_order:
        raise CannotBuild(f"free_blocks: blocks of order {largest} cannot be counted out")
    return Operation(Verb.TAKE_BLOCKS, (max(largest + 1, _SMALLEST_TAKEN),))


def _target(scenario: Scenario, wants: Sequence[WantedProcess]) -> Target | None:
    if scenario.action is Action.KHUGEPAGED:
        return None
    for want in wants:
        for vma in want.vmas:
            if vma.index == scenario.target:
                return Target(want.name, vma.start, want.name)
    raise CannotBuild(f"target: no mapping {scenario.target}")


# --- refusals -------------------------------------------------------------------------------


def _check_whole(scenario: Scenario) -> None:
    """Raise CannotBuild for what no program can make."""
    if scenario.geometry != GEOMETRY:
        raise CannotBuild("geometry: guests have 4 KiB pages and 2 MiB PMDs")
    if scenario.distances:
        raise CannotBuild("nodes: the guest has one")
    if not scenario.vmas:
        raise CannotBuild("vmas: nothing is mapped")
    for i, vma in enumerate(scenario.vmas):
        for name in ("locked", "off_lru", "poisoned"):
            if getattr(vma, name):
                raise CannotBuild(f"vmas[{i}].{name}: no system call leaves a page so")


def _check_declared(draft: Draft, wants: Sequence[WantedProcess]) -> None:
    """Raise CannotBuild unless the program is legal and its mappings are those of the scenario."""
    try:
        declared = declare(draft)
    except ProgramError as error:
        raise CannotBuild(str(error)) from None
    for want in wants:
        have = [vma for vma in declared.vmas if vma.process == want.name]
        if [(vma.page, vma.page + vma.pages) for vma in have] != [
            (vma.start, vma.end) for vma in want.vmas
        ]:
            raise CannotBuild(f"process {want.name}: mappings that touch would be one")
        for vma, wanted in zip(have, want.vmas, strict=True):
            if problem := _differs(vma, wanted.declared):
                raise CannotBuild(f"vmas[{wanted.index}]: {problem}")


def _differs(vma: DeclaredVma, declared: ScenarioVma) -> str:
    """The first property of the mapping that would differ from the scenario; empty if none would."""
    traits = vma.traits
    would_be = {
        "advice": traits.advice,
        "mlocked": traits.mlocked,
        "uffd_wp": bool(traits.uffd & Uffd.WP),
        "anon_vma": vma.anon_vma,
        "droppable": traits.droppable,
        "ksm": traits.ksm,
        "read_only": not traits.writable,
    }
    for name, have in would_be.items():
        if have != (want := getattr(declared, name)):
            return f"{name} would be {have}, not {want}"
    return ""
