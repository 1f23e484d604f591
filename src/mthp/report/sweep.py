# SPDX-License-Identifier: GPL-2.0-or-later
"""An image under a grid of settings: which to take, what that gives and costs, and how to write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console

from mthp.plan.records import BulkVerdict, Miss, SettingFinding, Sweep, TlbKind, Wanted, Wish
from mthp.report.basis import basis_values, caveat_values, render_basis, render_caveats
from mthp.report.page import SafeConsole
from mthp.report.phrases import duration, percent, plural
from mthp.words.settings import TRANSPARENT_HUGEPAGE, Enabled, Settings
from mthp.words.settings_text import runs_of_orders
from mthp.words.units import Geometry, human_bytes

SCHEMA_VERSION = 1


def sizes_text(settings: Settings) -> str:
    """The sizes that are not never: 64kB, 64kB-512kB, 64kB+2048kB."""
    names = [_run_text(settings.geometry, run) for run in _enabled_runs(settings)]
    return "+".join(names) or "none"


def _enabled_runs(settings: Settings) -> Iterator[tuple[int, int]]:
    modes = settings.sizes.items()
    return runs_of_orders(order for order, mode in modes if mode is not Enabled.NEVER)


def _run_text(geometry: Geometry, run: tuple[int, int]) -> str:
    return "-".join(geometry.size_name(order) for order in dict.fromkeys(run))


def boot_parameter(settings: Settings) -> str:
    """The boot parameter that sets the same sizes; a size that it does not name is never."""
    geometry = settings.geometry
    items = []
    for mode in (Enabled.ALWAYS, Enabled.MADVISE, Enabled.INHERIT):
        orders = [order for order, each in settings.sizes.items() if each is mode]
        sizes = [
            "-".join(f"{geometry.order_bytes(order) >> 10}K" for order in dict.fromkeys(run))
            for run in runs_of_orders(orders)
        ]
        if sizes:
            items.append(f"{','.join(sizes)}:{mode}")
    smallest = geometry.order_bytes(min(geometry.anon_orders)) >> 10
    return "thp_anon=" + (";".join(items) or f"{smallest}K:never")


def writes(base: Settings, settings: Settings) -> list[tuple[str, str]]:
    """What is to be written, as (file, value), to come from one setting to another."""
    before, after = (_values(each) for each in (base, settings))
    return [
        (f"{TRANSPARENT_HUGEPAGE}/{path}", text)
        for path, text in after.items()
        if before[path] != text
    ]


def tmpfiles_lines(changes: list[tuple[str, str]]) -> list[str]:
    """What systemd-tmpfiles writes at each boot."""
    return [f"w {path} - - - - {value}" for path, value in changes]


def tuned_lines(changes: list[tuple[str, str]]) -> list[str]:
    """A profile of tuned that writes it."""
    head = ["[main]", "summary=sizes of transparent huge pages", "", "[sysfs]"]
    return head + [f"{path}={value}" for path, value in changes]


def _values(settings: Settings) -> dict[str, str]:
    """File -> what is written to set it."""
    return {
        path: text.partition("[")[2].partition("]")[0] if "[" in text else text.strip()
        for path, text in settings.to_sysfs().items()
    }


def wish_text(wish: Wish) -> str:
    """What was asked for, in words."""
    parts = []
    if wish.added is not None:
        parts.append(f"at most {100 * wish.added:g} % more memory")
    if wish.large is not None:
        parts.append(f"at least {100 * wish.large:g} % in large folios")
    if wish.reach is not None:
        parts.append(f"at least {100 * wish.reach:g} % mapped by PMDs")
    if wish.within is not None:
        parts.append(f"the last collapse within {duration(wish.within)}")
    return " and ".join(parts) or "no limit"


def miss_text(miss: Miss) -> str:
    """What is missed of a wish, and by how much."""
    if miss.wanted is Wanted.WITHIN:
        late = duration(round(miss.found - miss.asked))
        return f"the last collapse within {duration(round(miss.found))}, {late} too late"
    what, off = {
        Wanted.ADDED: ("more memory", "too much"),
        Wanted.LARGE: ("in large folios", "too little"),
        Wanted.REACH: ("mapped by PMDs", "too little"),
    }[miss.wanted]
    return f"{100 * miss.found:.3g} % {what}, {100 * miss.by:.2g} % {off}"


def within_text(plan: BulkVerdict) -> str:
    """Within which time the last collapse is."""
    return "–" if plan.last_collapse_ms is None else duration(plan.last_collapse_ms)


def render_sweep(sweep: Sweep, console: Console, *, verbose: bool = False) -> None:
    """Print which settings to take, and the table. verbose: every setting that was tried."""
    page = SafeConsole(console, verbose=verbose)
    render_basis(page, sweep.basis)
    page.line(headline(sweep), "bold")
    _how(page, sweep)
    shown = [
        (plan, front)
        for plan, front in zip(sweep.plans, sweep.front, strict=True)
        if front or verbose or plan is sweep.chosen
    ]
    page.heading(
        "Settings that no other betters" if not verbose else "Every setting that was tried"
    )
    rows = [("", *_cells(sweep, sweep.now))]
    rows += [(_mark(sweep, plan, front), *_cells(sweep, plan)) for plan, front in shown]
    titles = [("", "keep"), ("sizes (always)", "left"), ("max_ptes_none", "right"),
              ("large", "right"), ("TLB entries", "right"), ("added", "right"),
              ("copied", "right"), ("within", "right")]  # fmt: skip
    page.table(titles, rows, indent=0)
    page.line("First row: the settings as captured, which may be madvise or inherit. large: share "
              "of anonymous memory in folios of more than one page; within: until the last collapse; * is "
              "recommended.", "dim")  # fmt: skip
    for name, plan in sweep.elsewhere.items():
        page.line(_elsewhere(sweep, name, plan))
    if len(shown) < len(sweep.plans):
        page.line(f"… {plural(len(sweep.plans) - len(shown), 'setting')} more, which another betters "
                  "in TLB entries, large folios and memory, or equals: --verbose", "dim")  # fmt: skip
    _grounds(page, sweep)


def _elsewhere(sweep: Sweep, name: str, plan: BulkVerdict) -> str:
    """What there would be to take on another kernel."""
    what = f"{plan_name(plan)}: {percent(plan.large, plan.mapped)} in large folios, "
    what += f"{plan.translations:,} TLB entries, {human_bytes(plan.memory_added)} more memory"
    misses = sweep.wish.misses(plan)
    missed = f" ({' and '.join(map(miss_text, misses))})" if misses else ""
    return f"With the kernel of profile {name}: {what}{missed}."


def headline(sweep: Sweep) -> str:
    """What to take, and what that gives and costs, in a sentence."""
    if sweep.chosen is None:
        missed = " and ".join(map(miss_text, sweep.wish.misses(sweep.nearest)))
        return (
            f"Predicted: no setting gives {wish_text(sweep.wish)}; nearest is "
            f"{plan_name(sweep.nearest)}: {missed}."
        )
    tried = plural(len(sweep.plans), "setting")
    if not sweep.gains:
        return (
            f"Predicted: with {wish_text(sweep.wish)}, none of {tried} gives fewer TLB entries than what is "
            "set, or as few and more in large folios: leave it."
        )
    plan = sweep.chosen
    what = (
        f"{percent(plan.large, plan.mapped)} of {human_bytes(plan.mapped)} in large folios, "
        f"{plan.translations:,} TLB entries instead of {sweep.now.translations:,}, "
        f"{human_bytes(plan.memory_added)} more memory"
    )
    return f"Predicted: of {tried}, with {wish_text(sweep.wish)}, take {plan_name(plan)}: {what}."


def plan_name(plan: BulkVerdict) -> str:
    """The sizes and the limit that make a plan's settings; and what else is not the kernel's default."""
    settings = plan.settings
    return f"{sizes_text(settings)}, max_ptes_none={settings.max_ptes_none}{more_text(settings)}"


def more_text(settings: Settings) -> str:
    """Of what a sweep may vary beside sizes and max_ptes_none, all that is not the kernel's default."""
    usual, text = Settings(geometry=settings.geometry), ""
    for name in ("pages_to_scan", "scan_sleep_millisecs"):
        if getattr(settings, name) != getattr(usual, name):
            text += f", {name}={getattr(settings, name)}"
    return text if settings.defrag else f"{text}, defrag=0"


def _how(page: SafeConsole, sweep: Sweep) -> None:
    """How the recommended settings are written."""
    if sweep.chosen is None or not sweep.gains:
        return
    lines = [f"echo {value} > {path}" for path, value in writes(sweep.base, sweep.chosen.settings)]
    page.heading("To set it (this writes nothing)")
    for line in lines:
        page.console.print(page.text(f"  {line}"), soft_wrap=True)
    page.line(f"at boot: {boot_parameter(sweep.chosen.settings)}", indent=2)
    for plan in sweep.sooner:
        page.line(sooner_text(sweep.chosen, plan), indent=2)
    if sweep.notes:
        page.bullets("What these settings mean beside (mthp doctor)", note_texts(sweep))
    if page.verbose:
        changes = writes(sweep.base, sweep.chosen.settings)
        for title, lines in (
            ("For ever, in /etc/tmpfiles.d/huge-pages.conf (systemd)", tmpfiles_lines(changes)),
            ("Or as a profile of tuned, in /etc/tuned/huge-pages/tuned.conf", tuned_lines(changes)),
        ):
            page.heading(title)
            for line in lines:
                page.console.print(page.text(f"  {line}"), soft_wrap=True)


def sooner_text(plan: BulkVerdict, sooner: BulkVerdict) -> str:
    """At which rate the last collapse of a plan is sooner, and how much."""
    rates = ("pages_to_scan", "scan_sleep_millisecs")
    before, after = ([getattr(each.settings, name) for name in rates] for each in (plan, sooner))
    changed = [
        f"{name}={value}"
        for name, old, value in zip(rates, before, after, strict=True)
        if old != value
    ]
    what = f"within {within_text(sooner)}, not {within_text(plan)}"
    return f"sooner: {' and '.join(changed)} ({what})"


def note_texts(sweep: Sweep) -> list[str]:
    """What of the recommended settings does not mean what it may seem to, a sentence each."""
    return [
        f"{', '.join(short_names(note))}: {note.means}; {note.matters} ({note.kernel})"
        for note in sweep.notes
    ]


def short_names(finding: SettingFinding) -> Iterator[str]:
    """What was read, by short names; sizes that say the same in one, in braces."""
    sizes: dict[str, list[str]] = {}
    for path, value in finding.read:
        name = path.removeprefix(f"{TRANSPARENT_HUGEPAGE}/")
        if name.startswith("hugepages-"):
            sizes.setdefault(value, []).append(name.removeprefix("hugepages-").partition("/")[0])
        else:
            yield f"{name}: {value}"
    for value, names in sizes.items():
        size = names[0] if len(names) == 1 else f"{{{','.join(names)}}}"
        yield f"hugepages-{size}/enabled: {value}"


def _mark(sweep: Sweep, plan: BulkVerdict, front: bool) -> str:
    if plan is sweep.chosen and sweep.gains:
        return "*"
    return "" if front else "-"


def _cells(sweep: Sweep, plan: BulkVerdict) -> tuple[str, ...]:
    return (
        sizes_text(plan.settings) + more_text(plan.settings),
        str(plan.settings.max_ptes_none),
        percent(plan.large, plan.mapped),
        f"{plan.translations:,}",
        human_bytes(plan.memory_added),
        human_bytes(plan.copied_bytes),
        within_text(plan),
    )


def _grounds(page: SafeConsole, sweep: Sweep) -> None:
    """What the answer rests on."""
    page.console.print()
    page.line(grounds_text(sweep), "dim")
    render_caveats(page, sweep.basis)


def grounds_text(sweep: Sweep) -> str:
    """How the answer was made, and what is not in it."""
    tables = max(plan.counted_tables + plan.engine_tables for plan in sweep.plans)
    by_engine = max(plan.engine_tables for plan in sweep.plans)
    reasons = "; ".join(sorted({plan.all_engine for plan in sweep.plans} - {""}))
    return (
        f"At the fixed point, after the last collapse; of {plural(tables, 'table')} that come to windows, "
        f"{by_engine:,} went to the engine{reasons and f' ({reasons})'}; of the others occupancy decides. "
        "Page faults, which also make large folios under these sizes, are not in it. The time is an upper "
        "bound, made of khugepaged's sleeps and of copying and clearing. pages_to_scan and "
        "scan_sleep_millisecs decide when and not what (--within raises the first as far as it takes), "
        "defrag matters where memory is short or in pieces, and other kernels choose otherwise: --vary tries "
        "each. Not varied: max_ptes_swap and max_ptes_shared. How far what a capture cannot see moves it: "
        "mthp collapse with these settings."
    )


def sweep_document(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON values: bytes as numbers."""
    return {
        "schema_version": SCHEMA_VERSION,
        "predicted": True,
        **basis_values(sweep.basis),
        "wish": asdict(sweep.wish),
        "missed": [asdict(miss) for miss in sweep.wish.misses(sweep.nearest)],
        "now": plan_values(sweep.now),
        "writes": [
            {"path": path, "value": value}
            for path, value in writes(sweep.base, sweep.nearest.settings)
        ],
        "notes": [
            {"rule": note.rule, "means": note.means, "matters": note.matters, "kernel": note.kernel}
            for note in sweep.notes
        ],
        "sooner": [
            {
                "pages_to_scan": plan.settings.pages_to_scan,
                "scan_sleep_millisecs": plan.settings.scan_sleep_millisecs,
                "last_collapse_ms": plan.last_collapse_ms,
            }
            for plan in sweep.sooner
        ],
        "elsewhere": {name: plan_values(plan) for name, plan in sweep.elsewhere.items()},
        "plans": [
            {**plan_values(plan), "front": front, "chosen": plan is sweep.chosen}
            for plan, front in zip(sweep.plans, sweep.front, strict=True)
        ],
        **caveat_values(sweep.basis),
        "seconds": sweep.seconds,
    }


def plan_values(plan: BulkVerdict) -> dict[str, Any]:
    """A plan as JSON values."""
    names = plan.settings.geometry.size_name
    return {
        "settings": plan.settings.to_json(),
        "boot": boot_parameter(plan.settings),
        "collapses": {names(order): nr for order, nr in plan.windows.items()},
        "mapped_before": {names(order): size for order, size in sorted(plan.before.items())},
        "mapped_after": {names(order): size for order, size in sorted(plan.after.items())},
        "translations": plan.translations,
        "reach": plan.reach,
        "last_collapse_ms": plan.last_collapse_ms,
        "memory_added": plan.memory_added,
        "memory_added_by_mapping": [
            {"pid": pid, "start": start, "bytes": size}
            for (pid, start), size in sorted(plan.added_by_vma.items())
        ],
        "copied_bytes": plan.copied_bytes,
        "cleared_bytes": plan.collapsed_bytes - plan.copied_bytes,
        "tlb_entries": {
            kind.name.lower(): {names(order): nr for order, nr in plan.entries(kind).items()}
            for kind in TlbKind
        },
        "tables": {"counted": plan.counted_tables, "engine": plan.engine_tables},
        "all_by_engine": plan.all_engine,
    }
