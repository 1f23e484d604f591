# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings: the kernel's ranges, its text forms, and that every form reads back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.words.settings import (
    Enabled,
    Settings,
    SettingsError,
    parse_enabled_flag,
    parse_thp_anon,
)
from mthp.words.settings_text import GLOBAL_MODES, SIZE_MODES
from mthp.words.units import Geometry

ALWAYS, MADVISE, INHERIT, NEVER = (
    Enabled.ALWAYS,
    Enabled.MADVISE,
    Enabled.INHERIT,
    Enabled.NEVER,
)
GEOMETRIES = [Geometry(), Geometry(14, 11), Geometry(16, 13), Geometry(12, 3), Geometry(4, 4)]


@st.composite
def settings_values(draw: st.DrawFn) -> Settings:
    geometry = draw(st.sampled_from(GEOMETRIES))
    nr = geometry.ptrs_per_pte
    limit = st.integers(0, nr - 1)
    millisecs = st.integers(0, 2**32 - 1)
    return Settings(
        geometry=geometry,
        enabled=draw(st.sampled_from(GLOBAL_MODES)),
        sizes={o: draw(st.sampled_from(SIZE_MODES)) for o in geometry.anon_orders},
        defrag=draw(st.booleans()),
        pages_to_scan=draw(st.integers(1, 2**32 - 1)),
        scan_sleep_millisecs=draw(millisecs),
        alloc_sleep_millisecs=draw(millisecs),
        max_ptes_none=draw(limit),
        max_ptes_swap=draw(limit),
        max_ptes_shared=draw(limit),
        shrink_underused=draw(st.booleans()),
    )


def test_defaults_are_the_kernels() -> None:
    settings = Settings()
    assert (settings.max_ptes_none, settings.max_ptes_swap, settings.max_ptes_shared) == (
        511,
        64,
        256,
    )
    assert settings.pages_to_scan == 4096
    assert settings.orders_inherit == 1 << 9
    assert settings.orders_always == settings.orders_madvise == 0
    arm = Settings(Geometry(16, 13))
    assert (arm.max_ptes_none, arm.pages_to_scan) == (8191, 65536)


def test_a_default_written_out_is_the_same_value() -> None:
    written = Settings(sizes={9: INHERIT, 4: NEVER}, max_ptes_none=511)
    assert written == Settings()
    assert hash(written) == hash(Settings())
    assert len(written.sizes) == 8


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"max_ptes_none": 512}, "max_ptes_none: 512 is outside 0..511"),
        ({"max_ptes_swap": -1}, "max_ptes_swap: -1 is outside 0..511"),
        ({"max_ptes_shared": 1 << 40}, "max_ptes_shared: 1099511627776 is outside 0..511"),
        ({"max_ptes_shared": "3"}, "max_ptes_shared: '3' is not a whole number"),
        ({"max_ptes_shared": True}, "max_ptes_shared: True is not a whole number"),
        ({"pages_to_scan": 0}, "pages_to_scan: 0 is outside 1..4294967295"),
        ({"pages_to_scan": 2**32}, "pages_to_scan: 4294967296 is outside 1..4294967295"),
        ({"scan_sleep_millisecs": -5}, "scan_sleep_millisecs: -5 is outside 0..4294967295"),
        ({"alloc_sleep_millisecs": 2**32}, "alloc_sleep_millisecs: 4294967296 is outside"),
        ({"defrag": 2}, "defrag: 2 is outside 0..1"),
        ({"enabled": INHERIT}, "enabled: 'inherit' is not one of always"),
        ({"sizes": {1: ALWAYS}}, "sizes: no anonymous folio of order 1 (sizes: 16kB..2048kB)"),
        ({"sizes": {10: ALWAYS}}, "sizes: no anonymous folio of order 10"),
        ({"sizes": {4: "on"}}, "hugepages-64kB/enabled: 'on' is not one of always, inherit"),
    ],
)
def test_out_of_range_is_refused_in_one_line(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings(**knobs)
    text = str(caught.value)
    assert text.startswith(message)
    assert "\n" not in text
    with pytest.raises(SettingsError):
        Settings().replace(**knobs)


def test_replace() -> None:
    assert Settings().replace(max_ptes_none=0).max_ptes_none == 0
    with pytest.raises(SettingsError, match="no such setting: max_pte_none"):
        Settings().replace(max_pte_none=0)


@given(settings_values())
def test_every_form_reads_back(settings: Settings) -> None:
    assert Settings.from_sysfs(settings.to_sysfs(), settings.geometry) == settings
    assert Settings.from_json(settings.to_json()) == settings
    assert pickle.loads(pickle.dumps(settings)) == copy.deepcopy(settings) == settings
    assert hash(copy.copy(settings)) == hash(settings)
    assert "\n" not in settings.describe()


def test_sysfs_text_is_the_kernels() -> None:
    files = Settings(enabled=MADVISE, sizes={4: MADVISE, 5: ALWAYS}).to_sysfs()
    assert files["enabled"] == "always [madvise] never\n"
    assert files["hugepages-64kB/enabled"] == "always inherit [madvise] never\n"
    assert files["hugepages-32kB/enabled"] == "always inherit madvise [never]\n"
    assert files["hugepages-2048kB/enabled"] == "always [inherit] madvise never\n"
    assert files["khugepaged/max_ptes_none"] == "511\n"
    assert files["khugepaged/defrag"] == files["shrink_underused"] == "1\n"
    assert files["hpage_pmd_size"] == "2097152\n"
    assert "hugepages-8kB/enabled" not in files


def test_sysfs_tolerates_what_is_missing_or_of_no_matter() -> None:
    assert Settings.from_sysfs({}) == Settings()
    files = {
        "defrag": "always defer defer+madvise [madvise] never\n",
        "hugepages-8kB/shmem_enabled": "always inherit within_size advise [never]\n",
        "hugepages-64kB/stats/nr_anon": "3\n",
        "khugepaged/full_scans": "17\n",
        "use_zero_page": "1\n",
        "enabled": "madvise",
        "khugepaged/max_ptes_none": "+7\n",
    }
    assert Settings.from_sysfs(files) == Settings(enabled=MADVISE, max_ptes_none=7)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("enabled", "always madvise never", "does not show one chosen mode"),
        ("enabled", "[always] [madvise] never", "does not show one chosen mode"),
        ("enabled", "", "does not show one chosen mode"),
        ("enabled", "[sometimes] never", "'sometimes' is not one of"),
        ("enabled", "[always] sometimes", "'sometimes' is not one of"),
        ("enabled", "[always madvise [never]", "is not one of"),
        ("enabled", "always [inherit] madvise never", "'inherit' is not one of"),
        ("hugepages-8kB/enabled", "[always] inherit madvise never", "no anonymous folio of 8K"),
        ("hugepages-4096kB/enabled", "[always] inherit madvise never", "no anonymous folio of 4M"),
        ("hugepages-24kB/enabled", "[always] inherit madvise never", "not a power of two"),
        ("hugepages-x/enabled", "[always] inherit madvise never", "not a file of"),
        ("khugepaged/max_ptes_none", "512\n", "max_ptes_none: 512 is outside 0..511"),
        ("khugepaged/max_ptes_none", "many\n", "'many' is not a whole number"),
        ("khugepaged/max_ptes_none", "9" * 9999, "is not a whole number"),
        ("khugepaged/pages_to_scan", "0", "pages_to_scan: 0 is outside"),
        ("khugepaged/defrag", "2\n", "khugepaged/defrag: 2 is outside 0..1"),
        ("shrink_underused", "maybe", "shrink_underused: 'maybe' is not"),
        ("hpage_pmd_size", "33554432\n", "is not the 2097152 of 4K/2M pages"),
    ],
)
def test_sysfs_garbage_is_refused(path: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_sysfs({path: text})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# --- thp_anon= ------------------------------------------------------------------------------


def test_thp_anon_of_the_documentation() -> None:
    text = "16K-64K:always;128K,512K:inherit;256K:madvise;1M-2M:never"
    switches = parse_thp_anon(text, Geometry())
    assert switches == {
        2: ALWAYS,
        3: ALWAYS,
        4: ALWAYS,
        5: INHERIT,
        7: INHERIT,
        6: MADVISE,
        8: NEVER,
        9: NEVER,
    }


def test_thp_anon_takes_the_pmd_default_away() -> None:
    assert parse_thp_anon("64K:always", Geometry())[9] is NEVER
    assert Settings(sizes=parse_thp_anon("64K:always", Geometry())).orders_inherit == 0


def test_thp_anon_later_items_win() -> None:
    assert parse_thp_anon("16K-2M:always;64K:never", Geometry())[4] is NEVER


def test_thp_anon_reads_sizes_as_the_kernel_does() -> None:
    """Any C base, either case, and what follows the suffix is ignored."""
    for size in ("64K", "64k", "64kB", "65536", "0x10000", "0200000", "64Kx", "64K "):
        assert parse_thp_anon(f"{size}:always", Geometry())[4] is ALWAYS, size
    assert parse_thp_anon("16K-32K-2M:always", Geometry())[9] is NEVER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "64K",
        "64K:always;",
        ";64K:always",
        ":always",
        "64K,:always",
        "64K:sometimes",
        "64K:always:never",
        "8K:always",
        "4K:always",
        "4M:always",
        "48K:always",
        "K:always",
        "99999999E:always",
        "64K-16K:always",
        "64K-:always",
        "-64K:always",
        "64K: always",
        "64K:always;" * 500,
    ],
)
def test_thp_anon_the_kernel_would_ignore(text: str) -> None:
    with pytest.raises(SettingsError, match="thp_anon"):
        parse_thp_anon(text, Geometry())


# --- --enabled ------------------------------------------------------------------------------


def test_enabled_flag() -> None:
    flag = parse_enabled_flag("64kB=always,2048kB=never,global=madvise")
    settings = Settings().with_enabled(flag)
    assert settings.enabled is MADVISE
    assert (settings.orders_always, settings.orders_inherit) == (1 << 4, 0)
    same = Settings().with_enabled(parse_enabled_flag(" 64K=always, 2M=never, madvise "))
    assert same == settings


def test_enabled_flag_all_yields_to_named_sizes() -> None:
    for text in ("all=always,64K=never", "64K=never,all=always"):
        settings = Settings().with_enabled(parse_enabled_flag(text))
        assert settings.orders_always == 0b1111101100


def test_enabled_flag_keeps_what_it_does_not_name() -> None:
    settings = Settings(enabled=MADVISE, sizes={5: ALWAYS})
    assert settings.with_enabled(parse_enabled_flag("never")).orders_always == 1 << 5
    assert settings.with_enabled(parse_enabled_flag("64K=always")).enabled is MADVISE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("64kB=always,64K=never", "--enabled 64K: both always and never"),
        ("always,global=never", "both always and never"),
        ("inherit", "'inherit' is not one of always, madvise, never"),
        ("64K", "'64K' is not one of"),
        ("64K=on", "--enabled 64K: 'on' is not one of"),
        ("big=always", "not a size"),
        ("", "is not one of"),
        ("64K=always,", "is not one of"),
        ("8K=always", "no anonymous folio of 8K"),
        ("4M=always", "no anonymous folio of 4M"),
        ("64=always", "not a power of two"),
    ],
)
def test_enabled_flag_refused(text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings().with_enabled(parse_enabled_flag(text))
    assert message in str(caught.value)


# --- JSON and people ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        {"max_pte_none": 3},
        {"max_ptes_none": "3"},
        {"max_ptes_none": 512},
        {"enabled": "always"},
        {"enabled": {"global": "inherit"}},
        {"enabled": {"global": 3}},
        {"enabled": {"64kB": None}},
        {"enabled": {"8kB": "always"}},
        {"geometry": {"page_shift": 12, "pmd": 9}},
        {"geometry": {"page_shift": 12, "pmd_order": 40}},
        {"geometry": {"page_shift": "12"}},
        {"geometry": None},
        {"defrag": "yes"},
    ],
)
def test_json_refused(document: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        Settings.from_json(document)


def test_describe() -> None:
    settings = Settings(enabled=MADVISE, sizes={2: ALWAYS, 3: ALWAYS, 5: ALWAYS}, max_ptes_none=0)
    assert settings.describe() == (
        "global madvise; 16kB-32kB (orders 2-3) always, 128kB (order 5) always, "
        "2048kB (order 9) inherit; max_ptes_none 0, swap 64, shared 256; defrag 1; "
        "pages_to_scan 4096; scan_sleep 10000 ms, alloc_sleep 60000 ms"
    )
    assert Settings(sizes={9: NEVER}).describe().startswith("global always; no size enabled; ")
    assert Settings(Geometry(16, 13)).describe().startswith("64K/512M pages; ")
