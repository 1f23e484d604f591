# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of a kernel's source: from the cache, or from Debian's archive if that is wanted."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from mthp.cli.consent import asked
from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.apt import debian_archive, system_sources
from mthp.lab.kernels.packages import DEFAULT_RELEASE
from mthp.lab.kernels.source import cached_source, fetch, look_up
from mthp.words.streams import say
from mthp.words.units import human_bytes


def kept_or_fetched(part: PurePosixPath, what: str, otherwise: str, *, yes: bool) -> Path:
    """The folder of a source with that part in it. what: how it is called in what is said.

    otherwise: which option does without it. LabError: it is not here, and is not to be fetched.
    """
    kept = cached_source(DEFAULT_RELEASE, part)
    if kept is not None:
        return kept
    offer = look_up(DEFAULT_RELEASE, debian_archive(system_sources()), say)
    package = offer.package
    say(
        f"{package.name} {package.version}, Debian {offer.suite}: {human_bytes(package.size)} to "
        "fetch, under 10 MiB of it kept in the cache"
    )
    if not (yes or asked("Fetch it now? [y/N] ")):
        raise LabError(HOST_LACKS, f"{what} is not here: --yes fetches it, {otherwise}")
    return fetch(offer)
