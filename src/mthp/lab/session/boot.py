# SPDX-License-Identifier: GPL-2.0-or-later
"""From a kernel of the cache to a session in a booted guest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.session.session import GuestSession
from mthp.lab.vm.channel import CommandFailed
from mthp.lab.vm.initramfs import build_initramfs, guest_modules
from mthp.lab.vm.qemu import MachineConfig, VirtualMachine, boot

ARGUMENTS = ("damon_stat.enabled=0", "init_on_alloc=0")
"""DAMON_STAT clears accessed bits on its own (Linux 6.17 and later). Memory is cleared where it
must be, and not for safety: emulated, that is dear."""


@dataclass(frozen=True)
class Booted:
    """A guest and khugepaged under control in it."""

    kernel: CachedKernel
    guest: VirtualMachine
    session: GuestSession


@contextlib.contextmanager
def booted(kernel: CachedKernel, memory: int = 512, extra: Sequence[Path] = ()) -> Iterator[Booted]:
    """Boot a kernel of the cache and make the session ready.

    memory: MiB. extra: more archives for the guest's root. LabError (5): it does not boot, or lacks
    what the lab needs of it.
    """
    initramfs = (build_initramfs(kernel), *extra)
    with boot(MachineConfig(kernel.image, initramfs, memory, arguments=ARGUMENTS)) as guest:
        session = GuestSession(guest.channel)
        try:
            session.prepare([path for path, _ in guest_modules(kernel)])
        except CommandFailed as error:
            raise LabError(
                HOST_LACKS, f"kernel {kernel.release} lacks what the lab needs: {error}"
            ) from None
        yield Booted(kernel, guest, session)
