# SPDX-License-Identifier: GPL-2.0-or-later
"""Assertions in the world builder explain themselves as those in tests do. Where the environment keeps
no byte code, the processes that tests start would compile all modules, each time: they share a folder.
Where the tests run in the background of a shell, it has the keyboard's signals ignored, for them and for
what they start: they are heard all the same."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.small_worlds")


def pytest_configure(config: pytest.Config) -> None:
    """Have byte code kept in a folder of this run; its workers and processes inherit both variables, and
    the signals that are heard.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        folder = os.environ["PYTHONPYCACHEPREFIX"] = tempfile.mkdtemp(prefix="mthp-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture
def alone_in_tracefs() -> Iterator[None]:
    """Until the end of the test no other test, of any worker or run, has instances in tracefs: the kernel
    shows them to all who mount it."""
    lock = Path(tempfile.gettempdir()) / f"mthp-tests-tracefs-{os.getuid()}.lock"
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
