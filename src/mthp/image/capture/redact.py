# SPDX-License-Identifier: GPL-2.0-or-later
"""Names taken out of a capture, and addresses moved."""

from __future__ import annotations

import re
import secrets
from array import array
from typing import Any

from mthp.image.capture.columns import Columns

ADDRESS_LIMIT = 1 << 56
KEPT_PATHS = ("[heap]", "[stack]", "[vdso]", "[vvar]", "/dev/zero")


def redact(meta: dict[str, Any], columns: Columns) -> None:
    """Take names out, and move each process by its own random number of whole tables."""
    pmd = columns.geometry.pmd_size
    meta.update(hostname=None, version=None)
    meta["swaps"] = re.sub(r"(?m)^(?!Filename)\S+", "-", meta["swaps"] or "")
    shifts = array("q")
    for process in meta["processes"]:
        process.update(comm=None, cmdline=None, exe=None, cgroup=None)
        process["status"].pop("Name", None)
        process["status"].pop("Uid", None)
        if process["memcg"]:
            process["memcg"]["path"] = None
        vmas = [vma for vma in process["vmas"] if vma["end"] <= ADDRESS_LIMIT]
        low = vmas[0]["start"] // pmd
        high = -(-vmas[-1]["end"] // pmd)
        shift = (1 + secrets.randbelow(ADDRESS_LIMIT // pmd - (high - low) - 1) - low) * pmd
        shifts.append(shift)
        for vma in vmas:
            path = vma["path"]
            if path not in KEPT_PATHS:
                vma["path"] = "[anon]" if path.startswith("[anon:") else ""
            vma.update(start=vma["start"] + shift, end=vma["end"] + shift)
            vma.update(dev="00:00", inode=0, offset=0)
        process["vmas"] = vmas
    for k, index in enumerate(columns.process):
        columns.address[k] += shifts[index]
