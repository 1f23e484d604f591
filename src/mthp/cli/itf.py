# SPDX-License-Identifier: GPL-2.0-or-later
"""--itf FILE of `mthp check` and `mthp replay`: one execution, for viewers of TLA+ traces."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from mthp.check.trace import trace
from mthp.cli.options import UsageError
from mthp.report.itf import itf_document


def check_target(file: str | None) -> None:
    """Complain before anything is explored, if the file could not be written later."""
    if file is None:
        return
    path = Path(file)
    if path.exists() and not path.is_file():
        raise UsageError(f"--itf {file}: not a regular file")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--itf {file}: No such directory")


def write_itf(file: str | None, token: str | None) -> None:
    """The token's execution, whole or not at all; nothing without a file. token: None where no law
    was broken, and then there is nothing to write.
    """
    if file is None:
        return
    if token is None:
        print(f"no law is broken: {file} is not written", file=sys.stderr)
        return
    document = json.dumps(itf_document(trace(token)), ensure_ascii=False)
    try:
        _replace(Path(file), document + "\n")
    except OSError as error:
        raise UsageError(f"--itf {file}: {error.strerror or error}") from None


def _replace(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".mthp-itf-", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        Path(temporary).chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    """What new files are to lose; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
