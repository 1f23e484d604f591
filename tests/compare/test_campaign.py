# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign that is taken up again: what its folder holds counts, once, and no more than is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mthp.compare.campaign import Campaign, CampaignSpec, open_campaign
from mthp.lab.errors import BAD_INPUT, LabError
from tests.compare.test_fuzz import FILES, records

SPEC = CampaignSpec(seed=7, number=100, kernel="7.3.4", family="")
RECORDS = records(FILES[0])[:4]
WRONG = {"id": "7-2", "pass": 0, "where": "errno", "expected": 0, "got": -11}


def entry(index: int, **fields: Any) -> dict[str, Any]:
    """A line of the log: one pass that agreed, unless fields say otherwise."""
    line = {"id": f"7-{index}", "family": "plain", "passes": 1, "agreed": 1, "not_built": ""}
    return {**line, "mismatches": [], "paths": {}, **fields}


LOG = (
    entry(0),
    entry(1, family="swap", passes=0, agreed=0, not_built="no such page"),
    entry(2, passes=2, agreed=1, mismatches=[WRONG, {**WRONG, "where": "counters"}]),
    entry(3, family="swap"),
    entry(4, passes=0, agreed=0, not_built="the guest is gone"),
    entry(5),
)
"""Four of them were built: RECORDS."""


def lines(documents: Sequence[Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in documents)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A campaign's folder as it stands after six drafts."""
    path = tmp_path / "campaign"
    campaign = open_campaign(SPEC, path)
    assert campaign.done == 0
    campaign.log.write_text(lines(LOG))
    campaign.records.write_text(lines(RECORDS))
    return path


def counted() -> Campaign:
    """The same six drafts, counted as they come."""
    campaign = Campaign(SPEC, Path())
    for each in LOG:
        campaign.add(each)
    for record in RECORDS:
        campaign.cover(record)
    return campaign


def on_disk(campaign: Campaign) -> tuple[int, int]:
    """Lines of the log and of the records; all of them whole."""
    texts = campaign.log.read_text(), campaign.records.read_text()
    assert all(not text or text.endswith("\n") for text in texts)
    return texts[0].count("\n"), texts[1].count("\n")


def test_the_account() -> None:
    campaign = counted()
    assert (campaign.done, campaign.built, campaign.passes, campaign.agreed) == (6, 4, 5, 4)
    assert campaign.bad_ids == ["7-2"]
    document = campaign.to_json()
    assert [each["id"] for each in document["not_built"]] == ["7-1", "7-4"]
    assert document["families"] == {
        "plain": {"drafts": 4, "passes": 4, "agreed": 3, "not_built": 1},
        "swap": {"drafts": 2, "passes": 1, "agreed": 1, "not_built": 1},
    }
    assert campaign.coverage.passes == sum(len(record["passes"]) for record in RECORDS)


def test_a_new_campaign_has_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    assert open_campaign(SPEC, folder).to_json()["number"] == 0
    meta = json.loads((folder / "campaign.json").read_text())
    assert (meta["seed"], meta["kernel"], meta["family"]) == (7, "7.3.4", "")
    assert [path.name for path in folder.iterdir()] == ["campaign.json"]


def test_it_goes_on_with_the_same_account(folder: Path) -> None:
    for _ in range(2):
        campaign = open_campaign(SPEC, folder)
        assert campaign.to_json() == counted().to_json()
        assert on_disk(campaign) == (6, 4)


def test_more_may_be_drawn_than_was_meant_first(folder: Path) -> None:
    more = CampaignSpec(SPEC.seed, SPEC.number * 2, SPEC.kernel, SPEC.family)
    assert open_campaign(more, folder).done == 6


@pytest.mark.parametrize("half", ['{"id": "7-6", "fam', json.dumps(entry(6))])
def test_a_line_of_the_log_without_its_end_is_dropped(folder: Path, half: str) -> None:
    with (folder / "log.jsonl").open("a") as log:
        log.write(half)
    campaign = open_campaign(SPEC, folder)
    assert campaign.done == 6
    assert on_disk(campaign) == (6, 4)


def test_a_record_whose_line_in_the_log_is_missing_is_dropped(folder: Path) -> None:
    with (folder / "records.jsonl").open("a") as file:
        file.write(lines(RECORDS[:1]))
    campaign = open_campaign(SPEC, folder)
    assert campaign.to_json() == counted().to_json()
    assert on_disk(campaign) == (6, 4)


def test_a_draft_whose_record_is_not_whole_is_tried_again(folder: Path) -> None:
    text = (folder / "records.jsonl").read_text()
    (folder / "records.jsonl").write_text(text[:-1])
    campaign = open_campaign(SPEC, folder)
    assert (campaign.done, campaign.built) == (5, 3)
    assert on_disk(campaign) == (5, 3)
    assert campaign.coverage.passes == sum(len(record["passes"]) for record in RECORDS[:3])


def test_drafts_that_were_not_built_before_a_lost_record_stay(folder: Path) -> None:
    """Only from the first draft without its record on is anything done again."""
    (folder / "records.jsonl").write_text(lines(RECORDS[:1]))
    campaign = open_campaign(SPEC, folder)
    assert (campaign.done, campaign.built, len(campaign.not_built)) == (2, 1, 1)
    (folder / "records.jsonl").unlink()
    assert open_campaign(SPEC, folder).done == 0


@pytest.mark.parametrize(
    "other",
    [
        CampaignSpec(8, 100, "7.3.4"),
        CampaignSpec(7, 100, "7.2.12"),
        CampaignSpec(7, 100, "7.3.4", "swap"),
    ],
)
def test_another_campaigns_folder_is_refused(folder: Path, other: CampaignSpec) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(LabError, match="holds another campaign") as caught:
        open_campaign(other, folder)
    assert caught.value.code == BAD_INPUT
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("campaign.json", "no JSON"),
        ("campaign.json", "[]"),
        ("log.jsonl", "no JSON\n"),
        ("log.jsonl", "[]\n"),
        ("log.jsonl", "3\n"),
        ("log.jsonl", "{}\n"),
        ("log.jsonl", '{"not_built": ""}\n'),
        ("records.jsonl", "no JSON\n" * 4),
        ("records.jsonl", "null\n" * 4),
        ("records.jsonl", "{}\n" * 4),
        ("records.jsonl", '{"passes": [{}]}\n' * 4),
    ],
)
def test_a_damaged_folder_is_named(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(LabError) as caught:
        open_campaign(SPEC, folder)
    assert caught.value.code == BAD_INPUT
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(LabError) as caught:
            open_campaign(SPEC, path)
        assert caught.value.code == BAD_INPUT
