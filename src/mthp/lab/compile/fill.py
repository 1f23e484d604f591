# SPDX-License-Identifier: GPL-2.0-or-later
"""The operations that fill one process's mappings with the wanted pages.

A fault makes a folio of an order where that size alone is on, the window naturally aligned, within
the mapping and empty. So large folios come first, in descending order, and then what fills the holes
in them. Pages that more sleeping children share are made before those that fewer share, with forks in
between.
Kernel: mm/memory.c, alloc_anon_folio(); mm/huge_memory.c, do_huge_pmd_anonymous_page().
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mthp.image.runs import PageKind
from mthp.lab.compile.recipes import (
    DROPPABLE,
    SMALL,
    LargeRecipe,
    Steps,
    large_recipe,
    small_recipe,
)
from mthp.lab.compile.wanted import WantedFolio, WantedPage, WantedProcess, cannot
from mthp.lab.geometry import PMD_ORDER, PMD_PAGES
from mthp.lab.program.program import SYSFS, Madv, Operation, Verb, spans, switch
from mthp.words.settings import Enabled

_SMALLEST = 4
"""Pages of the smallest large folio."""
PageContents = dict[int, WantedFolio | WantedPage]
"""Page -> what is on it so far."""
_SWAPPED: Steps = (Madv.PAGEOUT,)


@dataclass
class _Batch:
    """What is made between two forks: large folios, small pages by their steps, pages to poison."""

    sleepers: int
    folios: list[WantedFolio] = field(default_factory=list)
    small: dict[Steps, list[WantedPage]] = field(default_factory=lambda: defaultdict(list))
    poison: list[WantedPage] = field(default_factory=list)


@dataclass
class _Filler:
    """One process that is being filled. contents: page -> what is on it so far."""

    want: WantedProcess
    ops: list[Operation] = field(default_factory=list)
    contents: PageContents = field(default_factory=dict)

    # --- operations -------------------------------------------------------------------------

    def over(self, verb: Verb, pages: Iterable[int], *more: int) -> None:
        """Add an operation over each run of pages."""
        for start, count in spans(pages):
            self.ops.append(Operation(verb, (start, count, *more), self.want.name))

    def step(self, step: Madv | Verb, pages: Iterable[int]) -> None:
        """Add one step of a recipe over each run of pages."""
        if isinstance(step, Madv):
            self.advise(step, pages)
        else:
            self.over(step, pages)

    def advise(self, advice: Madv, pages: Iterable[int]) -> None:
        self.over(Verb.ADVISE, pages, int(advice))

    def fork_sleepers(self, count: int) -> None:
        """Fork so many sleeping children, which map all pages that are there."""
        if count:
            self.ops.append(Operation(Verb.FORK, (count,), self.want.name))

    def clear(self, pages: Iterable[int], new: Iterable[WantedPage]) -> None:
        """Drop these pages, where `new` is to come. CannotBuild: a wanted page is among them."""
        taken = [page for page in pages if page in self.contents]
        for page in taken:
            if self.keeps(page):
                raise cannot(new, f"page {page} of the process is taken by what must come before")
        self.advise(Madv.DONTNEED, taken)
        for page in taken:
            del self.contents[page]

    def keeps(self, page: int) -> bool:
        """Whether what is on the page now is what is wanted there."""
        owner, final = self.contents[page], self.want.pages.get(page)
        if final is None or final.token.kind is PageKind.NONE:
            return False
        if isinstance(owner, WantedFolio) and final in owner.pages:
            return True
        shared = final.sharers and final.token.folio == owner.token.folio
        return bool(shared) or (final.vma, final.token) == (owner.vma, owner.token)

    # --- folios and pages -------------------------------------------------------------------

    def huge_zeros(self) -> None:
        """Map tables by the huge zero folio."""
        tables = {page.at // PMD_PAGES for page in self.want.of(PageKind.HUGE_ZERO)}
        if not tables:
            return
        use = f"{SYSFS}/use_zero_page"
        self.ops.append(Operation(Verb.WRITE_FILE, (use, "1")))
        self.ops.append(switch(PMD_ORDER, Enabled.ALWAYS))
        for table in sorted(tables):
            self.over(Verb.READ, [table * PMD_PAGES])
        self.ops.append(switch(PMD_ORDER, Enabled.NEVER))
        self.ops.append(Operation(Verb.WRITE_FILE, (use, "0")))

    def large(self, order: int, folios: list[WantedFolio]) -> None:
        """Make folios of one order, whole; then set their flags, then their entries' bits."""
        by_recipe: dict[LargeRecipe, list[WantedFolio]] = defaultdict(list)
        for folio in folios:
            self.clear(folio.window, folio.pages)
            by_recipe[_recipe_of(folio)].append(folio)
        self.ops.append(switch(order, Enabled.ALWAYS))
        self.over(Verb.WRITE, [page for folio in folios for page in folio.window])
        self.ops.append(switch(order, Enabled.NEVER))
        for recipe, alike in by_recipe.items():
            for step in recipe.steps:
                self.step(step, [page for folio in alike for page in folio.window])
        for folio in folios:
            self.contents.update(dict.fromkeys(folio.window, folio))
            if order == PMD_ORDER and not folio.huge:
                self.split_pmd(folio)
        for recipe, alike in by_recipe.items():
            self.touch([page for folio in alike for page in folio.pages], recipe.bits)

    def split_pmd(self, folio: WantedFolio) -> None:
        """Map a folio of PMD order by PTEs: another protection for one page, and back.

        Kernel: mm/mprotect.c, change_pmd_range().
        """
        page = folio.pages[0].at
        self.over(Verb.MPROTECT, [page], 1)
        self.over(Verb.MPROTECT, [page], 3)

    def touch(self, pages: list[WantedPage], bits: str) -> None:
        """Give entries that lack them their dirty and their accessed bit."""
        written = [page for page in pages if page.entry.dirty and "D" not in bits]
        read = [page for page in pages if page.entry.young and "A" not in bits]
        self.over(Verb.WRITE, {page.at for page in written})
        self.over(Verb.READ, {page.at for page in read} - {page.at for page in written})

    def small_pages(self, batch: _Batch) -> None:
        """Make small pages: write all of them, then apply each kind's steps."""
        pages = [page for alike in batch.small.values() for page in alike] + batch.poison
        self.clear([page.at for page in pages], pages)
        self.over(Verb.WRITE, [page.at for page in pages])
        self.contents.update((page.at, page) for page in pages)
        for steps, alike in batch.small.items():
            if steps == _SWAPPED:
                self.page_out([page.at for page in alike])
                continue
            for step in steps:
                self.step(step, [page.at for page in alike])
        for page in batch.poison:
            self.advise(Madv.HWPOISON, [page.at])

    def page_out(self, pages: list[int]) -> None:
        """Swap pages out, the last first where a swap-in could otherwise bring several back at once.

        Slots are given out in rising order, and only a window of pages whose slots rise with them
        comes back as one folio. Kernel: mm/memory.c, alloc_swap_folio(), can_swapin_thp().
        """
        for start, count in spans(pages):
            window = -(-start // _SMALLEST) * _SMALLEST
            if window + _SMALLEST > start + count:
                self.advise(Madv.PAGEOUT, range(start, start + count))
                continue
            for page in reversed(range(start, start + count)):
                self.advise(Madv.PAGEOUT, [page])

    def batch(self, batch: _Batch) -> None:
        """Make everything of a batch, the largest folios first."""
        orders: dict[int, list[WantedFolio]] = defaultdict(list)
        for folio in batch.folios:
            orders[folio.order].append(folio)
        for order in sorted(orders, reverse=True):
            self.large(order, orders[order])
        self.small_pages(batch)

    def remaining(self) -> WantedProcess:
        """The process with only those pages that have not been made yet."""
        pages = {at: page for at, page in self.want.pages.items() if not self.has(at)}
        folios = [folio for folio in self.want.folios if not self.has(folio.pages[0].at)]
        return replace(self.want, pages=pages, folios=folios)

    def has(self, page: int) -> bool:
        return page in self.contents and self.keeps(page)

    def batches(self, want: WantedProcess) -> None:
        """Make all pages of `want` batch by batch, with the forks between them."""
        clean, dirty = _batches(want)
        _check_order(want, clean, dirty)
        sleepers = max((batch.sleepers for batch in (*clean, *dirty)), default=0)
        for batches in (clean, dirty):
            for batch in batches:
                self.fork_sleepers(sleepers - batch.sleepers)
                sleepers = batch.sleepers
                self.batch(batch)
            if batches is clean and clean:
                self.ops.append(Operation(Verb.CLEAR_REFS, (4,), want.name))
        self.fork_sleepers(sleepers)

    def finish(self) -> None:
        """Drop what is left of windows; then read zero pages, and pages to be swapped in."""
        mapped = {page for vma in self.want.vmas for page in range(vma.start, vma.end)}
        left = [page for page in self.contents if page in mapped and not self.keeps(page)]
        guards = {page.at for page in self.want.of(PageKind.GUARD)}
        self.advise(Madv.DONTNEED, [page for page in left if page not in guards])
        self.over(Verb.READ, [page.at for page in self.want.of(PageKind.ZERO)])
        self.over(Verb.READ, [page.at for page in self.want.small if "C" in page.token.flags])


def fill(want: WantedProcess) -> list[Operation]:
    """The operations that fill the process's mappings, all mapped with nothing on them."""
    _check(want)
    filler = _Filler(want)
    filler.huge_zeros()
    _check_reused(want)
    _reused(filler)
    filler.batches(filler.remaining())
    filler.finish()
    return filler.ops


def fill_before_fork(before: WantedProcess) -> tuple[list[Operation], PageContents]:
    """The operations that make what processes are to inherit, and the pages that are there then."""
    _check(before)
    filler = _Filler(before)
    filler.batches(before)
    return filler.ops, filler.contents


def fill_after_fork(want: WantedProcess, contents: PageContents) -> list[Operation]:
    """The operations that fill a process after the fork, the parent or a child. contents: inherited.

    A child's entries are old. Kernel: mm/memory.c, __copy_present_ptes().
    """
    _check(want)
    filler = _Filler(want, contents=dict(contents))
    if want.parent:
        old = [page for page in want.pages.values() if filler.has(page.at) and page.entry.young]
        filler.over(Verb.READ, [page.at for page in old])
    filler.huge_zeros()
    remaining = filler.remaining()
    for page in remaining.pages.values():
        if page.sharers:
            raise cannot([page], "shared with a relative, where another page is inherited")
        if page.sleepers:
            raise cannot([page], "shared with sleepers, by a process that has relatives")
    filler.batches(remaining)
    filler.finish()
    return filler.ops


# --- batches --------------------------------------------------------------------------------


def _batches(want: WantedProcess) -> tuple[list[_Batch], list[_Batch]]:
    """The batches whose pages are not soft-dirty, and the others; those with most sleepers first."""
    found: dict[tuple[bool, int], _Batch] = {}

    def at(page: WantedPage, sleepers: int) -> _Batch:
        clean = page.token.kind is PageKind.FOLIO and "s" not in page.token.pagemap
        return found.setdefault((clean, sleepers), _Batch(sleepers))

    for folio in want.folios:
        at(folio.pages[0], folio.sleepers).folios.append(folio)
    for page in want.small:
        sleepers = 1 if "C" in page.token.flags else page.sleepers
        at(page, sleepers).small[_steps_of(want, page)].append(page)
    for page in want.of(PageKind.SWAP):
        if page.token.special_swap == "hwpoison":
            at(page, 0).poison.append(page)
        else:
            at(page, 0).small[_SWAPPED].append(page)
    most_first = sorted(found, key=lambda key: -key[1])
    return (
        [found[key] for key in most_first if key[0]],
        [found[key] for key in most_first if not key[0]],
    )


def was_shared(want: WantedProcess, page: WantedPage) -> bool:
    """Whether a page is mapped only here and yet not writable: a process that mapped it too has ended."""
    return (
        not page.sleepers
        and not page.entry.writable
        and not page.entry.uffd_wp
        and not want.vma_of(page).declared.read_only
        and not set("CK") & set(page.token.flags)
        and "s" in page.token.pagemap
    )


def _reused(filler: _Filler) -> None:
    """Make the small pages that a child mapped which has ended."""
    want = filler.want
    batch = _Batch(0)
    for page in want.small:
        if was_shared(want, page):
            batch.small[_steps_of(want, page)].append(page)
    if batch.small:
        filler.small_pages(batch)
        filler.fork_sleepers(1)
        filler.ops.append(Operation(Verb.END_FORK, (), want.name))


def _steps_of(want: WantedProcess, page: WantedPage) -> Steps:
    table = DROPPABLE if want.vma_of(page).declared.droppable else SMALL
    steps = small_recipe(page.token, page.entry, table)
    if steps is None and page.pinned:
        # The pin marks the page referenced, so it need not be before.
        steps = small_recipe(without_referenced(page).token, page.entry, table)
    if steps is None:
        raise cannot([page], "no operations known give a small page these flags and bits")
    return steps


def _recipe_of(folio: WantedFolio) -> LargeRecipe:
    recipe = large_recipe(folio.token)
    if recipe is None:
        raise cannot(folio.pages, "no operations known give a large folio these flags")
    bits = {page.entry.letters for page in folio.pages}
    old = any("A" not in each for each in bits)
    if old and "A" in recipe.bits and any(page.pinned for page in folio.pages):
        recipe = large_recipe(without_referenced(folio.pages[0]).token) or recipe
    if any("A" not in each for each in bits) and "A" in recipe.bits:
        raise cannot(folio.pages, "a referenced folio with old entries")
    split_dirty = folio.order == PMD_ORDER and not folio.huge and "D" in recipe.bits
    if ("D" in folio.token.flags) != split_dirty:
        raise cannot(folio.pages, "only a dirty PMD that is split makes a large folio dirty")
    return recipe


def without_referenced(page: WantedPage) -> WantedPage:
    """The page as it is before something marks it referenced."""
    return replace(page, token=replace(page.token, flags=page.token.flags.replace("R", "")))


# --- refusals -------------------------------------------------------------------------------


def _check(want: WantedProcess) -> None:
    for page in want.pages.values():
        token = page.token
        special = token.special_swap
        if special and special != "hwpoison":
            raise cannot([page], f"no system call leaves a {special} entry behind")
        if token.kind is PageKind.FOLIO and set(token.flags) & set("lPIA"):
            raise cannot([page], "locked, active, idle or poisoned pages cannot be arranged")


def _check_order(want: WantedProcess, clean: list[_Batch], dirty: list[_Batch]) -> None:
    """CannotBuild unless every soft-dirty page can be made after the soft-dirty bits are cleared, once."""
    if clean and dirty and clean[-1].sleepers < dirty[0].sleepers:
        page = next(page for page in want.of(PageKind.FOLIO) if "s" not in page.token.pagemap)
        raise cannot([page], "not soft-dirty, though pages that more processes share are")
    for folio in want.folios:
        if folio.order == PMD_ORDER and folio.sleepers:
            raise cannot(
                folio.pages, "its fault registers the process, and so its sleeping children"
            )


def _check_reused(want: WantedProcess) -> None:
    shared = next((page for page in want.of(PageKind.FOLIO) if page.sleepers), None)
    reused = next((page for page in want.small if was_shared(want, page)), None)
    if shared and reused:
        raise cannot([reused], "not writable, though no process shares it and others are shared")
