# SPDX-License-Identifier: GPL-2.0-or-later
"""Where Debian's archive is, as the system's own sources say; and what apt says of packages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mthp.lab.errors import LabError
from mthp.lab.kernels.apt import (
    KEYRING,
    Archive,
    Package,
    PrivateApt,
    Source,
    debian_archive,
    parse_list,
    parse_records,
    parse_stanzas,
    run_apt,
    system_sources,
)

OURS = "http://archive.example/debian"
LIST = f"""
# deb http://old.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb-src {OURS} bookworm main
deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] {OURS} bookworm main contrib # ours
deb broken
"""
STANZAS = f"""# a comment before
Types: deb deb-src
# a comment within
URIs: {OURS}
 http://second.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /k/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main
"""


def test_lines_of_a_list() -> None:
    assert list(parse_list(LIST)) == [
        Source(("cdrom:[Debian]/",), ("bookworm",), ("main",)),
        Source((OURS,), ("bookworm",), ("main", "contrib"), "/k/debian-archive-keyring.gpg"),
    ]


def test_stanzas_that_are_on_and_binary() -> None:
    assert list(parse_stanzas(STANZAS)) == [
        Source(
            (OURS, "http://second.example/debian"),
            ("bookworm", "bookworm-updates"),
            ("main",),
            "/k/debian-archive-keyring.gpg",
        )
    ]


@pytest.mark.parametrize("text", ["", "\n\n", ":", " leading", "Types: deb", "no colon here"])
def test_odd_files_break_nothing(text: str) -> None:
    assert not [source for source in parse_stanzas(text) if source.uris]
    assert not list(parse_list(text))


def test_the_systems_files_are_read_in_order(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://one.example/debian bookworm main\n")
    (parts / "b.list").write_text("deb http://three.example/debian trixie main\n")
    (parts / "a.sources").write_text(STANZAS)
    (parts / "c.list.save").write_text("deb http://no.example/debian trixie main\n")
    assert [source.uris[0] for source in system_sources(tmp_path)] == [
        "http://one.example/debian", OURS, "http://three.example/debian",
    ]  # fmt: skip
    assert system_sources(tmp_path / "gone") == []


def test_debians_own_archive_comes_before_others_that_look_like_it() -> None:
    other = Source(("http://engine.example/debian",), ("bookworm",), ("main",), "/k/other.asc")
    plain = Source(("http://plain.example/debian",), ("bookworm",), ("main",))
    ours = Source((OURS,), ("bookworm",), ("main",), "/k/debian-archive-keyring.gpg")
    assert debian_archive([other, plain, ours]) == Archive(OURS)
    assert debian_archive([other, plain]) == Archive("http://plain.example/debian")
    assert debian_archive([other]) == Archive("http://engine.example/debian")


@pytest.mark.parametrize(
    "source",
    [
        Source((OURS,), ("bookworm-security",), ("main",)),
        Source((OURS,), ("noble",), ("main",)),
        Source((OURS,), ("bookworm",), ("stable",)),
        Source(("cdrom:[x]/",), ("bookworm",), ("main",)),
    ],
)
def test_no_archive_of_debian(source: Source) -> None:
    with pytest.raises(LabError, match="name no archive of Debian") as caught:
        debian_archive([source])
    assert caught.value.code == 5


def test_records_give_sizes_in_bytes_and_the_newest_version() -> None:
    text = """Package: a
Version: 2
Installed-Size: 3
Size: 1500
Description: x
 more: y

Package: a
Version: 1
Size: 7

Package: b
Version: 1
"""
    assert list(parse_records(text)) == [Package("a", "2", 1500, 3072), Package("b", "1", 0, 0)]


def test_a_size_that_is_no_number_is_none() -> None:
    for size in ("x", "9" * 5000):
        assert list(parse_records(f"Package: a\nSize: {size}\n")) == [Package("a", "", 0, 0)]


needs_apt = pytest.mark.skipif(
    shutil.which("apt-get") is None or not KEYRING.exists(), reason="not a Debian"
)


@needs_apt
def test_apt_keeps_to_its_own_folder(tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", Archive("file:/nonexistent/debian"), "bookworm")
    kept = run_apt(["apt-config", "-c", str(tmp_path / "apt/apt.conf"), "dump"])
    for key in ("Dir::State::lists", "Dir::State::status", "Dir::Etc::sourcelist", "Dir::Cache"):
        assert f'{key} "{tmp_path}/apt/' in kept
    assert "APT::Update::Post-Invoke:: " not in kept
    assert apt.packages("^linux-") == []


@needs_apt
def test_an_archive_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    apt = PrivateApt(tmp_path / "apt", Archive("file:/nonexistent/debian"), "bookworm")
    with pytest.raises(LabError) as caught:
        apt.update()
    assert caught.value.code == 5
    assert "\n" not in str(caught.value)


@needs_apt
def test_a_path_apt_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="apt takes no path like this") as caught:
        PrivateApt(tmp_path / 'a"b', Archive(OURS), "bookworm")
    assert caught.value.code == 2


def test_no_apt_on_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="apt-get is not on this host") as caught:
        PrivateApt(tmp_path / "apt", Archive(OURS), "bookworm")
    assert caught.value.code == 5


def test_no_keyring(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("not a Debian")
    with pytest.raises(LabError, match="is missing: apt-get install debian-archive-keyring"):
        PrivateApt(tmp_path / "apt", Archive(OURS, tmp_path / "gone.gpg"), "bookworm")
