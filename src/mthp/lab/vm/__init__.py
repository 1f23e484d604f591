# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: QEMU, the files in it, and the line to it."""
