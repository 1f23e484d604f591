# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of a campaign: what it draws from, and what was done, so that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mthp.lab.errors import BAD_INPUT, LabError
from mthp.words.files import replace_text
from mthp.words.reading import parse_json, read_json, read_text

LOG_BYTES: Final = 8 << 30


def open_folder(folder: Path, spec: Mapping[str, Any], resume: Callable[[], None]) -> None:
    """Begin a campaign in a folder, or resume() the same one that was interrupted there.

    LabError (2): the folder holds another one, is damaged, or cannot be used.
    """
    meta = folder / "campaign.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not meta.exists():
            replace_text(meta, json.dumps(spec, indent=1) + "\n")
            return
        known = read_json(meta)
        if known != spec:
            raise LabError(BAD_INPUT, f"{folder} holds another campaign: {json.dumps(known)}")
        resume()
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror}"
        raise LabError(BAD_INPUT, what) from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise LabError(BAD_INPUT, f"{folder}: a campaign's files are damaged: {error}") from None


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The documents of a file's lines, without a last one that was not finished."""
    if not path.exists():
        return []
    *lines, _ = read_text(path, LOG_BYTES).split("\n")
    return [parse_json(line) for line in lines]
