# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs: their text, and what they declare, held against what real kernels' records say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mthp.image.scenario import Scenario, load
from mthp.image.scenario_values import Action, Advice, Prctl
from mthp.lab.program.declared import Declared, declare, problem
from mthp.lab.program.program import (
    BASE,
    Draft,
    Operation,
    ProgramError,
    Target,
    Verb,
    op,
    parse,
    spans,
)
from mthp.lab.program.space import Uffd
from mthp.lab.program.walk import walk
from mthp.words.settings import Enabled, Settings

DATA = Path(__file__).parent.parent / "data"
RECORDED = [DATA / "linux-7.3.4.jsonl.xz", DATA / "linux-7.3.4-many-vmas.jsonl.xz"]
START = ("new", f"s base {BASE}")
ALWAYS = Settings(sizes={4: Enabled.ALWAYS})


def draft(*lines: str, **fields: object) -> Draft:
    """A draft with one process whose memory these lines make, registered by a decoy."""
    decoy = (
        "w /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled madvise",
        "s mmap 2097152 1024",
        "s wr 2097152 1",
        "s adv 2097152 1024 14",
        "s munmap 2097152 1024",
    )
    made = Draft("x", "test", parse((*START, *lines, *decoy)), settings=ALWAYS)
    return dataclasses.replace(made, **fields)  # type: ignore[arg-type]


# --- text -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "w /sys/kernel/mm/ksm/run 2",
        "w /proc/x a b c",
        "new",
        "new t",
        "memcg g 12",
        "ksm 3",
        "eat 4",
        "s base 138538465099776",
        "s mremap 0 4 600",
        "s adv 0 1 103",
        "t padv s 0 512 25",
        "s prctl_thp 1 2",
        "s endfork",
        "s forkto u",
    ],
)
def test_text_round_trips(text: str) -> None:
    assert str(op(text)) == text


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'': no operation '' (a process is one of s, t, u)"),
        ("v mmap 0 1", "'v mmap 0 1': no operation 'v' (a process is one of s, t, u)"),
        ("s frob 0 1", "'s frob 0 1': no operation 'frob' of a process"),
        ("s ksm 1", "'s ksm 1': no operation 'ksm' of a process"),
        ("mmap 0 1", "'mmap 0 1': no operation 'mmap' (a process is one of s, t, u)"),
        ("s mmap 0", "'s mmap 0': 1 operands, not 2"),
        ("s mmap 0 0", "'s mmap 0 0': '0' is no pages"),
        ("s mmap 0 01", "'s mmap 0 01': '01' is no pages"),
        ("s mmap 0 1.5", "'s mmap 0 1.5': '1.5' is no pages"),
        ("s mmap -1 1", "'s mmap -1 1': '-1' is no offset"),
        ("s base 1", "'s base 1': '1' is no address"),
        ("s adv 0 1 13", "'s adv 0 1 13': '13' is no advice"),
        ("t padv s 0 1 14", "'t padv s 0 1 14': '14' is no advice for another process"),
        ("s cgroup ../x", "'s cgroup ../x': '../x' is no cgroup"),
        ("w relative 1", "'w relative 1': 'relative' is no path"),
        ("w /a", "'w /a': 1 operands, not 2"),
    ],
)
def test_what_is_no_operation_is_said_exactly(text: str, complaint: str) -> None:
    with pytest.raises(ProgramError) as error:
        op(text)
    assert str(error.value) == complaint


def test_a_range_can_be_changed() -> None:
    assert str(op("s adv 1 2 14").with_range(5, 6)) == "s adv 5 6 14"
    assert str(op("t padv s 1 2 20").with_range(5, 6)) == "t padv s 5 6 20"
    assert op("t padv s 1 2 20").subject == "s"


def test_a_draft_round_trips_through_json() -> None:
    made = draft("s mmap 0 512", action=Action.MADVISE_COLLAPSE, target=Target("s", 3, "s"))
    assert Draft.from_json(made.to_json()) == made
    with pytest.raises(ProgramError, match="not a draft: KeyError: 'target'"):
        Draft.from_json({"id": "x"})
    with pytest.raises(ProgramError, match="no operation 'frob'"):
        Draft.from_json(made.to_json() | {"ops": ["frob"]})


def test_switches_are_off_while_the_state_is_made_and_set_at_the_end() -> None:
    lines = [str(each) for each in draft("s mmap 0 512").program()]
    base = "w /sys/kernel/mm/transparent_hugepage/"
    assert lines[0] == f"{base}enabled madvise"
    assert lines[1:9] == [f"{base}hugepages-{4 << order}kB/enabled never" for order in range(2, 10)]
    assert lines[-1] == f"{base}enabled always"
    assert f"{base}hugepages-64kB/enabled always" in lines[-9:]
    assert f"{base}khugepaged/max_ptes_none 511" in lines


def test_spans() -> None:
    assert spans([5, 1, 2, 3, 9]) == ((1, 3), (5, 1), (9, 1))


# --- against recorded kernels ---------------------------------------------------------------

RECORDS = [scenario for path in RECORDED for scenario in load(path)]


def as_draft(recorded: Scenario) -> Draft:
    """A record's program; what advises at its end comes when the switches are set."""
    ops = parse(recorded.built_by)
    last = len(ops)
    while ops[last - 1].kind in ("adv 14", "adv 15"):
        last -= 1
    return Draft(recorded.id, "recorded", ops[:last], ops[last:], recorded.settings)


@pytest.mark.parametrize("recorded", RECORDS[::7], ids=lambda each: each.id)
def test_declared_is_what_real_records_say(recorded: Scenario) -> None:
    ops = parse(recorded.built_by)
    assert tuple(map(str, ops)) == recorded.built_by
    found = declare(as_draft(recorded)).vmas
    assert [(vma.start, vma.pages) for vma in found] == [
        (vma.start, vma.pages) for vma in recorded.vmas
    ]
    for ours, theirs in zip(found, recorded.vmas, strict=True):
        if recorded.id.startswith("ext") or theirs.advice is Advice.HUGEPAGE:
            assert ours.traits.advice is theirs.advice
        assert ours.traits.mlocked is theirs.mlocked
        assert bool(ours.traits.uffd) is theirs.uffd_wp
        assert ours.anon_vma is theirs.anon_vma
        assert ours.pins == tuple(sorted(theirs.pins))


def test_the_recorded_programs_hold_pins_locks_and_userfaultfd() -> None:
    """Else the test above would say little."""
    chosen = [vma for recorded in RECORDS[::7] for vma in recorded.vmas]
    assert any(vma.pins for vma in chosen)
    assert any(vma.mlocked for vma in chosen)
    assert any(vma.uffd_wp for vma in chosen)
    assert any(not vma.anon_vma for vma in chosen)


# --- VMAs -----------------------------------------------------------------------------------


def ranges(found: Declared) -> list[tuple[str, int, int]]:
    return [(vma.process, vma.page, vma.pages) for vma in found.vmas]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (("s mmap 0 10", "s mmap 10 5"), [(0, 15)]),
        (("s mmap 0 10", "s mmap 20 5", "s mmap 10 10"), [(0, 25)]),
        (("s mmap 0 10", "s munmap 3 2"), [(0, 3), (5, 5)]),
        (("s mmap 0 10", "s adv 2 3 14"), [(0, 2), (2, 3), (5, 5)]),
        (("s mmap 0 10", "s adv 2 3 14", "s adv 0 10 14"), [(0, 10)]),
        (("s mmap 0 10", "s wr 0 1", "s mmap 10 10"), [(0, 20)]),
        (("s mmap 0 10", "s mmap_droppable 10 10"), [(0, 10), (10, 10)]),
        (("s mmap 0 10", "s mprotect 0 5 1"), [(0, 5), (5, 5)]),
        (("s mmap 0 10", "s mprotect 0 5 1", "s mprotect 0 5 3"), [(0, 10)]),
        (("s mmap 0 10", "s mlock2 5 5"), [(0, 5), (5, 5)]),
        (("s mmap 0 10", "s uffd 1 1 2"), [(0, 1), (1, 1), (2, 8)]),
        (("s mmap 0 10", "s wr 0 10", "s mremap 4 6 10"), [(0, 4), (10, 6)]),
        (("s mmap 0 10", "s wr 0 10", "s mremap 6 4 20", "s mremap 20 4 6"), [(0, 10)]),
        (
            ("s mmap 0 10", "s wr 0 10", "s mremap 6 2 20", "s mremap 8 2 6"),
            [(0, 6), (6, 2), (20, 2)],
        ),
        # a mapping that was never written takes the page offset of its new place
        (("s mmap 0 10", "s mremap 6 2 20", "s mremap 8 2 6"), [(0, 8), (20, 2)]),
        # advised apart, written apart, then advised alike: two anon_vmas stay two VMAs
        (
            ("s mmap 0 10", "s adv 0 5 14", "s wr 0 10", "s adv 5 5 14"),
            [(0, 5), (5, 5)],
        ),
        # split after it was written: one anon_vma
        (
            ("s mmap 0 10", "s wr 0 10", "s adv 0 5 14", "s adv 5 5 14"),
            [(0, 10)],
        ),
        # protection alone does not keep them from sharing one
        (
            ("s mmap 0 10", "s mprotect 5 5 1", "s wr 0 1", "s mprotect 5 5 3", "s wr 5 1"),
            [(0, 10)],
        ),
    ],
)
def test_vmas_split_and_merge(lines: tuple[str, ...], expected: list[tuple[int, int]]) -> None:
    assert ranges(declare(draft(*lines))) == [("s", *each) for each in expected]


def test_a_fork_has_its_own_vmas() -> None:
    lines = (
        "s mmap 0 20",
        "s mmap_droppable 30 4",
        "s wr 0 20",
        "s wr 30 4",
        "s mlock2 10 10",
        "s prctl_thp 1 2",
        "s forkto t",
        "s munmap 30 4",
        "s uffd 0 10 2",
    )
    found = declare(draft(*lines))
    assert ranges(found) == [
        ("s", 0, 10),
        ("s", 10, 10),
        ("t", 0, 10),
        ("t", 10, 10),
        ("t", 30, 4),
    ]
    parent, locked, child, unlocked, dropped = found.vmas
    assert (parent.traits.uffd, locked.traits.mlocked) == (Uffd.WP, True)
    assert (child.traits.uffd, unlocked.traits.mlocked) == (Uffd.NONE, False)
    assert dropped.traits.droppable and not dropped.anon_vma
    assert found.prctl == (Prctl.EXCEPT_ADVISED, Prctl.EXCEPT_ADVISED)


def test_a_read_gives_no_anon_vma_but_one_of_a_huge_zero_page_does() -> None:
    def anon(*lines: str) -> bool:
        return declare(draft("s mmap 0 512", *lines)).vmas[0].anon_vma

    size = "w /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled"
    assert not anon("s rd 0 512")
    assert anon("s rd 0 1", "s wr 5 1")
    assert anon(f"{size} always", "s rd 0 1", f"{size} never")
    assert not anon("s rd 7 1", f"{size} always", "s rd 0 1", f"{size} never")
    assert anon("s adv 3 1 102")


def test_pins_are_counted_from_the_vma() -> None:
    found = declare(
        draft("s mmap 100 50", "s wr 100 50", "s pin_uring 110 3", "s pin_vmsplice 113 1")
    )
    assert found.vmas[0].pins == ((10, 4),)


# --- the order of the scan ------------------------------------------------------------------

PMD = "w /sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled"


def test_processes_are_scanned_in_the_order_they_registered() -> None:
    lines = [
        "w /sys/kernel/mm/transparent_hugepage/enabled madvise",
        *("new", f"s base {BASE}", "s mmap 0 512", "s wr 0 1"),
        *("new t", f"t base {BASE}", "t mmap 0 512", "t wr 0 1"),
        f"{PMD} madvise",
        *("t adv 0 512 14", "s adv 0 512 14", "t forkto u"),
    ]
    assert walk(parse(lines)).scan_order == ["t", "s", "u"]


@pytest.mark.parametrize(
    ("lines", "registers"),
    [
        (("s wr 0 1", f"{PMD} madvise", "s adv 0 512 14"), True),
        (("s wr 0 1", f"{PMD} always", "s wr 1 1"), False),
        ((f"{PMD} always", "s wr 1 1"), True),
        ((f"{PMD} madvise", "s wr 1 1"), False),
        (("s adv 0 512 14", f"{PMD} madvise", "s wr 1 1"), True),
        (("s wr 0 1", f"{PMD} madvise", "s adv 0 511 14"), False),
        ((f"{PMD} madvise", "s adv 0 512 14"), False),
        (("s wr 0 1", "s adv 0 512 14", f"{PMD} madvise", "s adv 0 512 14"), False),
        (("s wr 0 1", f"{PMD} madvise", "s prctl_thp 1 0", "s adv 0 512 14"), False),
        (("s wr 0 1", f"{PMD} madvise", "s prctl_thp 1 2", "s adv 0 512 14"), True),
        (("s wr 0 1", f"{PMD} inherit", "s adv 0 512 14"), True),
    ],
)
def test_what_registers(lines: tuple[str, ...], registers: bool) -> None:
    before = ("w /sys/kernel/mm/transparent_hugepage/enabled madvise", *START, "s mmap 0 512")
    assert (walk(parse((*before, *lines))).scan_order == ["s"]) is registers


# --- legality -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (("s wr 0 1",), "s wr 0 1: page 0 is not mapped"),
        (("s mmap 0 4", "s wr 2 4"), "s wr 2 4: page 4 is not mapped"),
        (("s mmap 0 4", "s mmap 3 1"), "s mmap 3 1: something is mapped in 3..4 already"),
        (("t mmap 0 4",), "t mmap 0 4: there is no process t"),
        (("new t", "t mmap 0 4"), "t mmap 0 4: process t has no base address yet"),
        (("s base 0",), "s base 0: the base address is set already"),
        (
            ("s mmap 0 4", "s wr 0 4", "s uffd 0 4 2", "s uffdwp 1 1 1", "s wr 0 4"),
            "s wr 0 4: a write to a page protected by userfaultfd hangs",
        ),
        (
            ("s mmap 0 4", "s wr 0 4", "s uffd 0 4 2", "s uffdwp 1 1 1", "s pin_uring 1 1"),
            "s pin_uring 1 1: a pin of a page protected by userfaultfd hangs",
        ),
        (
            ("s mmap 0 4", "s wr 0 2", "s uffd 0 4 1", "s rd 0 4"),
            "s rd 0 4: a missing page waits for userfaultfd for ever",
        ),
        (
            ("s mmap 0 4", "s uffdwp 0 1 1"),
            "s uffdwp 0 1 1: a VMA of it is not registered for that",
        ),
        (
            ("s mmap 0 4", "s adv 0 1 102", "s rd 0 1"),
            "s rd 0 1: a guard or a poisoned page kills the process",
        ),
        (
            ("s mmap 0 4", "s wr 0 4", "s adv 0 1 100", "s rd 0 1"),
            "s rd 0 1: a guard or a poisoned page kills the process",
        ),
        (
            ("s mmap 0 4", "s rd 0 4", "s adv 0 1 100"),
            "s adv 0 1 100: pages of it are not there, or not the process's own",
        ),
        (
            ("s mmap 0 9", "s wr 0 9", "s adv 0 9 100"),
            "s adv 0 9 100: more than 4 pages are lost to the guest",
        ),
        (("s mmap 0 4", "s mprotect 0 4 1", "s wr 0 1"), "s wr 0 1: a VMA of it does not allow"),
        (("s mmap 0 4", "s mlock2 0 4", "s adv 0 4 21"), "s adv 0 4 21: a VMA of it is mlocked"),
        (("s mmap_droppable 0 4", "s mlock2 0 4"), "s mlock2 0 4: a VMA of it is droppable"),
        (("s mmap 0 4", "s pin_uring 0 1"), "s pin_uring 0 1: pages of it are not there"),
        (
            ("s mmap 0 4", "s wr 0 4", "s pin_uring 0 1", "s adv 0 4 4"),
            "s adv 0 4 4: pages of it are pinned",
        ),
        (
            ("s mmap 0 4", "s wr 0 4", "s pin_uring 0 1", "s fork 1"),
            "s fork 1: pages are pinned",
        ),
        (("memcg g 1",), "memcg g 1: no process is in the cgroup g"),
        (("s prctl_thp 0 2",), "s prctl_thp 0 2: flags go with disabling alone"),
        (("s mmap 0 4", "s mremap 0 4 2"), "s mremap 0 4 2: something is mapped at page 2"),
        (("s mmap 0 4", "s padv s 0 4 20"), "s padv s 0 4 20: that is the process itself"),
    ],
)
def test_what_is_not_legal_is_said(lines: tuple[str, ...], complaint: str) -> None:
    assert problem(draft(*lines)).startswith(complaint)


def test_sleeping_children_of_a_registered_process_would_be_scanned_too() -> None:
    made = draft("s mmap 0 4")
    late = dataclasses.replace(made, ops=(*made.ops, op("s fork 1")))
    assert problem(late).startswith("s fork 1: the children would be registered")
    assert problem(dataclasses.replace(made, ops=(*made.ops, op("s forkto t")))) == ""


def test_a_stopped_khugepaged_is_not_legal() -> None:
    off = Settings(enabled=Enabled.NEVER, sizes={9: Enabled.INHERIT})
    assert problem(draft("s mmap 0 512", settings=off)).startswith("the settings stop khugepaged")


def test_a_target_must_be_mapped() -> None:
    made = draft("s mmap 0 512", action=Action.MADVISE_COLLAPSE, target=Target("s", 600, "s"))
    assert problem(made) == "the target, page 600 of s, is not mapped"
    good = dataclasses.replace(made, target=Target("s", 5, "s"))
    assert declare(good).target == 0
    assert Operation(Verb.NEW) == op("new")
