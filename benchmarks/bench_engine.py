# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine straight through: scans, collapses, refusals, order walks, memory per page."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.clock import Row, compared, table, timed, timed_fresh
from benchmarks.host import HostCollapse, host_collapse
from benchmarks.worlds import OLD_PTE, TableWorld, only
from mthp.compare.conformance import run_conformance
from mthp.image.scenario import load
from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.eligibility import collapse_possible_orders
from mthp.khugepaged.order_walk import mthp_collapse
from mthp.khugepaged.scan import Scan, collapse_scan_pmd, scan_ptes
from mthp.mm.huge_mm import Tva
from mthp.mm.pgtable import PteMap
from mthp.vectorised.collapse import scan_ptes_at_once
from mthp.words.profiles import PROFILES
from mthp.words.settings import Enabled, Settings

LOOP = "loop over 512 ints"
ADDING_LOOP = "the same loop, adding"
HOST = "host kernel, MADV_COLLAPSE"
DATA = Path(__file__).parent.parent / "tests" / "data"


# --- peers ----------------------------------------------------------------------------------


VALUES = list(range(1000, 1512))


def bare_loop() -> None:
    """A loop over 512 integers that does nothing."""
    for _value in VALUES:
        pass


def adding_loop() -> int:
    """The same loop with `total += value`."""
    total = 0
    for value in VALUES:
        total += value
    return total


# --- scanning -------------------------------------------------------------------------------


def scan_rows() -> list[Row]:
    """A full table of small pages: the scan's part, its clear twin, and collapse_scan_pmd()."""
    world = TableWorld(only(4), 1)
    address = world.addresses[0]
    cc = world.control()
    pte = PteMap(world.kernel, world.table(address), 0)

    def scan_at_once() -> None:
        cc.init_scan()
        scan_ptes_at_once(Scan(world.vma, address, cc), pte)

    def scan_each() -> None:
        cc.init_scan()
        scan_ptes(Scan(world.vma, address, cc), pte)

    old = TableWorld(only(4), 1, pte_flags=OLD_PTE)
    sparse = TableWorld(only(4), 1, keep=lambda i: i % 16 != 5)
    both = Settings(sizes=dict.fromkeys(range(2, 10), Enabled.ALWAYS), max_ptes_none=0)
    ragged = TableWorld(both, 1, keep=lambda i: i % 4 != 1)
    works: dict[str, Callable[[], object]] = {
        "the scan's part: scan_ptes_at_once()": scan_at_once,
        "its clear twin: scan_ptes()": scan_each,
        "collapse_scan_pmd(), full table, refused: nothing young": pass_of(old),
        "collapse_scan_pmd(), a hole in each window of order 4": pass_of(sparse),
        "collapse_scan_pmd(), a hole in each window of orders 2-9": pass_of(ragged),
    }
    rows = []
    for name, work in works.items():
        inner = 3 if work is scan_each else 50
        seconds, ratio = compared(work, bare_loop, inner=inner)
        _, adding = compared(work, adding_loop, inner=inner)
        rows.append(Row(name, seconds, "tables", f"{LOOP}; {adding:.2f} x adding", ratio))
    return rows


def pass_of(world: TableWorld) -> Callable[[], None]:
    """A call that scans the world's first table and makes no attempt."""
    mm, vma, address, cc = world.mm, world.vma, world.addresses[0], world.control()

    def scan() -> None:
        with mm.mmap_read_lock() as mmap_lock:
            collapse_scan_pmd(mm, vma, address, mmap_lock, cc)

    return scan


# --- collapsing -----------------------------------------------------------------------------


def walk(world: TableWorld) -> int:
    """mthp_collapse() over every table of the world, all present; the attempts it makes."""
    cc = world.control()
    mm = world.mm
    geometry = world.kernel.geometry
    orders = collapse_possible_orders(world.vma, world.vma.vm_flags, Tva.KHUGEPAGED)
    present = (1 << geometry.ptrs_per_pte) - 1
    for address in world.addresses:
        cc.init_scan()
        cc.node_load[0] = geometry.ptrs_per_pte
        cc.present_ptes = present
        mthp_collapse(mm, address, geometry.ptrs_per_pte, 0, cc, orders)
    return len(world.addresses) * (geometry.ptrs_per_pte >> (orders.bit_length() - 1))


def extra_references(tables: int) -> TableWorld:
    """The last page of each order-4 window has a reference that nobody explains."""
    world = TableWorld(only(4), tables)
    mem = world.kernel.mem
    for address in world.addresses:
        for pte in world.table(address).ptes.raw[15::16]:
            mem.refcount.raw[pte >> 16] += 1
    return world


def attempts(make: Callable[[], TableWorld]) -> float:
    """Seconds of one attempt, in a fresh world each time."""
    return timed_fresh(make, walk, repeat=9)


def collapse_rows(host: HostCollapse) -> list[Row]:
    """Attempts that succeed, from mthp_collapse() down."""
    rows = []
    for order in (2, 4, 6, 9):
        seconds = attempts(partial(TableWorld, only(order), 32))
        pages = 1 << order
        part = "" if order == 9 else f", {pages} of its 512 pages"
        ratio = seconds / (host.seconds * pages / 512) if host.seconds else None
        rows.append(Row(f"order {order}", seconds, "collapses", HOST + part, ratio))
    large = attempts(partial(TableWorld, only(9), 16, order=4))
    rows.append(Row("order 9 of 32 folios of order 4", large, "collapses"))
    return rows


def refusal_rows(collapse: float) -> list[Row]:
    """Attempts that fail, against one that succeeds."""
    measured = {
        "pte_mapped_hugepage, at the first page": partial(TableWorld, only(4), 32, order=4),
        "not_suitable_page_count, at the last page": partial(extra_references, 32),
        "lack_referenced_page": partial(TableWorld, only(4), 32, pte_flags=OLD_PTE),
    }
    rows = []
    for name, make in measured.items():
        seconds = attempts(make)
        rows.append(Row(name, seconds, "attempts", "a collapse", seconds / collapse))
    return rows


def daemon_rows(loop: float) -> list[Row]:
    """khugepaged itself: one full scan of a process, scan and collapses together."""

    def full_scan(world: TableWorld) -> int:
        daemon = Khugepaged(world.kernel)
        daemon.khugepaged_enter(world.mm)
        daemon.khugepaged_do_scan()
        assert daemon.full_scans == 1 and world.collapsed()
        return len(world.addresses)

    rows = []
    for order in (4, 9):
        settings = only(order, pages_to_scan=2**32 - 1)
        seconds = timed_fresh(partial(TableWorld, settings, 32), full_scan)
        rows.append(
            Row(
                f"full scan that collapses all, order {order}",
                seconds,
                "tables",
                LOOP,
                seconds / loop,
            )
        )
    return rows


# --- memory ---------------------------------------------------------------------------------


def memory_per_page(order: int, tables: int = 64) -> float:
    """Bytes of a world for each populated page, everything counted."""
    gc.collect()
    tracemalloc.start()
    world = TableWorld(only(4), tables, order=order)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / (len(world.addresses) * world.kernel.geometry.ptrs_per_pte)


def conformance_rows() -> list[Row]:
    """Recorded passes, each world built, run, read back and compared."""
    rows = []
    for path in sorted(DATA.glob("*.xz")):
        scenarios = list(load(path))
        begin = time.perf_counter()
        score = run_conformance(scenarios, PROFILES["7.3"])
        seconds = (time.perf_counter() - begin) / score.passes
        rows.append(
            Row(
                f"conformance, {path.name}: {score.agreed} of {score.passes} agree",
                seconds,
                "passes",
            )
        )
    return rows


def main() -> None:
    """Measure and print."""
    host = host_collapse()
    loop, adding = timed(bare_loop, 51, 200), timed(adding_loop, 51, 200)
    peers = [Row(LOOP, loop, "loops"), Row(ADDING_LOOP, adding, "loops")]
    if host.seconds is not None:
        peers.append(Row(HOST + ", 512 small pages", host.seconds, "collapses"))
    else:
        print(f"{HOST}: skipped: {host.why}\n")
    print(table("Peers", peers))
    print(table("Scanning one table of 512 PTEs, straight through", scan_rows()))
    collapses = collapse_rows(host)
    print(table("Collapses of small pages, from mthp_collapse() down", collapses))
    print(table("Attempts at order 4 that are refused", refusal_rows(collapses[1].seconds)))
    print(table("khugepaged, per table of 512 small pages", daemon_rows(loop)))
    print(table("Conformance", conformance_rows()))
    print("**Memory of a world, per populated page**\n")
    for order in (0, 4, 9):
        print(f"- folios of order {order}: {memory_per_page(order):.0f} B")


if __name__ == "__main__":
    main()
