# SPDX-License-Identifier: GPL-2.0-or-later
"""Random programs: processes that begin empty, and what they do. A seed and an index always give the same.

What would end a process is not drawn: a touch of memory that is not mapped, or that may not be stored to.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from random import Random
from typing import Any, Final

from mthp.lab.geometry import GEOMETRY, ORDERS, PMD_ORDER, PMD_PAGES, SMALL_ORDERS
from mthp.lab.program.program import HEAP, SYSFS, Madv

FIRST_PAGES: Final = 1100
"""Programs map memory from page 0 to here,"""
ELSEWHERE: Final = 2048
"""move some of it to pages from here on,"""
MOST_PAGES: Final = 2700
"""and to none beyond this one, but for the heap:"""
END: Final = HEAP + 1100
"""it ends here at most."""
_LENGTHS: Final = (1, 1, 2, 4, 7, 16, 16, 33, 64, 64, 200, 256, 512, 512, 1024)
_WHOLE: Final = (700, 1000, 1024, 1025, 1100, 512, 513)
_LIMITS: Final = (0, 0, 0, 64, 256, 409, 511, 511, 511)
_DEFRAG: Final = ("always", "defer", "defer+madvise", "madvise", "never")
_ADVICE: Final = {
    Madv.DONTNEED: 8,
    Madv.FREE: 4,
    Madv.HUGEPAGE: 2,
    Madv.NOHUGEPAGE: 2,
    Madv.COLD: 2,
    Madv.PAGEOUT: 5,
    Madv.COLLAPSE: 2,
}
_MOST_PROCESSES: Final = 3
READ, WRITE = 1, 2


class _Drawing:
    """A program that is being drawn. rights: process -> the rights to each of its pages; brk: -> the page at
    which its heap ends."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.rights: dict[str, list[int]] = {"s": [0] * END}
        self.brk = {"s": HEAP}
        self.sleepers: list[tuple[str, str]] = []
        self.ops: list[Any] = []

    def do(self, *words: object) -> None:
        """Add an operation."""
        self.ops.append(" ".join(map(str, words)))

    def runs(self, who: str, wanted: int) -> list[range]:
        """Runs of pages to which a process has rights."""
        rights = self.rights[who]
        found = []
        for has, pages in groupby(range(END), lambda page: rights[page] & wanted == wanted):
            if has:
                *_, last = first, *_ = list(pages)
                found.append(range(first, last + 1))
        return found

    def within(self, who: str, wanted: int) -> range | None:
        """A range of pages to which a process has rights, at a place that tells something."""
        rng, runs = self.rng, self.runs(who, wanted)
        if not runs:
            return None
        run = rng.choices(runs, [len(each) for each in runs])[0]
        if rng.random() < 0.15:
            return run
        pages = min(rng.choice(_LENGTHS), len(run))
        last = run.stop - pages
        first = rng.randint(run.start, last)
        if rng.random() < 0.6:
            first -= first % min(rng.choice((4, 16, 64, 256, PMD_PAGES)), 1 + first)
        return range(max(first, run.start), max(first, run.start) + pages)

    def anywhere(self, who: str) -> range | None:
        """A range that may reach beyond what is mapped."""
        pages = self.within(who, 0 if self.rng.random() < 0.1 else READ)
        if pages is None or self.rng.random() < 0.9:
            return pages
        return range(pages.start, min(pages.stop + self.rng.choice((1, 16, 200)), END))


def _mmap(drawing: _Drawing, who: str) -> None:
    rng, rights = drawing.rng, drawing.rights[who]
    start = rng.choice((0, 0, 0, 16, 100, 256, rng.randrange(FIRST_PAGES)))
    free = next((i for i, has in enumerate(rights[start:FIRST_PAGES]) if has), FIRST_PAGES - start)
    pages = min(rng.choice(_WHOLE if rng.random() < 0.8 else _LENGTHS), free)
    if pages > 0:
        drawing.do(who, "mmap", start, pages)
        rights[start : start + pages] = [READ | WRITE] * pages
        if rng.random() < 0.75:
            drawing.do(who, "adv", start, pages, int(Madv.HUGEPAGE))


def _brk(drawing: _Drawing, who: str) -> None:
    """The heap grows or shrinks; or does neither, where what was moved is in its way, or nothing is left."""
    rng, rights, old = drawing.rng, drawing.rights[who], drawing.brk[who]
    new = HEAP + rng.choice((0, 30, 100, 512, 600, 1000, 1024, rng.randrange(END - HEAP)))
    drawing.do(who, "brk", new - HEAP)
    if new > old and not any(rights[old : new + 1]):
        rights[old:new] = [READ | WRITE] * (new - old)
    elif new < old and any(rights[new:old]):
        rights[new:old] = [0] * (old - new)
    else:
        return
    drawing.brk[who] = new
    if new > old and rng.random() < 0.6:
        drawing.do(who, "adv", old, new - old, int(Madv.HUGEPAGE))


def _touch(drawing: _Drawing, who: str) -> None:
    rng = drawing.rng
    kind = rng.choices(("wr", "step", "rd", "fill"), (10, 3, 4, 3))[0]
    pages = drawing.within(who, READ if kind == "rd" else READ | WRITE)
    if pages is None:
        return
    first, count = pages.start, len(pages)
    if kind == "step":
        drawing.do(who, "wr", first, count, rng.choice((2, 3, 16, 33)))
    elif kind == "fill":
        drawing.do(who, "fill", first, count, 0)
    else:
        drawing.do(who, kind, first, count)


def _advise(drawing: _Drawing, who: str) -> None:
    pages = drawing.anywhere(who)
    if pages:
        advice = drawing.rng.choices(list(_ADVICE), list(_ADVICE.values()))[0]
        drawing.do(who, "adv", pages.start, len(pages), int(advice))


def _munmap(drawing: _Drawing, who: str) -> None:
    pages = drawing.anywhere(who)
    if pages:
        drawing.do(who, "munmap", pages.start, len(pages))
        drawing.rights[who][pages.start : pages.stop] = [0] * len(pages)


def _mprotect(drawing: _Drawing, who: str) -> None:
    pages = drawing.within(who, READ)
    if pages:
        rights = drawing.rng.choice((READ, READ | WRITE, READ | WRITE))
        drawing.do(who, "mprotect", pages.start, len(pages), rights)
        drawing.rights[who][pages.start : pages.stop] = [rights] * len(pages)


def _mremap(drawing: _Drawing, who: str) -> None:
    rng, pages = drawing.rng, drawing.within(who, READ)
    if pages is None:
        return
    to = ELSEWHERE + rng.choice((0, 7, 52, 512, pages.start % PMD_PAGES))
    if rng.random() < 0.2:
        to = rng.randrange(FIRST_PAGES)
    elif rng.random() < 0.1:
        to = HEAP + rng.choice((0, 16, 512, drawing.brk[who] - HEAP))
    length = min(len(pages), (MOST_PAGES if to < MOST_PAGES else END) - to)
    if length > 0 and (to >= pages.start + length or pages.start >= to + length):
        drawing.do(who, "mremap", pages.start, length, to)
        rights = drawing.rights[who]
        rights[to : to + length] = rights[pages.start : pages.start + length]
        rights[pages.start : pages.start + length] = [0] * length


def _limited(drawing: _Drawing, who: str) -> None:
    """A page is stored to while its cgroup has room for a folio of order 7, or 8, and for none that is
    larger. Nothing is reclaimed: which pages would go is not known.
    """
    rng, pages = drawing.rng, drawing.within(who, READ | WRITE)
    if pages is None:
        return
    if rng.random() < 0.7:
        drawing.do(who, "adv", pages.start, len(pages), int(Madv.DONTNEED))
    drawing.do("w", f"{SYSFS}/defrag", "never")
    drawing.do(who, "limited", rng.choice(pages), rng.choice((192, 384)))


def _fork(drawing: _Drawing, who: str) -> None:
    rng, rights = drawing.rng, drawing.rights
    if rng.random() < 0.6:
        child = str(len(drawing.sleepers))
        drawing.do(who, "fork", child)
        drawing.sleepers.append((who, child))
    elif len(rights) < _MOST_PROCESSES:
        name = next(name for name in "stu" if name not in rights)
        drawing.do(who, "forkto", name)
        rights[name] = list(rights[who])
        drawing.brk[name] = drawing.brk[who]


def _end(drawing: _Drawing, who: str) -> None:
    """A child that sleeps is killed, or a process but the first ends."""
    mine = [pair for pair in drawing.sleepers if pair[0] == who]
    if mine:
        drawing.do(who, "forkkill", mine[0][1])
        drawing.sleepers.remove(mine[0])
        drawing.sleepers.append(("", mine[0][1]))
    elif who != "s":
        drawing.do(who, "exit")
        del drawing.rights[who]
        drawing.sleepers = [pair if pair[0] != who else ("", pair[1]) for pair in drawing.sleepers]


def _scan(drawing: _Drawing, _: str) -> None:
    drawing.do("scan")


def _drop(drawing: _Drawing, _: str) -> None:
    drawing.do("w", "/proc/sys/vm/drop_caches", 2)


def _settings(drawing: _Drawing, _: str) -> None:
    rng = drawing.rng
    if rng.random() < 0.6:
        drawing.ops.append(["set", _orders(rng), rng.choice(_LIMITS)])
    else:
        drawing.ops.append(_knob(rng))


def _orders(rng: Random) -> int:
    """A bitmap of sizes, in one of several styles."""
    style = rng.random()
    if style < 0.2:
        orders = [rng.choice(SMALL_ORDERS), PMD_ORDER]
    elif style < 0.35:
        orders = [PMD_ORDER]
    elif style < 0.6:
        orders = [rng.choice(SMALL_ORDERS)]
    elif style < 0.75:
        orders = list(ORDERS)
    elif style < 0.85:
        orders = list(SMALL_ORDERS)
    else:
        orders = rng.sample(ORDERS, rng.randint(0, 5))
    return sum(1 << order for order in set(orders))


def _knob(rng: Random) -> str:
    """A line that writes a file of transparent_hugepage."""
    size = GEOMETRY.size_name(rng.choice(ORDERS))
    path, values = rng.choice(
        (
            ("enabled", ("always", "madvise", "never")),
            (f"hugepages-{size}/enabled", ("always", "inherit", "madvise", "never")),
            ("defrag", _DEFRAG),
            ("shrink_underused", (0, 1)),
            ("use_zero_page", (0, 1)),
            ("khugepaged/max_ptes_swap", (0, 8, 64, 511)),
            ("khugepaged/max_ptes_shared", (0, 8, 256, 511)),
        )
    )
    return f"w {SYSFS}/{path} {rng.choice(values)}"


_STEPS: Final[dict[Callable[[_Drawing, str], None], int]] = {
    _touch: 36,
    _advise: 22,
    _munmap: 4,
    _mprotect: 4,
    _mremap: 4,
    _mmap: 3,
    _brk: 4,
    _fork: 5,
    _limited: 2,
    _end: 2,
    _scan: 10,
    _drop: 7,
    _settings: 3,
}


def draw_program(seed: int, index: int) -> dict[str, Any]:
    """The program of this index, as the document of a file of programs."""
    rng = Random(f"program:{seed}:{index}")
    drawing = _Drawing(rng)
    orders = _orders(rng)
    pre = [
        f"w {SYSFS}/shrink_underused {rng.randrange(2)}",
        f"w {SYSFS}/use_zero_page {rng.randrange(2)}",
    ]
    pre.append(f"w {SYSFS}/defrag {rng.choice(_DEFRAG)}")
    limit = rng.choice(_LIMITS)
    while rng.random() < 0.3:
        pre.append(_knob(rng))
    _mmap(drawing, "s")
    length = rng.choice((5, 8, 8, 12, 20))
    while len(drawing.ops) < length:
        step = rng.choices(list(_STEPS), list(_STEPS.values()))[0]
        step(drawing, rng.choice(list(drawing.rights)))
    return {
        "id": f"{seed}-{index}",
        "orders": [order for order in ORDERS if orders >> order & 1],
        "max_ptes_none": limit,
        "pre": pre,
        "steps": [{"op": op} for op in drawing.ops],
    }
