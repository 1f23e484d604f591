# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels from Debian: finds the packages of one, fetches them, and unpacks them into the cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.apt import Archive, NoSuite, Package, PrivateApt, unpack_deb
from mthp.lab.kernels.kernels import (
    CachedKernel,
    Origin,
    cache_dir,
    check_room,
    installed,
    keep,
    matches,
    release_of_image,
    staging,
    version_key,
)
from mthp.words.files import copy_new, put_in_place
from mthp.words.units import human_bytes

DEFAULT_RELEASE = "7.3"
SUITES = {"trixie-backports": "0.5 MiB", "bookworm": "9 MiB", "trixie": "10 MiB"}
"""Debian's suites in the order of search -> the approximate size of their lists."""

_FLAVOUR = "cloud-amd64"
_KERNEL_PACKAGE = re.compile(
    rf"linux-(binary-unsigned|binary|image|modules|base)-(\d\S*-{_FLAVOUR})(-unsigned)?"
)
_PATTERN = rf"^linux-(binary|image|modules|base)-.*-{_FLAVOUR}(-unsigned)?$"
_IMAGES = ("binary-unsigned", "binary", "image-unsigned", "image")
"""Packages with the image, by preference: beside linux-binary, linux-image is empty."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Offer:
    """A kernel the archive has: the packages to fetch, the image's first.

    complete: whether its modules are there too. Of an older kernel the archive keeps the image, and
    drops its modules' package.
    """

    release: str
    suite: str
    packages: tuple[Package, ...]
    complete: bool

    @property
    def size(self) -> int:
        """Bytes to fetch."""
        return sum(package.size for package in self.packages)

    @property
    def installed_size(self) -> int:
        """Bytes unpacked."""
        return sum(package.installed_size for package in self.packages)

    @property
    def origin(self) -> Origin:
        """The origin that the cache records."""
        named = (f"{package.name}={package.version}" for package in self.packages)
        return Origin(f"Debian {self.suite}", tuple(named))


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
    return sorted((offer for offer in made if offer), key=_age)


def _offer(release: str, suite: str, kinds: dict[str, Package]) -> Offer | None:
    image = next((kinds[kind] for kind in _IMAGES if kind in kinds), None)
    if image is None:
        return None
    rest = [kinds[kind] for kind in ("modules", "base") if kind in kinds]
    whole = "modules" in kinds or image.name.startswith("linux-image")
    return Offer(release, suite, (image, *rest), whole)


def best(found: Iterable[Offer], wanted: str) -> Offer | None:
    """The newest offer that matches. One with modules is preferred to a newer one without."""
    fitting = [offer for offer in found if matches(offer.release, wanted)]
    complete = [offer for offer in fitting if offer.complete]
    return max(complete or fitting, key=_age, default=None)


def read_lists(archive: Archive, suite: str, progress: Progress) -> PrivateApt:
    """Set up apt for a suite of SUITES, and fetch its lists.

    NoSuite: the archive lacks the suite. LabError: it does not answer.
    """
    progress(f"reading the package lists of Debian {suite} (about {SUITES[suite]})")
    apt = PrivateApt(cache_dir() / "apt" / suite, archive, suite)
    apt.update()
    return apt


class DebianKernels:
    """Finds and fetches Debian's kernels for virtual machines. Each suite's lists are fetched once."""

    def __init__(self, archive: Archive, progress: Progress) -> None:
        """progress: called with a line about each step."""
        self._progress = progress
        self._archive = archive
        self._apts: dict[str, PrivateApt] = {}
        self._offers: dict[str, list[Offer]] = {}

    def look_up(self, wanted: str) -> Offer:
        """The best kernel for a release or its beginning. LabError: no suite has one."""
        known: list[Offer] = []
        for suite in SUITES:
            there = self._look_into(suite)
            offer = best(there, wanted)
            if offer:
                return offer
            known += there
        series = {".".join(offer.release.split(".")[:2]) for offer in known}
        have = ", ".join(sorted(series, key=version_key)) or "none"
        raise LabError(HOST_LACKS, f"no kernel {wanted} in Debian's suites (they have {have})")

    def choose(self, wanted: Iterable[str]) -> list[Offer]:
        """The results of look_up() for these releases, each once, without those that the cache has."""
        have = {kernel.origin for kernel in installed()}
        chosen: dict[str, Offer] = {}
        for offer in map(self.look_up, wanted):
            if offer.origin in have:
                self._progress(
                    f"kernel {offer.release} is in the cache already, and the newest there is"
                )
            else:
                chosen[offer.release] = offer
        return list(chosen.values())

    def fetch(self, offer: Offer) -> CachedKernel:
        """Fetch, unpack and put into the cache. LabError: no room, or a step failed."""
        check_room(offer.size + offer.installed_size)
        apt = self._apts[offer.suite]
        with staging() as work:
            files = []
            for package in offer.packages:
                self._progress(f"fetching {package.name} ({human_bytes(package.size)})")
                files += apt.download(work, package)
            return unpack(files, offer.release, offer.origin, work)

    def _look_into(self, suite: str) -> list[Offer]:
        if suite not in self._offers:
            try:
                apt = self._apts[suite] = read_lists(self._archive, suite, self._progress)
                self._offers[suite] = offers(apt.packages(_PATTERN), suite)
            except NoSuite:
                self._progress(f"the archive has no suite {suite}")
                self._offers[suite] = []
        return self._offers[suite]


def _age(offer: Offer) -> tuple[int, ...]:
    return version_key(offer.release)


def unpack(files: Iterable[Path], release: str, origin: Origin, work: Path) -> CachedKernel:
    """Put the kernel of that release, cut into these .deb files, into the cache.

    work: a folder of staging(); the files go. Errors: LabError, they hold no such kernel.
    """
    unpacked = work / "unpacked"
    for file in files:
        unpack_deb(file, unpacked)
        file.unlink()
    return keep(_arrange(unpacked, release, work / "kernel"), release, origin)


def _arrange(unpacked: Path, release: str, folder: Path) -> Path:
    """Make a folder of the cache from a package's tree: vmlinuz, config, modules/."""
    folder.mkdir()
    homes = [unpacked / below / release for below in ("usr/lib/modules", "lib/modules")]
    boot = unpacked / "boot"
    images = [path for home in homes for path in home.glob("vmlinuz*")]
    images += boot.glob(f"vmlinuz-{release}*")
    if not images or release_of_image(images[0]) != release:
        raise LabError(HOST_LACKS, f"the packages of {release} hold no image of that kernel")
    put_in_place(images[0], folder / "vmlinuz")
    for config in (*(home / "config" for home in homes), boot / f"config-{release}"):
        if config.is_file():
            copy_new(config, folder / "config")
    for home in homes:
        if (home / "kernel").is_dir():
            put_in_place(home, folder / "modules")
    return folder
