# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules taken away: bugs the kernel had, or would have."""
