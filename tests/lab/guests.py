# SPDX-License-Identifier: GPL-2.0-or-later
"""What tests with real guests need: where a kernel is, and who is still running."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.kernels import CachedKernel, find
from mthp.lab.kernels.tools import QEMU
from mthp.lab.vm.initramfs import build_agent


def kernel_or_skip(name: str | None = None) -> CachedKernel:
    """A kernel that can be booted here; the test is skipped, with the reason, where there is none."""
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed")
    try:
        kernel = find(name)
        build_agent()
    except LabError as error:
        pytest.skip(str(error))
    return kernel


def children(pid: int | None = None) -> set[int]:
    """The QEMU processes that a process (this one) has started and that have not ended."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        state, parent = rest.split()[:2]
        if QEMU.startswith(name) and int(parent) == (pid or os.getpid()) and state != "Z":
            found.add(int(stat.parent.name))
    return found


def exists(pid: int) -> bool:
    """Whether the process is there, ended or not."""
    return Path(f"/proc/{pid}").exists()


def wait_until(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()
