# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a reader is given: it is refused in one line, or it runs; in bounded time and memory."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from mthp.words.files import LINE_LENGTH, FileError
from tests.fuzzing.readers import READERS

SECONDS = 5.0
"""Of CPU time, that one input may take."""
BYTES = 1 << 30
"""Of address space, that all may take beyond what is taken already."""


@contextmanager
def bounded() -> Iterator[None]:
    """Until the end of the block memory ends soon, and an input that takes long is an error."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGVTALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(name: str, seed: int, folder: Path) -> bool:
    """Read one input; whether it was accepted."""
    reader = READERS[name]
    drawn = reader.draw(Random(f"{name} {seed}"))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        reader.read(drawn, folder)
    except reader.refusals as error:
        if isinstance(error, FileError):
            assert str(error).isprintable() and len(str(error)) <= LINE_LENGTH, ascii(error)
        return False
    except Exception as error:
        error.add_note(f"{name}, input {seed}: {ascii(drawn)[:2000]}")
        raise
    return True


@pytest.mark.parametrize("name", READERS)
def test_ten_thousand_inputs(name: str, tmp_path: Path) -> None:
    _fuzz_all(name, 10 * READERS[name].weight, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_two_hundred_thousand_inputs(name: str, tmp_path: Path) -> None:
    _fuzz_all(name, 200 * READERS[name].weight, tmp_path)


def _fuzz_all(name: str, number: int, folder: Path) -> None:
    with bounded():
        accepted = sum(fuzz(name, seed, folder) for seed in range(number))
    assert 0 < accepted < number or not READERS[name].refusals


def test_the_weights_make_a_thousand() -> None:
    assert sum(reader.weight for reader in READERS.values()) == 1000
