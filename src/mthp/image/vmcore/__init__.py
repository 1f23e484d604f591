# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of a machine (vmcores): the same snapshot as of live processes, out of the memory in a file."""
