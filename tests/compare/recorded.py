# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures that `mthp lab predict --keep` kept, packed small: a .tar.xz of .npz that are not compressed.

`python -m tests.compare.recorded TARGET.tar.xz OUTPUT.json KEPT-FOLDER...` makes one, with what --json said.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from mthp.image.snapshot import Snapshot, read_snapshot

DATA = Path(__file__).parents[1] / "data"
DOCUMENT = "output.json"


@cache
def contents(name: str) -> dict[str, bytes]:
    """The files of one of tests/data/."""
    with tarfile.open(DATA / name, "r:xz") as archive:
        found = {}
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name] = file.read()
        return found


def document(name: str) -> dict[str, Any]:
    """What --json had said."""
    found: dict[str, Any] = json.loads(contents(name)[DOCUMENT])
    return found


def snapshot(name: str, member: str) -> Snapshot:
    """One of its captures."""
    return read_snapshot(io.BytesIO(contents(name)[member]), member)


def pack(target: Path, output: bytes, folders: Iterable[Path]) -> None:
    """Make such a file: members are FOLDER/NAME.npz."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        _add(archive, DOCUMENT, output)
        for folder in folders:
            for path in sorted(folder.glob("*.npz")):
                raw = io.BytesIO()
                with zipfile.ZipFile(path) as old, zipfile.ZipFile(raw, "w") as new:
                    for info in old.infolist():
                        new.writestr(zipfile.ZipInfo(info.filename), old.read(info))
                _add(archive, f"{folder.name}/{path.name}", raw.getvalue())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    pack(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes(), map(Path, sys.argv[3:]))
