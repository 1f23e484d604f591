# SPDX-License-Identifier: GPL-2.0-or-later
"""Assertions in the world builder explain themselves as those in tests do. Where the environment keeps
no byte code, the processes that tests start would compile all modules, each time: they share a folder."""

import os
import shutil
import tempfile

import pytest

pytest.register_assert_rewrite("tests.small_worlds")


def pytest_configure(config: pytest.Config) -> None:
    """Have byte code kept in a folder of this run; its workers and processes inherit both variables."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="mthp-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
