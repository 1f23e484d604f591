# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiled twin of the reference search: tasks as automata over integers."""
