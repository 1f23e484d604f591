# SPDX-License-Identifier: GPL-2.0-or-later
"""The transparent_hugepage sysfs tree as one frozen value.

Kernel: mm/huge_memory.c (hugepage_attr, thpsize attributes), mm/khugepaged.c (khugepaged_attr).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from mthp.units import Geometry


class Enabled(StrEnum):
    """A value of transparent_hugepage/enabled or of hugepages-<size>kB/enabled."""

    ALWAYS = "always"
    MADVISE = "madvise"
    INHERIT = "inherit"
    NEVER = "never"


class SettingsError(ValueError):
    """A setting the kernel would refuse, or a dump that cannot be read."""


@dataclass(frozen=True)
class Settings:
    """Every knob khugepaged reads. The defaults are the kernel's.

    enabled: the global switch (always, madvise or never). sizes: order -> per-size switch; an
    order that is missing stands at its default (inherit at PMD order, never below).
    max_ptes_*: 0 to PTRS_PER_PTE - 1. *_millisecs: milliseconds. pages_to_scan: at least 1.
    """

    geometry: Geometry = field(default_factory=Geometry)
    enabled: Enabled = Enabled.ALWAYS
    sizes: Mapping[int, Enabled] = field(default_factory=lambda: MappingProxyType({}))
    defrag: bool = True
    pages_to_scan: int = -1
    scan_sleep_millisecs: int = 10_000
    alloc_sleep_millisecs: int = 60_000
    max_ptes_none: int = -1
    max_ptes_swap: int = -1
    max_ptes_shared: int = -1
    shrink_underused: bool = True

    def __post_init__(self) -> None:
        nr = self.geometry.ptrs_per_pte
        defaults = {
            "pages_to_scan": nr * 8,
            "max_ptes_none": nr - 1,
            "max_ptes_swap": nr // 8,
            "max_ptes_shared": nr // 2,
        }
        for name, default in defaults.items():
            if getattr(self, name) == -1:
                object.__setattr__(self, name, default)
        object.__setattr__(self, "sizes", MappingProxyType(dict(self.sizes)))

    def size_enabled(self, order: int) -> Enabled:
        """The switch of one order, its default where it was never written."""
        default = Enabled.INHERIT if order == self.geometry.pmd_order else Enabled.NEVER
        return self.sizes.get(order, default)

    def _orders(self, value: Enabled) -> int:
        return sum(1 << o for o in self.geometry.anon_orders if self.size_enabled(o) is value)

    @property
    def orders_always(self) -> int:
        """Bitmap of orders set to always. Kernel: huge_anon_orders_always."""
        return self._orders(Enabled.ALWAYS)

    @property
    def orders_madvise(self) -> int:
        """Kernel: huge_anon_orders_madvise."""
        return self._orders(Enabled.MADVISE)

    @property
    def orders_inherit(self) -> int:
        """Kernel: huge_anon_orders_inherit."""
        return self._orders(Enabled.INHERIT)
