# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacks Debian's packages of a program, with all that they depend on, into a folder of the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from mthp.lab.kernels.apt import Archive, debian_archive, system_sources, unpack_deb
from mthp.lab.kernels.kernels import cache_dir, check_room, staging
from mthp.lab.kernels.packages import Progress, read_lists
from mthp.lab.vm.files import Root
from mthp.words.files import put_in_place
from mthp.words.units import human_bytes

SUITE = "bookworm"


def debian_root(
    names: Sequence[str],
    progress: Progress,
    archive: Callable[[], Archive] = lambda: debian_archive(system_sources()),
) -> Root:
    """Make a tree of these packages and what they depend on, unless the cache has it.

    archive: called for Debian's archive if something must be fetched. LabError (5): there is no
    archive, no such package, or not enough space.
    """
    key = hashlib.sha256(" ".join((SUITE, *sorted(names))).encode()).hexdigest()[:16]
    target = cache_dir() / "roots" / key
    if target.is_dir():
        return Root(target)
    apt = read_lists(archive(), SUITE, progress)
    packages = apt.with_dependencies(names)
    size = sum(package.size for package in packages)
    unpacked = sum(package.installed_size for package in packages)
    progress(
        f"fetching {' '.join(names)} with what they need: {len(packages)} packages, "
        f"{human_bytes(size)}, {human_bytes(unpacked)} unpacked"
    )
    check_room(size + unpacked)
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging() as work:
        for file in apt.download(work, *packages):
            unpack_deb(file, work / "tree")
            file.unlink()
        put_in_place(work / "tree", target)
    return Root(target)
