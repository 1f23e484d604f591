# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedulers: which task takes the next step. They know machine/ and nothing else."""
