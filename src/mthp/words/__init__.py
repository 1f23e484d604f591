# SPDX-License-Identifier: GPL-2.0-or-later
"""The words that all rooms use: sizes, results, settings, profiles, events."""
