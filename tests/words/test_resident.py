# SPDX-License-Identifier: GPL-2.0-or-later
"""Sums of resident memory, and how they are said."""

from __future__ import annotations

from mthp.words.resident import MappingKind, Resident, Unmodelled, name_of, resident_lines, total

MIB = 1 << 20
ZGC = Resident(
    rss=3200 * MIB,
    pss=1100 * MIB,
    anonymous=120 * MIB,
    shmem=3072 * MIB,
    file=8 * MIB,
    page_tables=6 * MIB,
    unmodelled=3080 * MIB,
    mappings=(
        Unmodelled(MappingKind.SHMEM, "/memfd:java_heap", 3072 * MIB),
        Unmodelled(MappingKind.FILE, "", 8 * MIB),
    ),
)


def test_what_is_not_modelled_is_named() -> None:
    assert list(resident_lines(ZGC, ())) == [
        "Rss 3.1 GiB, Pss 1.1 GiB: 120 MiB anonymous, 0 B anonymous in private file mappings, "
        "3 GiB shmem, 8 MiB file, beside Rss 6 MiB page tables",
        "RssShmem 3 GiB in /memfd:java_heap: not modelled",
        "RssFile 8 MiB in file mappings without a name: not modelled",
    ]


def test_many_mappings_and_processes_are_summed_up() -> None:
    many = tuple(Unmodelled(MappingKind.FILE, f"/lib/{k}", MIB) for k in range(9))
    one = Resident(rss=9 * MIB, file=9 * MIB, unmodelled=9 * MIB, mappings=many)
    lines = list(resident_lines(one, [(f"p{k}", one) for k in range(8)]))
    assert lines[-1] == "and 4 more, 4 MiB in all: not modelled"
    assert lines[6] == "and 3 more processes, Rss 27 MiB in all"
    assert len(lines) == 1 + 6 + 6


def test_a_name_is_bounded() -> None:
    long = Unmodelled(MappingKind.FILE, "/x/" + "y" * 300, MIB)
    (_, line) = resident_lines(Resident(rss=MIB, mappings=(long,)), ())
    assert len(line) < 130 and name_of(long, 5) == "…yyyyy"


def test_a_sum_with_what_is_unknown_is_unknown() -> None:
    whole = total((ZGC, ZGC._replace(pss=None)))
    assert whole.pss is None and whole.rss == 6400 * MIB
    assert whole.mappings[0] == Unmodelled(MappingKind.SHMEM, "/memfd:java_heap", 6144 * MIB)
    assert "Pss unknown" in next(resident_lines(whole, ()))
    unknown = next(resident_lines(ZGC._replace(shmem=None, file=None), ()))
    assert "shmem and file pages not told apart" in unknown
    assert total(()) == Resident()
