# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive the searches of the race checker, and keep what they found."""
