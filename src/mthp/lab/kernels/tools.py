# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs of the host that the lab needs, and how Debian calls their packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.apt import run_apt

QEMU = "qemu-system-x86_64"
COMPILERS = ("cc", "gcc")


class Tool(Enum):
    """What is needed -> the package of Debian that brings it."""

    QEMU = "qemu-system-x86"
    COMPILER = "gcc"
    STATIC_LIBC = "libc6-dev"


@dataclass(frozen=True)
class Plan:
    """How to install what is missing. steps: the commands; sizes: what apt says it will take, empty
    where it cannot say before its lists are read."""

    tools: tuple[Tool, ...]
    steps: tuple[tuple[str, ...], ...]
    sizes: tuple[str, ...]

    @property
    def command(self) -> str:
        """The line to run."""
        return " && ".join(" ".join(step) for step in self.steps)


def missing() -> tuple[Tool, ...]:
    """What this host lacks."""
    lacking = [] if shutil.which(QEMU) else [Tool.QEMU]
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        lacking += [Tool.COMPILER, Tool.STATIC_LIBC]
    elif not _static_libc(compiler):
        lacking.append(Tool.STATIC_LIBC)
    return tuple(lacking)


def _static_libc(compiler: str) -> bool:
    """A compiler answers with a whole path where it knows the file, else with the bare name."""
    words = [compiler, "-print-file-name=libc.a"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return os.path.isabs(done.stdout.strip())


def plan(tools: tuple[Tool, ...]) -> Plan:
    """What to run to install these. Nothing is changed. LabError: no apt on this host."""
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
    """apt's own figures; it prints them only on the way to asking, and is told no."""
    done = subprocess.run(
        [*words, "--assume-no"], capture_output=True, text=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    return tuple(re.findall(r"^(?:Need to get|After this operation).*$", done.stdout, re.MULTILINE))


def install(what: Plan) -> None:
    """Run the plan, apt's output shown; root's right. LabError: something is missing still."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in what.steps:
        subprocess.run([*step, "--yes"], check=False, env=env)
    if set(missing()) & set(what.tools):
        raise LabError(HOST_LACKS, f"installing failed: {what.command}")
