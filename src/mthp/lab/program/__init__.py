# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of operations that make a state in the guest."""
