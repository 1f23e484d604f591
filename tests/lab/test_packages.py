# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of Debian's packages make a kernel, and a kernel out of such packages."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.apt import Package
from mthp.lab.kernels.kernels import Origin, find, staging
from mthp.lab.kernels.packages import Offer, best, offers, unpack
from tests.lab.debs import deb
from tests.lab.synthetic import bzimage, module

R = "+deb13-cloud-amd64"
NEW = "7.3.4" + R
TEST = Origin("a test", ("p=1",))
OLD = "6.1.0-50-cloud-amd64"


def package(name: str, size: int = 1) -> Package:
    return Package(name, "1-1", size, 2 * size)


def names(*them: str) -> list[Offer]:
    return offers([package(name) for name in them], "a-suite")


def fetched(offer: Offer) -> list[str]:
    return [each.name for each in offer.packages]


def test_a_kernel_in_parts() -> None:
    (offer,) = offers(
        [
            package(f"linux-base-{NEW}", 1),
            package(f"linux-binary-{NEW}", 10),
            package(f"linux-binary-unsigned-{NEW}", 100),
            package(f"linux-image-{NEW}", 1000),
            package(f"linux-modules-{NEW}", 10000),
        ],
        "a-suite",
    )
    assert offer.release == NEW
    assert fetched(offer) == [
        f"linux-binary-unsigned-{NEW}", f"linux-modules-{NEW}", f"linux-base-{NEW}",
    ]  # fmt: skip
    assert (offer.size, offer.installed_size) == (10101, 20202)
    assert offer.complete
    assert offer.origin == Origin("Debian a-suite", tuple(f"{name}=1-1" for name in fetched(offer)))


def test_a_kernel_in_one_piece() -> None:
    (offer,) = names(f"linux-image-{OLD}", f"linux-image-{OLD}-unsigned")
    assert fetched(offer) == [f"linux-image-{OLD}-unsigned"]
    (offer,) = names(f"linux-image-{OLD}")
    assert (fetched(offer), offer.complete) == ([f"linux-image-{OLD}"], True)


def test_a_kernel_whose_modules_are_gone() -> None:
    (offer,) = names(f"linux-image-{NEW}", f"linux-binary-{NEW}")
    assert (fetched(offer), offer.complete) == ([f"linux-binary-{NEW}"], False)


def test_other_packages_are_no_kernel() -> None:
    others = ("linux-image-cloud-amd64", f"linux-headers-{NEW}", f"linux-image-{OLD}-dbg",
              "linux-image-7.3.4+deb13-amd64", f"linux-modules-{NEW}", f"linux-base-{NEW}")  # fmt: skip
    assert names(*others) == []


def test_the_newest_with_modules_is_best() -> None:
    there = names(
        f"linux-binary-7.1.9{R}", f"linux-binary-7.2.9{R}", f"linux-modules-7.2.9{R}",
        f"linux-binary-7.2.10{R}", f"linux-modules-7.2.10{R}", f"linux-binary-7.2.11{R}",
    )  # fmt: skip
    for wanted, release in (
        ("7.2", "7.2.10"),
        ("7", "7.2.10"),
        ("7.2.11", "7.2.11"),
        ("7.1", "7.1.9"),
    ):
        offer = best(there, wanted)
        assert offer is not None
        assert offer.release == release + R
    assert best(there, "7.20") is None


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))


@needs_dpkg
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("usr", ["usr/", ""])
def test_packages_in_parts_become_a_kernel(tmp_path: Path, usr: str) -> None:
    home = f"{usr}lib/modules/{NEW}"
    builtin = f"{home}/modules.builtin"
    ko = module(depends="", vermagic=f"{NEW} SMP ")
    files = [
        deb(tmp_path, "binary", {f"{home}/vmlinuz.unsigned": bzimage(NEW)}),
        deb(tmp_path, "modules", {f"{home}/kernel/drivers/zram.ko.xz": lzma.compress(ko)}),
        deb(tmp_path, "base", {f"{home}/config": b"CONFIG_KSM=y\n", builtin: b"kernel/a.ko\n"}),
    ]
    with staging() as work:
        kernel = unpack(files, NEW, TEST, work)
    assert kernel == find("7.3")
    assert (kernel.release, kernel.origin, kernel.config) == (NEW, TEST, {"CONFIG_KSM": "y"})
    assert [path.name for path in kernel.module("zram")] == ["zram.ko.xz"]
    assert kernel.module("a") == []
    assert not any(file.exists() for file in files)


@needs_dpkg
@pytest.mark.usefixtures("cache")
def test_a_package_in_one_piece_becomes_a_kernel(tmp_path: Path) -> None:
    file = deb(
        tmp_path,
        "image",
        {
            f"boot/vmlinuz-{OLD}": bzimage(OLD),
            f"boot/config-{OLD}": b"CONFIG_SWAP=y\n",
            f"lib/modules/{OLD}/kernel/zram.ko": module(depends=""),
        },
    )
    with staging() as work:
        kernel = unpack([file], OLD, TEST, work)
    assert kernel.config == {"CONFIG_SWAP": "y"}
    assert [path.name for path in kernel.module("zram")] == ["zram.ko"]


@needs_dpkg
@pytest.mark.usefixtures("cache")
def test_an_image_alone_has_no_modules(tmp_path: Path) -> None:
    home = f"usr/lib/modules/{NEW}"
    file = deb(tmp_path, "binary", {f"{home}/vmlinuz": bzimage(NEW), f"{home}/modules.order": b""})
    with staging() as work:
        assert unpack([file], NEW, TEST, work).modules is None


@needs_dpkg
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("files", "says"),
    [({"etc/x": b""}, "hold no image"), ({f"boot/vmlinuz-{NEW}": bzimage(OLD)}, "hold no image")],
)
def test_packages_without_the_kernel(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    file = deb(tmp_path, "image", files)
    with staging() as work, pytest.raises(LabError, match=says):
        unpack([file], NEW, TEST, work)


@needs_dpkg
@pytest.mark.usefixtures("cache")
def test_a_torn_package(tmp_path: Path) -> None:
    file = tmp_path / "torn.deb"
    file.write_bytes(b"!<arch>\ntorn")
    with staging() as work, pytest.raises(LabError, match=r"torn\.deb cannot be unpacked"):
        unpack([file], NEW, TEST, work)
