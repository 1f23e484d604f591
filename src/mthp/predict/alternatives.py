# SPDX-License-Identifier: GPL-2.0-or-later
"""Where nothing is enabled: what the settings that people consider first would make of the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from mthp.mm.vm_flags import VM_HUGEPAGE, VM_NOHUGEPAGE
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import Outcome, VmaUse
from mthp.words.profiles import PROFILES, Orders
from mthp.words.settings import Enabled, Settings
from mthp.worlds.build import BuiltWorld

MOST_TABLES = 1024
"""A target with more populated page tables (2 GiB and up) is not run under other settings unasked."""
SMALL_SIZE = 64 << 10
"""The size below the PMD's that is tried, in bytes."""


def with_alternatives(
    outcome: Outcome,
    prepare: Callable[[Settings], tuple[BuiltWorld, Request]],
    on_table: Callable[[], None] | None = None,
) -> Outcome:
    """The outcome with what other settings would give, where it is that nothing is enabled.

    prepare: makes a world of the same image under some settings, and the request to run on it. An
    Interrupted that on_table raises ends it with those that are known.
    """
    pmd_addr = outcome.settings.geometry.pmd_addr
    tables = {(refusal.pid, pmd_addr(refusal.address)) for refusal in outcome.refusals}
    if not outcome.nothing_enabled or len(tables) > MOST_TABLES:
        return outcome
    found: dict[str, Outcome] = {}
    for name, settings, advised in _considered(outcome):
        world, request = prepare(settings)
        request.changes, request.on_table = False, on_table
        if advised is not None:
            for vma in world.vmas:
                if (vma.vm_mm.number, vma.vm_start) == (advised.pid, advised.start):
                    vma.vm_flags = vma.vm_flags & ~VM_NOHUGEPAGE | VM_HUGEPAGE
        result = run_world(world, request)
        del world
        if not result.complete:
            break
        found[name] = result
    return replace(outcome, alternatives=found)


def _considered(outcome: Outcome) -> Iterator[tuple[str, Settings, VmaUse | None]]:
    """(name, settings, mapping that is advised) of each."""
    settings, geometry = outcome.settings, outcome.settings.geometry
    pmd, most = geometry.pmd_order, geometry.ptrs_per_pte - 1
    if settings.size_enabled(pmd) is Enabled.INHERIT:
        name, always = "enabled=always", settings.replace(enabled=Enabled.ALWAYS)
    else:
        name = f"{geometry.size_name(pmd)}=always"
        always = settings.replace(sizes={**settings.sizes, pmd: Enabled.ALWAYS})
    yield name, always.replace(max_ptes_none=most), None
    yield f"{name}, max_ptes_none=0", always.replace(max_ptes_none=0), None
    order = (SMALL_SIZE >> geometry.page_shift).bit_length() - 1
    if PROFILES[outcome.basis.profile].orders is Orders.ANON and order in geometry.anon_orders - {
        pmd
    }:
        size = geometry.size_name(order)
        small = settings.replace(
            sizes={**settings.sizes, order: Enabled.ALWAYS}, max_ptes_none=most
        )
        yield f"{size}=always", small, None
        return
    largest = max(outcome.vmas, key=lambda vma: (sum(vma.before.values()), -vma.start))
    advice = settings.replace(enabled=Enabled.MADVISE, max_ptes_none=most)
    name = largest.name or "the mapping"
    yield f"MADV_HUGEPAGE on {name} at {largest.start:x}", advice, largest
