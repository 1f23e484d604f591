# SPDX-License-Identifier: GPL-2.0-or-later
"""mthp lab setup and list: what they print, and one line where they cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mthp.cli import main
from tests.cli.test_bad_input import refused
from tests.lab.synthetic import bzimage, module

APT = """#!/bin/sh
case "$*" in
  *--simulate*) if test "$MTHP_TEST_LISTS" = stale; then exit 100; fi ;;
  *--assume-no*) echo "Need to get 12 MB of archives."; exit 1 ;;
  *--yes*) for tool in qemu-system-x86_64 gcc; do
      printf '#!/bin/sh\\necho /libc.a\\n' > "$HERE/$tool"; chmod 755 "$HERE/$tool"; done ;;
esac
"""
"""Stands for the system's apt-get, which a test must not run in earnest."""
INSTALL = "apt-get install --no-install-recommends qemu-system-x86 gcc libc6-dev"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MTHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH has nothing but the shell's own tools and that apt-get: no QEMU, no compiler."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-get", APT), ("chmod", '#!/bin/sh\nexec /bin/chmod "$@"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("HERE", str(tools))
    return tools


@pytest.fixture
def host_with_tools(bare_host: Path) -> None:
    for name in ("qemu-system-x86_64", "gcc"):
        (bare_host / name).write_text("#!/bin/sh\necho /libc.a\n")
        (bare_host / name).chmod(0o755)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage("7.4.0-mine"))
    return path


@pytest.mark.usefixtures("host_with_tools")
def test_a_kernel_from_anywhere(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, image: Path, cache: Path
) -> None:
    tree = tmp_path / "lib/modules/7.4.0-mine/kernel"
    tree.mkdir(parents=True)
    (tree / "zram.ko").write_bytes(module(vermagic="7.4.0-mine SMP "))
    assert main(["lab", "setup", "--kernel", str(image), "--modules", str(tmp_path)]) == 0
    home = cache / "kernels/7.4.0-mine"
    assert capfd.readouterr() == (f"kernel 7.4.0-mine is ready, with modules: {home}\n", "")
    assert main(["lab", "list"]) == 0
    assert capfd.readouterr().out == f"7.4.0-mine  1.1 KiB, modules  {image}\n"
    assert main(["lab", "list", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    (kernel,) = document["kernels"]
    assert document["schema_version"] == 1
    assert (kernel["release"], kernel["source"]) == ("7.4.0-mine", str(image))
    assert (kernel["image"], kernel["modules"]) == (f"{home}/vmlinuz", f"{home}/modules")
    assert kernel["image_bytes"] == image.stat().st_size


@pytest.mark.usefixtures("host_with_tools")
def test_what_is_in_the_cache_needs_no_archive(
    capfd: pytest.CaptureFixture[str], image: Path
) -> None:
    main(["lab", "setup", "--kernel", str(image)])
    capfd.readouterr()
    assert main(["lab", "setup", "--release", "7.4"]) == 0
    assert capfd.readouterr().out.startswith("kernel 7.4.0-mine is in the cache already")


def test_an_empty_cache(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lab", "list"]) == 0
    assert capfd.readouterr().out == "no kernel in the cache: mthp lab setup fetches one\n"
    assert main(["lab", "list", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"schema_version": 1, "kernels": []}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "required: SUBVERB"),
        (("nope",), "invalid choice"),
        (("setup", "--modules", "/tmp"), "--modules goes with --kernel"),
        (("setup", "--kernel", "/x", "--release", "7.3"), "no --release"),
        (("setup", "--kernel", "/nonexistent"), "No such file"),
        (("setup", "--kernel", "/tmp"), "not a plain file"),
        (("setup", "--kernel", "/bin/sh"), "not a Linux kernel image"),
        (("setup", "--release", "latest"), "not the beginning of a kernel's release"),
        (("setup", "--release", ""), "not the beginning of a kernel's release"),
    ],
)
def test_bad_input(capfd: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    assert says in refused(capfd, "lab", *argv)


@pytest.mark.usefixtures("bare_host")
def test_missing_programs_are_named_with_the_line_to_run(
    capfd: pytest.CaptureFixture[str], image: Path, cache: Path
) -> None:
    assert main(["lab", "setup", "--kernel", str(image)]) == 5
    out, err = capfd.readouterr()
    assert "missing on this host: qemu-system-x86, gcc, libc6-dev" in out
    assert "Need to get 12 MB of archives." in out
    assert err == f"mthp lab: missing programs; as root run: {INSTALL}\n"
    assert not cache.exists()


@pytest.mark.usefixtures("bare_host")
def test_lists_that_are_stale_are_renewed_first(
    capfd: pytest.CaptureFixture[str], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTHP_TEST_LISTS", "stale")
    assert main(["lab", "setup", "--kernel", str(image)]) == 5
    assert capfd.readouterr().err.endswith(f"as root run: apt-get update && {INSTALL}\n")


@pytest.mark.usefixtures("bare_host")
def test_a_rehearsal_changes_nothing(
    capfd: pytest.CaptureFixture[str], image: Path, cache: Path
) -> None:
    assert main(["lab", "setup", "--kernel", str(image), "--rehearse"]) == 0
    out, err = capfd.readouterr()
    assert (err, cache.exists()) == ("", False)
    assert f"to install: {INSTALL}" in out
    assert f"would copy kernel 7.4.0-mine from {image}" in out


@pytest.mark.usefixtures("bare_host")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may install")
def test_yes_installs(capfd: pytest.CaptureFixture[str], image: Path) -> None:
    assert main(["lab", "setup", "--kernel", str(image), "--yes"]) == 0
    assert "kernel 7.4.0-mine is ready, without modules" in capfd.readouterr().out


def test_a_host_without_apt(
    capfd: pytest.CaptureFixture[str], image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(capfd, "lab", "setup", "--kernel", str(image), code=5)
    assert "missing, and no apt-get to install it: qemu-system-x86, gcc, libc6-dev" in said


@pytest.mark.usefixtures("host_with_tools")
def test_no_room_for_the_cache(capfd: pytest.CaptureFixture[str], image: Path, cache: Path) -> None:
    cache.write_text("a file where the cache should be")
    assert "cannot write the cache" in refused(
        capfd, "lab", "setup", "--kernel", str(image), code=5
    )
