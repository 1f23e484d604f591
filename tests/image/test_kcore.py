# SPDX-License-Identifier: GPL-2.0-or-later
"""A core file made by hand is read by both kinds of addresses; what is none is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mthp.image.capture.kcore import Core, CoreError

from .made_kernel import DIRECT, core_file

NOWHERE = (1 << 64) - 1
HELD = bytes(range(256)) * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    where = tmp_path / "core"
    core_file(
        where,
        [(DIRECT + 0x1000, 0x1000, HELD), (1 << 63, 0x1800, HELD[:64]), (1 << 40, NOWHERE, HELD)],
        "OSRELEASE=7.3.4\nNUMBER(pgtable_l5_enabled)=1\nNUMBER(odd)=x\n",
    )  # fmt: skip
    return where


@pytest.fixture
def core(path: Path) -> Iterator[Core]:
    file = os.open(path, os.O_RDONLY)
    yield Core(file)
    os.close(file)


def test_by_its_addresses_and_by_physical_ones(core: Core) -> None:
    assert core.read(DIRECT + 0x1010, 16) == HELD[16:32]
    assert core.physical(0x1010, 16) == HELD[16:32]
    assert core.physical(0x1FF0, 16) == HELD[-16:], "another segment begins after its start"
    assert core.read(1 << 40, 4096) == HELD
    assert core.word(DIRECT + 0x1000) == 0x0706050403020100


@pytest.mark.parametrize("at", [0, DIRECT, DIRECT + 0x1FF1, DIRECT + 0x2000, NOWHERE])
def test_what_it_does_not_have(core: Core, at: int) -> None:
    with pytest.raises(CoreError, match=f"has nothing at {at:#x}"):
        core.read(at, 16)
    with pytest.raises(CoreError):
        core.physical(1 << 40, 16)


def test_what_the_kernel_says_of_itself(core: Core) -> None:
    assert core.info["OSRELEASE"] == "7.3.4"
    assert (core.number("pgtable_l5_enabled"), core.number("not_there")) == (1, 0)
    with pytest.raises(CoreError, match="is no number"):
        core.number("odd")


def test_a_place_beyond_the_file(tmp_path: Path) -> None:
    core_file(tmp_path / "a", [(DIRECT, 0, 4096), (1 << 62, 1 << 62, 4096)])
    data = bytearray((tmp_path / "a").read_bytes())
    data[64 + 56 + 8 : 64 + 56 + 16] = b"\xff" * 8
    data[64 + 2 * 56 + 8 : 64 + 2 * 56 + 16] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "a").write_bytes(data)
    file = os.open(tmp_path / "a", os.O_RDONLY)
    for at, says in ((DIRECT, "no file reaches"), (1 << 62, "ends before")):
        with pytest.raises(CoreError, match=says):
            Core(file).read(at, 8)
    os.close(file)


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(100), bytes(4096)])
def test_what_is_no_core_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    file = os.open(tmp_path / "a", os.O_RDONLY)
    with pytest.raises(CoreError, match=r"^is no "):
        Core(file)
    os.close(file)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(16, 400), st.integers(0, 255)), max_size=4), st.integers(0, 9000)
)
def test_damage_is_a_line_and_no_more(
    path: Path, changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(path.read_bytes()[:size])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    (path.parent / "damaged").write_bytes(data)
    file = os.open(path.parent / "damaged", os.O_RDONLY)
    try:
        Core(file).read(DIRECT + 0x1000, 16)
    except CoreError as error:
        assert str(error).isprintable()
    finally:
        os.close(file)
