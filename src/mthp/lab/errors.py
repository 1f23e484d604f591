# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes wrong in the lab and can be said in one line."""

from __future__ import annotations

FAILED = 1
"""Exit code: what was begun did not come to its end."""
HOST_LACKS = 5
"""Exit code: this host lacks something (a program, room, the archive, a kernel)."""
BAD_INPUT = 2
"""Exit code: what was asked for cannot be."""


class LabError(Exception):
    """One line for the user; code is the exit code (FAILED, HOST_LACKS or BAD_INPUT)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[LabError], tuple[int, str]]:
        return LabError, (self.code, str(self))
