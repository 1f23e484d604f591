# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ELF file asks for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mthp.lab.kernels.modules import modinfo
from mthp.lab.vm.elf import Needs, interpreters, is_elf, needs
from tests.lab.synthetic import elf


def test_a_program() -> None:
    data = elf(("liba.so.1", "libb.so"), interpreter="/lib64/ld.so", search="$ORIGIN/../lib:/opt")
    assert needs(data) == Needs(
        "/lib64/ld.so", ("liba.so.1", "libb.so"), ("$ORIGIN/../lib", "/opt")
    )


def test_a_library_has_no_interpreter_and_runpath_hides_rpath() -> None:
    assert needs(elf(("liba.so.1",), rpath="/old")) == Needs(None, ("liba.so.1",), ("/old",))
    assert needs(elf((), search="/new", rpath="/old")).search == ("/new",)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(64)])
def test_no_elf_file(data: bytes) -> None:
    assert not is_elf(data)
    with pytest.raises(ValueError, match="not a 64-bit"):
        needs(data)


def test_every_truncation_is_noticed_or_harmless() -> None:
    whole = elf(("liba.so.1",), interpreter="/lib64/ld.so")
    for size in range(6, len(whole) - 1):
        with pytest.raises(ValueError):
            needs(whole[:size])


def test_an_offset_beyond_all_files_is_damage() -> None:
    whole = bytearray(elf(("liba.so.1",), interpreter="/lib64/ld.so"))
    whole[0x20:0x30] = b"\xff" * 16
    for read in (needs, modinfo):
        with pytest.raises(ValueError, match=r"truncated|damaged"):
            read(bytes(whole))


def test_scripts() -> None:
    assert interpreters(b"#! /usr/bin/env -S A=1 python3 -u\nx") == ["/usr/bin/env", "python3"]
    assert interpreters(b"#!/bin/sh -e\n") == ["/bin/sh"]
    assert interpreters(b"#!\n") == []
    assert interpreters(elf()) == []


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf")
def test_as_readelf_says() -> None:
    path = Path("/bin/sh").resolve()
    said = subprocess.run(
        ["readelf", "-dl", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = needs(path.read_bytes())
    assert found.libraries
    for name in found.libraries:
        assert f"Shared library: [{name}]" in said
    assert said.count("Shared library: [") == len(found.libraries)
    assert f"interpreter: {found.interpreter}]" in said
