# SPDX-License-Identifier: GPL-2.0-or-later
"""Protocol files: what of them takes an engine function's place, what they bring along, and what is said
where they are at fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.check.check import check_world
from mthp.explore.compiled.explorer import CompiledExplorer
from mthp.explore.compiled.kinds import Unrecordable
from mthp.explore.explore import Until
from mthp.khugepaged import collapse
from mthp.khugepaged.isolate import Isolation
from mthp.laws import declares
from mthp.machine.hold import Rank
from mthp.mm import memory_swap, mmap_lock
from mthp.races.cast import all as cast
from mthp.races.edits import source_of
from mthp.races.protocol import Protocol, in_force, protocol
from mthp.races.stage import Size
from mthp.races.variant import IN_FORCE, VariantError
from mthp.races.world import RaceWorld

ALONE = RaceWorld(Size.PMD, "7.3", ())
FAULT = RaceWorld(Size.PMD, "7.3", ("fault",))
NO_VMA_LOCK = "def vma_start_write(vma):\n    pass\n"


def written(folder: Path, text: str, name: str = "own.py") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def loaded(file: Path) -> Protocol:
    with protocol(file) as own:
        return own


# What takes whose place


def test_a_public_function_takes_the_place_of_the_one_of_its_name(tmp_path: Path) -> None:
    before = mmap_lock.vma_start_write
    file = written(tmp_path, NO_VMA_LOCK)
    with protocol(file) as own:
        assert own.rule == "functions by their names"
        assert own.replaces == ("mm/mmap_lock.py vma_start_write",)
        assert in_force() is own
        assert mmap_lock.vma_start_write is not before
        assert vars(collapse)["vma_start_write"] is mmap_lock.vma_start_write
        result = check_world(FAULT)
    assert mmap_lock.vma_start_write is before and in_force() is None
    assert not result.clean


def test_a_private_helper_captures_nothing(tmp_path: Path) -> None:
    before = memory_swap._drop
    with protocol(written(tmp_path, "def _drop(*a):\n    return None\n" + NO_VMA_LOCK)) as own:
        assert memory_swap._drop is before
        assert own.replaces == ("mm/mmap_lock.py vma_start_write",)


def test_replaces_lists_private_functions_and_methods(tmp_path: Path) -> None:
    drop, method = memory_swap._drop, Isolation.take_page
    text = (
        'REPLACES = {"mm.memory_swap": ["_drop"], "khugepaged.isolate": ["Isolation.take_page"]}\n'
        "def _drop(kernel, folio, outcome):\n    return outcome\n"
        "class Isolation:\n    def take_page(self, address, pteval):\n        pass\n"
    )
    with protocol(written(tmp_path, text)) as own:
        assert memory_swap._drop is not drop and Isolation.take_page is not method
        assert own.replaces == (
            "mm/memory_swap.py _drop",
            "khugepaged/isolate.py Isolation.take_page",
        )
    assert memory_swap._drop is drop and Isolation.take_page is method


@pytest.mark.parametrize("name", ["collapse.py", "khugepaged.collapse.py", "mine.py"])
def test_a_copy_with_a_change(tmp_path: Path, name: str) -> None:
    text = source_of("khugepaged.collapse")
    changed = text.replace("                vma_start_write(vma)\n", "")
    is_copy = name != "mine.py"
    own = loaded(written(tmp_path, changed, name))
    assert own.replaces == ("khugepaged/collapse.py collapse_huge_page",)
    assert own.rule == (
        "an edited copy of khugepaged/collapse.py" if is_copy else "functions by their names"
    )
    with protocol(written(tmp_path, changed, name)):
        assert not check_world(FAULT).clean
    with protocol(written(tmp_path, text, name)) as own:
        assert own.replaces == ()
        assert check_world(FAULT).clean


def test_functions_that_wrap_others(tmp_path: Path) -> None:
    text = (
        "from contextlib import contextmanager\n"
        "from functools import wraps\n"
        "from mthp.mm.mmap_lock import vma_start_write as start\n"
        "@wraps(start)\ndef vma_start_write(vma):\n    start(vma)\n"
        "@contextmanager\ndef unlocked_after(kernel, found):\n    yield found[0]\n"
    )
    own = loaded(written(tmp_path, text))
    assert own.replaces == ("mm/mmap_lock.py vma_start_write", "mm/pgtable.py unlocked_after")


def test_a_file_with_a_modules_name_may_replace_what_is_elsewhere(tmp_path: Path) -> None:
    with protocol(written(tmp_path, NO_VMA_LOCK, "copy.py")) as own:
        assert own.replaces == ("mm/mmap_lock.py vma_start_write",)


def test_the_text_in_force_is_known(tmp_path: Path) -> None:
    with protocol(written(tmp_path, NO_VMA_LOCK + "def helper():\n    pass\n")):
        (variant,) = IN_FORCE
        assert [each.__name__ for each in variant.functions] == ["vma_start_write", "helper"]
        assert [each.__name__ for each in variant.replacing] == ["vma_start_write"]
    assert IN_FORCE == []


# What it brings along

RIVAL = """
from mthp.mm.mmu import store
from mthp.races.protocol import Declares, Rank, Rival, START
RIVALS = [Rival("late-store", "a store", lambda stage: store(stage.mm, START, 7))]
WORLDS = ["pmd:late-store+zap", "window:-"]
DECLARES = Declares(detached_under=frozenset({Rank.ANON_VMA}), collapsers=frozenset({"late-store"}))
"""


def test_rivals_worlds_and_declarations(tmp_path: Path) -> None:
    with protocol(written(tmp_path, RIVAL)) as own:
        assert own.worlds == ("pmd:late-store+zap", "window:-")
        assert "late-store" in cast.RIVALS
        recipe = RaceWorld.parse("pmd", "7.3", ("late-store", "zap"))
        assert recipe().watch.ghost.collapsers >= {"khugepaged", "late-store"}
        assert check_world(RaceWorld.parse("pmd", "7.3", ("late-store",))).clean
        assert declares.DECLARED.detached_under == {Rank.ANON_VMA}
    assert "late-store" not in cast.RIVALS
    assert declares.DECLARED.detached_under == {Rank.MMAP}


UNDER_ANON_VMA = '''
from mthp.khugepaged.install import guard_pmd_none
from mthp.mm.memory import map_anon_folio_pte_nopf
from mthp.mm.pgtable import pmd_lock, pmd_populate
from mthp.mm.pgtable_types import pmd_pgtable
from mthp.races.protocol import Declares, Rank


def install_ptes(kernel, folio, pmd, orig_pmd, pte, vma, start_addr):
    """The PTEs before the PMD, without their lock; mmap_lock might be let go: anon_vma is held."""
    with pmd_lock(pmd):
        guard_pmd_none(kernel, pmd)
        map_anon_folio_pte_nopf(kernel, folio, pte, vma, start_addr, uffd_wp=False)
        kernel.machine.smp_wmb()
        pmd_populate(pmd, pmd_pgtable(orig_pmd))
'''


@pytest.mark.parametrize(
    ("declared", "clean"), [("", True), ("Rank.ANON_VMA", True), ("Rank.MM_LIST", False)]
)
def test_what_guards_a_detached_table_is_declared(
    tmp_path: Path, declared: str, clean: bool
) -> None:
    text = UNDER_ANON_VMA
    if declared:
        text += f"\n\nDECLARES = Declares(detached_under=frozenset({{{declared}}}))\n"
    with protocol(written(tmp_path, text)):
        result = check_world(RaceWorld(Size.WINDOW, "7.3", ()))
    assert result.clean is clean
    assert clean or {breach.law for breach in result.violation.breaches} == {9}  # type: ignore[union-attr]


# Faults of the file

AT_FAULT = [
    # (text, name, what is said)
    ("x =", "own.py", "not Python: invalid syntax"),
    ("x = 1", "own.py", "no function in it has the name of an engine function"),
    ("1 / 0", "own.py", "line 1, in <module>: ZeroDivisionError: division by zero"),
    ("raise SystemExit(3)", "own.py", "line 1, in <module>: SystemExit: 3"),
    ("import os; os._exit(3)", "own.py", "line 1, in <module>: SystemExit: 3"),
    ("raise RuntimeError('x')", "copy.py", "line 1, in <module>: RuntimeError: x"),
    ("from mthp.results import ScanResult", "own.py", "line 1, in <module>: ModuleNotFoundError"),
    ("def collapse_huge_pages(mm): pass", "own.py", "is collapse_huge_page meant?"),
    (NO_VMA_LOCK, "my.collapse.py", "no engine module my.collapse; is collapse meant?"),
    (NO_VMA_LOCK, "madvise.py", "call it khugepaged.madvise.py or mm.madvise.py"),
    (
        "def vma_start_write(): pass",
        "own.py",
        "line 1: vma_start_write() takes the place of that in",
    ),
    ("def new_anon_folio(*a): pass", "own.py", "is in mm.memory_wp and mm.rmap: say in REPLACES"),
    ("REPLACES = 3", "own.py", "REPLACES is not a dict of lists of names"),
    (
        "REPLACES = {'mm.memori': ['_drop']}",
        "own.py",
        "no engine module mm.memori; is mm.memory meant",
    ),
    ("REPLACES = {'mm.memory': ['_drop']}", "own.py", "_drop is not defined in the file"),
    (
        "REPLACES = {'mm.memory_swap': ['_dropp']}\ndef _dropp(): pass",
        "own.py",
        "mm.memory_swap has no _dropp; is _drop meant?",
    ),
    ("RIVALS = 3", "own.py", "RIVALS is not a sequence of Rival"),
    ("WORLDS = [3]", "own.py", "WORLDS is not a sequence of names"),
    ("DECLARES = 3\n" + NO_VMA_LOCK, "own.py", "DECLARES is not a Declares"),
    (
        "from mthp.races.protocol import Rival\nRIVALS = [Rival('store', '')]",
        "own.py",
        "'store' is another rival's name",
    ),
    (
        "from mthp.races.protocol import Rival\nRIVALS = [Rival('a:b', '')]",
        "own.py",
        "'a:b' is another rival's name, or is not like one",
    ),
]


@pytest.mark.parametrize(("text", "name", "said"), AT_FAULT)
def test_a_file_that_cannot_be_used(tmp_path: Path, text: str, name: str, said: str) -> None:
    with pytest.raises(VariantError) as error:
        loaded(written(tmp_path, text, name))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert IN_FORCE == [] and in_force() is None


@pytest.mark.parametrize(
    "text",
    ["while True:\n pass", "import time\ntime.sleep(99)", "import os\nos.read(os.pipe()[0], 1)"],
)
def test_a_file_must_be_loaded_in_time(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mthp.races.protocol.READY_WITHIN", 1)
    with pytest.raises(VariantError, match=r"^line \d, in <module>: it is not loaded within 1 s$"):
        loaded(written(tmp_path, text))


def test_a_rival_must_be_ready_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mthp.races.protocol.READY_WITHIN", 1)
    text = """
from mthp.races.protocol import Rival
def prepares(stage):
    while True: pass
RIVALS = [Rival("slow", "prepares for ever", prepare=prepares)]
"""
    with (
        protocol(written(tmp_path, text)),
        pytest.raises(VariantError, match=r"^line 4, in prepares: it is not prepared within 1 s$"),
    ):
        RaceWorld.parse("pmd", "7.3", ("slow",))()


COLLAPSE = "def collapse_huge_page(mm, start_addr, referenced, unmapped, cc, order):\n    {}\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return nothing_like_it", "line 2, in collapse_huge_page: NameError"),
        ("raise SystemExit(0)", "line 2, in collapse_huge_page: SystemExit: 0"),
        ("import os; os._exit(0)", "line 2, in collapse_huge_page: SystemExit: 0"),
        ("import mthp.results", "line 2, in collapse_huge_page: ModuleNotFoundError"),
        ("mm.find_vma()", "line 2, in collapse_huge_page: TypeError: "),
        ("mm.attic", "line 2, in collapse_huge_page: AttributeError: "),
        ("raise ValueError('a\\nb')", "line 2, in collapse_huge_page: ValueError: a"),
        ("mm.kernel.mem.content.read('x')", "line 2, in collapse_huge_page: TypeError: "),
    ],
)
def test_what_fails_while_it_runs_is_the_files_fault(tmp_path: Path, body: str, said: str) -> None:
    with (
        pytest.raises(VariantError) as error,
        protocol(written(tmp_path, COLLAPSE.format(body))),
    ):
        check_world(ALONE)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_keeps_something_between_executions_is_at_fault(tmp_path: Path) -> None:
    """Nothing can be said of all executions then; both explorers notice."""
    text = """
SEEN = []
def guard_pmd_none(kernel, pmd):
    SEEN.append(pmd)
    for _ in range(len(SEEN) % 7):
        kernel.mem.refcount.read(1)
"""
    with protocol(written(tmp_path, text)):
        with pytest.raises(VariantError, match="is another one when it is run again: it must keep"):
            check_world(FAULT)
        with pytest.raises(Unrecordable):
            CompiledExplorer(FAULT, until=Until.END).explore()


@pytest.mark.parametrize(
    ("body", "law"),
    [
        ("assert False, 'the table is gone'", 1),
        ("mm.vma_lookup(0).vm_flags", 1),  # nothing is there: a null pointer
        ("mm.kernel.tables[99]", 1),
        ("mm.mmap_lock.assert_held()", 9),
    ],
)
def test_what_a_race_can_come_to_is_a_finding(tmp_path: Path, body: str, law: int) -> None:
    with protocol(written(tmp_path, COLLAPSE.format(body))):
        result = check_world(ALONE)
    assert result.violation is not None
    assert {breach.law for breach in result.violation.breaches} == {law}


def test_what_fails_in_a_rival_of_its_own_is_the_files_fault_too(tmp_path: Path) -> None:
    text = (
        "from mthp.races.protocol import Rival\n"
        "def fails(stage):\n    stage.attic\n"
        "RIVALS = [Rival('unready', '', prepare=fails), Rival('failing', '', fails)]\n"
    )
    for name in ("unready", "failing"):
        with (
            pytest.raises(VariantError, match="line 3, in fails: AttributeError"),
            protocol(written(tmp_path, text)),
        ):
            check_world(RaceWorld.parse("pmd", "7.3", (name,)))
