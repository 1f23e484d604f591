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
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from logging import CRITICAL
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue

from distributed import Client, Future, KilledWorker, LocalCluster

from mthp.fleet.records import FleetError, Swept, Unusable
from mthp.fleet.work import FleetJob, done_before, sweep_snapshot

AHEAD = 2
"""Snapshots under way for each thread of a worker."""
PATIENCE = 30
"""Seconds until a scheduler answers, and until it has a worker."""


def snapshots_of(fleet: str) -> list[str]:
    """The .npz files below a folder, or those that a pattern names (** for folders in folders), sorted."""
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
    # Threads and processes inherit that they do not hear Ctrl-C: it is for us alone. The tracker, which is
    # started with the first of them, would have it heard again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        local = LocalCluster(
            n_workers=jobs or os.cpu_count(), threads_per_worker=1, dashboard_address="127.0.0.1:0",
            silence_logs=CRITICAL,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with local, Client(local) as client:
        yield client


def sweep_fleet(
    paths: Iterable[str],
    folder: str,
    job: FleetJob,
    scheduler: str | None,
    jobs: int | None,
    starting: Callable[[], None],
) -> Generator[Swept | Unusable, None, None]:
    """Do all of them, on workers from the first that is not done yet on; where all are, there are none.
    starting: called before they are started. FleetError: there is no cluster, or it is gone."""
    rest = iter(paths)
    for path in rest:
        done = done_before(path, folder, job)
        if done is None:
            break
        yield done
    else:
        return
    starting()
    with cluster(scheduler, jobs) as client:
        yield from sweep_all(client, chain([path], rest), folder, job)


def sweep_all(
    client: Client, paths: Iterable[str], folder: str, job: FleetJob
) -> Iterator[Swept | Unusable]:
    """Do all of them; in no order, each as it is done. FleetError: the cluster is gone."""
    command = uuid.uuid4().hex
    ahead = AHEAD * max(1, sum(client.nthreads().values()))
    do = partial(sweep_snapshot, folder=folder, job=job, command=command)
    suspects = yield from _round(client, do, paths, f"{command}-", ahead)
    deadly = yield from _round(client, do, suspects, f"{command}-alone-", 1)
    for path in deadly:
        yield Unusable(path, "each worker that had it was killed (out of memory?)")


def _round(
    client: Client,
    do: Callable[[str], Swept | Unusable],
    paths: Iterable[str],
    name: str,
    ahead: int,
) -> Generator[Swept | Unusable, None, list[str]]:
    """Do them, so many at a time; name: of this round, none but ours. Returns those whose workers died."""
    rest, suspects, numbers = iter(paths), list[str](), count()
    path_of, workers = dict[str, str](), len(client.nthreads())
    done: SimpleQueue[Future] = SimpleQueue()

    def start(path: str) -> None:
        key = f"{os.path.basename(path)}-{name}{next(numbers)}"
        path_of[key] = path
        client.submit(do, path, key=key).add_done_callback(done.put)

    for path in islice(rest, ahead):
        start(path)
    while path_of:
        try:
            future = done.get(timeout=PATIENCE)
        except Empty:
            if client.cluster is not None:
                # Dask does not replace a worker that dies while it is being started.
                client.cluster.scale(workers)
            elif not client.nthreads():
                raise FleetError(f"no worker has been left for {PATIENCE} s", 1) from None
            continue
        path = path_of.pop(future.key)
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
