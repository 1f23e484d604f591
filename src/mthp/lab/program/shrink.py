# SPDX-License-Identifier: GPL-2.0-or-later
"""Shrinks a draft on which kernel and engine disagree: simpler legal drafts, and a search among them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from mthp.lab.geometry import PMD_PAGES, round_up_to_table
from mthp.lab.program.declared import problem
from mthp.lab.program.program import KNOBS, Draft, Madv, Operation, Verb
from mthp.words.settings import Enabled, Settings

Ops = tuple[Operation, ...]


def candidates(draft: Draft) -> Iterator[Draft]:
    """Legal drafts that are simpler than this one, those that lose most first.

    Fewer passes, fewer processes, fewer mappings, runs of operations, single ones, plainer
    settings, shorter ranges, plainer operations. None is yielded twice.
    """
    seen: set[Draft] = set()
    largest = size(draft)
    for step in _STEPS:
        for simpler in step(draft):
            if size(simpler) < largest and _essence(simpler) not in seen:
                seen.add(_essence(simpler))
                if not problem(simpler):
                    yield simpler


def shrink(draft: Draft, still_bad: Callable[[Draft], bool], budget: int) -> Draft:
    """The smallest draft found for which still_bad() is true, beginning with this one.

    still_bad is called at most `budget` times. Unless the budget ends the search, the result is a local
    minimum: every candidate made from it was tried.
    """
    tried = {_essence(draft)}
    while budget > 0:
        for simpler in candidates(draft):
            if _essence(simpler) in tried:
                continue
            if budget == 0:
                return draft
            tried.add(_essence(simpler))
            budget -= 1
            if still_bad(simpler):
                draft = simpler
                break
        else:
            return draft
    return draft


def size(draft: Draft) -> tuple[int, int, int, int]:
    """The size of a draft; every candidate has a smaller one than the draft it was made from.

    In descending importance: operations and passes; pages that the operations cover; settings that
    are not the default; operations that could be plainer.
    """
    ops = (*draft.ops, *draft.finish)
    pages = sum(each.pages for each in ops if each.is_range)
    far = draft.target is not None and draft.target.by != draft.target.who
    return len(ops) + draft.passes, pages, _unusual(draft.settings), far + sum(map(_fancy, ops))


_WEIGHT = {Enabled.NEVER: 0, Enabled.ALWAYS: 1, Enabled.MADVISE: 2, Enabled.INHERIT: 2}


def _unusual(settings: Settings) -> int:
    plain = Settings()
    limits = sum(int(getattr(settings, name) != getattr(plain, name)) for name in KNOBS)
    sizes = sum(_WEIGHT[mode] for mode in settings.sizes.values())
    return limits + sizes + (settings.enabled is not Enabled.MADVISE)


def _fancy(each: Operation) -> int:
    if each.verb in (Verb.FORK, Verb.MEMCG):
        return each.numbers[0]
    return int(each.verb in _SIMPLER)


def _essence(draft: Draft) -> Draft:
    """The draft without its name: drafts that do the same are equal."""
    return replace(draft, id="", family="")


# --- steps ----------------------------------------------------------------------------------


def _fewer_passes(draft: Draft) -> Iterator[Draft]:
    for passes in range(1, draft.passes):
        yield replace(draft, passes=passes)


def _fewer_processes(draft: Draft) -> Iterator[Draft]:
    """Drafts without one process, and without the operations that name it."""
    names = {each.who for each in draft.ops if each.who}
    for name in sorted(names, reverse=True):
        if len(names) > 1 and not (draft.target and draft.target.who == name):
            target = draft.target
            if target is not None and target.by == name:
                target = replace(target, by=target.who)
            lost = {each for each in (*draft.ops, *draft.finish) if _about(each, name)}
            yield replace(_less(draft, lost), target=target)


def _less(draft: Draft, lost: Collection[Operation]) -> Draft:
    """The draft without those operations."""
    return replace(
        draft,
        ops=tuple(each for each in draft.ops if each not in lost),
        finish=tuple(each for each in draft.finish if each not in lost),
    )


def _about(each: Operation, name: str) -> bool:
    if each.verb is Verb.NEW:
        return name == (each.args[0] if each.args else "s")
    return name in (each.who, each.subject, *each.args[:1])


def _fewer_mappings(draft: Draft) -> Iterator[Draft]:
    """Drafts without one mapping, and without the part of every operation that lies in it."""
    for who, low, high in _mappings(draft):
        yield _without(draft, who, low, high)


def _smaller_mappings(draft: Draft) -> Iterator[Draft]:
    """Without part of a mapping: a whole table, what lies before or after those, or a half."""
    for who, low, high in _mappings(draft):
        tables = range(round_up_to_table(low), high, PMD_PAGES)
        middle = (low + high) // 2
        cuts = [(table, min(table + PMD_PAGES, high)) for table in tables]
        ends = [(low, tables[0]), (tables[-1], high)] if tables else []
        for first, last in (*cuts, *ends, (middle, high), (low, middle)):
            if first < last and (first, last) != (low, high):
                yield _without(draft, who, first, last)


def _mappings(draft: Draft) -> list[tuple[str, int, int]]:
    made = (Verb.MMAP, Verb.MMAP_DROPPABLE)
    return [(each.who, each.start, each.end) for each in draft.ops if each.verb in made]


def _without(draft: Draft, who: str, low: int, high: int) -> Draft:
    """The draft without pages [low, high) of a process and of its descendants."""
    names = _descendants(draft.ops, who)
    return replace(
        draft,
        ops=tuple(_all_outside(draft.ops, names, low, high)),
        finish=tuple(_all_outside(draft.finish, names, low, high)),
    )


def _descendants(ops: Ops, who: str) -> set[str]:
    names = {who}
    for each in ops:
        if each.verb is Verb.FORK_TO and each.who in names:
            names.add(str(each.args[0]))
    return names


def _all_outside(ops: Ops, names: set[str], low: int, high: int) -> Iterator[Operation]:
    for each in ops:
        if not (each.is_range and each.subject in names):
            yield each
            continue
        if each.start < low:
            yield each.with_range(each.start, min(each.end, low) - each.start)
        if each.end > high:
            start = max(each.start, high)
            yield each.with_range(start, each.end - start)


def _fewer_groups(draft: Draft) -> Iterator[Draft]:
    """Drafts without half of the operations, a quarter, and so on; then without those of one
    kind."""
    ops, finish = draft.ops, draft.finish
    length = len(ops) // 2
    while length > 1:
        for at in range(0, len(ops), length):
            yield replace(draft, ops=ops[:at] + ops[at + length :])
        length //= 2
    for kind in sorted({each.kind for each in (*ops, *finish)}):
        yield _less(draft, {each for each in (*ops, *finish) if each.kind == kind})
    yield from _fewer_switched(draft)
    yield from _no_decoys(draft)


def _fewer_switched(draft: Draft) -> Iterator[Draft]:
    """Drafts with small pages instead of folios of an order: without both writes of its switch."""
    paths = [each.args[0] for each in draft.ops if each.verb is Verb.WRITE_FILE]
    for path in dict.fromkeys(paths):
        yield replace(draft, ops=tuple(each for each in draft.ops if path not in each.args))


def _no_decoys(draft: Draft) -> Iterator[Draft]:
    """Drafts without the short-lived mappings that register processes, one by one."""
    for decoy in draft.ops:
        if decoy.verb is Verb.MUNMAP:
            others = (each for each in draft.ops if not _lies_in(each, decoy))
            yield replace(draft, ops=tuple(others))


def _lies_in(each: Operation, decoy: Operation) -> bool:
    if not each.is_range or each.subject != decoy.who:
        return False
    return decoy.start <= each.start and each.end <= decoy.end


def _fewer_ops(draft: Draft) -> Iterator[Draft]:
    """Drafts without one operation; the last ones first, on which no other depends."""
    for name in ("finish", "ops"):
        ops: Ops = getattr(draft, name)
        for at in reversed(range(len(ops))):
            yield _with(draft, name, ops[:at] + ops[at + 1 :])


def _with(draft: Draft, name: str, ops: Ops) -> Draft:
    return replace(draft, ops=ops) if name == "ops" else replace(draft, finish=ops)


def _shorter_ranges(draft: Draft) -> Iterator[Draft]:
    """Drafts with fewer pages in one operation, neighbouring operations joined, or less slack."""
    for name in ("ops", "finish"):
        ops: Ops = getattr(draft, name)
        for at, each in enumerate(ops):
            for smaller in _smaller(each):
                yield _with(draft, name, (*ops[:at], smaller, *ops[at + 1 :]))
        yield _with(draft, name, _joined(ops))


def _smaller(each: Operation) -> Iterator[Operation]:
    if each.verb is Verb.FORK and each.numbers[0] > 1:
        yield replace(each, args=(1,))
    if each.verb is Verb.MEMCG and each.numbers[0] > 0:
        yield replace(each, args=(each.args[0], each.numbers[0] // 2))
    if not each.is_range or each.pages == 1:
        return
    less = each.pages - each.pages // 2
    while less:
        yield each.with_range(each.start, each.pages - less)
        yield each.with_range(each.start + less, each.pages - less)
        less //= 2


def _joined(ops: Ops) -> Ops:
    """The operations with neighbours joined that differ only in adjacent ranges."""
    out: list[Operation] = []
    for each in ops:
        last = out[-1] if out else None
        if (
            last is not None
            and each.is_range
            and last.is_range
            and each.verb is not Verb.MREMAP
            and last.with_range(each.start, each.pages) == each
            and last.end == each.start
        ):
            out[-1] = last.with_range(last.start, last.pages + each.pages)
        else:
            out.append(each)
    return tuple(out)


_SIMPLER = {
    Verb.SAME: Verb.WRITE,
    Verb.PIN_VMSPLICE: Verb.PIN_URING,
    Verb.MMAP_DROPPABLE: Verb.MMAP,
}


def _plainer_ops(draft: Draft) -> Iterator[Draft]:
    """Drafts with a plainer operation of a similar kind, or without a final MADV_NOHUGEPAGE."""
    for at, each in enumerate(draft.ops):
        if each.verb in _SIMPLER:
            plain = replace(each, verb=_SIMPLER[each.verb])
            yield replace(draft, ops=(*draft.ops[:at], plain, *draft.ops[at + 1 :]))
    target = draft.target
    if target is not None and target.by != target.who:
        yield replace(draft, target=replace(target, by=target.who))
    for each in draft.finish:
        if each.kind == f"{Verb.ADVISE} {int(Madv.NOHUGEPAGE)}":
            yield replace(draft, finish=tuple(other for other in draft.finish if other != each))


def _plainer_settings(draft: Draft) -> Iterator[Draft]:
    """Drafts with all settings at their defaults, then one by one; with fewer sizes, and plainer
    modes."""
    settings, plain = draft.settings, Settings()
    yield replace(draft, settings=plain)
    yield replace(draft, settings=settings.replace(**{k: getattr(plain, k) for k in KNOBS}))
    for name in KNOBS:
        yield replace(draft, settings=settings.replace(**{name: getattr(plain, name)}))
    sizes = dict(settings.sizes)
    on = [order for order, mode in sizes.items() if mode is not Enabled.NEVER]
    for order in on:
        only = dict.fromkeys(sizes, Enabled.NEVER) | {order: sizes[order]}
        yield replace(draft, settings=settings.replace(sizes=only))
    for order in on:
        yield replace(draft, settings=settings.replace(sizes=sizes | {order: Enabled.NEVER}))
    for order in on:
        if sizes[order] is not Enabled.ALWAYS:
            yield replace(draft, settings=settings.replace(sizes=sizes | {order: Enabled.ALWAYS}))
    if settings.enabled is not Enabled.MADVISE:
        yield replace(draft, settings=settings.replace(enabled=Enabled.MADVISE))


_STEPS: tuple[Callable[[Draft], Iterator[Draft]], ...] = (
    _fewer_passes,
    _fewer_processes,
    _fewer_mappings,
    _smaller_mappings,
    _fewer_groups,
    _fewer_ops,
    _plainer_settings,
    _shorter_ranges,
    _plainer_ops,
)
