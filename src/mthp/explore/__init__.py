# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedulers: which task takes the next step. Of the engine they know steps, tasks and clocks."""
