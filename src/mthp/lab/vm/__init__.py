# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: QEMU, the files of the guest, and the channel to its agent."""
