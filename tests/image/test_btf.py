# SPDX-License-Identifier: GPL-2.0-or-later
"""Type information: this host's, some made by hand, and what is none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.image.capture.btf import Btf, BtfError

from .made_kernel import LONG, UNION, TypeMaker, type_information

HOST = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.skipif(not HOST.exists(), reason="this kernel has no type information")
def test_this_hosts_own() -> None:
    types = Btf(HOST.read_bytes())
    assert (types.offset("list_head", "next"), types.offset("list_head", "prev")) == (0, 8)
    assert types.size("list_head") == 16
    assert types.offset("page", "_refcount") == types.offset("folio", "page._refcount")
    assert types.enumerators("pageflags")["PG_locked"] == 0
    with pytest.raises(BtfError, match=r"^page\.no_such_member$"):
        types.offset("page", "no_such_member")
    with pytest.raises(BtfError, match=r"^struct no_such_structure$"):
        types.size("no_such_structure")


def test_members_of_what_has_no_name_and_of_what_has_several() -> None:
    types = Btf(type_information())
    assert types.offset("mm_struct", "mm_mt.ma_root") == 72
    assert types.offset("maple_node", "mr64.slot") == 128
    assert types.offset("maple_node", "ma64.slot") == 80
    assert types.enumerators("maple_type")["maple_arange_64"] == 3
    assert types.has("mm_struct") and not types.has("long")
    with pytest.raises(BtfError, match=r"^enum mm_struct$"):
        types.enumerators("mm_struct")


def test_a_field_of_bits_has_no_offset() -> None:
    it = TypeMaker()
    rows = struct.pack("<III", it.name("wide"), LONG, 64) + struct.pack(
        "<III", it.name("bits"), LONG, 3 << 24 | 70
    )
    it.add("some", 4 | 1 << 7, 2, 16, rows)
    types = Btf(it.packed())
    assert types.offset("some", "wide") == 8
    with pytest.raises(BtfError, match=r"some\.bits"):
        types.offset("some", "bits")


def test_types_without_end_are_refused() -> None:
    it = TypeMaker()
    it.add("a", 8, 0, 3)
    it.add("b", 8, 0, 2)
    nested = it.count + 1
    it.structure("", 8, {"": (nested, 0)}, UNION)
    it.structure("outer", 8, {"": (nested, 0), "x": (2, 0)})
    types = Btf(it.packed())
    with pytest.raises(BtfError, match="in a circle"):
        types.has("a")
    with pytest.raises(BtfError, match="without end"):
        types.offset("outer", "x")


WHOLE = type_information()


@pytest.mark.parametrize("size", [0, 10, 23, 24, 100, len(WHOLE) - 1])
def test_what_is_cut_off(size: int) -> None:
    with pytest.raises(BtfError):
        Btf(WHOLE[:size])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4))
def test_damage_is_a_line_and_no_more(changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    try:
        types = Btf(bytes(data))
        assert isinstance(types.offset("maple_node", "ma64.pivot"), int)
        assert isinstance(types.enumerators("pageflags"), dict)
        types.has("no_such_structure")
    except BtfError as error:
        assert str(error).isprintable() and len(str(error)) < 200
