# SPDX-License-Identifier: GPL-2.0-or-later
"""Controls khugepaged in a booted guest: runs programs, makes full scans one by one, reads the state back."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from errno import ETIMEDOUT
from typing import Any

from mthp.image.runs import PagesState
from mthp.image.scenario_values import (
    MTHP_STATS,
    RECORDED_EVENTS,
    VMSTAT_COUNTERS,
    KnownMm,
    changed,
)
from mthp.lab.geometry import ORDERS, PAGE_SIZE, PMD_ORDER, PMD_PAGES
from mthp.lab.program.program import (
    BASE,
    REACH,
    SHMEM_ENABLED,
    SYSFS,
    ZONE_RECLAIM,
    Madv,
    Operation,
    Verb,
    size_folder,
)
from mthp.lab.session.guest_folios import GuestFolios
from mthp.lab.session.memory_pressure import DRAIN, PATIENCE_MS, MemoryPressure, switch_file
from mthp.lab.session.observe import (
    TRACING,
    FolioNames,
    NodeSpans,
    ObservedVma,
    events_of,
    memory_of,
    pages_state,
    registered_pgds,
    slots_of,
    trusted_flags,
    vmas_of,
)
from mthp.lab.vm.channel import Channel, CommandFailed

KHUGEPAGED = f"{SYSFS}/khugepaged"

ENDLESS = 4294967295
"""The value of pages_to_scan with which one wakeup is one full scan."""
ASLEEP = 4000000000
"""The value of scan_sleep_millisecs with which khugepaged sleeps until the next write, which wakes it."""
SCAN_MS = 200
"""Milliseconds for a full scan, after which the thread may have gone to sleep without finishing one."""
SETTLED_MS = 100
"""After so many milliseconds asleep, khugepaged is in khugepaged_wait_work(), not in alloc_sleep."""
TICK_SECONDS = 0.02
"""Not less than a clock tick of the guest's, in which start times are told."""
OFF = ("shrink_underused", "use_zero_page")
"""Files that are 0 unless a program writes them."""
GROUPS = ("g", "h")
"""The memory cgroups that programs use."""
SWAP_BYTES = 256 << 20
_PARAMETERS = {"/modules/brd.ko": f"rd_size={SWAP_BYTES >> 10}"}

_KHUGEPAGED = ("full_scans", "pages_collapsed")
_LRU = ("active_anon", "inactive_anon", "active_file", "inactive_file", "unevictable")
_TRACEPOINTS = tuple(event for event in RECORDED_EVENTS if event != "attempt")

_QUIET = {
    "/proc/sys/vm/page-cluster": "0",
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/vm/compact_unevictable_allowed": "0",
    "/proc/sys/vm/watermark_boost_factor": "0",
    "/proc/sys/vm/lowmem_reserve_ratio": "1",
    "/proc/sys/vm/overcommit_memory": "1",
    "/proc/sys/vm/percpu_pagelist_high_fraction": "1000",
    f"{SYSFS}/defrag": "never",
    "/proc/sys/vm/stat_interval": "3600",
    "/proc/sys/kernel/printk": "1 1 1 1",
    "/proc/sys/kernel/numa_balancing": "0",
}
"""File -> value: turns off what would act on its own, or refuse a large mapping."""


REFRESH = "w /proc/sys/vm/stat_refresh 1"
"""Adds up what /proc/vmstat shows. Kernel: mm/vmstat.c, vmstat_refresh()."""
_NEED_ANSWERS = (
    Verb.MEMCG,
    Verb.KSM,
    Verb.TAKE_BLOCKS,
    Verb.LEAVE_BLOCKS,
    Verb.CLEAR_REFS,
    Verb.ADVISE_OTHER,
)
"""Operations that read something from the guest first: those before them must have been done."""


class Swap(StrEnum):
    """The device that a guest swaps to: compressed memory, a RAM disk, or a disk of the host's."""

    ZRAM = "zram"
    BRD = "brd"
    DISK = "disk"

    @property
    def device(self) -> str:
        """Its path in the guest."""
        return _DEVICES[self]

    @property
    def module(self) -> str:
        """The kernel's module for it."""
        return "virtio_blk" if self is Swap.DISK else self.value

    @property
    def synchronous(self) -> bool:
        """Whether it has a page at once. Kernel: BLK_FEAT_SYNCHRONOUS."""
        return self is not Swap.DISK


_DEVICES = {Swap.ZRAM: "/dev/zram0", Swap.BRD: "/dev/ram0", Swap.DISK: "/dev/vda"}


def _is_collapse(op: Operation) -> bool:
    """Whether an operation is MADV_COLLAPSE, which is allowed to fail within a program."""
    return op.verb in (Verb.ADVISE, Verb.ADVISE_OTHER) and op.numbers[2] == Madv.COLLAPSE


def _may_begin(op: Operation) -> bool:
    """Whether khugepaged's thread may begin with it, which makes a full scan at once."""
    return op.verb is Verb.WRITE_FILE and op.args == (SHMEM_ENABLED, "advise")


@dataclass
class Counters:
    """The kernel's counters at one moment.

    stats: order -> name -> value, from hugepages-<size>kB/stats; frames: of all folios on the LRU, exact
    of settled(); the others: name -> value.
    """

    stats: dict[str, dict[str, int]] = field(default_factory=dict)
    vmstat: dict[str, int] = field(default_factory=dict)
    khugepaged: dict[str, int] = field(default_factory=dict)
    frames: int = 0

    def since(self, before: Counters) -> dict[str, Any]:
        """The counters that changed, as a scenario records them."""
        stats = {
            order: changed(values, before.stats[order]) for order, values in self.stats.items()
        }
        return {
            "stats": {order: values for order, values in stats.items() if values},
            "vmstat": changed(self.vmstat, before.vmstat),
            "khugepaged": changed(self.khugepaged, before.khugepaged),
        }


@dataclass(frozen=True)
class CountedNames:
    """The names of the counters that are read: of hugepages-<size>kB/stats, and of /proc/vmstat."""

    stats: tuple[str, ...] = MTHP_STATS
    vmstat: tuple[str, ...] = VMSTAT_COUNTERS


OF_PASSES = CountedNames()
"""Those whose changes a pass records."""


class GuestSession:
    """khugepaged under control in a booted guest.

    Between scans the thread sleeps. A process that is never eligible ("parked") stays registered, so
    that the registration of another one never wakes the thread. Kernel: mm/khugepaged.c.
    """

    def __init__(self, channel: Channel, counted: CountedNames = OF_PASSES) -> None:
        self._channel = channel
        self._counted = counted
        self._bases: dict[str, int] = {}
        self._cut_short = False
        self._trusted = -1
        self._folios: GuestFolios | None = None
        spans = NodeSpans(channel.ask("r /proc/zoneinfo").decode())
        self._nodes = spans if spans.number > 1 else None
        self.swap = Swap.ZRAM
        # None where there is only the global switch.
        self._orders = [order for order in ORDERS if self._exists(switch_file(order))]
        self.memory_pressure = MemoryPressure(channel, self._orders)
        self._stat_paths = [
            (order, name, path)
            for order in self._orders
            for name in counted.stats
            if self._exists(path := f"{size_folder(order)}/stats/{name}")
        ]

    def _exists(self, path: str) -> bool:
        try:
            self._channel.ask(f"r {path}")
        except CommandFailed:
            return False
        return True

    # --- preparation ----------------------------------------------------------------------

    def prepare(self, modules: Iterable[str] = (), swap: Swap = Swap.ZRAM) -> None:
        """Set up swap, probes and the parked process, once after boot. modules: paths in the guest."""
        ask = self._channel.ask
        for module in modules:
            ask(f"insmod {module} {_PARAMETERS.get(module, '')}")
        for path, value in _QUIET.items():
            self._write_optional(path, value)
        self._swap_on(swap)
        self._set_probes()
        self._write_optional(SHMEM_ENABLED, "advise")
        self.write(f"{SYSFS}/enabled", "madvise")
        self._channel.ask_all([f"w {switch_file(order)} never" for order in self._orders])
        self._keep()
        for name in OFF:
            self._write_optional(f"{SYSFS}/{name}", "0")
        self.write(f"{KHUGEPAGED}/alloc_sleep_millisecs", "1")
        self.write(f"{KHUGEPAGED}/pages_to_scan", str(ENDLESS))
        self.write(f"{KHUGEPAGED}/scan_sleep_millisecs", str(ASLEEP))
        ask("a /sys/fs/cgroup/cgroup.subtree_control +memory")
        self._park()

    def _swap_on(self, swap: Swap) -> None:
        ask, device = self._channel.ask, swap.device
        self.swap = swap
        if swap is Swap.ZRAM:
            ask(f"w /sys/block/zram0/disksize {SWAP_BYTES}")
        last = SWAP_BYTES // PAGE_SIZE - 1
        header = bytearray(PAGE_SIZE)
        header[1024:1032] = struct.pack("<2I", 1, last)
        header[4086:] = b"SWAPSPACE2"
        ask(f"put {device} 0 {PAGE_SIZE}", bytes(header))
        ask(f"swapon {device}")

    def renew_swap(self) -> None:
        """Have slots handed out from the first on again. Nothing may be swapped."""
        for command in ("swapoff", "swapon"):
            self._channel.ask(f"{command} {self.swap.device}")

    def _set_probes(self) -> None:
        scans_by_order = b"order" in self._channel.ask(
            f"r {TRACING}/events/huge_memory/mm_collapse_huge_page/format"
        )
        probes = (
            "p:mthp/attempt collapse_huge_page address=%si" + " order=%r9" * scans_by_order,
            "p:mthp/vma show_map_vma start=vma->vm_start end=vma->vm_end "
            "flags=vma->vm_flags anon_vma=vma->anon_vma pgd=vma->vm_mm->pgd mm=vma->vm_mm",
            "p:mthp/enter __khugepaged_enter pgd=mm->pgd",
        )
        for probe in probes:
            self._channel.ask(f"a {TRACING}/kprobe_events {probe}")
        for event in _TRACEPOINTS:
            self.write(f"{TRACING}/events/huge_memory/{event}/enable", "1")
        self.write(f"{TRACING}/events/mthp/enable", "1")

    def _keep(self) -> None:
        """Have the agent keep the files of counters() open."""
        paths = [path for _, _, path in self._stat_paths]
        paths += [f"{KHUGEPAGED}/{name}" for name in _KHUGEPAGED]
        self._channel.ask_all([f"keep {path}" for path in (*paths, "/proc/vmstat")])

    def _park(self) -> None:
        commands = [
            "new parked",
            f"parked base {BASE}",
            f"parked mmap 0 {2 * PMD_PAGES}",
            f"w {switch_file(PMD_ORDER)} madvise",
            "parked wr 0 1",
            f"parked adv 0 {2 * PMD_PAGES} {int(Madv.HUGEPAGE)}",
            f"parked adv 0 {2 * PMD_PAGES} {int(Madv.NOHUGEPAGE)}",
            f"w {switch_file(PMD_ORDER)} never",
        ]
        self._channel.ask_all(commands)
        self._wait_asleep(self._pid_of("khugepaged"))
        self._trusted = trusted_flags(self._channel.ask(f"pages parked {BASE} 1"))

    def ask(self, command: str) -> bytes:
        """Have the agent do one thing; its answer. CommandFailed: it, or the kernel, refuses."""
        return self._channel.ask(command)

    def write(self, path: str, value: str) -> None:
        """Write one file in the guest. CommandFailed: the kernel refuses."""
        self._channel.ask(f"w {path} {value}")

    def _write_optional(self, path: str, value: str) -> None:
        with contextlib.suppress(CommandFailed):
            self.write(path, value)

    # --- between scenarios ----------------------------------------------------------------

    def reset(self, processes: Iterable[str]) -> None:
        """End all processes under test, remove their memory cgroups, and turn off what programs turn on. The
        switches stay as they are: every program begins by writing them."""
        commands = [f"end {name}" for name in processes]
        commands += [f"rmdir /sys/fs/cgroup/{group}" for group in GROUPS]
        with contextlib.suppress(CommandFailed):
            self._channel.ask_all(commands)
        for name in OFF:
            self._write_optional(f"{SYSFS}/{name}", "0")
        self._write_optional(SHMEM_ENABLED, "advise")
        if self._nodes is not None:
            self.write(ZONE_RECLAIM, "0")
        self.memory_pressure.end()
        if self._cut_short:
            self._rewind()

    def _rewind(self) -> None:
        """Let khugepaged finish its list after a scan that ended early."""
        pid = self._pid_of("khugepaged")
        self.write(f"{KHUGEPAGED}/scan_sleep_millisecs", str(ASLEEP))
        self._channel.ask(f"idle {pid} {SETTLED_MS} {PATIENCE_MS}")
        self._cut_short = False

    def perform(self, program: Iterable[Operation]) -> list[int]:
        """Do a program's operations in order. Returns the page tables (pgd) of the processes that
        registered with khugepaged meanwhile, in that order. CommandFailed names the first operation
        that failed."""
        self.write(f"{TRACING}/trace", "")
        waiting: list[str] = []
        registered: list[int] = []
        for op in program:
            if op.verb in _NEED_ANSWERS or _is_collapse(op) or _may_begin(op):
                self._channel.ask_all(waiting)
                waiting = []
                registered += self._registered()
                try:
                    self._host_op(op)
                except CommandFailed:
                    if not _is_collapse(op):
                        raise
                self.write(f"{TRACING}/trace", "")
            else:
                waiting += self._commands(op)
        self._channel.ask_all(waiting)
        if not self.swap.synchronous:
            self._written_out()
        return registered + self._registered()

    def _registered(self) -> list[int]:
        return registered_pgds(self._channel.ask(f"r {TRACING}/trace").decode())

    def _commands(self, op: Operation) -> list[str]:
        """The agent's commands for an operation."""
        if op.verb is Verb.CGROUP:
            group = f"/sys/fs/cgroup/{op.args[0]}"
            with contextlib.suppress(CommandFailed):
                self._channel.ask(f"mkdir {group}")
            return [f"w {group}/memory.swap.max 0", f"{op.who} join {group}/cgroup.procs"]
        if op.verb is Verb.ADVISE_OTHER:
            whose = str(op.args[0])
            start = self._bases.get(whose, BASE) + op.start * PAGE_SIZE
            pid = self.pid(whose)
            return [f"{op.who} padv {pid} {start} {op.pages * PAGE_SIZE} {op.args[3]}"]
        if op.verb is Verb.BASE:
            self._bases[op.who] = op.start
        if op.verb is Verb.FORK_TO:
            self._bases[str(op.args[0])] = self._bases.get(op.who, BASE)
        return [str(op)]

    def pid(self, process: str) -> int:
        """The number of a process of the agent."""
        return int(self._channel.ask(f"pid {process}"))

    def _host_op(self, op: Operation) -> None:
        if op.verb is Verb.WRITE_FILE:
            time.sleep(TICK_SECONDS)  # so that it can be told from a process that was there before
            self._channel.ask(str(op))
            with contextlib.suppress(
                CommandFailed
            ):  # the thread that has ended may still be listed
                self._wait_asleep(self._pid_of("khugepaged"))
            self._wait_asleep(self._pid_of("khugepaged"))
        elif op.verb is Verb.CLEAR_REFS:
            self.write(f"/proc/{self.pid(op.who)}/clear_refs", str(op.args[0]))
        elif op.verb is Verb.KSM:
            self._run_ksm(int(op.args[0]))
        elif op.verb in (Verb.ADVISE, Verb.ADVISE_OTHER):
            self._channel.ask_all(self._commands(op))
        elif op.verb is Verb.MEMCG:
            self._limit_memcg(str(op.args[0]), int(op.args[1]))
        elif op.verb is Verb.LEAVE_BLOCKS:
            self.memory_pressure.leave(*op.numbers)
        else:
            self.memory_pressure.begin(int(op.args[0]))

    def _run_ksm(self, scans: int) -> None:
        """Let ksmd scan everything mergeable so many times, and stop it; the merges stay."""
        ksm = "/sys/kernel/mm/ksm"
        done = int(self._channel.ask(f"r {ksm}/full_scans"))
        self._channel.ask_all(
            [
                f"w {ksm}/pages_to_scan 100000",
                f"w {ksm}/sleep_millisecs 1",
                f"w {ksm}/run 1",
                f"wait {ksm}/full_scans 0 {done + scans} {PATIENCE_MS}",
                f"w {ksm}/run 0",
            ]
        )
        self._wait_asleep(self._pid_of("ksmd"))

    def _limit_memcg(self, group: str, slack: int) -> None:
        """Let the group charge `slack` pages more.

        A limit just below what is charged empties the per-CPU stock first.
        Kernel: mm/memcontrol.c, memory_high_write().
        """
        self.drain()
        folder = f"/sys/fs/cgroup/{group}"
        current = int(self._channel.ask(f"r {folder}/memory.current"))
        self.write(f"{folder}/memory.high", str(current - PAGE_SIZE))
        self.write(f"{folder}/memory.high", "max")
        current = int(self._channel.ask(f"r {folder}/memory.current"))
        self.write(f"{folder}/memory.max", str(current + slack * PAGE_SIZE))

    def store_limited(self, process: str, page: int, room: int) -> None:
        """Have a process join the first group, if it is not there, and store to a page while `room` pages
        more can be charged. What is charged ahead for a CPU, up to 64 pages, is not given back before.
        """
        folder = f"/sys/fs/cgroup/{GROUPS[0]}"
        with contextlib.suppress(CommandFailed):
            self._channel.ask(f"mkdir {folder}")
        self._channel.ask(f"{process} join {folder}/cgroup.procs")
        most = int(self._channel.ask(f"r {folder}/memory.current")) + room * PAGE_SIZE
        self._channel.ask_all(
            [
                f"w {folder}/memory.max {most}",
                f"{process} wr {page} 1",
                f"w {folder}/memory.max max",
            ]
        )

    def memcg_pages(self, group: str) -> dict[str, int]:
        """Limit and usage of a memory cgroup, in base pages.

        Both are without the kernel's own memory charged to the group, which depends on what the guest
        did before.
        """
        limit, usage, stat = (
            self._channel.ask(f"r /sys/fs/cgroup/{group}/memory.{name}").decode().strip()
            for name in ("max", "current", "stat")
        )
        anon = int(dict(line.split() for line in stat.splitlines())["anon"])
        most = (1 << 52) if limit == "max" else int(limit) - (int(usage) - anon)
        return {"limit_pages": most // PAGE_SIZE, "usage_pages": anon // PAGE_SIZE}

    def nodes(self) -> dict[str, Any] | None:
        """How far the NUMA nodes are from each other, and whether they reclaim; None where there is one."""
        if self._nodes is None:
            return None
        files = [f"/sys/devices/system/node/node{n}/distance" for n in range(self._nodes.number)]
        *rows, reclaim = self._channel.ask_all([f"r {path}" for path in (*files, ZONE_RECLAIM)])
        return {
            "distance": [list(map(int, row.split())) for row in rows],
            "reclaim": int(reclaim) != 0,
        }

    def _hold(self, pid: int) -> None:
        """Where there are several nodes, have a task run on the first alone: what it swaps in lies there."""
        if self._nodes is not None:
            self._channel.ask(f"pin {pid} 0")

    def oom_kills(self, group: str) -> int:
        """How many processes of a memory cgroup the OOM killer has killed."""
        events = self._channel.ask(f"r /sys/fs/cgroup/{group}/memory.events").split()
        return int(events[events.index(b"oom_kill") + 1])

    def drain(self) -> None:
        """Empty the LRU batches of every CPU."""
        self._channel.ask(DRAIN)

    # --- observation ----------------------------------------------------------------------

    def vmas(self, process: str, pid: int | None = None) -> list[ObservedVma]:
        """The mappings under test of a process, as the kernel has them, by address. pid: if it is known."""
        maps = f"r /proc/{self.pid(process) if pid is None else pid}/maps"
        answers = self._channel.ask_all([f"w {TRACING}/trace", maps, f"r {TRACING}/trace"])
        return vmas_of(answers[2].decode(), BASE, BASE + REACH)

    def states(
        self, processes: Mapping[str, list[ObservedVma]], sleepers: int = 0
    ) -> list[PagesState]:
        """The state of every VMA, all in one snapshot, in the order of the processes.

        sleepers: how many children outside the snapshot share what fork() shared.
        """
        return self.named_states(processes, sleepers)[0]

    def named_states(
        self, processes: Mapping[str, list[ObservedVma]], sleepers: int = 0
    ) -> tuple[list[PagesState], FolioNames]:
        """The same, and the names that the folios have in it."""
        commands, starts = [], []
        for process, vmas in processes.items():
            for vma in vmas:
                commands.append(f"pages {process} {vma.start} {vma.pages}")
                commands.append(f"walk {vma.pgd} {vma.start} {vma.pages}")
                starts.append(vma.start)
        answers = self._channel.ask_all(commands)
        names = FolioNames(answers[::2], self._trusted)
        states = [
            pages_state(start, answers[2 * i], answers[2 * i + 1], names, sleepers, self._nodes)
            for i, start in enumerate(starts)
        ]
        return states, names

    def known_mms(
        self, processes: Mapping[str, list[ObservedVma]], names: FolioNames
    ) -> dict[int, tuple[KnownMm, ...]]:
        """Of each large folio that counts as shared, by its name, which processes it knows; numbers are
        their places."""
        if not names.large:
            return {}
        return self._guest_folios.known(names.large, [vmas[0].mm for vmas in processes.values()])

    @property
    def _guest_folios(self) -> GuestFolios:
        if self._folios is None:
            self._folios = GuestFolios(self._channel)
        return self._folios

    def swap_cache(self, states: Iterable[PagesState], names: FolioNames) -> list[dict[str, Any]]:
        """The folios in the swap cache that stand for a slot which a state names, as a scenario has them.

        They stay there only where the swap device is not synchronous. What nobody maps has no name.
        """
        if self.swap.synchronous:
            return []
        return self._guest_folios.in_swap_cache(slots_of(states), names)

    def _written_out(self) -> None:
        """Wait until what is swapped out has been written."""
        for _ in range(PATIENCE_MS // 10):
            lines = self._channel.ask("r /proc/vmstat").decode().splitlines()
            if "nr_writeback 0" in lines:
                return
            time.sleep(0.01)
        raise CommandFailed("r /proc/vmstat", ETIMEDOUT, "pages are being written for ever")

    def settled(self, pids: Iterable[int]) -> tuple[Counters, list[dict[str, int]]]:
        """The counters and what processes have (memory_of()), once the LRU batches of every CPU are empty."""
        commands = [DRAIN, REFRESH, "look", *(f"r /proc/{pid}/status" for pid in pids)]
        _, _, looked, *statuses = self._channel.ask_all(commands)
        return self._counters(looked), [memory_of(each.decode()) for each in statuses]

    def counters(self) -> Counters:
        """All counters that a scenario records."""
        return self._counters(self._channel.ask("look"))

    def _counters(self, looked: bytes) -> Counters:
        *texts, vmstat, _ = looked.decode().split("\0")
        counters = Counters()
        for (order, name, _), text in zip(self._stat_paths, texts, strict=False):
            counters.stats.setdefault(str(order), {})[name] = int(text)
        for name, text in zip(_KHUGEPAGED, texts[len(self._stat_paths) :], strict=True):
            counters.khugepaged[name] = int(text)
        lines = dict(line.split() for line in vmstat.splitlines())
        counters.vmstat = {name: int(lines.get(name, 0)) for name in self._counted.vmstat}
        counters.frames = sum(int(lines.get(f"nr_{name}", 0)) for name in _LRU)
        return counters

    # --- collapse -------------------------------------------------------------------------

    def _pid_of(self, thread: str) -> int:
        """The pid of a kernel thread."""
        return int(self._channel.ask(f"pidof {thread}"))

    def _wait_asleep(self, pid: int) -> None:
        self._channel.ask(f"wait /proc/{pid}/stat 2 S {PATIENCE_MS}")

    def full_scan(self) -> list[dict[str, Any]]:
        """Run exactly one khugepaged_do_scan() over every registered process; returns its events.

        full_scans is incremented, unless two allocations failed and the wakeup ended there. The
        next wakeup then continues from there and may end early again, whatever full_scans is
        meanwhile.
        """
        pid = self._pid_of("khugepaged")
        self._hold(pid)
        asleep = f"wait /proc/{pid}/stat 2 S {PATIENCE_MS}"
        done = int(self._channel.ask(f"r {KHUGEPAGED}/full_scans"))
        trigger = f"w {KHUGEPAGED}/scan_sleep_millisecs {ASLEEP}"
        self._channel.ask_all([asleep, f"w {TRACING}/trace", trigger])
        if self._cut_short or not self._scanned(done + 1):
            self._channel.ask(f"idle {pid} {SETTLED_MS} {PATIENCE_MS}")
            self._cut_short = True
        return events_of(self._channel.ask_all([asleep, f"r {TRACING}/trace"])[-1].decode())

    def _scanned(self, full_scans: int) -> bool:
        """Whether the number of full scans is reached within SCAN_MS."""
        try:
            self._channel.ask(f"wait {KHUGEPAGED}/full_scans 0 {full_scans} {SCAN_MS}")
        except CommandFailed:
            return False
        return True

    def collapse(self, op: Operation) -> tuple[list[dict[str, Any]], int]:
        """Run an operation that is MADV_COLLAPSE; returns its events, and 0 or a negative errno."""
        command = self._commands(op)[0]
        self._hold(self.pid(op.who))
        errno = 0
        self.write(f"{TRACING}/trace", "")
        try:
            self._channel.ask(command)
        except CommandFailed as error:
            errno = -error.errno
        return events_of(self._channel.ask(f"r {TRACING}/trace").decode()), errno
