# SPDX-License-Identifier: GPL-2.0-or-later
"""The line to the agent, over a real socket with a thread at its other end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mthp.lab.vm.channel import MAX_IN_FLIGHT, Channel, CommandFailed, GuestGone

Serve = Callable[[socket.socket], None]


@contextmanager
def served(serve: Serve, patience: float = 10.0, alive: bool = True) -> Iterator[Channel]:
    """A channel whose other end is served by a thread; closed when the thread is through."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            serve(theirs)

    thread = threading.Thread(target=run)
    with ours:
        thread.start()
        yield Channel(ours, patience, lambda: alive)
    thread.join(10)
    assert not thread.is_alive()


def agent(port: socket.socket) -> None:
    """Answers as the agent does: says a command back, refuses `bad`, takes the bytes of `put`."""
    with port.makefile("rwb") as lines:
        for line in lines:
            words = line.split()
            if words[0] == b"bad":
                lines.write(b"-%d %s\n" % (int(words[1]), b"no such page"))
            else:
                data = lines.read(int(words[1])) if words[0] == b"put" else line.rstrip(b"\n")
                lines.write(b"+%d\n" % len(data) + data)
            lines.flush()


def silent(port: socket.socket) -> None:
    """Reads everything and says nothing."""
    while port.recv(4096):
        pass


def saying(data: bytes) -> Serve:
    """Reads a command, says these bytes, and goes."""

    def serve(port: socket.socket) -> None:
        port.recv(4096)
        port.sendall(data)

    return serve


def test_one_command_one_answer() -> None:
    with served(agent) as channel:
        assert channel.ask("r /proc/vmstat") == b"r /proc/vmstat"
        assert channel.ask("pid s") == b"pid s"


def test_the_bytes_of_a_command_may_hold_anything() -> None:
    data = bytes(range(256)) * 4096
    with served(agent) as channel:
        assert channel.ask(f"put {len(data)}", data) == data
        assert channel.ask("put 0") == b""
        assert channel.ask("and on") == b"and on"


def test_an_answer_that_comes_in_pieces() -> None:
    def serve(port: socket.socket) -> None:
        port.recv(4096)
        for byte in b"+5\na\nb\n+-2 x":
            port.send(bytes([byte]))

    with served(serve) as channel:
        assert channel.ask("one") == b"a\nb\n+"
        with pytest.raises(GuestGone):
            channel.ask("the next answer has no end")


def test_a_refusal_says_the_command_the_errno_and_the_agents_word() -> None:
    with served(agent) as channel:
        with pytest.raises(CommandFailed) as caught:
            channel.ask("bad 12 madvise")
        error = caught.value
        assert (error.command, error.errno, error.what) == ("bad 12 madvise", 12, "no such page")
        assert str(error) == "bad 12 madvise: Cannot allocate memory (no such page)"
        assert channel.ask("after") == b"after"


@pytest.mark.parametrize("number", [0, 1, MAX_IN_FLIGHT, 2 * MAX_IN_FLIGHT + 7])
def test_many_commands_are_answered_in_their_order(number: int) -> None:
    commands = [f"c {place}" for place in range(number)]
    with served(agent) as channel:
        assert channel.ask_all(commands) == [command.encode() for command in commands]


def test_no_more_are_sent_ahead_than_the_buffers_hold() -> None:
    """Who answers only when enough commands are there sees a whole part, and no byte beyond."""
    seen: list[int] = []

    def serve(port: socket.socket) -> None:
        while True:
            got = b""
            while got.count(b"\n") < MAX_IN_FLIGHT:
                if not (data := port.recv(1 << 16)):
                    return
                got += data
            seen.append(got.count(b"\n"))
            port.sendall(b"+0\n" * MAX_IN_FLIGHT)

    with served(serve) as channel:
        channel.ask_all(["c"] * 3 * MAX_IN_FLIGHT)
    assert seen == [MAX_IN_FLIGHT] * 3


def test_the_first_refusal_is_raised_when_all_have_run() -> None:
    ran: list[bytes] = []

    def serve(port: socket.socket) -> None:
        with port.makefile("rwb") as lines:
            for line in lines:
                ran.append(line)
                lines.write(b"-22 wrong\n" if line.startswith(b"bad") else b"+0\n")
                lines.flush()

    commands = ["a", "bad 1", "b", "bad 2", *["c"] * MAX_IN_FLIGHT]
    with served(serve) as channel, pytest.raises(CommandFailed, match="bad 1: Invalid argument"):
        channel.ask_all(commands)
    assert ran == [f"{command}\n".encode() for command in commands]


def test_a_command_is_one_line() -> None:
    with served(agent) as channel:
        with pytest.raises(ValueError, match="one line"):
            channel.ask("r /proc/1/maps\nreboot")
        with pytest.raises(ValueError, match="one line"):
            channel.ask_all(["fine", "a\nb"])
        assert channel.ask("none of it was sent") == b"none of it was sent"


@pytest.mark.parametrize("said", [b"", b"+", b"+10\n", b"+10\nabc"])
def test_a_guest_that_goes_in_the_middle_of_an_answer(said: bytes) -> None:
    with served(saying(said)) as channel, pytest.raises(GuestGone, match="it ended"):
        channel.ask("r /proc/vmstat")


def test_a_guest_that_is_gone_before_the_command() -> None:
    with served(lambda _: None) as channel, pytest.raises(GuestGone):
        for _ in range(2):
            channel.ask("r /proc/vmstat")


def test_a_guest_that_is_silent() -> None:
    with served(silent, patience=0.1) as channel, pytest.raises(GuestGone, match="no answer in"):
        channel.ask("hang")


def test_a_guest_that_is_silent_for_it_has_ended() -> None:
    """QEMU may be gone while another process still holds its socket."""
    with (
        served(silent, patience=0.1, alive=False) as channel,
        pytest.raises(GuestGone, match="it ended"),
    ):
        channel.ask("hang")


def test_a_guest_that_takes_no_more_commands() -> None:
    gate = threading.Event()

    def serve(_: socket.socket) -> None:
        gate.wait(10)

    with served(serve, patience=0.1) as channel:
        with pytest.raises(GuestGone, match="cannot send"):
            channel.ask("put", bytes(1 << 24))
        gate.set()


def test_the_greeting() -> None:
    def serve(port: socket.socket) -> None:
        port.sendall(b"+0\n")
        agent(port)

    with served(serve) as channel:
        channel.wait_ready()
        assert channel.ask("r") == b"r"
