# SPDX-License-Identifier: GPL-2.0-or-later
"""Real programs: each recorded once, and then really run under other settings, in guests."""
