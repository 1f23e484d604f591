# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace says of collapses at khugepaged's own pace."""

from __future__ import annotations

import pytest

from mthp.lab.errors import LabError
from mthp.lab.session.pace import PacedRun, collapses_of

HEAD = "# tracer: nop\n#\n# entries-in-buffer/entries-written: {}/{}   #P:1\n#\n"
KHUGEPAGED = "     khugepaged-31      [000] ....."
EVENTS = f"""\
{KHUGEPAGED}     9.999999: mm_collapse_huge_page: mm=0, isolated=1, status=succeeded, order=9
          agent-1       [000] .....    10.500000: tracing_mark_write: paced
{KHUGEPAGED}    10.510400: mm_collapse_huge_page: mm=0, isolated=1, status=succeeded, order=4
{KHUGEPAGED}    10.520000: mm_collapse_huge_page: mm=0, isolated=0, status=exceed_none_pte, order=9
{KHUGEPAGED}    11.000600: mm_collapse_huge_page: mm=0, isolated=1, status=succeeded
"""


def test_the_clock_starts_one_sleep_before_the_mark() -> None:
    found = collapses_of(HEAD.format(5, 5) + EVENTS, 10_000)
    assert found == ((10_010, 4), (10_501, 9))
    run = PacedRun(found, (4096, 8192), 3)
    assert run.windows == {4: 1, 9: 1}
    assert run.last_collapse_ms == 10_501
    assert PacedRun((), (0, 0), 2).last_collapse_ms is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEAD.format(5, 7) + EVENTS, "the trace has 5 of 7 events"),
        (HEAD.format(0, 0), "does not say when it began"),
    ],
)
def test_a_trace_that_is_not_whole_is_refused(text: str, why: str) -> None:
    with pytest.raises(LabError, match=why):
        collapses_of(text, 0)
