# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels, their modules and their sources, fetched and kept in the cache."""
