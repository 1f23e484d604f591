# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of anonymous memory: programs of system calls and touches, run on the engine."""
