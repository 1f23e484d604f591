# SPDX-License-Identifier: GPL-2.0-or-later
"""The capture as one file for hosts that have only Python 3.8: a zip archive that Python runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mthp
from mthp.words.files import PathName, replacing

MODULES = (
    "image/capture/*.py",
    "words/files.py",
    "words/resident.py",
    "words/streams.py",
    "words/units.py",
)
_EMPTY = ("__init__.py", "image/__init__.py", "words/__init__.py")


def capture_sources() -> dict[str, bytes]:
    """The text of every module that the capture consists of, by its path below the root."""
    root = Path(mthp.__file__).parent
    found = [path for pattern in MODULES for path in sorted(root.glob(pattern))]
    sources = {f"mthp/{path.relative_to(root)}": path.read_bytes() for path in found}
    return {**{f"mthp/{name}": b"" for name in _EMPTY}, **sources}


def write_zipapp(path: PathName) -> None:
    """Write the file (`python3 FILE --pid N -o OUT`). FileError as from replacing()."""
    with replacing(path, 0o777) as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            sources = capture_sources()
            sources["__main__.py"] = sources["mthp/image/capture/__main__.py"]
            for name, text in sources.items():
                archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
