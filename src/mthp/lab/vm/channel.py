# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel to the guest's agent: one line for each command, and answers in the same order."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MAX_IN_FLIGHT = 100
"""How many commands may be sent before their answers are read: the buffers hold so many."""


class GuestGone(Exception):
    """The guest no longer answers: it has panicked, hangs, or has ended."""


@dataclass
class CommandFailed(Exception):
    """A command failed. errno: positive. what: the agent's explanation."""

    command: str
    errno: int
    what: str

    def __str__(self) -> str:
        return f"{self.command}: {os.strerror(self.errno)} ({self.what})"


class Channel:
    """Commands and answers over a stream socket.

    patience: seconds without a byte after which the guest counts as gone (GuestGone).
    """

    def __init__(self, stream: socket.socket, patience: float, alive: Callable[[], bool]) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self._alive = alive
        self.patience = patience

    def ask(self, command: str, data: bytes = b"") -> bytes:
        """Send one command (data: the bytes after its line, for `put`); returns its answer."""
        self._send(_line(command) + data)
        return self._answer(command)

    def ask_all(self, commands: Sequence[str]) -> list[bytes]:
        """Send many commands without waiting in between. The first CommandFailed is raised after all ran."""
        answers: list[bytes] = []
        failure: CommandFailed | None = None
        for start in range(0, len(commands), MAX_IN_FLIGHT):
            part = commands[start : start + MAX_IN_FLIGHT]
            self._send(b"".join(map(_line, part)))
            for command in part:
                try:
                    answers.append(self._answer(command))
                except CommandFailed as error:
                    failure = failure or error
                    answers.append(b"")
        if failure is not None:
            raise failure
        return answers

    def wait_ready(self) -> None:
        """Wait for the agent's first message."""
        self._answer("boot")

    @contextlib.contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """Have another patience while this context lasts."""
        before, self.patience = self.patience, seconds
        try:
            yield
        finally:
            self.patience = before

    def _send(self, data: bytes) -> None:
        self._stream.settimeout(self.patience)
        try:
            self._stream.sendall(data)
        except OSError as error:
            raise GuestGone(f"cannot send: {error}") from None

    def _answer(self, command: str) -> bytes:
        head = self._line()
        if head.startswith(b"+"):
            return self._take(int(head[1:]))
        number, _, what = head[1:].partition(b" ")
        raise CommandFailed(command, int(number), what.decode(errors="replace"))

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self._receive()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _receive(self) -> None:
        """Receive more bytes; check every second whether the guest still runs."""
        waited = 0.0
        while waited < self.patience:
            self._stream.settimeout(min(1.0, self.patience - waited))
            try:
                data = self._stream.recv(1 << 20)
            except TimeoutError:
                waited += 1.0
                if not self._alive():
                    raise GuestGone("it ended") from None
                continue
            except OSError as error:
                raise GuestGone(str(error)) from None
            if not data:
                raise GuestGone("it ended")
            self._buffer += data
            return
        raise GuestGone(f"no answer in {self.patience:.0f} s")


def _line(command: str) -> bytes:
    if "\n" in command:
        raise ValueError(f"a command is one line: {command!r}")
    return command.encode() + b"\n"
