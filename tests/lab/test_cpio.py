# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive as the command cpio reads it, and as the kernel's document describes it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from mthp.lab.vm.cpio import Cpio
from tests.lab.newc import entries

CPIO = shutil.which("cpio")
needs_cpio = pytest.mark.skipif(CPIO is None, reason="the command cpio is not here")


def sample() -> Cpio:
    tree = Cpio()
    tree.add("init", b"#!/bin/true\n", 0o755)
    tree.add("lib/modules/a.ko", bytes(range(256)) * 3)
    tree.add_dir("proc", 0o555)
    return tree


def packed(tree: Cpio) -> bytes:
    file = io.BytesIO()
    tree.write(file)
    return file.getvalue()


def cpio(archive: bytes, *words: str, cwd: Path | None = None) -> str:
    done = subprocess.run(["cpio", *words], input=archive, capture_output=True, cwd=cwd, check=True)
    return done.stdout.decode()


@needs_cpio
def test_cpio_lists_directories_before_their_files() -> None:
    names = cpio(packed(sample()), "-t").split()
    assert names == [
        "init", "lib", "lib/modules", "lib/modules/a.ko", "proc",
    ]  # fmt: skip


@needs_cpio
def test_cpio_sees_modes() -> None:
    lines = cpio(packed(sample()), "-tvn").splitlines()
    modes = {line.split()[-1]: line.split()[0] for line in lines}
    assert modes["init"] == "-rwxr-xr-x"
    assert modes["proc"] == "dr-xr-xr-x"


@needs_cpio
def test_cpio_unpacks_what_went_in(tmp_path: Path) -> None:
    tree = Cpio()
    files = {f"d/f{size}": os.urandom(size) for size in (0, 1, 2, 3, 4, 5, 511, 512, 513, 70_000)}
    for path, data in files.items():
        tree.add(path, data, 0o640)
    cpio(packed(tree), "-i", "--quiet", cwd=tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in files} == files
    assert stat.S_IMODE((tmp_path / "d/f0").stat().st_mode) == 0o640


def test_the_bytes_of_a_small_archive() -> None:
    tree = Cpio()
    tree.add("ab", b"xyz", 0o600)
    data = packed(tree)
    head = "070701" + "00000001" + "00008180" + "0" * 16 + "00000001" + "0" * 8 + "00000003"
    head += "0" * 32 + "00000003" + "0" * 8
    assert len(head) == 110
    assert data.startswith(head.encode() + b"ab\0" + bytes(3) + b"xyz\0" + b"070701")
    assert data.rstrip(b"\0").endswith(b"TRAILER!!!")
    assert len(data) % 512 == 0


def test_links_owners_and_files_read_late(tmp_path: Path) -> None:
    tree = Cpio()
    tree.add_dir("d", 0o700, (12, 34))
    tree.add("d/f", tmp_path / "here", 0o600, (12, 34))
    tree.add_link("d/l", "../d/f")
    (tmp_path / "here").write_bytes(b"as it is when the archive is written")
    folder, file, link = entries(packed(tree))
    assert [oct(each.mode) for each in (folder, file, link)] == ["0o40700", "0o100600", "0o120777"]
    assert [each.owner for each in (folder, file, link)] == [(12, 34), (12, 34), (0, 0)]
    assert (file.data, link.data) == ((tmp_path / "here").read_bytes(), b"../d/f")


def test_the_same_entries_give_the_same_bytes() -> None:
    assert packed(sample()) == packed(sample())


def test_inodes_differ_for_nothing_is_a_hard_link() -> None:
    assert [each.inode for each in entries(packed(sample()))] == list(range(1, 6))


@pytest.mark.parametrize("path", ["", "/", "a//b", "../a", "a/./b", "a\0b", "TRAILER!!!"])
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ValueError, match=r"path inside|ends the archive"):
        Cpio().add(path, b"")


def test_a_path_comes_once_and_below_directories() -> None:
    tree = Cpio()
    tree.add("a", b"")
    with pytest.raises(ValueError, match="already"):
        tree.add_dir("/a/")
    with pytest.raises(ValueError, match="a is not a directory"):
        tree.add("a/b", b"")
