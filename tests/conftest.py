# SPDX-License-Identifier: GPL-2.0-or-later
"""Assertions in the world builder explain themselves as those in tests do."""

import pytest

pytest.register_assert_rewrite("tests.small_worlds")
