# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine held against recordings and against real kernels."""
