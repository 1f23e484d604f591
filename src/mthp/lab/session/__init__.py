# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted guest that watches khugepaged."""
