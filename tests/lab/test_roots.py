# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs from packages: found with what they depend on, fetched, unpacked once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.apt import KEYRING, Archive
from mthp.lab.vm.roots import debian_root
from tests.lab.debs import deb

APT_GET = """#!/bin/sh
echo "$*" >> "$HERE/log"
case "$*" in
  *--simulate*nowhere*) echo "E: Unable to locate package nowhere" >&2; exit 100 ;;
  *--simulate*) echo "Inst libone (1 Debian)"; echo "Inst serve (1 Debian)"; echo "Conf serve" ;;
  *download*) cp "$HERE"/*.deb . ;;
esac
"""
APT_CACHE = """#!/bin/sh
printf 'Package: libone\\nVersion: 1\\nSize: 10\\nInstalled-Size: 1\\n\\n'
printf 'Package: serve\\nVersion: 1\\nSize: 20\\nInstalled-Size: 2\\n\\n'
"""
DEBIAN = Archive("http://archive.example/debian")

needs_debian = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None or not KEYRING.exists(), reason="no dpkg-deb or no keyring"
)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that an apt of ours serves packages from."""
    here = tmp_path / "archive"
    here.mkdir()
    files = {"libone": {"usr/lib/libone.so": b"one"}, "serve": {"usr/bin/serve": b"#!/bin/sh\n"}}
    for name, content in files.items():
        (tmp_path / name).mkdir()
        shutil.move(deb(tmp_path / name, name, content), here)
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    monkeypatch.setenv("HERE", str(here))
    monkeypatch.setenv("PATH", str(here), prepend=":")
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return here


@needs_debian
def test_packages_become_a_root(archive: Path) -> None:
    said: list[str] = []
    root = debian_root(["serve"], said.append, lambda: DEBIAN)
    assert root.find("/usr/bin/serve") is not None and root.find("/usr/lib/libone.so") is not None
    assert "2 packages, 30 B" in said[-1]
    asked = (archive / "log").read_text()
    assert asked.count("download") == 1 and "libone=1 serve=1" in asked
    again: list[str] = []
    assert debian_root(["serve"], again.append, lambda: DEBIAN).folder == root.folder
    assert again == [] and (archive / "log").read_text() == asked


@needs_debian
def test_an_unknown_package_is_one_line(archive: Path) -> None:
    with pytest.raises(LabError, match="Unable to locate package nowhere") as error:
        debian_root(["nowhere"], lambda line: None, lambda: DEBIAN)
    assert error.value.code == 5
    assert not list((archive.parent / "cache" / "roots").glob("*"))
