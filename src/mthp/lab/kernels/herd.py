# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs herd7, the simulator of memory models, with the kernel's own model (tools/memory-model)."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, FAILED, HOST_LACKS, LabError
from mthp.words.files import scratch, write_new
from mthp.words.processes import end_with_parent

HERD = "herd7"
_CONFIG = "linux-kernel.cfg"
_SECONDS = 60
_OBSERVATION = re.compile(r"^Observation (\S+) (Always|Sometimes|Never)\b", re.MULTILINE)


def check_herd() -> None:
    """Raise LabError (5) if herd7 is not on this host."""
    if shutil.which(HERD) is None:
        raise LabError(
            HOST_LACKS, f"{HERD} is not on this host (Debian's package herdtools7 brings it)"
        )


def check_model(folder: Path) -> Path:
    """The folder, if there is a memory model in it. LabError (2): there is none."""
    if not (folder / _CONFIG).is_file():
        raise LabError(BAD_INPUT, f"{folder}: no {_CONFIG} in it, so no memory model")
    return folder


def run_herd(texts: Mapping[str, str], model: Path) -> dict[str, str]:
    """Run herd7: name -> its verdict on the litmus test: Always, Sometimes or Never.

    model: the folder of the kernel's memory model. LabError: herd7 is missing, or has no verdict.
    """
    check_herd()
    with scratch() as folder:
        files = [folder / f"{name}.litmus" for name in texts]
        for file, text in zip(files, texts.values(), strict=True):
            write_new(file, text.encode())
        command = [HERD, "-conf", _CONFIG, *map(str, files)]
        try:
            ran = subprocess.run(
                command, cwd=model, capture_output=True, text=True, timeout=_SECONDS, check=False,
                preexec_fn=end_with_parent(),
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LabError(FAILED, f"{HERD}: {error}") from None
    verdicts = parse_observations(ran.stdout)
    silent = [name for name in texts if name not in verdicts]
    if silent:
        complaint = (ran.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise LabError(FAILED, f"{HERD} on {silent[0]}: {complaint}")
    return verdicts


def parse_observations(text: str) -> dict[str, str]:
    """Read what herd7 printed: name -> Always, Sometimes or Never."""
    return dict(_OBSERVATION.findall(text))
