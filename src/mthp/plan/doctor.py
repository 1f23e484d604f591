# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings that do not mean what they seem to: one function a rule, most costly first in RULES.

Each says what was read, what it means, and which of the kernel's functions makes it so. Kernel: as each
finding names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mthp.mm.huge_mm import (
    PAGEFAULT,
    VmaGate,
    allowable_orders,
    hugepage_global_enabled,
    vma_thp_disabled,
)
from mthp.mm.mm_types import Vma, vma_is_anonymous
from mthp.mm.page_alloc import PAGE_ALLOC_COSTLY_ORDER
from mthp.plan.examined import Examined, holds, khugepaged, members
from mthp.plan.records import SettingFinding
from mthp.words.profiles import IntermediateNone
from mthp.words.settings import (
    TRANSPARENT_HUGEPAGE,
    Enabled,
    Settings,
    SettingsError,
    parse_thp_anon,
)
from mthp.words.settings_text import U32_MAX
from mthp.words.units import format_size, human_bytes

ENABLED = f"{TRANSPARENT_HUGEPAGE}/enabled"
SHRINK = f"{TRANSPARENT_HUGEPAGE}/shrink_underused"
DAY = 24 * 3600 * 1000
HOUR = 3600 * 1000
"""In milliseconds."""


Findings = Iterator[SettingFinding]


# --- what costs most ------------------------------------------------------------------------


def oom_for_khugepaged(case: Examined) -> Findings:
    """Orders that the OOM killer is asked for, in a cgroup at its limit."""
    small = case.below & ((2 << PAGE_ALLOC_COSTLY_ORDER) - 1)
    if not (small and case.settings.defrag):
        return
    page = case.geometry.page_size
    for memcg in case.memcgs or ():
        room = max(0, memcg.limit - memcg.usage)
        if room + memcg.reclaimable >= min(1 << order for order in members(small)):
            continue
        yield SettingFinding(
            "oom-for-khugepaged",
            (*case.switches(small), case.number("defrag"),
             (f"memory.max of cgroup {memcg.name}", human_bytes(memcg.limit * page))),
            f"the cgroup has room for {human_bytes(room * page)} more, and "
            f"{human_bytes(memcg.reclaimable * page)} of cache; to collapse to {case.sizes(small)} "
            "khugepaged charges a folio of that size to it",
            "up to order 3 such a charge asks the OOM killer before it fails: where reclaim finds nothing "
            "(what could be swapped out is not counted here), a process of the cgroup is killed, although "
            "none needed memory",
            "mm/khugepaged.c, alloc_charge_folio(); mm/memcontrol.c, mem_cgroup_oom()",
            ((khugepaged("defrag"),), "0"),
            "khugepaged's charge then fails instead",
        )  # fmt: skip


def never_sleeps(case: Examined) -> Findings:
    """scan_sleep_millisecs of 0."""
    settings = case.settings
    if settings.scan_sleep_millisecs == 0 and (case.on or hugepage_global_enabled(settings)):
        yield SettingFinding(
            "never-sleeps",
            (case.number("scan_sleep_millisecs"),),
            "khugepaged does not sleep between two wakeups at all",
            "it keeps a CPU busy, at the lowest priority, for as long as a process is on its list",
            "mm/khugepaged.c, khugepaged_wait_work()",
            ((khugepaged("scan_sleep_millisecs"),), "10000"),
            "the kernel's default",
        )


def memory_is_only_added(case: Examined) -> Findings:
    """max_ptes_none at its highest, with sizes below the PMD's."""
    most = case.geometry.ptrs_per_pte - 1
    if not (case.below and case.settings.max_ptes_none == most):
        return
    yield SettingFinding(
        "memory-is-only-added",
        (case.number("max_ptes_none"), *case.switches(case.below)),
        f"one page in use is enough for a collapse to {case.sizes(case.below)}: all the others of the "
        "folio may be new memory",
        "the underused shrinker gives none of it back: below the PMD's order a whole folio is never put on "
        f"its queue, and at {most} it finds no other folio underused either",
        "mm/khugepaged.c, collapse_max_ptes_none(); mm/huge_memory.c, map_anon_folio_pte_nopf(), "
        "thp_underused()",
        ((khugepaged("max_ptes_none"),), "0"),
        "a range has to be full then"
        + (", one of the PMD's order too" if case.collapsed_to & case.pmd else ""),
    )


def on_under_never(case: Examined) -> Findings:
    """The global switch at never, with sizes that do not ask it."""
    settings = case.settings
    orders = settings.orders_always | settings.orders_madvise
    collapsed = orders & case.collapsed_to
    if settings.enabled is Enabled.NEVER and orders:
        yield SettingFinding(
            "on-under-never",
            ((ENABLED, "never"), *case.switches(orders)),
            f"{case.sizes(orders)} is on all the same: enabled decides about sizes at inherit alone",
            "page faults make folios of it"
            + (f", and khugepaged collapses to {case.sizes(collapsed)}" if collapsed else ""),
            "include/linux/huge_mm.h, thp_vma_allowable_orders()",
            (tuple(map(case.switch, members(orders))), "never"),
            "if they are to be off",
        )


def underused_is_split(case: Examined) -> Findings:
    """max_ptes_none below its highest, which lets the underused shrinker work."""
    none = case.settings.max_ptes_none
    on = case.shrinker and case.settings.shrink_underused and case.on & case.pmd
    if not on or none == case.geometry.ptrs_per_pte - 1:
        return
    size = case.geometry.size_name(case.geometry.pmd_order)
    yield SettingFinding(
        "underused-is-split",
        (case.number("max_ptes_none"), (SHRINK, "1")),
        f"under memory pressure a folio of {size} with more than {none} zero-filled pages is split, and "
        "those pages are freed",
        "the file is khugepaged's, but folios that page faults made are split as well; "
        f"at {case.geometry.ptrs_per_pte - 1} none is found underused",
        "mm/huge_memory.c, thp_underused(), deferred_split_scan()",
        ((SHRINK,), "0"),
        "if huge folios are to stay whole; if zero-filled memory is to come back, all is as it should be",
    )


# --- what is not there ----------------------------------------------------------------------


def boot_parameter_ignored_or_short(case: Examined) -> Findings:
    """thp_anon=, which the kernel ignores as a whole, or which does not name the PMD's size."""
    values = _boot_values(case.cmdline or "")
    valid = []
    kernel = "mm/huge_memory.c, setup_thp_anon(), hugepage_init_sysfs()"
    for value in values:
        try:
            parse_thp_anon(value, case.geometry)
            valid.append(value)
        except SettingsError as error:
            yield SettingFinding(
                "thp-anon",
                (("kernel command line", f"thp_anon={value}"),),
                f"the kernel ignores the whole of it ({error})",
                "no size is what it says",
                kernel,
                None,
                "mend it where the boot loader has it",
            )
    order = case.geometry.pmd_order
    if not valid or case.settings.size_enabled(order) is not Enabled.NEVER:
        return
    size = case.geometry.size_name(order)
    more = f"{format_size(case.geometry.order_bytes(order))}:inherit"
    named = parse_thp_anon(f"{more};{';'.join(valid)}", case.geometry)
    if named[order] is Enabled.INHERIT:
        yield SettingFinding(
            "thp-anon",
            (("kernel command line", f"thp_anon={';'.join(valid)}"), *case.switches(case.pmd)),
            f"{size} is never, as every size is that thp_anon= does not name",
            f"without the parameter it is inherit: enabled={case.settings.enabled} no longer reaches it",
            kernel,
            ((case.switch(order),), "inherit"),
            f"if huge pages of {size} are to be as before; at boot, add ;{more} to thp_anon=",
        )


def _boot_values(cmdline: str) -> list[str]:
    """What thp_anon= is given at boot, as often as it is. Kernel: kernel/params.c, parse_args()."""
    ours = re.split(r"\s--(?:\s|$)", cmdline)[0]
    found = re.findall(r'(?:^|\s)(?:"thp[-_]anon=([^"]*)"|thp[-_]anon=(?:"([^"]*)"|(\S*)))', ours)
    return ["".join(each) for each in found]


def no_size_is_on(case: Examined) -> Findings:
    """The global switch on, and no size that asks it."""
    settings = case.settings
    if hugepage_global_enabled(settings) and not case.on:
        order = case.geometry.pmd_order
        yield SettingFinding(
            "no-size-is-on",
            ((ENABLED, settings.enabled.value), *case.switches(case.pmd)),
            "every size is never, and none asks the global switch: it is as if that were never",
            "page faults give single pages, and khugepaged collapses none; MADV_COLLAPSE alone does",
            "include/linux/huge_mm.h, thp_vma_allowable_orders()",
            ((case.switch(order),), "inherit"),
            "then enabled decides about it",
        )


def counts_as_zero(case: Examined) -> Findings:
    """max_ptes_none between its ends, with sizes below the PMD's."""
    none, most = case.settings.max_ptes_none, case.geometry.ptrs_per_pte - 1
    if not (case.below and 0 < none < most):
        return
    sizes, pmd = case.sizes(case.below), case.collapsed_to & case.pmd
    if case.profile.intermediate_none is IntermediateNone.REFUSE:
        means = f"nothing is collapsed to {sizes} at all"
        write, purpose = True, "then full ranges are"
    else:
        means = (
            f"below the PMD's order it counts as 0, and the kernel warns once: for {sizes} a range has to be "
            "full"
        )
        write = not pmd
        purpose = (
            f"it is right if that is meant; with {most} one page in use would be enough"
            if pmd
            else "the same without the warning"
        )
    yield SettingFinding(
        "counts-as-zero",
        (case.number("max_ptes_none"), *case.switches(case.below)),
        means,
        f"at the PMD's order it is {none} as written" if pmd else f"no size that is on goes by {none}",
        "mm/khugepaged.c, collapse_max_ptes_none()",
        ((khugepaged("max_ptes_none"),), "0") if write else None,
        purpose,
    )  # fmt: skip


def off_at_inherit(case: Examined) -> Findings:
    """Sizes below the PMD's at inherit, under never. The PMD's is so by default, and is meant to be off."""
    orders = case.settings.orders_inherit & ~case.pmd
    if case.settings.enabled is Enabled.NEVER and orders:
        yield SettingFinding(
            "off-at-inherit",
            ((ENABLED, "never"), *case.switches(orders)),
            f"{case.sizes(orders)} is off: inherit is what enabled says",
            "neither page faults nor khugepaged make folios of it",
            "include/linux/huge_mm.h, thp_vma_allowable_orders()",
            (tuple(map(case.switch, members(orders))), "always"),
            "if it is to be on",
        )


def page_faults_alone(case: Examined) -> Findings:
    """Sizes below the PMD's, on kernels whose khugepaged does not know them."""
    orders = case.on & ~case.collapsed_to
    if orders:
        yield SettingFinding(
            "page-faults-alone",
            case.switches(orders),
            f"khugepaged never collapses to {case.sizes(orders)}: before Linux 7.2 it knows the PMD's size "
            "alone",
            "small pages that are there already never become such folios",
            "mm/khugepaged.c, alloc_charge_folio()",
            None,
            "page faults do make folios of it",
        )


# --- what a target has not ------------------------------------------------------------------


def no_mapping_may_have_it(case: Examined) -> Findings:
    """Sizes that no mapping of the target may have; and, below the PMD's, none where khugepaged looks."""
    vmas = [vma for vma in case.vmas or () if vma_is_anonymous(vma)]
    groups: dict[bool, dict[int, Counter[str]]] = {}
    faults = 0
    for order in members(case.on):
        gates = [_gate(vma, order) for vma in vmas]
        if None not in gates:
            why = Counter(_WHY.get(gate, gate.value) for gate in gates if gate is not None)
            groups.setdefault(NOT_ADVISED in why, {})[order] = why
        elif case.below >> order & 1 and not any(
            holds(vma, case.geometry.pmd_order)
            for vma, gate in zip(vmas, gates, strict=True)
            if gate is None
        ):
            faults |= 1 << order
    for advise, reasons in groups.items():
        orders = sum(1 << order for order in reasons)
        smallest = min(reasons)
        told = ", ".join(f"{why}: {number:,}" for why, number in reasons[smallest].most_common())
        yield SettingFinding(
            "no-mapping",
            case.switches(orders),
            f"none of the {len(vmas):,} anonymous mappings of the target may have {case.sizes(orders)}"
            + (f" (of {case.geometry.size_name(smallest)}, {told})" if told else ""),
            "for the target, as it is mapped now, it is as good as never",
            "include/linux/huge_mm.h, thp_vma_allowable_orders(), thp_vma_suitable_order()",
            (tuple(map(case.switch, members(orders))), "always") if advise else None,
            "then mappings that are not advised may have it"
            if advise
            else "no setting would change it; longer mappings may",
        )
    if faults:
        size = human_bytes(case.geometry.pmd_size)
        yield SettingFinding(
            "no-mapping-for-khugepaged",
            case.switches(faults),
            f"khugepaged collapses nothing of the target to {case.sizes(faults)}: it looks only at aligned "
            f"{size} that lie in one mapping, and no mapping that may have that size holds such a range",
            "page faults alone make folios of it there",
            "mm/khugepaged.c, collapse_scan_mm_slot()",
            None,
            f"no setting would change it; mappings that begin and end at multiples of {size} do",
        )


NOT_ADVISED = "not advised (MADV_HUGEPAGE)"
_WHY = {
    VmaGate.NOT_ENABLED: NOT_ADVISED,
    VmaGate.NOHUGEPAGE: "MADV_NOHUGEPAGE or MAP_STACK",
    VmaGate.TOO_SHORT: "no aligned range of that size",
}
"""What keeps a mapping from a size that is on for others."""


def _gate(vma: Vma, order: int) -> VmaGate | None:
    """What keeps a page fault in the mapping from this order, for good; None where nothing does."""
    disabled = vma_thp_disabled(vma, vma.vm_flags, PAGEFAULT)
    if disabled is not None:
        return disabled
    if not holds(vma, order):
        return VmaGate.TOO_SHORT
    answer = allowable_orders(vma, vma.vm_flags, PAGEFAULT, 1 << order)
    return answer if isinstance(answer, VmaGate) else None


def free_memory_is_in_pieces(case: Examined) -> Findings:
    """khugepaged/defrag of 0, where free blocks are smaller than what is to be collapsed to."""
    free = case.free_blocks or {}
    pages = sum(nr << order for order, nr in free.items())
    if case.settings.defrag or not (case.collapsed_to and pages):
        return
    order = max(members(case.collapsed_to))
    fits = sum(nr << each for each, nr in free.items() if each >= order)
    if 2 * fits < pages:
        page, size = case.geometry.page_size, case.geometry.size_name(order)
        yield SettingFinding(
            "free-memory-is-in-pieces",
            (case.number("defrag"), ("/proc/buddyinfo", f"{human_bytes(pages * page)} free")),
            f"khugepaged takes free blocks alone, and does not compact memory: {human_bytes(fits * page)} of "
            f"what is free lie in blocks of {size} or more",
            "where it finds none the attempt fails, and khugepaged sleeps alloc_sleep_millisecs "
            f"({case.settings.alloc_sleep_millisecs})",
            "mm/khugepaged.c, alloc_hugepage_khugepaged_gfpmask(), khugepaged_do_scan()",
            ((khugepaged("defrag"),), "1"),
            "the kernel's default",
        )


def a_round_takes_days(case: Examined) -> Findings:
    """pages_to_scan and scan_sleep_millisecs, against what the target has."""
    settings, tables, ptes = case.settings, case.tables or 0, case.geometry.ptrs_per_pte
    in_one = max(1, -(-(settings.pages_to_scan - 1) // ptes))  # one of them goes for the process
    sleep = settings.scan_sleep_millisecs
    time = -(-tables // in_one) * sleep
    if time < DAY:
        return
    better = min(-(-tables // max(1, HOUR // sleep)), U32_MAX // ptes)
    size = human_bytes(case.geometry.pmd_size)
    enough = f"{in_one:,} page tables are" if in_one > 1 else "one page table is"
    yield SettingFinding(
        "a-round-takes-days",
        (case.number("pages_to_scan"), case.number("scan_sleep_millisecs")),
        f"{enough} enough for a wakeup ({size} each), and the target has {tables:,} to "
        f"look through: a round takes some {time / DAY:.1f} days, and longer with the memory of other "
        "processes",
        "what is written after khugepaged has come by waits as long for its next turn",
        "mm/khugepaged.c, khugepaged_do_scan(), collapse_scan_mm_slot()",
        ((khugepaged("pages_to_scan"),), str(better * ptes)),
        f"a round then takes some {-(-tables // better) * sleep / HOUR:.1f} hours",
    )


def tries_again_often(case: Examined) -> Findings:
    """Full scans that follow each other fast, with sizes below the PMD's."""
    settings, default = case.settings, Settings(geometry=case.geometry)
    sleep = settings.scan_sleep_millisecs
    slower = -(-settings.pages_to_scan * default.scan_sleep_millisecs // default.pages_to_scan)
    if case.below and 0 < sleep < slower:
        yield SettingFinding(
            "tries-again-often",
            (case.number("pages_to_scan"), case.number("scan_sleep_millisecs")),
            f"a range that is a folio of {case.sizes(case.below)} already, and becomes no larger one, is "
            "tried again at every full scan",
            "each time a folio is allocated, mmap_lock is taken for writing and "
            f"{human_bytes(case.geometry.pmd_size)} are flushed from TLBs, before it is refused",
            "mm/khugepaged.c, mthp_collapse(), collapse_huge_page(), __collapse_huge_page_isolate()",
            ((khugepaged("scan_sleep_millisecs"),), str(min(slower, U32_MAX))),
            "nearer to the pace of the kernel's defaults",
        )  # fmt: skip


# --- limits that do not bind ----------------------------------------------------------------


def limits_of_whole_tables(case: Examined) -> Findings:
    """max_ptes_swap and max_ptes_shared, with sizes below the PMD's alone."""
    if not case.below or case.collapsed_to & case.pmd:
        return
    swap, shared = case.settings.max_ptes_swap, case.settings.max_ptes_shared
    most = case.geometry.ptrs_per_pte - 1
    paths = [
        khugepaged(name)
        for name, value in (("max_ptes_swap", swap), ("max_ptes_shared", shared))
        if value < most
    ]
    yield SettingFinding(
        "limits-of-whole-tables",
        (case.number("max_ptes_swap"), case.number("max_ptes_shared")),
        f"a collapse to {case.sizes(case.below)} takes in nothing swapped out and nothing shared, whatever "
        "is written",
        f"they decide only whether a page table is looked at: with more than {swap} entries swapped out, or "
        f"more than {shared} shared, all of its {human_bytes(case.geometry.pmd_size)} are passed by, full "
        "ranges too",
        "mm/khugepaged.c, collapse_max_ptes_swap(), collapse_max_ptes_shared(), collapse_scan_pmd()",
        (tuple(paths), str(most)) if paths else None,
        "then such tables are looked at as well" if paths else "no table is passed by for it",
    )


def no_swap_to_limit(case: Examined) -> Findings:
    """max_ptes_swap as somebody wrote it, without swap."""
    default = Settings(geometry=case.geometry).max_ptes_swap
    if case.swap is False and case.settings.max_ptes_swap != default and case.collapsed_to:
        yield SettingFinding(
            "no-swap-to-limit",
            (case.number("max_ptes_swap"), ("/proc/meminfo", "SwapTotal: 0 kB")),
            "there is no swap: nothing is brought in, and what counts against it are guard pages, poisoned "
            "pages and pages under migration alone",
            "a table with more of these than that is passed by",
            "mm/khugepaged.c, collapse_scan_pmd()",
            None,
            "it makes no other difference",
        )


# --- all of them ----------------------------------------------------------------------------


@dataclass(frozen=True)
class SettingRule:
    """What is looked for. needs: what of Examined has to be known."""

    about: str
    find: Callable[[Examined], Findings]
    needs: str = ""


RULES = (
    SettingRule("16kB and 32kB with defrag, in a cgroup at its limit", oom_for_khugepaged, "memcgs"),
    SettingRule("scan_sleep_millisecs of 0", never_sleeps),
    SettingRule("max_ptes_none at its highest with small sizes", memory_is_only_added),
    SettingRule("sizes that are on under never", on_under_never),
    SettingRule("max_ptes_none as threshold of shrink_underused", underused_is_split),
    SettingRule("thp_anon= at boot", boot_parameter_ignored_or_short, "cmdline"),
    SettingRule("a global switch that no size asks", no_size_is_on),
    SettingRule("max_ptes_none between its ends with small sizes", counts_as_zero),
    SettingRule("small sizes that inherit never", off_at_inherit),
    SettingRule("sizes that khugepaged does not know", page_faults_alone),
    SettingRule("sizes that no mapping may have", no_mapping_may_have_it, "vmas"),
    SettingRule("no defrag with free memory in pieces", free_memory_is_in_pieces, "free_blocks"),
    SettingRule("rounds that take days", a_round_takes_days, "tables"),
    SettingRule("fast scans with small sizes", tries_again_often),
    SettingRule("max_ptes_swap and max_ptes_shared with small sizes alone", limits_of_whole_tables),
    SettingRule("max_ptes_swap without swap", no_swap_to_limit, "swap"),
)  # fmt: skip
"""Most costly first."""

UNKNOWN = {
    "memcgs": "needs a target",
    "vmas": "needs a target",
    "tables": "needs a target",
    "cmdline": "the boot's command line is known of live targets alone",
    "free_blocks": "the target does not say what is free",
    "swap": "the target does not say whether there is swap",
}


def examine(
    case: Examined,
) -> tuple[tuple[SettingFinding, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """What is found; what was looked for; and what was not, with the reason."""
    found: list[SettingFinding] = []
    looked, left = [], []
    for rule in RULES:
        if rule.needs and getattr(case, rule.needs) is None:
            left.append((rule.about, UNKNOWN[rule.needs]))
            continue
        looked.append(rule.about)
        found += rule.find(case)
    return tuple(found), tuple(looked), tuple(left)
