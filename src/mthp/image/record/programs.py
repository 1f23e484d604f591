# SPDX-License-Identifier: GPL-2.0-or-later
"""The mappings that programs begin with, of those that the command or its children start.

They are not stopped for it, but looked at soon after: what exec maps stays, and is told from what the program
itself has mapped by then. Kernel: fs/binfmt_elf.c, load_elf_binary(); fs/exec.c, setup_arg_pages().
"""

from __future__ import annotations

import os
import struct
import time
from typing import Any, Iterable, NamedTuple

from mthp.image.capture.proc import argument_start, brk_start, forked, text
from mthp.image.record.child import mappings
from mthp.image.record.decode import Decoder

STACK_BYTES = 128 << 10
"""By which exec lets a stack reach below what it put there."""
AT_BASE = 7
"""Of the auxiliary vector: where the program's loader is."""


class Begun(NamedTuple):
    """A program that was seen at a time. arguments: where on the stack exec put them."""

    time: int
    pid: int
    arguments: int
    vmas: list[dict[str, Any]]


class Programs:
    """Programs as they are seen, each once."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, str, int]] = set()
        self._begun: list[Begun] = []

    def look(self, pids: Iterable[int]) -> None:
        """Look which programs these processes run, and read the mappings of those that are new."""
        for pid in pids:
            arguments = argument_start(pid)
            try:
                program = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            if not arguments or (pid, program, arguments) in self._seen or forked(pid):
                continue
            self._seen.add((pid, program, arguments))
            vmas = first_mappings(pid, program, arguments)
            if argument_start(pid) == arguments and vmas:
                self._begun.append(Begun(time.monotonic_ns(), pid, arguments, vmas))

    def tell(self, decoder: Decoder) -> None:
        """Note the mappings with the processes that are recorded, where there are none."""
        for each in self._begun:
            index = decoder.index_at(each.pid, each.time)
            process = decoder.rows.processes[index] if index is not None else None
            if process is not None and process["how"] == "exec" and process["vmas"] is None:
                process.update(vmas=each.vmas, arguments=each.arguments)


def first_mappings(pid: int, program: str, arguments: int) -> list[dict[str, Any]]:
    """The mappings that exec made for a program: its own file's, its loader's, what follows them that no file
    has, the kernel's own, and the stack. What may have been written to before it was protected counts as
    writable."""
    found = mappings(text(f"/proc/{pid}/maps")) or []
    base, brk = _auxiliary(pid).get(AT_BASE, 0), brk_start(pid) or 0
    loader = next((each["path"] for each in found if each["start"] == base), None)
    files = {path for path in (program, loader) if path}
    kept: list[dict[str, Any]] = []
    for each in found:
        follows = bool(kept) and kept[-1]["end"] == each["start"] and kept[-1]["path"] in files
        if each["path"] in files:
            kept.append(
                {**each, "perms": f"r{'w' if each['perms'][3] == 'p' else '-'}{each['perms'][2:]}"}
            )
        elif each["path"] == "[stack]":
            page = arguments & -os.sysconf("SC_PAGE_SIZE")
            kept.append({**each, "start": max(each["start"], page - STACK_BYTES)})
        elif each["path"].startswith("[v") or (follows and not each["path"]):
            kept.append(each)
        elif follows and each["path"] == "[heap]" and each["start"] < brk < each["end"]:
            kept.append({**each, "end": brk, "path": ""})
    return kept


def _auxiliary(pid: int) -> dict[int, int]:
    """What the kernel told a program when it began."""
    try:
        with open(f"/proc/{pid}/auxv", "rb") as file:
            data = file.read()
    except OSError:
        return {}
    return dict(struct.iter_unpack("QQ", data[: len(data) & ~15]))
