# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scenario's declared state to the program of system calls that makes it."""

from mthp.lab.compile.differences import differences, state_differences
from mthp.lab.compile.state import compile_state
from mthp.lab.compile.wanted import CannotBuild, displacement

__all__ = ["CannotBuild", "compile_state", "differences", "displacement", "state_differences"]
