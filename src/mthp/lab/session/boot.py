# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots a kernel of the cache in a virtual machine, with khugepaged under a session's control."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.session.session import OF_PASSES, SWAP_BYTES, CountedNames, GuestSession, Swap
from mthp.lab.vm.channel import CommandFailed
from mthp.lab.vm.initramfs import VMCOREINFO, build_initramfs, guest_modules
from mthp.lab.vm.qemu import MachineConfig, VirtualMachine, boot

ARGUMENTS = ("damon_stat.enabled=0", "init_on_alloc=0")
"""DAMON_STAT clears accessed bits on its own (Linux 6.17 and later). Memory is not cleared beyond what
must be: that is slow under emulation."""


@dataclass(frozen=True)
class Booted:
    """A running guest, and the session that controls khugepaged in it."""

    machine: VirtualMachine
    session: GuestSession


@dataclass(frozen=True)
class Guest:
    """What a guest is made of, beside its kernel. memory: MiB; nodes: of NUMA, which share it; distance: of
    each from the next. dumped: its monitor can write its memory into files."""

    memory: int = 512
    cpus: int = 1
    nodes: int = 1
    distance: int = 20
    swap: Swap = Swap.ZRAM
    dumped: bool = False


@contextlib.contextmanager
def booted(
    kernel: CachedKernel,
    guest: Guest = Guest(),
    extra: Sequence[Path] = (),
    counted: CountedNames = OF_PASSES,
) -> Iterator[Booted]:
    """Boot a kernel of the cache and prepare the session; the guest ends with the block.

    extra: more archives for the guest's root. counted: counters that the session reads. LabError (5): the
    guest does not boot, or lacks what the lab needs.
    """
    initramfs = (build_initramfs(kernel), *extra)
    machine = MachineConfig(
        kernel.image,
        initramfs,
        guest.memory,
        guest.cpus,
        guest.nodes,
        guest.distance,
        SWAP_BYTES if guest.swap is Swap.DISK else 0,
        ARGUMENTS,
        guest.dumped,
    )
    with boot(machine) as running:
        session = GuestSession(running.channel, counted)
        try:
            names = [guest.swap.module, *([VMCOREINFO] if guest.dumped else [])]
            modules = guest_modules(kernel, names)
            session.prepare([path for path, _ in modules], guest.swap)
        except CommandFailed as error:
            why = _lacking(kernel, error)
            raise LabError(HOST_LACKS, f"kernel {kernel.release} cannot be used: {why}") from None
        yield Booted(running, session)


def _lacking(kernel: CachedKernel, error: CommandFailed) -> str:
    """What a kernel lacks that the preparation failed on."""
    if error.command.startswith("w /sys/block/zram0/") and kernel.modules is None:
        return (
            "it has neither modules nor a built-in zram, and so no swap (mthp lab setup --modules)"
        )
    if error.command.startswith(("pidof khugepaged", "wait /proc/")):
        return (
            "its khugepaged ends while every size is off (6.18's does not) and cannot be held still"
        )
    return f"it lacks what the lab needs: {error}"
