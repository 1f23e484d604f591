# SPDX-License-Identifier: GPL-2.0-or-later
"""All snapshots, by Dask: on processes of this host, or on a cluster that there is.

A few more than there are workers are under way at a time; what is done is on disk. Dask gives what a worker
had that dies to another. Of a snapshot that was there when four died it cannot tell whether it was to blame:
such run once more at the end, one at a time.
"""

from __future__ import annotations

import glob
import os
import signal
import uuid
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from logging import CRITICAL

from distributed import Client, KilledWorker, LocalCluster, as_completed

from mthp.fleet.records import FleetError, Swept, Unusable
from mthp.fleet.work import FleetJob, sweep_snapshot

AHEAD = 2
"""Snapshots under way for each thread of a worker."""
PATIENCE = 30
"""Seconds until a scheduler answers, and until it has a worker."""


def snapshots_of(fleet: str) -> list[str]:
    """The .npz files below a folder, or those that a pattern names (** for folders within folders), sorted."""
    if os.path.isdir(fleet):
        found = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(fleet)
            for name in names
            if name.endswith(".npz")
        ]
    else:
        found = [path for path in glob.glob(fleet, recursive=True) if not os.path.isdir(path)]
    return sorted(map(os.path.abspath, found))


@contextmanager
def cluster(scheduler: str | None, jobs: int | None) -> Iterator[Client]:
    """A scheduler's client: of the one that is named, or of one with so many processes here, which end
    with us. FleetError where there is none."""
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=PATIENCE)
            with client:
                client.wait_for_workers(1, timeout=PATIENCE)
                yield client
        except (OSError, ValueError) as error:
            raise FleetError(f"scheduler {scheduler}: {error}", 5) from None
        return
    # Threads and processes inherit that they do not hear Ctrl-C: it is for us alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        local = LocalCluster(
            jobs or os.cpu_count(), threads_per_worker=1, dashboard_address=None,
            silence_logs=CRITICAL,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with local, Client(local) as client:
        yield client


def sweep_all(
    client: Client, paths: Iterable[str], folder: str, job: FleetJob
) -> Iterator[Swept | Unusable]:
    """Do all of them; in no order, each as it is done. FleetError: the cluster is gone."""
    ahead = AHEAD * max(1, sum(client.nthreads().values()))
    suspects = yield from _round(client, paths, folder, job, ahead)
    deadly = yield from _round(client, suspects, folder, job, 1)
    for path in deadly:
        yield Unusable(path, "each worker that had it was killed (out of memory?)")


def _round(
    client: Client, paths: Iterable[str], folder: str, job: FleetJob, ahead: int
) -> Generator[Swept | Unusable, None, list[str]]:
    """Do them, so many at a time. Returns those whose workers died."""
    name, rest, suspects = uuid.uuid4().hex, iter(paths), list[str]()
    path_of: dict[str, str] = {}
    running = as_completed()

    def start(path: str) -> None:
        key = f"{os.path.basename(path)}-{name}-{len(path_of)}"
        path_of[key] = path
        running.add(client.submit(sweep_snapshot, path, folder, job, key=key))

    for path in islice(rest, ahead):
        start(path)
    for future in running:
        path = path_of[future.key]
        if future.status == "cancelled":
            raise FleetError("the scheduler is gone", 1)
        error = future.exception()
        if error is None:
            yield future.result()
        elif isinstance(error, KilledWorker):
            suspects.append(path)
        elif isinstance(error, OSError) and error.filename:
            raise error
        else:
            yield Unusable(path, f"{type(error).__name__}: {error}")
        future.release()
        for path in islice(rest, 1):
            start(path)
    return suspects
