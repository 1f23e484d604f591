# SPDX-License-Identifier: GPL-2.0-or-later
"""The text forms of the transparent_hugepage knobs: sysfs files, thp_anon=, --enabled.

Nothing here knows the whole tree; mthp.words.settings puts the pieces together.
Kernel: mm/huge_memory.c (enabled_show, anon_enabled_show, single_hugepage_flag_store,
setup_thp_anon), mm/khugepaged.c (khugepaged_attr), mm/internal.h (get_order_from_str).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import TypeVar

from mthp.words.units import Geometry, format_size, parse_size, parse_whole

U32_MAX = 2**32 - 1
_U64_MASK = 2**64 - 1


class Enabled(StrEnum):
    """A value of transparent_hugepage/enabled or of hugepages-<size>kB/enabled."""

    ALWAYS = "always"
    MADVISE = "madvise"
    INHERIT = "inherit"
    NEVER = "never"


class FaultDefrag(StrEnum):
    """A value of transparent_hugepage/defrag: when a fault reclaims and compacts for a large folio."""

    ALWAYS = "always"
    DEFER = "defer"
    DEFER_MADVISE = "defer+madvise"
    MADVISE = "madvise"
    NEVER = "never"


class SettingsError(ValueError):
    """A setting the kernel would refuse, or a dump that cannot be read."""


GLOBAL_MODES = (Enabled.ALWAYS, Enabled.MADVISE, Enabled.NEVER)
"""Modes of the global switch, in the order sysfs prints. Kernel: global_enabled_mode_strings."""

SIZE_MODES = (Enabled.ALWAYS, Enabled.INHERIT, Enabled.MADVISE, Enabled.NEVER)
"""Modes of a per-size switch, in the order sysfs prints. Kernel: anon_enabled_mode_strings."""


DEFRAG_MODES = tuple(FaultDefrag)
"""Modes of defrag, in the order sysfs prints. Kernel: mm/huge_memory.c, defrag_show()."""

Mode = TypeVar("Mode", bound=StrEnum)


def parse_mode(knob: str, text: str, modes: Sequence[Mode]) -> Mode:
    """Read one mode by its name; SettingsError naming the knob where it is not one of modes."""
    for mode in modes:
        if mode == text:
            return mode
    raise SettingsError(f"{knob}: {text!r} is not one of {', '.join(modes)}")


def parse_selection(knob: str, text: str, modes: Sequence[Mode]) -> Mode:
    """Read the mode a sysfs file shows in brackets, or a single bare word, as one writes it.

    Kernel: mm/huge_memory.c, enabled_show() and anon_enabled_show(). Raises SettingsError.
    """
    words = text.split()
    chosen = [word[1:-1] for word in words if word.startswith("[") and word.endswith("]")]
    others = [word for word in words if word[1:-1] not in chosen]
    if len(words) == 1 and not chosen:
        chosen = others
    if len(chosen) != 1:
        raise SettingsError(f"{knob}: {text.strip()!r} does not show one chosen mode in brackets")
    for word in others:
        parse_mode(knob, word, modes)
    return parse_mode(knob, chosen[0], modes)


def format_selection(mode: Mode, modes: Sequence[Mode]) -> str:
    """A mode as its sysfs file shows it, with the newline: 'always [madvise] never'."""
    return " ".join(f"[{each}]" if each is mode else each.value for each in modes) + "\n"


def check_range(knob: str, value: object, low: int, high: int) -> int:
    """value as an int, if within low..high; SettingsError with knob, value and range otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(f"{knob}: {value!r} is not a whole number")
    if not low <= value <= high:
        raise SettingsError(f"{knob}: {value} is outside {low}..{high}")
    return value


def parse_number(knob: str, text: str) -> int:
    """Read a number as the kernel's kstrtoul does in base 10 (a plus sign and blanks around it)."""
    try:
        return parse_whole(text.strip().removeprefix("+"))
    except ValueError as error:
        raise SettingsError(f"{knob}: {error}") from None


def parse_flag(knob: str, text: str) -> bool:
    """Read a flag file: 0 or 1. Kernel: mm/huge_memory.c, single_hugepage_flag_store()."""
    return check_range(knob, parse_number(knob, text), 0, 1) == 1


def anon_sizes(geometry: Geometry) -> str:
    """The range of anonymous sizes, for messages: 16kB..2048kB."""
    orders = geometry.anon_orders
    return f"{geometry.size_name(min(orders))}..{geometry.size_name(max(orders))}"


def anon_order(knob: str, size: int, geometry: Geometry) -> int:
    """The order of an anonymous folio of size bytes; SettingsError where there is none."""
    try:
        order = geometry.order_of(size)
    except ValueError as error:
        raise SettingsError(f"{knob}: {error}") from None
    if order not in geometry.anon_orders:
        raise SettingsError(
            f"{knob}: no anonymous folio of {format_size(size)} (sizes: {anon_sizes(geometry)})"
        )
    return order


def parse_anon_size(knob: str, text: str, geometry: Geometry) -> int:
    """The order meant by 64K, 64kB or 2M; SettingsError where no anonymous folio has that size."""
    try:
        size = parse_size(text)
    except ValueError as error:
        raise SettingsError(f"{knob}: {error}") from None
    return anon_order(knob, size, geometry)


# --- the boot parameter ---------------------------------------------------------------------


def _memparse(text: str) -> int:
    """Read a size as the kernel does: any C base, one suffix, whatever follows is ignored.

    Kernel: lib/cmdline.c, memparse().
    """
    match = re.match(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*", text)
    if match is None:
        return 0
    digits = match[0]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits.startswith("0") else 10
    value = int(digits, base) & _U64_MASK
    suffix = text[match.end() : match.end() + 1].upper()
    shift = 10 * (" KMGTPE".find(suffix)) if suffix.strip() and suffix in "KMGTPE" else 0
    return min(value << shift, _U64_MASK)


def _boot_order(text: str, geometry: Geometry) -> int:
    """Kernel: mm/internal.h, get_order_from_str() with THP_ORDERS_ALL_ANON."""
    size = _memparse(text)
    if size & (size - 1) or size < geometry.page_size:
        size = 0
    order = (size >> geometry.page_shift).bit_length() - 1
    if order not in geometry.anon_orders:
        raise SettingsError(f"thp_anon: invalid size {text!r} (sizes: {anon_sizes(geometry)})")
    return order


def _boot_orders(item: str, geometry: Geometry) -> range:
    """The orders of one size, or of a range of sizes, low-high."""
    low, dash, high = item.partition("-")
    start = _boot_order(low, geometry)
    end = _boot_order(high, geometry) if dash else start
    if start > end:
        raise SettingsError(f"thp_anon: range {item!r} runs downwards")
    return range(start, end + 1)


def parse_thp_anon(text: str, geometry: Geometry) -> dict[int, Enabled]:
    """The switch of each order, as the boot parameter thp_anon=16K-64K:always;2M:inherit leaves
    them.

    Once the parameter is given the default of the PMD order (inherit) no longer applies: sizes
    that it does not name are never. Later items win. Raises SettingsError where the kernel would
    warn and ignore the whole parameter.
    Kernel: mm/huge_memory.c, setup_thp_anon() and anon_orders_configured in hugepage_init_sysfs().
    """
    if len(text) + 1 > geometry.page_size:
        raise SettingsError(f"thp_anon: longer than a page ({len(text)} characters)")
    switches = dict.fromkeys(sorted(geometry.anon_orders), Enabled.NEVER)
    for token in text.split(";"):
        sizes, colon, policy = token.partition(":")
        if not colon:
            raise SettingsError(f"thp_anon: {token!r} is not <sizes>:<policy>")
        for item in sizes.split(","):
            orders = _boot_orders(item, geometry)
            switches.update(dict.fromkeys(orders, parse_mode("thp_anon", policy, SIZE_MODES)))
    return switches


def runs_of_orders(orders: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each stretch of consecutive orders, ascending."""
    # Along a stretch an order and its place rise together.
    for _, stretch in groupby(enumerate(sorted(orders)), key=lambda each: each[1] - each[0]):
        members = [order for _, order in stretch]
        yield members[0], members[-1]


# --- the command line's --enabled -----------------------------------------------------------


@dataclass(frozen=True)
class EnabledFlag:
    """What --enabled asks for; Settings.with_enabled() applies it.

    everywhere: the `global` switch. every_size: `all`, which the sizes named one by one override
    wherever it stands. sizes: (bytes, mode) as written, checked against a geometry when applied.
    """

    everywhere: Enabled | None = None
    every_size: Enabled | None = None
    sizes: tuple[tuple[int, Enabled], ...] = ()


def parse_enabled_flag(text: str) -> EnabledFlag:
    """Read --enabled 64kB=always,2048kB=never,global=madvise; a mode alone means global.

    Sizes are accepted as 64K and 64kB. The same key with two modes is a contradiction:
    SettingsError, as for anything unreadable.
    """
    found: dict[str | int, Enabled] = {}
    if not isinstance(text, str):
        raise SettingsError(f"--enabled {text!r} is not a text such as 64kB=always")
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            name, value = "global", name
        key: str | int = name.lower()
        if key not in ("global", "all"):
            try:
                key = parse_size(name)
            except ValueError as error:
                raise SettingsError(f"--enabled {item!r}: {error}, global or all") from None
        modes = GLOBAL_MODES if key == "global" else SIZE_MODES
        mode = parse_mode(f"--enabled {name}", value, modes)
        if found.setdefault(key, mode) is not mode:
            raise SettingsError(f"--enabled {name}: both {found[key]} and {mode}")
    return EnabledFlag(
        found.get("global"),
        found.get("all"),
        tuple((key, mode) for key, mode in found.items() if isinstance(key, int)),
    )
