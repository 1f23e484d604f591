# SPDX-License-Identifier: GPL-2.0-or-later
"""What shells and man get from the parser: every option, and it works in bash and groff."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mthp.cli import build_parser, main
from mthp.cli.completion import commands
from tests.cli.test_bad_input import ENV, ROOT


def options() -> dict[str, set[str]]:
    """Command -> its options that --help shows."""
    return {
        parser.prog: {
            name
            for action in parser._actions
            if action.help is not argparse.SUPPRESS
            for name in action.option_strings
        }
        for parser in commands(build_parser())
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_a_script_has_every_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", shell]) == 0
    script, err = capsys.readouterr()
    assert not err
    for command, names in options().items():
        for name in names:
            assert name.lstrip("-") in script, (command, name)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("words", "completes"),
    [
        ("coll", "collapse"),
        ("collapse --madv", "--madvise-collapse"),
        ("snap --ev", "--every"),
        ("collapse --profile 7", "7.3"),
        ("collapse ARCHITECTURE", "ARCHITECTURE.md"),
        ("lab fu", "fuzz"),
    ],
)
def test_bash_completes(words: str, completes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    typed = ["mthp", *words.split()]
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}\n"
        "eval \"$(complete -p mthp | sed -E 's/.*-F ([^ ]+).*/\\1/') mthp\"\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash"], input=script, cwd=ROOT, capture_output=True, text=True)
    assert completes in done.stdout.splitlines(), done.stderr


def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "mthp", "--print-completion", "bash"]
        done = subprocess.run(command, env=ENV, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "mthp: cannot write: No space left on device\n")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The man pages, as `make man` makes them."""
    folder = tmp_path_factory.mktemp("man")
    command = [sys.executable, str(ROOT / "docs/man.py"), str(folder)]
    subprocess.run(command, env=ENV, check=True)
    return {
        path.stem.replace("-", " ", 1 + ("lab" in path.stem)): path for path in folder.iterdir()
    }


def test_a_page_has_every_option(pages: dict[str, Path]) -> None:
    assert sorted(pages) == sorted(options())
    for command, names in options().items():
        text = pages[command].read_text().replace("\\-", "-")
        entries = "".join(re.findall(r"(?m)^\.B (.*)$", text))
        for name in names:
            assert name in entries, (command, name)


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
def test_pages_render(pages: dict[str, Path]) -> None:
    for command, path in pages.items():
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-k", "-ww", str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0 and not done.stderr, (command, done.stderr)
        shown = re.sub("\x1b\\[[0-9;]*m|.\x08", "", done.stdout).replace("‐", "-").replace("−", "-")
        assert "SYNOPSIS" in shown and command in shown and "EXIT STATUS" in shown
        assert "\\e" not in shown and "\\-" not in shown
