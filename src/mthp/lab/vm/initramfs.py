# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the guest's initramfs: the agent, compiled on this host, and the kernel modules it loads."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from mthp.lab.errors import LabError
from mthp.lab.kernels.kernels import CachedKernel, cache_dir, staging
from mthp.lab.kernels.modules import read_module
from mthp.lab.kernels.tools import compile_statically
from mthp.lab.vm.cpio import Cpio
from mthp.words.files import put_in_place, replacing, write_new

EARLY = ("virtio_pci", "virtio_console")
"""The modules for the channel to the host, which the agent loads itself. They may be built in."""
VMCOREINFO = "qemu_fw_cfg"
"""The module that tells QEMU where the kernel's VMCOREINFO is. Kernel: drivers/firmware/qemu_fw_cfg.c."""
MODULES = ("zram", "brd", "virtio_blk")
"""The modules that sessions load, with their dependencies: the devices that a guest may swap to."""

SOURCES = ("agent.c", "subject.c", "pages.c", "agent.h")
FLAGS = ("-Wall", "-Wextra")


def _sources() -> dict[str, bytes]:
    folder = resources.files("mthp.lab") / "guest"
    return {name: (folder / name).read_bytes() for name in SOURCES}


def build_agent() -> Path:
    """Build the agent's program with this host's C compiler unless the cache has it.

    LabError (5): no compiler, or none that can link statically.
    """
    sources = _sources()
    key = hashlib.sha256(b"\0".join(sources.values()) + repr(FLAGS).encode()).hexdigest()[:16]
    target = cache_dir() / "agent" / key
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging() as work:
        for name, text in sources.items():
            write_new(work / name, text)
        units = [name for name in sources if name.endswith(".c")]
        compile_statically((*FLAGS, "-o", "agent", *units), "the guest's agent", work)
        put_in_place(work / "agent", target)
    return target


def guest_modules(kernel: CachedKernel, names: Iterable[str] = MODULES) -> list[tuple[str, Path]]:
    """(path in the guest, file on this host) of the modules to load, in load order, each once.

    Empty for a kernel without modules.
    """
    found: dict[str, Path] = {}
    for name in names if kernel.modules is not None else ():
        for file in kernel.module(name):
            found.setdefault(f"/modules/{file.name.partition('.')[0]}.ko", file)
    return list(found.items())


def build_initramfs(kernel: CachedKernel) -> Path:
    """Make an initramfs for this kernel, unless the cache has it."""
    agent = build_agent()
    wanted = guest_modules(kernel)
    with contextlib.suppress(LabError):  # a kernel without it cannot be dumped, and does all else
        wanted += guest_modules(kernel, [VMCOREINFO])
    for place, (path, file) in enumerate(guest_modules(kernel, EARLY)):
        wanted.append((f"/early/{place:02}-{Path(path).name}", file))
    stamps = [(path, file.stat().st_size, file.stat().st_mtime_ns) for path, file in wanted]
    key = hashlib.sha256(repr((agent.name, kernel.sha256, stamps)).encode()).hexdigest()[:16]
    target = cache_dir() / "initramfs" / f"{kernel.release}-{key}.cpio"
    if target.exists():
        return target
    archive = Cpio()
    archive.add("init", agent.read_bytes(), 0o755)
    for path, file in wanted:
        archive.add(path, read_module(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as packed:
        archive.write(packed)
    return target
