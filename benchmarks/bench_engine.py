# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine straight through: scans, collapses, refusals, order walks, memory per page."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.clock import Row, table, timed, timed_fresh
from benchmarks.host import HostCollapse, host_collapse
from benchmarks.worlds import OLD_PTE, TableWorld, only
from mthp.image.scenario import load
from mthp.khugepaged.daemon import Khugepaged
from mthp.khugepaged.eligibility import Tva, collapse_possible_orders
from mthp.khugepaged.order_walk import mthp_collapse
from mthp.khugepaged.scan import Scan, collapse_scan_pmd, scan_ptes, scan_ptes_at_once
from mthp.mm.pagetable import PteMap
from mthp.profiles import PROFILES
from mthp.run.conformance import run_conformance
from mthp.settings import Enabled, Settings

LOOP = "loop over 512 ints"
ADDING_LOOP = "the same loop, adding"
HOST = "host kernel, MADV_COLLAPSE"
DATA = Path(__file__).parent.parent / "tests" / "data"


# --- peers ----------------------------------------------------------------------------------


def bare_loop() -> float:
    """Seconds for `for value in values: pass` over 512 integers."""
    values = list(range(1000, 1512))

    def loop() -> None:
        for _value in values:
            pass

    return timed(loop, repeat=51, inner=200)


def adding_loop() -> float:
    """Seconds for the same loop with `total += value`."""
    values = list(range(1000, 1512))

    def loop() -> int:
        total = 0
        for value in values:
            total += value
        return total

    return timed(loop, repeat=51, inner=200)


# --- scanning -------------------------------------------------------------------------------


def scan_rows(loop: float, adding: float) -> list[Row]:
    """A full table of small pages: the scan's part, its clear twin, and collapse_scan_pmd()."""
    world = TableWorld(only(4), 1)
    address = world.addresses[0]
    cc = world.control()
    pte = PteMap(world.kernel, world.table(address), 0)

    def scan_at_once() -> None:
        cc.init_scan()
        assert scan_ptes_at_once(Scan(world.vma, address, cc), pte)

    def scan_each() -> None:
        cc.init_scan()
        scan_ptes(Scan(world.vma, address, cc), pte)

    old = TableWorld(only(4), 1, pte_flags=OLD_PTE)
    sparse = TableWorld(only(4), 1, keep=lambda i: i % 16 != 5)
    both = Settings(sizes=dict.fromkeys(range(2, 10), Enabled.ALWAYS), max_ptes_none=0)
    ragged = TableWorld(both, 1, keep=lambda i: i % 4 != 1)
    measured = [
        ("scan of a full table: scan_ptes_at_once", timed(scan_at_once, 51, 100)),
        ("the same, its clear twin: scan_ptes", timed(scan_each, 15, 5)),
        ("collapse_scan_pmd, full table, refused as unused", timed(pass_of(old), 51, 50)),
        ("collapse_scan_pmd, a hole in each window, order 4", timed(pass_of(sparse), 51, 50)),
        ("collapse_scan_pmd, a hole in each window, orders 2-9", timed(pass_of(ragged), 51, 50)),
    ]
    return [
        Row(name, t, "tables", LOOP + f"; {t / adding:.2f} adding", t / loop)
        for name, t in measured
    ]


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


def collapse_rows(loop: float, host: HostCollapse) -> list[Row]:
    """Attempts, one by one, from mthp_collapse() down."""

    def small(order: int) -> float:
        return timed_fresh(lambda: TableWorld(only(order), 32), walk)

    per_page = host.seconds / 512 if host.seconds else None
    rows = []
    for order in (2, 4, 6, 9):
        seconds = small(order)
        if per_page is None:
            peer, ratio = "", None
        elif order == 9:
            peer, ratio = HOST, seconds / (per_page * 512)
        else:
            peer, ratio = (
                HOST + f", {1 << order} of its 512 pages",
                seconds / per_page / (1 << order),
            )
        rows.append(Row(f"collapse, order {order}", seconds, "collapses", peer, ratio))
    mapped = timed_fresh(lambda: TableWorld(only(4), 32, order=4), walk)
    counted = timed_fresh(lambda: extra_references(32), walk)
    return [
        *rows,
        Row(
            "refused, order 4: pte_mapped_hugepage at once", mapped, "attempts", LOOP, mapped / loop
        ),
        Row(
            "refused, order 4: page_count at the last page",
            counted,
            "attempts",
            LOOP,
            counted / loop,
        ),
    ]


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
    loop, adding, host = bare_loop(), adding_loop(), host_collapse()
    peers = [Row(LOOP, loop, "loops"), Row(ADDING_LOOP, adding, "loops")]
    if host.seconds is not None:
        peers.append(Row(HOST + ", 512 small pages", host.seconds, "collapses"))
    else:
        print(f"{HOST}: skipped: {host.why}\n")
    print(table("Peers", peers))
    print(table("Scanning one table of 512 PTEs, straight through", scan_rows(loop, adding)))
    print(table("Attempts", collapse_rows(loop, host)))
    print(table("khugepaged, per table of 512 small pages", daemon_rows(loop)))
    print(table("Conformance", conformance_rows()))
    print("**Memory of a world, per populated page**\n")
    for order in (0, 4, 9):
        print(f"- folios of order {order}: {memory_per_page(order):.0f} B")


if __name__ == "__main__":
    main()
