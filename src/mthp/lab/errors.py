# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's error, which is one line for the user, and the exit codes it carries."""

from __future__ import annotations

FAILED = 1
"""Exit code: something that was begun failed."""
HOST_LACKS = 5
"""Exit code: this host lacks something (a program, disk space, Debian's archive, a kernel)."""
BAD_INPUT = 2
"""Exit code: the arguments or files given are wrong."""


class LabError(Exception):
    """A failure, as one line for the user; code is the exit code (FAILED, HOST_LACKS or
    BAD_INPUT)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[LabError], tuple[int, str]]:
        return LabError, (self.code, str(self))
