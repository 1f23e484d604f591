# SPDX-License-Identifier: GPL-2.0-or-later
"""The capture, or the recorder, as one file for hosts that have only Python 3.8: a zip archive that Python
runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mthp
from mthp.words.files import PathName, replacing

CAPTURE, RECORD = "image/capture", "image/record"
"""The packages that are shipped, each of which Python runs."""
MODULES = (
    "image/capture/*.py",
    "words/files.py",
    "words/resident.py",
    "words/streams.py",
    "words/units.py",
)
_EMPTY = ("__init__.py", "image/__init__.py", "words/__init__.py")


def sources_of(package: str = CAPTURE) -> dict[str, bytes]:
    """The text of every module that the package consists of, by its path below the root."""
    root = Path(mthp.__file__).parent
    patterns = dict.fromkeys((*MODULES, f"{package}/*.py"))
    found = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    sources = {f"mthp/{path.relative_to(root)}": path.read_bytes() for path in found}
    return {**{f"mthp/{name}": b"" for name in _EMPTY}, **sources}


def write_zipapp(path: PathName, package: str = CAPTURE) -> None:
    """Write the file (`python3 FILE --pid N -o OUT`). FileError as from replacing()."""
    with replacing(path, 0o777) as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            sources = sources_of(package)
            sources["__main__.py"] = sources[f"mthp/{package}/__main__.py"]
            for name, text in sources.items():
                archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
