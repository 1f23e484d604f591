# SPDX-License-Identifier: GPL-2.0-or-later
"""In the guest: one Python process that captures others on request, by `mthp snap`'s own code.

It serves the agent as a process under test does: a line comes on descriptor 3, and a struct answer
(agent.h) goes back. The line's first word is the module whose main() is called with the others.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import socket
import struct
import traceback

ANSWER = struct.Struct("@iQ120s")
MOST_BYTES = 65536
EIO = 5


def answer(line: str) -> bytes:
    """Do what a line says; returns the struct answer. The text is what was said last."""
    name, *args = line.split()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            status = importlib.import_module(name).main(args)
        except Exception:
            traceback.print_exc()
            status = 1
    text = (said.getvalue().strip().splitlines() or [""])[-1]
    return ANSWER.pack(-EIO if status else 0, 0, text.encode()[:119])


def main() -> None:
    """Serve until the agent closes its end."""
    importlib.import_module("helper").forbid_huge_pages(1)
    importlib.import_module("mthp.image.capture.command")
    with socket.socket(fileno=3) as agent:
        while line := agent.recv(MOST_BYTES):
            agent.send(answer(line.decode()))


if __name__ == "__main__":
    main()
