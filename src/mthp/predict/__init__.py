# SPDX-License-Identifier: GPL-2.0-or-later
"""Run khugepaged over a world until nothing changes; say what happened, and why."""
