# SPDX-License-Identifier: GPL-2.0-or-later
"""The transparent_hugepage sysfs tree as one frozen value.

Kernel: mm/huge_memory.c (hugepage_attr, thpsize attributes), mm/khugepaged.c (khugepaged_attr).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from mthp.words.settings_text import (
    DEFRAG_MODES,
    GLOBAL_MODES,
    SIZE_MODES,
    U32_MAX,
    Enabled,
    EnabledFlag,
    FaultDefrag,
    SettingsError,
    anon_order,
    anon_sizes,
    check_range,
    format_selection,
    parse_anon_size,
    parse_enabled_flag,
    parse_flag,
    parse_mode,
    parse_number,
    parse_selection,
    parse_thp_anon,
    runs_of_orders,
)
from mthp.words.units import Geometry

__all__ = [
    "Enabled",
    "EnabledFlag",
    "FaultDefrag",
    "Settings",
    "SettingsError",
    "parse_enabled_flag",
    "parse_thp_anon",
]


TRANSPARENT_HUGEPAGE = "/sys/kernel/mm/transparent_hugepage"
"""Where all of them are."""


class _KernelDefault(int):
    """Marks a limit that was not given: __post_init__ puts the kernel's default there."""


_DEFAULT = _KernelDefault(-1)
_FLAGS = {
    "defrag": "khugepaged/defrag",
    "shrink_underused": "shrink_underused",
    "use_zero_page": "use_zero_page",
}
NUMBERS = {
    "max_ptes_none": "empty or zero-page PTEs a collapse may fill",
    "max_ptes_swap": "swapped-out PTEs a collapse may bring in",
    "max_ptes_shared": "PTEs of shared pages a collapse may copy",
    "pages_to_scan": "PTEs to scan in one wakeup",
    "scan_sleep_millisecs": "sleep between two wakeups",
    "alloc_sleep_millisecs": "sleep after a failed allocation",
}
"""khugepaged's numbers, and what each of them says."""
LIMITS = tuple(name for name in NUMBERS if name.startswith("max_ptes_"))
"""khugepaged's limits on what a collapse may fill, swap in or copy, in PTEs."""


@dataclass(frozen=True)
class Settings:
    """Every knob khugepaged reads. The defaults are the kernel's; SettingsError where it refuses.

    enabled: the global switch (always, madvise or never). sizes: order -> per-size switch; given
    in part, the others stand at their default (inherit at PMD order, never below); afterwards it
    holds every anonymous order. max_ptes_*: 0 to PTRS_PER_PTE - 1. *_millisecs: milliseconds, 0
    to 2**32 - 1. pages_to_scan: 1 to 2**32 - 1. Limits left out follow the geometry. defrag is
    khugepaged's, fault_defrag (the file `defrag`) that of page faults.
    Kernel: mm/khugepaged.c, max_ptes_none_store() and its neighbours.
    """

    geometry: Geometry = field(default_factory=Geometry)
    enabled: Enabled = Enabled.ALWAYS
    sizes: Mapping[int, Enabled] = field(default_factory=lambda: MappingProxyType({}))
    defrag: bool = True
    pages_to_scan: int = _DEFAULT
    scan_sleep_millisecs: int = _DEFAULT
    alloc_sleep_millisecs: int = _DEFAULT
    max_ptes_none: int = _DEFAULT
    max_ptes_swap: int = _DEFAULT
    max_ptes_shared: int = _DEFAULT
    shrink_underused: bool = True
    use_zero_page: bool = True
    fault_defrag: FaultDefrag = FaultDefrag.MADVISE

    def __post_init__(self) -> None:
        for name, (default, low, high) in self._limits().items():
            value = getattr(self, name)
            if isinstance(value, _KernelDefault):
                object.__setattr__(self, name, default)
            else:
                check_range(name, value, low, high)
        for name in _FLAGS:
            value = getattr(self, name)
            if value not in (True, False):
                raise SettingsError(f"{name}: {value!r} is outside 0..1")
            object.__setattr__(self, name, bool(value))
        mode = parse_mode("enabled", str(self.enabled), GLOBAL_MODES)
        object.__setattr__(self, "enabled", mode)
        fault_defrag = parse_mode("fault_defrag", str(self.fault_defrag), DEFRAG_MODES)
        object.__setattr__(self, "fault_defrag", fault_defrag)
        object.__setattr__(self, "sizes", MappingProxyType(self._all_sizes()))

    def _limits(self) -> dict[str, tuple[int, int, int]]:
        """The (default, lowest, highest) of each knob under this geometry."""
        nr = self.geometry.ptrs_per_pte
        return {
            "pages_to_scan": (nr * 8, 1, U32_MAX),
            "scan_sleep_millisecs": (10_000, 0, U32_MAX),
            "alloc_sleep_millisecs": (60_000, 0, U32_MAX),
            "max_ptes_none": (nr - 1, 0, nr - 1),
            "max_ptes_swap": (nr // 8, 0, nr - 1),
            "max_ptes_shared": (nr // 2, 0, nr - 1),
        }

    def _all_sizes(self) -> dict[int, Enabled]:
        """Every anonymous order with its switch; unknown orders and modes are refused."""
        for order in self.sizes:
            if order not in self.geometry.anon_orders:
                known = anon_sizes(self.geometry)
                raise SettingsError(f"sizes: no anonymous folio of order {order} (sizes: {known})")
        switches = dict.fromkeys(sorted(self.geometry.anon_orders), Enabled.NEVER)
        switches[self.geometry.pmd_order] = Enabled.INHERIT
        for order, mode in self.sizes.items():
            knob = f"hugepages-{self.geometry.size_name(order)}/enabled"
            switches[order] = parse_mode(knob, str(mode), SIZE_MODES)
        return switches

    def __hash__(self) -> int:
        values = (getattr(self, name) for name in (*NUMBERS, *_FLAGS, "fault_defrag"))
        return hash((self.geometry, self.enabled, tuple(self.sizes.items()), *values))

    def __reduce__(self) -> tuple[object, ...]:
        return Settings.from_json, (self.to_json(),)

    def size_enabled(self, order: int) -> Enabled:
        """The switch of one order; NEVER for an order no anonymous folio has."""
        return self.sizes.get(order, Enabled.NEVER)

    def _orders(self, value: Enabled) -> int:
        return sum(1 << order for order, mode in self.sizes.items() if mode is value)

    @cached_property
    def orders_always(self) -> int:
        """The bitmap of orders set to always. Kernel: huge_anon_orders_always."""
        return self._orders(Enabled.ALWAYS)

    @cached_property
    def orders_madvise(self) -> int:
        """The bitmap of orders set to madvise. Kernel: huge_anon_orders_madvise."""
        return self._orders(Enabled.MADVISE)

    @cached_property
    def orders_inherit(self) -> int:
        """The bitmap of orders set to inherit. Kernel: huge_anon_orders_inherit."""
        return self._orders(Enabled.INHERIT)

    def replace(self, **knobs: Any) -> Settings:
        """The same settings with some knobs changed; SettingsError for an unknown knob."""
        unknown = knobs.keys() - {each.name for each in dataclasses.fields(self)}
        if unknown:
            raise SettingsError(f"no such setting: {', '.join(sorted(unknown))}")
        return dataclasses.replace(self, **knobs)

    def with_enabled(self, flag: EnabledFlag) -> Settings:
        """The same settings after --enabled; SettingsError for a size the geometry lacks."""
        sizes = dict(self.sizes)
        if flag.every_size is not None:
            sizes = dict.fromkeys(sizes, flag.every_size)
        for size, mode in flag.sizes:
            sizes[anon_order("--enabled", size, self.geometry)] = mode
        enabled = self.enabled if flag.everywhere is None else flag.everywhere
        return self.replace(enabled=enabled, sizes=sizes)

    # --- sysfs ------------------------------------------------------------------------------

    @classmethod
    def from_sysfs(cls, files: Mapping[str, str], geometry: Geometry | None = None) -> Settings:
        """Settings from a dump: path below transparent_hugepage/ -> text of the file.

        Missing files stand at the kernel's defaults (older kernels have fewer); files that no
        collapse reads are passed over; SettingsError for a text the kernel would not show.
        """
        geometry = geometry or Geometry()
        _check_pmd_size(files, geometry)
        sizes: dict[int, Enabled] = {}
        for path, text in files.items():
            match = re.fullmatch(r"hugepages-([0-9]+k?B)/enabled", path)
            if match is not None:
                order = parse_anon_size(path, match[1], geometry)
                sizes[order] = parse_selection(path, text, SIZE_MODES)
            elif path.endswith("/enabled"):
                raise SettingsError(f"{path}: not a file of transparent_hugepage")
        knobs: dict[str, Any] = {}
        if "enabled" in files:
            knobs["enabled"] = parse_selection("enabled", files["enabled"], GLOBAL_MODES)
        if "defrag" in files:
            knobs["fault_defrag"] = parse_selection("defrag", files["defrag"], DEFRAG_MODES)
        for name, path in _FLAGS.items():
            if path in files:
                knobs[name] = parse_flag(path, files[path])
        for name in NUMBERS:
            path = f"khugepaged/{name}"
            if path in files:
                knobs[name] = parse_number(path, files[path])
        return cls(geometry=geometry, sizes=sizes, **knobs)

    def to_sysfs(self) -> dict[str, str]:
        """The dump that from_sysfs() reads back: path -> text as the kernel shows it."""
        files = {
            "enabled": format_selection(self.enabled, GLOBAL_MODES),
            "defrag": format_selection(self.fault_defrag, DEFRAG_MODES),
            "hpage_pmd_size": f"{self.geometry.pmd_size}\n",
        }
        for order, mode in self.sizes.items():
            path = f"hugepages-{self.geometry.size_name(order)}/enabled"
            files[path] = format_selection(mode, SIZE_MODES)
        for name, path in _FLAGS.items():
            files[path] = f"{int(getattr(self, name))}\n"
        for name in NUMBERS:
            files[f"khugepaged/{name}"] = f"{getattr(self, name)}\n"
        return files

    # --- JSON and people --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A document of plain JSON values, complete; sizes are named as sysfs names them."""
        geometry = {"page_shift": self.geometry.page_shift, "pmd_order": self.geometry.pmd_order}
        enabled = {"global": self.enabled.value}
        for order, mode in self.sizes.items():
            enabled[self.geometry.size_name(order)] = mode.value
        document: dict[str, Any] = {"geometry": geometry, "enabled": enabled}
        document["fault_defrag"] = self.fault_defrag.value
        document.update((name, getattr(self, name)) for name in (*_FLAGS, *NUMBERS))
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Settings:
        """Settings from to_json()'s document; what is missing stands at its default.

        SettingsError for an unknown key, a wrong type or a value out of range.
        """
        knobs = dict(document)
        geometry = geometry_from_json(knobs.pop("geometry", {}))
        enabled = knobs.pop("enabled", {})
        if not isinstance(enabled, Mapping):
            raise SettingsError(f"enabled: {enabled!r} is not a table of sizes and modes")
        unknown = knobs.keys() - {*_FLAGS, *NUMBERS, "fault_defrag"}
        if unknown:
            raise SettingsError(f"no such setting: {', '.join(sorted(unknown))}")
        sizes = {
            parse_anon_size("enabled", name, geometry): parse_mode(name, mode, SIZE_MODES)
            for name, mode in enabled.items()
            if name != "global"
        }
        everywhere = enabled.get("global", Enabled.ALWAYS)
        return cls(geometry=geometry, enabled=everywhere, sizes=sizes, **knobs)

    def describe(self) -> str:
        """One line for the top of a report; sizes that are never are left out."""
        by_mode: dict[Enabled, list[int]] = {}
        for order, mode in self.sizes.items():
            by_mode.setdefault(mode, []).append(order)
        by_mode.pop(Enabled.NEVER, None)
        sizes = ", ".join(
            f"{self._size_range(first, last)} {mode}"
            for mode, orders in by_mode.items()
            for first, last in runs_of_orders(orders)
        )
        pages = "" if self.geometry == Geometry() else f"{self.geometry} pages; "
        return (
            f"{pages}global {self.enabled}; {sizes or 'no size enabled'}; "
            f"max_ptes_none {self.max_ptes_none}, swap {self.max_ptes_swap}, "
            f"shared {self.max_ptes_shared}; defrag {int(self.defrag)}; "
            f"pages_to_scan {self.pages_to_scan}; "
            f"scan_sleep {self.scan_sleep_millisecs} ms, "
            f"alloc_sleep {self.alloc_sleep_millisecs} ms"
        )

    def _size_range(self, first: int, last: int) -> str:
        low, high = self.geometry.size_name(first), self.geometry.size_name(last)
        if first == last:
            return f"{low} (order {first})"
        return f"{low}-{high} (orders {first}-{last})"


def geometry_from_json(document: object) -> Geometry:
    """Make a geometry from {"page_shift": 12, "pmd_order": 9}; SettingsError where it cannot be."""
    if not isinstance(document, Mapping) or document.keys() - {"page_shift", "pmd_order"}:
        raise SettingsError(f"geometry: {document!r} is not page_shift and pmd_order")
    try:
        return Geometry(
            **{key: check_range(f"geometry.{key}", each, 0, 63) for key, each in document.items()}
        )
    except SettingsError:
        raise
    except ValueError as error:
        raise SettingsError(f"geometry: {error}") from None


def _check_pmd_size(files: Mapping[str, str], geometry: Geometry) -> None:
    """A dump says how large its PMD is: refuse to read it under another geometry."""
    if "hpage_pmd_size" in files:
        size = parse_number("hpage_pmd_size", files["hpage_pmd_size"])
        if size != geometry.pmd_size:
            raise SettingsError(
                f"hpage_pmd_size: {size} is not the {geometry.pmd_size} of {geometry} pages"
            )
