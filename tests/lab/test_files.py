# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files of a root a program takes along."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.vm.files import GuestFiles, Root
from tests.lab.synthetic import elf

LOADER = "/lib64/ld.so"


def put(folder: Path, path: str, data: bytes, mode: int = 0o755) -> None:
    file = folder / path.strip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    file.chmod(mode)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    put(tmp_path, LOADER, elf())
    put(tmp_path, "/usr/lib/liba.so.1.2", elf(("libb.so",)))
    (tmp_path / "usr/lib/liba.so.1").symlink_to("liba.so.1.2")
    put(tmp_path, "/opt/own/libb.so", elf())
    put(
        tmp_path, "/opt/bin/serve",
        elf(("liba.so.1", "libb.so"), interpreter=LOADER, search="$ORIGIN/../own"),
    )  # fmt: skip
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/serve").symlink_to("/opt/bin/serve")
    return Root(tmp_path)


def packed(files: GuestFiles, tmp_path: Path) -> bytes:
    return files.pack(tmp_path / "out.cpio").read_bytes()


def test_a_program_takes_its_loader_and_libraries(root: Root, tmp_path: Path) -> None:
    files = GuestFiles()
    put(tmp_path, "/usr/lib/libb.so", elf())
    assert files.add_program(root, "serve") == "/usr/bin/serve"
    data = packed(files, tmp_path)
    for name in (b"usr/bin/serve", b"lib64/ld.so", b"usr/lib/liba.so.1", b"opt/own/libb.so"):
        assert name + b"\0" in data
    assert b"usr/lib/liba.so.1.2\0" not in data, "at the name by which it is asked for"


def test_links_stay_inside_the_root(root: Root, tmp_path: Path) -> None:
    found = root.find("/usr/bin/serve")
    assert found is not None and found.samefile(tmp_path / "opt/bin/serve")
    (tmp_path / "loop").symlink_to("/loop")
    assert root.find("/loop") is None
    (tmp_path / "up").symlink_to("../../opt/own")
    inside = root.find("/up/libb.so")
    assert inside is not None and inside.is_relative_to(tmp_path)


def test_a_missing_library_is_named(root: Root, tmp_path: Path) -> None:
    (tmp_path / "opt/own/libb.so").unlink()
    with pytest.raises(LabError, match=r"needs libb\.so") as error:
        GuestFiles().add_program(root, "serve")
    assert error.value.code == 5


def test_a_missing_program_is_bad_input(root: Root) -> None:
    with pytest.raises(LabError, match="no program reader") as error:
        GuestFiles().add_program(root, "reader")
    assert error.value.code == 2


def test_a_script_takes_its_interpreter(root: Root, tmp_path: Path) -> None:
    put(tmp_path, "/usr/bin/script", b"#!/opt/bin/serve -x\n")
    put(tmp_path, "/usr/lib/libb.so", elf())
    files = GuestFiles()
    files.add_program(root, "script")
    assert b"opt/bin/serve\0" in packed(files, tmp_path)


def test_a_tree_leaves_out_what_is_said_and_plug_ins_may_lack_libraries(
    root: Root, tmp_path: Path
) -> None:
    put(tmp_path, "/usr/share/it/a.txt", b"kept")
    put(tmp_path, "/usr/share/it/b.skip", b"left")
    put(tmp_path, "/usr/share/it/test/c.txt", b"left")
    put(tmp_path, "/usr/share/it/plug.so", elf(("libnowhere.so",)))
    files = GuestFiles()
    files.add_tree(root, "/usr/share/it", ("*.skip", "test"))
    data = packed(files, tmp_path)
    assert b"kept" in data and b"left" not in data and b"plug.so\0" in data
    with pytest.raises(LabError, match="no file /nowhere"):
        files.add_tree(root, "/nowhere")
