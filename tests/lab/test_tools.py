# SPDX-License-Identifier: GPL-2.0-or-later
"""Which programs this host lacks. Installing them is tested with the command, in tests/cli."""

from __future__ import annotations

from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.tools import Tool, missing, plan


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of PATH, empty."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str, says: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\necho {says}\n")
    (folder / name).chmod(0o755)


def test_everything_is_missing(tools: Path) -> None:
    assert missing() == (Tool.QEMU, Tool.COMPILER, Tool.STATIC_LIBC)
    with pytest.raises(LabError, match="no apt-get to install it: gcc, libc6-dev") as caught:
        plan((Tool.COMPILER, Tool.STATIC_LIBC))
    assert caught.value.code == 5


def test_a_compiler_without_a_static_libc(tools: Path) -> None:
    put(tools, "qemu-system-x86_64", "")
    put(tools, "gcc", "libc.a")
    assert missing() == (Tool.STATIC_LIBC,)
    put(tools, "cc", "/usr/lib/libc.a")
    assert missing() == ()
