# SPDX-License-Identifier: GPL-2.0-or-later
"""What has to be loaded before what, with depmod's file and without."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.modules import ModuleTree, modinfo, read_module
from tests.lab.synthetic import module


def put(root: Path, file: str, depends: str = "") -> None:
    path = root / "kernel" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    data = module(depends=depends, name="x", vermagic="7.3.4-test SMP mod_unload ")
    path.write_bytes(lzma.compress(data) if file.endswith(".xz") else data)


def names(tree: ModuleTree, name: str) -> list[str]:
    return [path.name for path in tree.load_order(name)]


def test_modinfo_reads_the_section_and_keeps_the_first_of_a_field() -> None:
    assert modinfo(module(depends="a,b", vermagic="7.3 SMP")) == {
        "depends": "a,b",
        "vermagic": "7.3 SMP",
    }
    twice = modinfo(module(parm="first\0parm=second"))
    assert twice == {"parm": "first"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a 64-bit"),
        (b"\x7fELF\x01\x01" + bytes(60), "not a 64-bit"),
        (module(a="b")[:70], "damaged"),
        (module(a="b").replace(b".modinfo", b".mystery"), "no section .modinfo"),
    ],
)
def test_modinfo_refuses(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        modinfo(data)


def test_dependencies_come_first_and_once(tmp_path: Path) -> None:
    put(tmp_path, "top.ko.xz", "left,right")
    put(tmp_path, "deep/left.ko", "bottom-most")
    put(tmp_path, "right.ko.xz", "bottom-most,left")
    put(tmp_path, "bottom-most.ko")
    tree = ModuleTree(tmp_path)
    assert names(tree, "top") == ["bottom-most.ko", "left.ko", "right.ko.xz", "top.ko.xz"]
    assert names(tree, "bottom_most") == names(tree, "bottom-most") == ["bottom-most.ko"]
    assert tree.release() == "7.3.4-test"


def test_builtins_are_nothing_to_load(tmp_path: Path) -> None:
    put(tmp_path, "zram.ko", "lz4_compress")
    (tmp_path / "modules.builtin").write_text("kernel/lib/lz4/lz4_compress.ko\nkernel/a-b.ko\n")
    tree = ModuleTree(tmp_path)
    assert names(tree, "zram") == ["zram.ko"]
    assert names(tree, "a-b") == []


def test_what_depmod_wrote_is_taken_from_its_end(tmp_path: Path) -> None:
    for name in ("zram", "first", "second"):
        put(tmp_path, f"{name}.ko")
    (tmp_path / "modules.dep").write_text(
        "kernel/zram.ko: kernel/second.ko kernel/first.ko\n"
        "kernel/second.ko: kernel/first.ko\nkernel/first.ko:\n"
    )
    assert names(ModuleTree(tmp_path), "zram") == ["first.ko", "second.ko", "zram.ko"]


@pytest.mark.parametrize(
    ("asked", "says", "code"),
    [
        ("nope", "no module nope$", 5),
        ("needy", "no module gone, which needy needs", 5),
        ("ring", "depends on itself", 2),
        ("torn", "cannot be read", 2),
        ("text", "not a module", 2),
    ],
)
def test_modules_that_cannot_be_loaded(tmp_path: Path, asked: str, says: str, code: int) -> None:
    put(tmp_path, "needy.ko", "gone")
    put(tmp_path, "ring.ko", "gnir")
    put(tmp_path, "gnir.ko", "ring")
    (tmp_path / "torn.ko.xz").write_bytes(b"not xz")
    (tmp_path / "text.ko").write_text("hello")
    with pytest.raises(LabError, match=says) as caught:
        ModuleTree(tmp_path).load_order(asked)
    assert caught.value.code == code


def test_packed_modules_are_unpacked(tmp_path: Path) -> None:
    plain = module(name="m")
    for name, data in (("a.ko", plain), ("a.ko.gz", gzip.compress(plain))):
        (tmp_path / name).write_bytes(data)
        assert read_module(tmp_path / name) == plain
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(plain))
    assert read_module(tmp_path / "a.ko.xz") == plain


def test_zstd_is_asked_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.ko.zst"
    path.write_bytes(b"not zstd")
    if shutil.which("zstd"):
        with pytest.raises(LabError, match="zstd cannot unpack it"):
            read_module(path)
        plain = module(name="m")
        packed = subprocess.run(["zstd", "-qc"], input=plain, capture_output=True, check=True)
        path.write_bytes(packed.stdout)
        assert read_module(path) == plain
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="needs the command zstd") as caught:
        read_module(path)
    assert caught.value.code == 5
