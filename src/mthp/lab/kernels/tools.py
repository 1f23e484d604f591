# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the host that the lab needs: QEMU and a C compiler, and the Debian packages they are in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.apt import run_apt
from mthp.words.processes import end_with_parent

QEMU = "qemu-system-x86_64"


class Tool(Enum):
    """What the lab needs of the host; the values are the Debian packages."""

    QEMU = "qemu-system-x86"
    COMPILER = "gcc"
    STATIC_LIBC = "libc6-dev"


@dataclass(frozen=True)
class Plan:
    """How to install what is missing. steps: the commands. sizes: apt's lines about the sizes; empty
    where it cannot know them before its lists are read."""

    tools: tuple[Tool, ...]
    steps: tuple[tuple[str, ...], ...]
    sizes: tuple[str, ...]

    @property
    def command(self) -> str:
        """The commands as one line of shell."""
        return " && ".join(" ".join(step) for step in self.steps)


def missing() -> tuple[Tool, ...]:
    """The tools that this host lacks."""
    lacking = [] if shutil.which(QEMU) else [Tool.QEMU]
    compiler = _compiler()
    if compiler is None:
        lacking += [Tool.COMPILER, Tool.STATIC_LIBC]
    elif not _static_libc(compiler):
        lacking.append(Tool.STATIC_LIBC)
    return tuple(lacking)


def _compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def compile_statically(arguments: Sequence[str], what: str, folder: Path) -> None:
    """Run the host's C compiler in a folder, linking statically. what: named where it fails.

    LabError (5): there is no compiler, or it fails.
    """
    compiler = _compiler()
    if compiler is None:
        raise LabError(HOST_LACKS, "no C compiler (Debian: apt-get install gcc libc6-dev)")
    words = [compiler, "-static", "-O2", *arguments]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False,
        preexec_fn=end_with_parent(),
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in lines if "error" in line), (lines or ["it failed"])[-1])
        raise LabError(HOST_LACKS, f"{compiler} cannot build {what}: {why} (needs libc6-dev)")


def _static_libc(compiler: str) -> bool:
    """Whether the compiler finds libc.a: it prints a whole path then, else the bare name."""
    words = [compiler, "-print-file-name=libc.a"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return os.path.isabs(done.stdout.strip())


def plan(tools: tuple[Tool, ...]) -> Plan:
    """The commands that would install these tools. LabError: there is no apt on this host."""
    if shutil.which("apt-get") is None:
        named = ", ".join(tool.value for tool in tools)
        raise LabError(HOST_LACKS, f"missing, and no apt-get to install it: {named}")
    words = ("apt-get", "install", "--no-install-recommends", *(tool.value for tool in tools))
    try:
        run_apt([*words, "--simulate"])
    except LabError:
        return Plan(tools, (("apt-get", "update"), words), ())
    return Plan(tools, (words,), _sizes(words))


def _sizes(words: Sequence[str]) -> tuple[str, ...]:
    """apt's own figures, which it prints before it asks; the answer is no."""
    done = subprocess.run(
        [*words, "--assume-no"], capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return tuple(re.findall(r"^(?:Need to get|After this operation).*$", done.stdout, re.MULTILINE))


def install(what: Plan) -> None:
    """Run the plan as root, with apt's output shown. LabError: something is still missing."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in what.steps:
        subprocess.run([*step, "--yes"], check=False, env=env)
    if set(missing()) & set(what.tools):
        raise LabError(HOST_LACKS, f"installing failed: {what.command}")
