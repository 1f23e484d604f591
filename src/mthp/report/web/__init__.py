# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages and pictures for others than the terminal; their style and script are files of their own."""
