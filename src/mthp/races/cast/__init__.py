# SPDX-License-Identifier: GPL-2.0-or-later
"""Who plays in a race: the collapser and its rivals."""
