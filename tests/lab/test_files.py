# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files of a root a program takes along."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.vm.files import GuestFiles, Root
from tests.lab.newc import unpack
from tests.lab.synthetic import elf

MOST = 1 << 20
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


def unpacked(files: GuestFiles, tmp_path: Path) -> Path:
    """The guest's root, as a folder."""
    folder = tmp_path / "guest"
    unpack(files.pack(tmp_path / "out.cpio").read_bytes(), folder)
    return folder


def test_a_program_takes_its_loader_and_libraries(root: Root, tmp_path: Path) -> None:
    files = GuestFiles(MOST)
    put(tmp_path, "/usr/lib/libb.so", elf())
    assert files.add_program(root, "serve") == "/usr/bin/serve"
    guest = unpacked(files, tmp_path)
    for name in ("opt/bin/serve", "lib64/ld.so", "usr/lib/liba.so.1.2", "opt/own/libb.so"):
        assert (guest / name).is_file()
    assert (guest / "usr/lib/liba.so.1").readlink() == Path("liba.so.1.2")
    assert (guest / "usr/bin/serve").readlink() == Path("/opt/bin/serve")


def test_what_a_link_leads_to_comes_along_and_nothing_twice(root: Root, tmp_path: Path) -> None:
    put(tmp_path, "/opt/jvm/bin/java", elf(("libjli.so",), LOADER, "$ORIGIN/../lib"))
    put(tmp_path, "/opt/jvm/lib/libjli.so", elf())
    put(tmp_path, "/etc/java/conf", b"data", 0o600)
    (tmp_path / "opt/jvm/conf").symlink_to("/etc/java")
    (tmp_path / "opt/jvm/up").symlink_to("..")
    (tmp_path / "opt/jvm/all").symlink_to("/")
    (tmp_path / "opt/jvm/mounts").symlink_to("/proc/self/mounts")
    (tmp_path / "opt/jvm/gone").symlink_to("/nowhere/x")
    (tmp_path / "opt/jvm/round").symlink_to("round")
    (tmp_path / "etc/alt").symlink_to("/opt/jvm/bin/java")
    (tmp_path / "usr/bin/java").symlink_to("/etc/alt")
    (tmp_path / "opt/other").mkdir()
    files = GuestFiles(MOST)
    assert files.add_program(root, "java") == "/usr/bin/java"
    files.add_tree(root, "/opt/jvm")
    files.add_tree(root, "/opt/jvm")
    guest = unpacked(files, tmp_path)
    assert (guest / "opt/jvm/lib/libjli.so").is_file(), "found beside what the links lead to"
    assert (guest / "etc/alt").readlink() == Path("/opt/jvm/bin/java")
    assert (guest / "etc/java/conf").read_bytes() == b"data"
    assert (guest / "etc/java/conf").stat().st_mode & 0o777 == 0o600
    links = {"conf": "/etc/java", "up": "..", "all": "/", "mounts": "/proc/self/mounts"}
    links |= {"gone": "/nowhere/x", "round": "round"}
    assert {n: str((guest / "opt/jvm" / n).readlink()) for n in links} == links
    assert not (guest / "opt/other").exists(), "a link to a folder above brings no more of it"


def test_folders_that_are_links_stay_so_for_all_roots(root: Root, tmp_path: Path) -> None:
    (tmp_path / "lib").symlink_to("usr/lib")
    put(tmp_path, "/usr/lib/one.so", elf())
    other = Root(tmp_path / "second")
    put(other.folder, "/lib/two.so", elf())
    files = GuestFiles(MOST)
    files.add_tree(root, "/lib/one.so")
    files.add_tree(other, "/lib/two.so")
    files.add_bytes("/lib/three", b"3")
    guest = unpacked(files, tmp_path)
    assert (guest / "lib").is_symlink()
    assert sorted(path.name for path in (guest / "usr/lib").iterdir()) == [
        "one.so", "three", "two.so",
    ]  # fmt: skip


def test_what_the_guest_has_of_its_own_is_refused(root: Root, tmp_path: Path) -> None:
    put(tmp_path, "/dev/shm/data", b"")
    (tmp_path / "there").symlink_to("/dev/shm/data")
    for path in ("/dev/shm", "/dev/shm/data", "/there"):
        with pytest.raises(LabError, match="the guest has its own") as error:
            GuestFiles(MOST).add_tree(root, path)
        assert error.value.code == 2


def test_more_than_a_guest_can_hold_is_refused_before_it_is_read(
    root: Root, tmp_path: Path
) -> None:
    with (tmp_path / "vast").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LabError, match=r"more than 1 MiB of files, up to /vast"):
        GuestFiles(MOST).add_tree(root, "/vast")


def test_libraries_are_found_where_the_loader_is_configured_to_look(
    root: Root, tmp_path: Path
) -> None:
    put(tmp_path, "/etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf # all\n")
    put(tmp_path, "/etc/ld.so.conf.d/a.conf", b"include ../ld.so.conf\n/opt/far\n")
    put(tmp_path, "/opt/far/libb.so", elf())
    (tmp_path / "opt/own/libb.so").unlink()
    files = GuestFiles(MOST)
    files.add_program(root, "serve")
    assert (unpacked(files, tmp_path) / "opt/far/libb.so").is_file()


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
        GuestFiles(MOST).add_program(root, "serve")
    assert error.value.code == 5


def test_a_missing_program_is_bad_input(root: Root) -> None:
    with pytest.raises(LabError, match="no program reader") as error:
        GuestFiles(MOST).add_program(root, "reader")
    assert error.value.code == 2


def test_a_script_takes_its_interpreter(root: Root, tmp_path: Path) -> None:
    put(tmp_path, "/usr/bin/script", b"#!/opt/bin/serve -x\n")
    put(tmp_path, "/usr/lib/libb.so", elf())
    files = GuestFiles(MOST)
    files.add_program(root, "script")
    assert (unpacked(files, tmp_path) / "opt/bin/serve").is_file()


def test_what_env_is_to_find_comes_along(root: Root, tmp_path: Path) -> None:
    put(tmp_path, "/usr/bin/env", elf())
    put(tmp_path, "/usr/lib/libb.so", elf())
    put(tmp_path, "/usr/bin/script", b"#!/usr/bin/env serve\n")
    files = GuestFiles(MOST)
    files.add_program(root, "script")
    assert (unpacked(files, tmp_path) / "opt/bin/serve").is_file()
    put(tmp_path, "/usr/bin/lost", b"#!/usr/bin/env nobody\n")
    with pytest.raises(LabError, match="lost needs nobody"):
        files.add_program(root, "lost")


def test_a_tree_leaves_out_what_is_said_and_plug_ins_may_lack_libraries(
    root: Root, tmp_path: Path
) -> None:
    put(tmp_path, "/usr/share/it/a.txt", b"kept")
    put(tmp_path, "/usr/share/it/b.skip", b"left")
    put(tmp_path, "/usr/share/it/test/c.txt", b"left")
    put(tmp_path, "/usr/share/it/plug.so", elf(("libnowhere.so",)))
    files = GuestFiles(MOST)
    files.add_tree(root, "/usr/share/it", ("*.skip", "test"))
    guest = unpacked(files, tmp_path) / "usr/share/it"
    assert sorted(path.name for path in guest.iterdir()) == ["a.txt", "plug.so"]
    with pytest.raises(LabError, match="no file /nowhere"):
        files.add_tree(root, "/nowhere")
