# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of kernels: what goes in, what is found, what is refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.kernels import (
    Origin,
    add_copy,
    cache_dir,
    check_release,
    check_room,
    config_facts,
    find,
    installed,
    kernels_dir,
    matches,
    modules_tree,
    release_of_image,
    version_key,
)
from tests.lab.synthetic import bzimage, module, vmlinux


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def image(folder: Path, release: str) -> Path:
    path = folder / f"image-{release}"
    path.write_bytes(bzimage(release))
    return path


def tree(folder: Path, release: str) -> Path:
    path = folder / "lib/modules" / release
    (path / "kernel").mkdir(parents=True)
    (path / "kernel/zram.ko").write_bytes(module(depends="", vermagic=f"{release} SMP "))
    (path / "build").symlink_to(folder)
    return path


@pytest.mark.parametrize(
    "release", ["7.3.4+deb13-cloud-amd64", "6.1.0-50-cloud-amd64", "7.4.0-rc2+"]
)
@pytest.mark.parametrize("make", [bzimage, vmlinux])
def test_an_image_says_its_release(tmp_path: Path, make: type, release: str) -> None:
    (tmp_path / "image").write_bytes(make(release))
    assert release_of_image(tmp_path / "image") == release


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(4096),
        bzimage("7.3")[:0x208],
        bzimage(""),
        bzimage("../../etc"),
        bzimage("7.3/x"),
        vmlinux("7.3", machine=183),
        vmlinux("7.3").replace(b"Linux version", b"Linus version"),
    ],
)
def test_what_is_not_a_kernel(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(LabError, match="not a Linux kernel image") as caught:
        release_of_image(tmp_path / "image")
    assert caught.value.code == 2


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name, says in (("gone", "No such file"), ("fifo", "plain file"), (".", "plain file")):
        with pytest.raises(LabError, match=says):
            release_of_image(tmp_path / name)


def test_a_kernel_from_anywhere_stands_in_the_cache(tmp_path: Path, cache: Path) -> None:
    path = image(tmp_path, "7.4.0-mine")
    kernel = add_copy(path, tree(tmp_path, "7.4.0-mine"))
    assert kernel == find("7.4") == find() == installed()[0]
    assert kernel.image == cache / "kernels/7.4.0-mine/vmlinuz"
    assert kernel.image.read_bytes() == path.read_bytes()
    assert kernel.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert kernel.origin == Origin(str(path))
    assert kernel.modules is not None
    assert sorted(each.name for each in kernel.modules.iterdir()) == ["kernel"]
    assert kernel.module("zram") == [kernel.modules / "kernel/zram.ko"]
    assert [each.name for each in kernels_dir().iterdir()] == ["7.4.0-mine"]


def test_a_second_kernel_of_the_same_release_takes_its_place(tmp_path: Path) -> None:
    add_copy(image(tmp_path, "7.4.0-mine"), tree(tmp_path, "7.4.0-mine"))
    other = tmp_path / "other"
    other.write_bytes(bzimage("7.4.0-mine", banner_at=0x800))
    kernel = add_copy(other, None)
    assert kernel.image.read_bytes() == other.read_bytes()
    assert kernel.modules is None
    with pytest.raises(LabError, match="has no modules: no zram"):
        kernel.module("zram")
    assert [each.name for each in kernels_dir().iterdir()] == ["7.4.0-mine"]


def test_modules_are_found_where_people_have_them(tmp_path: Path) -> None:
    home = tree(tmp_path, "7.4.0-mine")
    for folder in (tmp_path, home.parent, home):
        assert modules_tree(folder, "7.4.0-mine") == home


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("gone", "no such folder"),
        (".", "no modules of 7.4.0"),
        ("lib/modules/7.3.0", "modules of 7.3.0, the kernel is 7.4.0"),
    ],
)
def test_modules_of_another_kernel_are_refused(tmp_path: Path, folder: str, says: str) -> None:
    tree(tmp_path, "7.3.0")
    with pytest.raises(LabError, match=says) as caught:
        add_copy(image(tmp_path, "7.4.0"), tmp_path / folder)
    assert caught.value.code == 2
    assert not installed()


def test_the_newest_that_fits_is_found(tmp_path: Path) -> None:
    for release in ("7.3.4+deb13-cloud-amd64", "7.3.10+deb13-cloud-amd64", "7.30.1", "6.1.0-50"):
        add_copy(image(tmp_path, release), None)
    assert find().release == "7.30.1"
    assert find("7.3").release == "7.3.10+deb13-cloud-amd64"
    assert find("7.3.4").release == "7.3.4+deb13-cloud-amd64"
    assert find("6").release == "6.1.0-50"
    with pytest.raises(
        LabError, match=r"no kernel 7\.2 in the cache \(there: 6\.1\.0-50, "
    ) as caught:
        find("7.2")
    assert caught.value.code == 5


def test_an_exact_release_comes_before_longer_ones(tmp_path: Path) -> None:
    for release in ("7.4.0", "7.4.0-mine"):
        add_copy(image(tmp_path, release), None)
    assert find("7.4.0").release == "7.4.0"


def test_an_empty_cache_says_what_to_do() -> None:
    assert installed() == []
    with pytest.raises(LabError, match="run mthp lab setup"):
        find()


def test_a_damaged_kernel_is_named(tmp_path: Path) -> None:
    kernel = add_copy(image(tmp_path, "7.4.0"), None)
    facts = kernel.image.with_name("kernel.json")
    whole = facts.read_text()
    for text in ("", "{}", "[]", whole.replace('"config": {}', '"config": 3'), whole[:-3]):
        facts.write_text(text)
        with pytest.raises(LabError, match=r"7\.4\.0: damaged; remove it"):
            installed()


def test_what_half_stands_is_not_there(tmp_path: Path) -> None:
    (kernels_dir() / ".new-x" / "kernel").mkdir(parents=True)
    (kernels_dir() / "7.4.0").mkdir()
    assert installed() == []


def test_no_room_is_said_beforehand() -> None:
    check_room(1)
    with pytest.raises(LabError, match="no room: 1024 TiB needed") as caught:
        check_room(1 << 50)
    assert caught.value.code == 5


def test_a_cache_that_cannot_be_written(tmp_path: Path, cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(LabError, match="cannot write the cache") as caught:
        add_copy(image(tmp_path, "7.4.0"), None)
    assert caught.value.code == 5


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [("/a", "/b", "/a"), ("", "/b", "/b/mthp"), ("", "", "{home}/.cache/mthp")],
)
def test_where_the_cache_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, xdg: str, expected: str
) -> None:
    monkeypatch.setenv("MTHP_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == Path(expected.format(home=tmp_path))


def test_releases_sort_by_age() -> None:
    ages = ["6.1.0-50-cloud-amd64", "6.1.0-56-cloud-amd64", "6.19.14+deb13", "7.3.4+deb13",
            "7.3.12+deb13", "7.4.0-rc1", "7.4.0-rc12", "7.4.0", "7.30.0"]  # fmt: skip
    assert sorted(sorted(ages), key=version_key) == ages


def test_a_beginning_ends_with_a_whole_number() -> None:
    assert matches("6.1.0-50-cloud-amd64", "6.1")
    assert not matches("6.12.1", "6.1")
    assert not matches("16.1.0", "6.1")
    assert matches("7.3.4+deb13", "7.3.4+deb13")


@pytest.mark.parametrize("text", ["", "latest", "-o", "7.3 x", "../7", "7/3"])
def test_what_is_no_release(text: str) -> None:
    with pytest.raises(LabError, match="not the beginning of a kernel's release"):
        check_release(text)


def test_config_facts_are_a_few() -> None:
    text = (
        "# CONFIG_KSM is not set\nCONFIG_SWAP=y\nCONFIG_HZ=250\nCONFIG_HZ_250=y\nCONFIG_XFS_FS=m\n"
    )
    assert config_facts(text) == {"CONFIG_SWAP": "y", "CONFIG_HZ": "250"}
