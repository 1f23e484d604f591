# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a kernel's source, from small packages in the shape of linux-source."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.kernels.apt import Archive
from mthp.lab.kernels.source import MEMORY_MODEL, cached_source, fetch, look_up, source_at
from tests.lab.debs import SignedFolder, deb

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")

SELFTEST = "tools/testing/selftests/mm/khugepaged.c"
TREE = {
    SELFTEST: b"int main(void) {}\n",
    "tools/testing/selftests/kselftest.h": b"/* 1 */\n",
    "tools/include/uapi/linux/mman.h": b"/* 2 */\n",
    "tools/arch/x86/include/uapi/asm/errno.h": b"/* 3 */\n",
    "tools/memory-model/linux-kernel.cat": b"(* 4 *)\n",
}
OTHER = {
    "mm/khugepaged.c": b"",
    "tools/testing/selftests/mm/run_vmtests.sh": b"",
    "tools/testing/selftests/mm/../../../../escaped.h": b"",
    "tools/include/../../../escaped.h": b"",
    "tools/arch/arm64/include/uapi/asm/errno.h": b"",
    "tools/memory-model/litmus-tests/MP+polocks.litmus": b"",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tarball(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tree:
        for path, data in files.items():
            member = tarfile.TarInfo(f"linux-source-7.3/{path}")
            member.size = len(data)
            tree.addfile(member, io.BytesIO(data))
    return out.getvalue()


def package(folder: Path, files: dict[str, bytes]) -> Path:
    return deb(folder, "linux-source-7.3", {"usr/src/linux-source-7.3.tar.xz": tarball(files)})


def below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_only_the_parts_are_kept(tmp_path: Path, cache: Path) -> None:
    assert cached_source("7.3") is None
    source = source_at(package(tmp_path, {**OTHER, **TREE}))
    assert source == cache / "sources/linux-source-7.3_1_amd64"
    assert below(source) == TREE
    assert not list(tmp_path.rglob("escaped.h"))
    assert cached_source("7.3") == source
    assert cached_source("7.2") is None


def test_a_package_kept_once_is_not_opened_again(tmp_path: Path) -> None:
    file = package(tmp_path, TREE)
    source = source_at(file)
    file.write_bytes(b"")
    assert source_at(file) == source


def test_a_tree_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / SELFTEST).parent.mkdir(parents=True)
    (tmp_path / SELFTEST).touch()
    assert source_at(tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "nowhere", "no such file or folder"),
        (lambda folder: folder, "no tools/testing/selftests/mm/khugepaged.c in it"),
        (lambda folder: package(folder, OTHER), "no khugepaged selftest in it"),
        (lambda folder: deb(folder, "other", {"usr/share/x": b""}), "no source of a kernel in it"),
        (lambda folder: deb(folder, "broken", {"usr/src/linux-source-7.3.tar.xz": b"no xz"}),
         "not a .deb of linux-source"),
    ],
)  # fmt: skip
def test_what_is_no_source(tmp_path: Path, cache: Path, make: object, says: str) -> None:
    assert callable(make)
    with pytest.raises(LabError, match=says) as refused:
        source_at(make(tmp_path))
    assert refused.value.code == BAD_INPUT
    assert not list(cache.glob("sources/*"))


def test_a_file_that_is_no_package(tmp_path: Path) -> None:
    path = tmp_path / "a.deb"
    path.write_bytes(b"nothing")
    with pytest.raises(LabError) as refused:
        source_at(path)
    assert refused.value.code == BAD_INPUT


# --- from an archive ------------------------------------------------------------------------

needs_apt = pytest.mark.skipif(
    any(shutil.which(each) is None for each in ("apt-get", "gpg", "gpgconf")),
    reason="needs apt and gpg",
)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[SignedFolder]:
    folder = SignedFolder(tmp_path / "archive")
    yield folder
    folder.close()


@needs_apt
def test_found_by_name_fetched_and_kept(tmp_path: Path, repository: SignedFolder) -> None:
    file = package(tmp_path, TREE)
    repository.publish("trixie-backports", [file])
    said: list[str] = []
    archive = Archive(f"file:{repository.folder}", repository.keyring)
    offer = look_up("7.3", archive, said.append)
    assert (offer.package.name, offer.suite) == ("linux-source-7.3", "trixie-backports")
    assert offer.package.size == file.stat().st_size
    assert said == ["reading the package lists of Debian trixie-backports (about 0.5 MiB)"]
    source = fetch(offer)
    assert below(source) == TREE
    assert cached_source("7.3") == source


@needs_apt
def test_what_an_earlier_version_kept_less_of_is_fetched_again(
    tmp_path: Path, repository: SignedFolder
) -> None:
    source = source_at(package(tmp_path, TREE))
    assert cached_source("7.3", MEMORY_MODEL) == source
    shutil.rmtree(source / MEMORY_MODEL)
    assert cached_source("7.3", MEMORY_MODEL) is None
    assert cached_source("7.3") == source
    (offered := tmp_path / "offered").mkdir()
    repository.publish("trixie-backports", [package(offered, TREE)])
    archive = Archive(f"file:{repository.folder}", repository.keyring)
    assert fetch(look_up("7.3", archive, lambda line: None)) == source
    assert below(source) == TREE
    assert cached_source("7.3", MEMORY_MODEL) == source


@needs_apt
def test_an_archive_without_it(tmp_path: Path, repository: SignedFolder) -> None:
    for suite in ("trixie-backports", "bookworm"):
        repository.publish(suite, [package(tmp_path, TREE)])
    archive = Archive(f"file:{repository.folder}", repository.keyring)
    with pytest.raises(LabError, match=r"no linux-source-7\.1 in Debian's suites") as refused:
        look_up("7.1", archive, lambda line: None)
    assert refused.value.code == HOST_LACKS
