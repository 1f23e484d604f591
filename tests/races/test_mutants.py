# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule taken away is noticed by a law; with the rules in place nothing is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mthp.check.check import check_world, hunt
from mthp.check.drawing import draw, replay
from mthp.check.records import MutantVerdict, Verdict, Violation, is_not_run
from mthp.check.scorecard import default_worlds
from mthp.check.search import Budget
from mthp.check.token import Token
from mthp.laws.table import LAWS
from mthp.races.cast.all import LAWFUL, RIVALS
from mthp.races.findings import findings_of
from mthp.races.mutants.mutant import Mutant
from mthp.races.mutants.rules import HALVES, MUTANTS
from mthp.races.questions import QUESTIONS
from mthp.races.stage import Size
from mthp.races.variant import applied
from mthp.races.world import Hook, RaceWorld
from mthp.report.check import violation_document


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(each, id=each.id, marks=[pytest.mark.slow] if n % 2 else [])
        for n, each in enumerate(MUTANTS.values())
    ],
)
def test_a_mutant_is_caught_by_a_law_listed_for_it(mutant: Mutant) -> None:
    result = hunt(mutant)
    assert result.verdict is MutantVerdict.CAUGHT
    assert set(result.laws) & set(mutant.laws)
    assert result.violation is not None
    assert result.violation.breaches == replay(result.violation.replay).breaches


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=lambda mutant: mutant.id)
def test_its_world_is_clean_with_the_rule_in_place(mutant: Mutant) -> None:
    if mutant.id in ("A6", "A18a"):
        pytest.skip("the world itself is what breaks the rule")
    result = check_world(mutant.world)
    assert result.clean
    assert result.covered.kind == "exhaustive"


@pytest.mark.parametrize("half", HALVES.values(), ids=lambda half: half.id)
def test_half_a_mutant_is_masked(half: Mutant) -> None:
    result = hunt(half)
    assert result.verdict is MutantVerdict.MASKED
    assert not is_not_run(result.ran)
    assert result.covered.kind == "exhaustive"


BOUNDED = {"slot-reuse"}
"""A world that takes a minute."""
LONG = {
    *("swap-in", "swap-in-store", "swap-in-large", "swapoff", "swap-cache-free", "split-large"),
    *("madv-collapse", "migrate", "large-fault-beside"),
}
"""Worlds of some hundreds of executions and more."""


QUICK_IN_ALL = {"", "fault", "gup", "zap", "mremap", "uffd-wp"}
"""Rivals against which the default suite looks at each profile; at 7.3, at every other one besides."""


@pytest.mark.parametrize(
    ("profile", "rival"),
    [
        pytest.param(
            profile,
            name,
            marks=[pytest.mark.slow]
            if name in LONG or not (name in QUICK_IN_ALL or (profile == "7.3" and n % 2))
            else [],
        )
        for profile in ("v16", "7.3", "pmd-only")
        for n, name in enumerate(("", *LAWFUL))
        if name not in BOUNDED
    ],
)
def test_the_profiles_are_clean(profile: str, rival: str) -> None:
    rivals = (rival,) if rival else ()
    for world in default_worlds(profile):
        if world.rivals == rivals:
            result = check_world(world)
            assert result.clean is (not findings_of(world)), result.violation
            assert result.verdict is not Verdict.VACUOUS or result.cannot
            assert result.covered.kind == "exhaustive"


@pytest.mark.parametrize("rival", sorted(BOUNDED))
def test_a_world_that_is_not_exhausted_says_so(rival: str) -> None:
    result = check_world(RaceWorld(Size.PMD, "7.3", (rival,)), Budget(100))
    assert result.clean
    assert result.covered.kind == "bounded"


@pytest.mark.parametrize("profile", ["v16", "7.3"])
def test_a_read_only_window_loses_its_soft_dirty_marks(profile: str) -> None:
    """As kernel 7.3.4 does in the lab: a finding, and no other law is broken in any execution."""
    result = check_world(RaceWorld(Size.WINDOW, profile, ("mprotect",)))
    assert (result.clean, result.expected_finding) == (False, "S1, D1")
    assert result.violation is not None
    assert {each.law for each in result.violation.breaches} == {8, 16}
    assert result.covered.kind == "exhaustive"


def test_two_findings_in_one_world_are_both_known() -> None:
    result = check_world(RaceWorld(Size.WINDOW, "v16", ("mprotect",), Hook.WALKS))
    assert (result.clean, result.expected_finding) == (False, "A18a, S1, D1")
    assert result.covered.kind == "exhaustive"


def test_a_question_is_not_answered_by_a_finding() -> None:
    result = check_world(RaceWorld(Size.WINDOW, "7.3", ("mprotect",)), mutant="no-pmd-lock")
    assert result.clean


def test_v16_meets_a_hook_that_walks() -> None:
    v16, merged = (
        check_world(RaceWorld(Size.WINDOW, profile, (), Hook.WALKS)) for profile in ("v16", "7.3")
    )
    assert (v16.clean, v16.expected_finding) == (False, "A18a")
    assert (merged.clean, merged.expected_finding) == (True, "")


def replays_in_a_fresh_process(violation: Violation | None) -> None:
    """The same laws, texts, steps and calls, from the token alone."""
    assert violation is not None
    command = [sys.executable, "-m", "mthp", "replay", violation.replay, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (4, "")
    assert json.loads(ran.stdout) == json.loads(json.dumps(violation_document(violation)))


SAMPLE = ("A2", "A16", "X3")
WALKED = RaceWorld(Size.WINDOW, "v16", (), Hook.WALKS)


@pytest.mark.parametrize("mutant", SAMPLE)
def test_a_token_replays_in_a_fresh_process(mutant: str) -> None:
    replays_in_a_fresh_process(hunt(MUTANTS[mutant]).violation)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [each for each in MUTANTS if each not in SAMPLE])
def test_every_token_replays_in_a_fresh_process(mutant: str) -> None:
    replays_in_a_fresh_process(hunt(MUTANTS[mutant]).violation)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_what_a_question_breaks_replays_in_a_fresh_process(question: str) -> None:
    worlds = (world for profile in ("7.3", "v16") for world in default_worlds(profile))
    results = (check_world(world, Budget(200), question) for world in worlds)
    broken = next((each.violation for each in results if not each.clean), None)
    if broken is None:
        pytest.skip("nothing is broken without this rule")
    replays_in_a_fresh_process(broken)


@pytest.mark.slow
def test_the_expected_finding_replays_in_a_fresh_process() -> None:
    replays_in_a_fresh_process(check_world(WALKED).violation)


def test_without_the_mutant_its_schedule_breaks_nothing() -> None:
    violation = hunt(MUTANTS["A16"]).violation
    assert violation is not None
    token = Token.parse(violation.replay)
    assert draw(Token("as-is", token.world, token.schedule)).breaches == ()


@pytest.mark.slow
def test_laws_that_fire() -> None:
    """Every law is broken by some mutant here, or by a corrupted world in tests/laws."""
    fired = {law for mutant in MUTANTS.values() for law in hunt(mutant).laws}
    assert fired >= {1, 2, 3, 4, 6, 7, 8, 9, 10, 13}
    assert fired <= LAWS.keys()


@pytest.mark.parametrize(
    "token",
    [
        "",
        "A16",
        "A99:7.3:pmd:-:a1",
        "as-is:9.9:pmd:-:a1",
        "as-is:7.3:attic:-:a1",
        "as-is:7.3:pmd+x:-:a1",
        "as-is:7.3:pmd:nobody:a1",
        "as-is:7.3:pmd:-:b1",
        "as-is:7.3:pmd:-:1a",
    ],
)
def test_bad_tokens_are_refused(token: str) -> None:
    with pytest.raises(
        ValueError, match=r"not a token|no mutant|no profile|no world|no rival|sched"
    ):
        Token.parse(token)


def test_worlds_have_names_that_read_back() -> None:
    for mutant in MUTANTS.values():
        world = mutant.world
        assert RaceWorld.parse(world.name, world.profile, world.rivals) == world


def test_an_edit_ends_with_its_block() -> None:
    from mthp.khugepaged import collapse

    before = collapse.collapse_huge_page
    with applied(MUTANTS["A16"].edits):
        assert collapse.collapse_huge_page is not before
    assert collapse.collapse_huge_page is before


def test_rivals_say_what_they_do() -> None:
    assert all(rival.what for rival in RIVALS.values())
