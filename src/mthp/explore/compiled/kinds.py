# SPDX-License-Identifier: GPL-2.0-or-later
"""What every file of the recorder knows: how it refuses, and what stands where nothing is."""

from __future__ import annotations

from typing import Final


class Unrecordable(BaseException):
    """Something shared cannot be recorded; one line says what. No task may catch it."""


class Absent:
    """The type of ABSENT."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = Absent()
"""What an attribute or a key holds that is not there."""
