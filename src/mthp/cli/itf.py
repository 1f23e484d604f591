# SPDX-License-Identifier: GPL-2.0-or-later
"""--itf FILE of `mthp check` and `mthp replay`: one execution, for viewers of TLA+ traces."""

from __future__ import annotations

import json
import sys

from mthp.check.trace import trace
from mthp.report.itf import itf_document
from mthp.words.files import replace_text


def write_itf(file: str | None, token: str | None) -> None:
    """The token's execution, whole or not at all; nothing without a file. token: None where no law
    was broken, and then there is nothing to write.
    """
    if file is None:
        return
    if token is None:
        print(f"no law is broken: {file} is not written", file=sys.stderr)
        return
    replace_text(file, json.dumps(itf_document(trace(token)), ensure_ascii=False) + "\n")
