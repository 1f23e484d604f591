# SPDX-License-Identifier: GPL-2.0-or-later
"""What khugepaged makes of an image under any settings, for all of its page tables at once.

`occupancy` sorts an image's tables by what decides about them; `bulk` chooses the windows of those in
which occupancy alone does; `planner` puts settings to them, and gives the others to the engine.
"""
