# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of anonymous memory: programs run on the engine, recordings replayed under any settings."""
