# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's monitor: it writes a guest's memory into a file.

QEMU: docs/interop/qmp-spec.rst, qapi/dump.json.
"""

from __future__ import annotations

import json
import socket
from enum import StrEnum
from pathlib import Path
from typing import Any

from mthp.lab.errors import HOST_LACKS, LabError

DUMP_SECONDS = 600.0


class DumpFormat(StrEnum):
    """How a dump is written: as an ELF core, or compressed as makedumpfile does it."""

    ELF = "elf"
    KDUMP_ZLIB = "kdump-zlib"


class Monitor:
    """Commands to QEMU, and its answers. stream: its monitor, which speaks QMP."""

    def __init__(self, stream: socket.socket) -> None:
        stream.settimeout(DUMP_SECONDS)
        self._lines = stream.makefile("rw", encoding="utf-8")
        self._is_ready = False

    def dump(self, path: Path, form: DumpFormat) -> None:
        """Write all of the guest's memory into a file; the guest stands still meanwhile. LabError (5): QEMU
        cannot."""
        if not self._is_ready:
            self._ask("qmp_capabilities")
            self._is_ready = True
        protocol = f"file:{path.absolute()}"
        self._ask("dump-guest-memory", {"paging": False, "protocol": protocol, "format": form})

    def _ask(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        try:
            self._lines.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
            self._lines.flush()
            for line in self._lines:
                answer = json.loads(line)
                if "error" in answer:
                    raise LabError(HOST_LACKS, f"QEMU: {command}: {answer['error']['desc']}")
                if "return" in answer:
                    return
        except OSError as error:
            raise LabError(HOST_LACKS, f"QEMU: {command}: {error}") from None
        raise LabError(HOST_LACKS, f"QEMU ended before it answered to {command}")
