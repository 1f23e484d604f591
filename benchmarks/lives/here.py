# SPDX-License-Identifier: GPL-2.0-or-later
"""A program in C, recorded once on this host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mthp.image.recording import Recording, load_recording


def recorded_here(
    folder: Path, source: str, *options: str
) -> tuple[Path, Recording, list[dict[str, Any]]]:
    """Compile a program and record it: its path, the recording, and what it said, a JSON object a line.

    options: of `mthp record`. CalledProcessError where gcc or the recorder fails.
    """
    written, program, file = folder / "program.c", folder / "program", folder / "program.npz"
    written.write_text(source)
    subprocess.run(["gcc", "-O1", "-static", "-o", program, written], check=True)
    words = [sys.executable, "-m", "mthp", "record", *options, "-o", str(file), "--", str(program)]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return program, load_recording(file), [json.loads(line) for line in said.splitlines()]
