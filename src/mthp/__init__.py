# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged, executable: Linux's multi-size THP collapse as a specification that runs."""

__version__ = "0.1.0"
