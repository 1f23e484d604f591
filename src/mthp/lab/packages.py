# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels from Debian: which packages make one, and how one comes into the cache unpacked."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mthp.lab.apt import Package, PrivateApt, archive_address, system_sources
from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels import (
    Kernel,
    cache_dir,
    check_room,
    keep,
    matches,
    release_of_image,
    staging,
    version_key,
)
from mthp.units import human_bytes

DEFAULT_RELEASE = "7.3"
SUITES = {"trixie-backports": "0.5 MiB", "bookworm": "9 MiB", "trixie": "10 MiB"}
"""Suites of Debian, in the order they are looked through -> about how large their lists are."""

_FLAVOUR = "cloud-amd64"
_KERNEL_PACKAGE = re.compile(
    rf"linux-(binary-unsigned|binary|image|modules|base)-(\d\S*-{_FLAVOUR})(-unsigned)?"
)
_PATTERN = rf"^linux-(binary|image|modules|base)-.*-{_FLAVOUR}(-unsigned)?$"

Say = Callable[[str], None]


class Modules(Enum):
    """Whether a kernel's modules can be had."""

    THERE = "there"
    GONE = "gone"
    """The archive keeps the image of an older kernel and drops its modules' package."""


@dataclass(frozen=True)
class Offer:
    """A kernel the archive has: the packages to fetch, the image's first."""

    release: str
    suite: str
    packages: tuple[Package, ...]
    modules: Modules

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(package.size for package in self.packages)

    @property
    def installed_size(self) -> int:
        """Bytes unpacked."""
        return sum(package.installed_size for package in self.packages)

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        named = ", ".join(f"{package.name}={package.version}" for package in self.packages)
        return f"Debian {self.suite}: {named}"


def offers(packages: Iterable[Package], suite: str) -> list[Offer]:
    """The kernels that these packages make, oldest first.

    Debian cuts a kernel in two ways: all in linux-image (up to 6.18), or the image in linux-binary
    (signed, or -unsigned), the rest in linux-modules and linux-base.
    """
    by_release: dict[str, dict[str, Package]] = {}
    for package in packages:
        found = _KERNEL_PACKAGE.fullmatch(package.name)
        if found:
            kind = found[1] + (found[3] or "")
            by_release.setdefault(found[2], {})[kind] = package
    made = (_offer(release, suite, kinds) for release, kinds in by_release.items())
    return sorted(
        (offer for offer in made if offer), key=lambda offer: version_key(offer.release)
    )


def _offer(release: str, suite: str, kinds: dict[str, Package]) -> Offer | None:
    base = [kinds[kind] for kind in ("base",) if kind in kinds]
    for kind in ("binary-unsigned", "binary"):
        if kind in kinds:
            more = [kinds[other] for other in ("modules",) if other in kinds]
            state = Modules.THERE if more else Modules.GONE
            return Offer(release, suite, (kinds[kind], *more, *base), state)
    for kind in ("image-unsigned", "image"):
        if kind in kinds:
            return Offer(release, suite, (kinds[kind], *base), Modules.THERE)
    return None


def best(found: Iterable[Offer], wanted: str) -> Offer | None:
    """The newest that fits; one with modules rather than a newer one without."""
    fitting = [offer for offer in found if matches(offer.release, wanted)]
    complete = [offer for offer in fitting if offer.modules is Modules.THERE]
    return (complete or fitting or [None])[-1]


class DebianKernels:
    """Debian's kernels for virtual machines, found and fetched. Each suite's lists come once."""

    def __init__(self, say: Say) -> None:
        """say: takes a line about what is being done. LabError: no archive of Debian known."""
        self._say = say
        self._address = archive_address(system_sources())
        self._suites: dict[str, tuple[PrivateApt, list[Offer]]] = {}

    def look_up(self, wanted: str) -> Offer:
        """The kernel to take for a release or its beginning. LabError: no suite has one."""
        known: list[Offer] = []
        for suite in SUITES:
            there = self._look_into(suite)
            offer = best(there, wanted)
            if offer:
                return offer
            known += there
        series = sorted({_series(offer.release) for offer in known}, key=version_key)
        have = ", ".join(series) or "none"
        raise LabError(HOST_LACKS, f"no kernel {wanted} in Debian's suites (they have {have})")

    def fetch(self, offer: Offer) -> Kernel:
        """Fetch, unpack and put into the cache. LabError: no room, or a step failed."""
        check_room(offer.size + offer.installed_size)
        apt, _ = self._suites[offer.suite]
        with staging() as work:
            unpacked = work / "unpacked"
            for package in offer.packages:
                self._say(f"fetching {package.name} ({human_bytes(package.size)})")
                file = apt.download(package, work)
                _unpack(file, unpacked)
                file.unlink()
            return keep(_arrange(unpacked, offer.release, work), offer.release, offer.source)

    def _look_into(self, suite: str) -> list[Offer]:
        if suite not in self._suites:
            self._say(f"reading the package lists of Debian {suite} (about {SUITES[suite]})")
            apt = PrivateApt(cache_dir() / "apt" / suite, self._address, suite)
            apt.update()
            self._suites[suite] = (apt, offers(apt.packages(_PATTERN), suite))
        return self._suites[suite][1]


def _series(release: str) -> str:
    return ".".join(release.split(".")[:2])


def _unpack(file: Path, folder: Path) -> None:
    done = subprocess.run(
        ["dpkg-deb", "-x", str(file), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().partition("\n")[0]
        raise LabError(HOST_LACKS, f"{file.name} cannot be unpacked: {said}")


def _arrange(unpacked: Path, release: str, work: Path) -> Path:
    """From a package's tree to a folder of the cache: vmlinuz, config, modules/."""
    folder = work / "kernel"
    folder.mkdir()
    image = _only(unpacked, ("usr/lib/modules/{}/vmlinuz*", "lib/modules/{}/vmlinuz*", "boot/vmlinuz-{}*"), release)
    if image is None or release_of_image(image) != release:
        raise LabError(HOST_LACKS, f"the packages of {release} hold no image of that kernel")
    image.rename(folder / "vmlinuz")
    config = _only(unpacked, ("usr/lib/modules/{}/config", "lib/modules/{}/config", "boot/config-{}"), release)
    if config:
        shutil.copyfile(config, folder / "config")
    for below in ("usr/lib/modules", "lib/modules"):
        tree = unpacked / below / release
        if (tree / "kernel").is_dir():
            tree.rename(folder / "modules")
            break
    return folder


def _only(root: Path, patterns: Iterable[str], release: str) -> Path | None:
    found = (path for pattern in patterns for path in root.glob(pattern.format(release)))
    return next(found, None)
