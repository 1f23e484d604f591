# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a kernel's source in the cache: those its selftest is compiled from, and its memory model.

They come from Debian's linux-source package by name, a .deb of it, or an unpacked tree.
"""

from __future__ import annotations

import lzma
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.kernels.apt import Archive, NoSuite, Package, PrivateApt
from mthp.lab.kernels.kernels import cache_dir, check_room, staging
from mthp.lab.kernels.packages import SUITES, Progress, read_lists
from mthp.words.files import put_in_place, write_new

SELFTESTS = PurePosixPath("tools/testing/selftests")
MEMORY_MODEL = PurePosixPath("tools/memory-model")
_PARTS = re.compile(
    r"tools/(?:testing/selftests/(?:kselftest[^/]*\.h|mm/[^/]+\.[ch])"
    r"|(?:arch/x86/)?include/.+\.h"
    r"|memory-model/[^/]+\.(?:bell|cat|cfg|def))"
)
"""The files of a kernel's tree that are kept: under 10 MiB of 1.6 GiB."""
_TARBALL = re.compile(r"\./usr/src/linux-source-[^/]+\.tar\.xz")
_UNPACKED = 10 << 20


@dataclass(frozen=True)
class SourceOffer:
    """A source package that the archive has."""

    package: Package
    suite: str
    apt: PrivateApt


def sources_dir() -> Path:
    """The folder of the cache with a folder for each source package."""
    return cache_dir() / "sources"


def cached_source(release: str, part: PurePosixPath = SELFTESTS) -> Path | None:
    """The newest source of that release (7.3) in the cache with that part; None if there is none."""
    kept = sources_dir().glob(f"linux-source-{release}_*")
    fitting = [folder for folder in kept if (folder / part).is_dir()]
    return max(fitting, default=None, key=lambda path: path.stat().st_mtime)


def look_up(release: str, archive: Archive, progress: Progress) -> SourceOffer:
    """The source package of a release (7.3), from the first suite that has it.

    LabError: none has, or the archive does not answer.
    """
    name = f"linux-source-{release}"
    for suite in SUITES:
        try:
            apt = read_lists(archive, suite, progress)
        except NoSuite:
            continue
        found = apt.packages(f"^{re.escape(name)}$")
        if found:
            return SourceOffer(found[0], suite, apt)
    raise LabError(HOST_LACKS, f"no {name} in Debian's suites (--source PATH takes a tree)")


def fetch(offer: SourceOffer) -> Path:
    """Fetch the package and keep its parts. LabError: no room, or a step failed."""
    check_room(offer.package.size + _UNPACKED)
    with staging() as work:
        (deb,) = offer.apt.download(work, offer.package)
        return _keep_parts(deb, work)


def source_at(path: Path) -> Path:
    """The tree at a path: a folder as it is, a .deb of linux-source through the cache.

    LabError: there is no khugepaged selftest in it.
    """
    if path.is_dir():
        if not (path / SELFTESTS / "mm/khugepaged.c").is_file():
            raise LabError(BAD_INPUT, f"{path}: no {SELFTESTS}/mm/khugepaged.c in it")
        return path
    if not path.is_file():
        raise LabError(BAD_INPUT, f"{path}: no such file or folder")
    kept = sources_dir() / path.stem
    if kept.is_dir():
        return kept
    check_room(_UNPACKED)
    with staging() as work:
        return _keep_parts(path, work)


def _keep_parts(deb: Path, work: Path) -> Path:
    """Unpack the parts under work, and move them to their place whole."""
    folder, place = work / "source", sources_dir() / deb.stem
    try:
        with _tarball(deb) as tarball:
            for member, data in _parts(tarball):
                file = folder / member
                file.parent.mkdir(parents=True, exist_ok=True)
                write_new(file, data)
    except (tarfile.TarError, lzma.LZMAError, EOFError):
        raise LabError(BAD_INPUT, f"{deb}: not a .deb of linux-source") from None
    if not (folder / SELFTESTS / "mm/khugepaged.c").is_file():
        raise LabError(BAD_INPUT, f"{deb}: no khugepaged selftest in it")
    place.parent.mkdir(exist_ok=True)
    put_in_place(folder, place)  # where an earlier version may have kept less
    return place


@contextmanager
def _tarball(deb: Path) -> Iterator[IO[bytes]]:
    """The tree's own archive inside the package, as a stream."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise LabError(HOST_LACKS, "dpkg-deb is not on this host") from None
    with process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as package:
                for member in package:
                    data = package.extractfile(member) if _TARBALL.fullmatch(member.name) else None
                    if data is not None:
                        yield data
                        return
            raise LabError(BAD_INPUT, f"{deb}: no source of a kernel in it")
        finally:
            process.kill()


def _parts(tarball: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    """(path below the tree, contents) of every file that is kept."""
    with tarfile.open(fileobj=tarball, mode="r|xz") as tree:
        for member in tree:
            name = member.name.removeprefix("./").partition("/")[2]
            if member.isreg() and _PARTS.fullmatch(name) and ".." not in name.split("/"):
                data = tree.extractfile(member)
                assert data is not None
                yield name, data.read()
