# SPDX-License-Identifier: GPL-2.0-or-later
"""Small fleets of captures that were never taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.image.made import Made, made

REDIS = Path(__file__).parents[2] / "src/mthp/data/redis.npz"


def on_host(host: str | None, time: str | None = "2026-01-01T00:00:00Z", **meta: Any) -> Made:
    """The capture of another machine."""
    it = made()
    it.meta.update(hostname=host, time=time, **meta)
    return it


def write_fleet(folder: Path, hosts: int) -> Path:
    """A folder of so many machines, a folder each, and in every second one of them one page less."""
    for number in range(hosts):
        it = on_host(f"host-{number}")
        if number % 2:
            for array in it.arrays.values():
                if array.ndim == 2:
                    array[0, 0] = 0
        place = folder / f"host-{number}"
        place.mkdir(parents=True)
        (place / "a.npz").write_bytes(it.packed())
    return folder
