# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that khugepaged can be run over, and what it made of it.

An Image is read from a file or captured from a live process; each run has a fresh world of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from mthp.image.scenario import Scenario, load_one
from mthp.image.snapshot import Snapshot, read_snapshot
from mthp.image.snapshot import load as load_snapshot
from mthp.predict.measure import folios_of
from mthp.predict.outcome import Request, run_world
from mthp.predict.records import Outcome, Refusal, VmaUse
from mthp.predict.resident import modelled
from mthp.predict.timeline import others_of
from mthp.words.events import Event, OrderPolicy, PassedBy, singly
from mthp.words.files import spooled
from mthp.words.profiles import DEFAULT, PROFILES, Profile, profile_for_release
from mthp.words.settings import Settings, parse_enabled_flag, parse_thp_anon
from mthp.worlds.build import BuiltWorld, build_world
from mthp.worlds.deduced import is_registered, is_taken_on
from mthp.worlds.unseen import LIKELY, Assumed, Young

SCENARIO_SUFFIXES = (".jsonl", ".jsonl.xz", ".jsonl.gz")


class MappedFolio(NamedTuple):
    """A folio as one mapping sees it.

    address: of its first page that is mapped there. order: log2 of its base pages. pages: how many of
    them are mapped there.
    """

    pid: int
    address: int
    order: int
    pages: int


@dataclass(frozen=True)
class Image:
    """Memory of one process or several, as a snapshot captured it or a scenario states it.

    name: how it was asked for. source: where it comes from, in words. kernel: the release it ran under,
    empty where a scenario names none.
    """

    data: Snapshot | Scenario
    name: str
    source: str

    @property
    def kernel(self) -> str:
        return self.data.kernel

    @cached_property
    def settings(self) -> Settings:
        """The settings captured with it. Raises SettingsError where the host's were out of range."""
        if isinstance(self.data, Scenario):
            return self.data.settings
        return Settings.from_sysfs(self.data.sysfs, self.data.geometry)

    @property
    def profile(self) -> Profile:
        """The profile of the kernel it was captured on; the default where none is named."""
        return profile_for_release(self.kernel) if self.kernel else DEFAULT

    def configured(
        self,
        *,
        enabled: str | None = None,
        thp_anon: str | None = None,
        defrag: bool | None = None,
        **limits: int,
    ) -> Settings:
        """The captured settings with some replaced.

        enabled: sizes and modes such as "64kB=always,2048kB=never". thp_anon: the boot parameter's
        form. limits: max_ptes_none, max_ptes_swap, max_ptes_shared (PTEs of a table), pages_to_scan,
        scan_sleep_millisecs, alloc_sleep_millisecs. Raises SettingsError where the kernel would refuse.
        """
        return reconfigured(self.settings, (enabled,) if enabled else (), thp_anon, defrag, limits)

    def prepared(
        self, settings: Settings, profile: Profile, reason: str, assumed: Assumed = LIKELY
    ) -> tuple[BuiltWorld, Request]:
        """Make a fresh world, and a request to run it to the fixed point. reason: why this profile.

        Raises ValueError where the image is a state that no kernel can be in.
        """
        world = build_world(self.data, profile, settings, assumed)
        request = Request(self.name, self.source, reason)
        if isinstance(self.data, Snapshot):
            request.unseen, request.snapshot = self.data.unseen, self.data
            request.others = others_of(self.data, settings)
            request.registered = {
                process.pid: is_registered(self.data, process, assumed)
                for process in self.data.processes
            }
            request.taken_off = frozenset(
                process.pid
                for process in self.data.processes
                if request.registered[process.pid] is None
                and not is_taken_on(self.data, process, assumed)
            )
        return world, request

    def run(
        self,
        settings: Settings | None = None,
        profile: str | Profile | None = None,
        *,
        passes: int | None = None,
        policy: OrderPolicy | None = None,
        young: Young = Young.CAPTURED,
        changes: bool = False,
    ) -> Run:
        """Run khugepaged over a fresh world of it.

        settings and profile: the captured ones where None; a profile may be named ("7.3"). passes: full
        scans, None for the fixed point. policy: chooses windows and orders in the place of the kernel's
        mthp_collapse(). changes: look for the least change of each refusal, which takes longer. Raises
        ValueError for an unknown profile, a state that cannot be, or a window that a policy may not ask for.
        """
        settings = self.settings if settings is None else settings
        if not isinstance(settings, Settings):
            raise TypeError(f"settings: {settings!r} is not what configured() gives")
        if profile is not None and not isinstance(profile, Profile):
            if profile not in PROFILES:
                raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
            profile = PROFILES[profile]
        if passes is not None and passes < 1:
            raise ValueError(f"passes: {passes} is not 1 or more")
        assumed = Assumed(Young(young))
        reason = "as asked" if profile is not None else f"that of kernel {self.kernel}"
        world, request = self.prepared(settings, profile or self.profile, reason, assumed)
        world.kernel.order_policy = policy
        events: list[Event | PassedBy] = []
        request.passes, request.changes, request.keep = passes, changes, events
        return Run(self, run_world(world, request), world, tuple(events), policy)


@dataclass(frozen=True)
class Run:
    """What khugepaged made of an image.

    outcome: the finished record. world: the engine's own objects as the run left them. kept: its
    events, where tables that are passed by stand in rows.
    """

    image: Image
    outcome: Outcome
    world: BuiltWorld = field(repr=False)
    kept: tuple[Event | PassedBy, ...] = field(repr=False)
    policy: OrderPolicy | None = None

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """The tracepoints, with addresses, and what each step cost, in their order."""
        return tuple(singly(self.kept))

    @property
    def settings(self) -> Settings:
        """The settings it ran under."""
        return self.outcome.settings

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Why memory is not in folios of the highest enabled order: each page stands in one of them."""
        return self.outcome.refusals

    @property
    def mappings(self) -> tuple[VmaUse, ...]:
        """Every mapping that may have anonymous pages, before and after."""
        return self.outcome.vmas

    def folios(self) -> Iterator[MappedFolio]:
        """Every folio that is mapped now, mapping by mapping, by address."""
        for vma in modelled(self.world.vmas):
            mm = vma.vm_mm
            for address, order, pages in folios_of(mm.kernel, vma):
                yield MappedFolio(mm.number, address, order, pages)

    def why(self, address: int) -> tuple[Refusal, ...]:
        """The refusals that cover an address, of every process that has it; empty where there is none."""
        page_size = self.outcome.page_size
        return tuple(each for each in self.refusals if each.covers(address, page_size))

    def again(
        self,
        *,
        enabled: str | None = None,
        thp_anon: str | None = None,
        defrag: bool | None = None,
        changes: bool = False,
        **limits: int,
    ) -> Run:
        """The same image, profile and policy from its beginning, with some settings replaced.

        The keywords are those of Image.configured(), changes that of Image.run().
        """
        asked = (enabled,) if enabled else ()
        settings = reconfigured(self.settings, asked, thp_anon, defrag, limits)
        profile = PROFILES[self.outcome.basis.profile]
        return self.image.run(settings, profile, policy=self.policy, changes=changes)


def reconfigured(
    base: Settings,
    enabled: Sequence[str],
    thp_anon: str | None,
    defrag: bool | None,
    limits: Mapping[str, int],
) -> Settings:
    """Settings with some replaced; Image.configured() says how. Raises SettingsError."""
    settings = base
    if thp_anon is not None:
        settings = settings.replace(sizes=parse_thp_anon(thp_anon, settings.geometry))
    for flag in enabled:
        settings = settings.with_enabled(parse_enabled_flag(flag))
    if defrag is not None:
        settings = settings.replace(defrag=defrag)
    return settings.replace(**limits)


def load(path: str | os.PathLike[str]) -> Image:
    """Read a snapshot (.npz), or one scenario of a file of them (FILE.jsonl#ID, also .xz and .gz).

    Raises FileError, whose text says what is wrong and where.
    """
    name = os.fspath(path)
    if name.partition("#")[0].endswith(SCENARIO_SUFFIXES):
        scenario = load_one(name)
        return Image(scenario, name, f"scenario recorded on {scenario.kernel or 'no kernel'}")
    snapshot = load_snapshot(name)
    return Image(snapshot, name, f"snapshot of {_names(snapshot)}, kernel {snapshot.kernel}")


def capture(*pids: int, hidden: int = 0) -> Image:
    """Capture live processes, this one where none is named. They are not stopped, and nothing is changed.

    Of several, those that end meanwhile are left out; the image's data.unseen says so, and of `hidden`
    others. Raises CaptureError: no such process, or no right to look at it.
    """
    from mthp.image.capture.columns import write_file
    from mthp.image.capture.command import captured
    from mthp.image.capture.proc import own_pid
    from mthp.image.capture.run import CaptureOptions
    from mthp.image.frames_at_once import FramesAtOnce

    numbers = sorted(set(pids)) or [own_pid()]
    asked = f"process {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} processes"
    options = CaptureOptions(hidden=hidden, frames=FramesAtOnce, level=0)
    with spooled() as file, captured(numbers, options) as (meta, columns):
        write_file(file, {}, columns)
        snapshot = read_snapshot(file, asked, meta)
    first, *more = snapshot.processes
    name = _names(snapshot) if more else f"pid {first.pid} ({first.name})"
    return Image(snapshot, name, f"captured live, kernel {snapshot.kernel}")


def of_dump(path: str, *pids: int) -> Image:
    """Read processes of a dump of a machine (vmcore), all that have memory where none is named.

    Raises CaptureError: it cannot be read, or has no such process.
    """
    from mthp.image.capture.columns import write_file
    from mthp.image.capture.run import CaptureOptions
    from mthp.image.vmcore.run import captured_of_dump

    options = CaptureOptions(deep=True, level=0)
    with spooled() as file, captured_of_dump(path, sorted(set(pids)), options) as (meta, columns):
        write_file(file, {}, columns)
        snapshot = read_snapshot(file, path, meta)
    return Image(snapshot, path, f"dump of {_names(snapshot)}, kernel {snapshot.kernel}")


def _names(snapshot: Snapshot) -> str:
    processes = snapshot.processes
    more = f" and {len(processes) - 3} more" if len(processes) > 3 else ""
    return ", ".join(f"{p.name} ({p.pid})" for p in processes[:3]) + more
