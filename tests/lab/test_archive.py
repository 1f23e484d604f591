# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel found in an archive, fetched and kept: real apt, on a small archive in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.apt import Archive
from mthp.lab.kernels.kernels import installed, kernels_dir
from mthp.lab.kernels.packages import DebianKernels
from tests.lab.debs import SignedFolder, deb
from tests.lab.synthetic import bzimage, module

pytestmark = pytest.mark.skipif(
    any(shutil.which(each) is None for each in ("apt-get", "dpkg-deb", "gpg", "gpgconf")),
    reason="needs apt, dpkg-deb and gpg",
)

R = "-cloud-amd64"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[SignedFolder]:
    folder = SignedFolder(tmp_path / "archive")
    yield folder
    folder.close()


def parts(folder: Path, release: str) -> list[Path]:
    home = f"usr/lib/modules/{release}"
    ko = module(depends="", vermagic=f"{release} SMP ")
    return [
        deb(folder, f"linux-binary-{release}", {f"{home}/vmlinuz": bzimage(release)}),
        deb(folder, f"linux-modules-{release}", {f"{home}/kernel/zram.ko": ko}),
        deb(folder, f"linux-base-{release}", {f"{home}/config": b"CONFIG_KSM=y\n"}),
    ]


def whole(folder: Path, release: str) -> list[Path]:
    files = {f"boot/vmlinuz-{release}": bzimage(release)}
    return [deb(folder, f"linux-image-{release}", files)]


class Said(list[str]):
    """What a DebianKernels says."""

    def kernels(self, repository: SignedFolder) -> DebianKernels:
        """One that says it here."""
        archive = Archive(f"file:{repository.folder}", repository.keyring)
        return DebianKernels(archive, self.append)


def test_a_kernel_is_found_fetched_and_kept(tmp_path: Path, repository: SignedFolder) -> None:
    old, new = f"7.3.4{R}", f"7.3.12{R}"
    repository.publish("trixie-backports", [*parts(tmp_path, old), *parts(tmp_path, new)])
    said = Said()
    debian = said.kernels(repository)
    offer = debian.look_up("7.3")
    assert (offer.release, offer.suite, offer.complete) == (new, "trixie-backports", True)
    assert offer.size == sum(file.stat().st_size for file in tmp_path.glob(f"linux-*{new}_*.deb"))
    assert offer.installed_size == 3 * 10 * 1024
    kernel = debian.fetch(offer)
    assert installed() == [kernel]
    assert (kernel.release, kernel.origin) == (new, offer.origin)
    assert kernel.origin.packages[0] == f"linux-binary-{new}=1"
    assert kernel.config == {"CONFIG_KSM": "y"}
    assert [path.name for path in kernel.module("zram")] == ["zram.ko"]
    assert [path.name for path in kernels_dir().iterdir()] == [new]
    assert [line.partition(" (")[0] for line in said] == [
        "reading the package lists of Debian trixie-backports",
        f"fetching linux-binary-{new}",
        f"fetching linux-modules-{new}",
        f"fetching linux-base-{new}",
    ]
    assert debian.look_up("7.3.4").release == old


def test_what_the_cache_holds_is_not_fetched_again(
    tmp_path: Path, repository: SignedFolder
) -> None:
    old, new = f"7.3.4{R}", f"7.3.5{R}"
    repository.publish("trixie-backports", parts(tmp_path, old))
    said = Said()
    debian = said.kernels(repository)
    (offer,) = debian.choose(["7.3", "7", old])
    debian.fetch(offer)
    assert debian.choose(["7.3"]) == []
    assert said[-1] == f"kernel {old} is in the cache already, and the newest there is"
    repository.publish("trixie-backports", [*parts(tmp_path, old), *parts(tmp_path, new)])
    assert [each.release for each in said.kernels(repository).choose(["7.3"])] == [new]


def test_suites_are_looked_through_and_may_be_missing(
    tmp_path: Path, repository: SignedFolder
) -> None:
    repository.publish("trixie-backports", parts(tmp_path, f"7.3.4{R}"))
    repository.publish("trixie", whole(tmp_path, f"6.12.1{R}"))
    said = Said()
    debian = said.kernels(repository)
    offer = debian.look_up("6.12")
    assert (offer.release, offer.suite) == (f"6.12.1{R}", "trixie")
    assert "the archive has no suite bookworm" in said
    with pytest.raises(LabError, match=r"no kernel 6\.1 .*they have 6\.12, 7\.3\)") as caught:
        debian.look_up("6.1")
    assert caught.value.code == 5
    assert sum(line.startswith("reading") for line in said) == 3


def test_a_package_that_changed_on_its_way_is_refused(
    tmp_path: Path, repository: SignedFolder
) -> None:
    (file,) = whole(tmp_path, f"7.3.4{R}")
    repository.publish("trixie-backports", [file])
    (published,) = (repository.folder / "pool").iterdir()
    published.write_bytes(published.read_bytes().replace(b"debian-binary", b"debian-banana"))
    debian = Said().kernels(repository)
    with pytest.raises(LabError) as caught:
        debian.fetch(debian.look_up("7.3"))
    assert caught.value.code == 5
    assert "\n" not in str(caught.value)
    assert list(kernels_dir().iterdir()) == []


def test_an_archive_signed_by_another_is_refused(tmp_path: Path, repository: SignedFolder) -> None:
    repository.publish("trixie-backports", whole(tmp_path, f"7.3.4{R}"))
    other = SignedFolder(tmp_path / "other")
    other.close()
    debian = DebianKernels(Archive(f"file:{repository.folder}", other.keyring), Said().append)
    with pytest.raises(LabError, match=r"apt-get .*update: "):
        debian.look_up("7.3")
