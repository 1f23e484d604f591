# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers and sizes that people type: what is none is refused in a line of bounded length."""

from __future__ import annotations

import pytest

from mthp.words.units import parse_size, parse_whole


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("007", 7), ("9" * 19, 10**19 - 1)])
def test_whole_numbers(text: str, number: int) -> None:
    assert parse_whole(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1.0",
        "1e3",
        "0x1",
        "1_0",
        "²",
        "٣",
        "9" * 20,
        "9" * 10**5,
        "a" * 999,
    ],
)
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number from 0 up") as caught:
        parse_whole(text)
    assert len(str(caught.value)) < 100


def test_limits_are_part_of_the_range_and_said() -> None:
    assert [parse_whole(text, 2, 8) for text in ("2", "8")] == [2, 8]
    for text in ("1", "9"):
        with pytest.raises(ValueError, match=f"^'{text}' is not a whole number from 2 to 8$"):
            parse_whole(text, 2, 8)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("64K", "64kB", "2M", "1 GiB", "4096")] == [
        1 << 16,
        1 << 16,
        1 << 21,
        1 << 30,
        4096,
    ]
    for text in ("", "K", "64Q", "-1K", "٣K", "9" * 20, "1.5M"):
        with pytest.raises(ValueError, match="not a size"):
            parse_size(text)
