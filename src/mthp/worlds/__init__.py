# SPDX-License-Identifier: GPL-2.0-or-later
"""From an image to a world of the model."""
