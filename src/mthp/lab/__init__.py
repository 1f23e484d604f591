# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab: a real kernel beside the engine."""
