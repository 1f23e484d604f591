# SPDX-License-Identifier: GPL-2.0-or-later
"""Fast twins: what the specification does page by page, done for a whole run at once."""
