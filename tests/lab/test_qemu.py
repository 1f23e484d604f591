# SPDX-License-Identifier: GPL-2.0-or-later
"""Real guests: they answer, and whatever ends them leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.tools import QEMU
from mthp.lab.session.boot import Guest, booted
from mthp.lab.vm.channel import CommandFailed, GuestGone
from mthp.lab.vm.qemu import (
    BOOT_SECONDS,
    Accel,
    MachineConfig,
    VirtualMachine,
    accel,
    boot,
    qemu_path,
)
from tests.lab.guests import children, exists, kernel_or_skip, wait_until

NEVER = "wait /proc/1/stat 2 Z 30000"
"""Waits for the agent's own end, for 30 s."""


def test_a_host_without_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LabError, match="qemu-system-x86_64 is not installed") as caught:
        qemu_path()
    assert caught.value.code == HOST_LACKS


@contextmanager
def running() -> Iterator[VirtualMachine]:
    with booted(kernel_or_skip(), Guest(256)) as guest:
        yield guest.machine


@pytest.mark.lab
def test_a_guest_answers_and_ends_with_its_block() -> None:
    kernel = kernel_or_skip()
    with booted(kernel, Guest(256)) as guest:
        channel, pid = guest.machine.channel, guest.machine.pid
        assert children() == {pid}
        said = channel.ask("r /proc/sys/kernel/osrelease").decode().strip()
        assert said == kernel.release
        with pytest.raises(CommandFailed, match="No such file"):
            channel.ask("r /nonexistent")
        assert guest.session.full_scan() == []
    assert not exists(pid)


@pytest.mark.lab
def test_a_guest_killed_in_the_middle_of_a_command_is_gone() -> None:
    with running() as guest:
        killer = threading.Timer(0.5, os.kill, (guest.pid, signal.SIGKILL))
        killer.start()
        began = time.monotonic()
        with pytest.raises(GuestGone, match="it ended"):
            guest.channel.ask(NEVER)
        assert time.monotonic() - began < 10, "noticed at once, not when patience ends"
        killer.join()
        with pytest.raises(GuestGone):
            guest.channel.ask("r /proc/vmstat")
    assert not exists(guest.pid)
    assert children() == set()


@pytest.mark.lab
def test_a_guest_that_panics_says_why() -> None:
    with running() as guest:
        with pytest.raises(GuestGone):
            guest.channel.ask_all(["w /proc/sysrq-trigger c", "r /proc/vmstat"])
        assert "panic" in guest.why_it_ended().lower()
    assert not exists(guest.pid)


@pytest.mark.lab
def test_an_error_in_the_block_ends_the_guest() -> None:
    with pytest.raises(ZeroDivisionError), running() as guest:
        raise ZeroDivisionError
    assert not exists(guest.pid)


SCRIPT = """\
import time
from mthp.lab.session.boot import Guest, booted
from mthp.lab.kernels.kernels import find
with booted(find(), Guest(256)) as guest:
    print(guest.machine.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.lab
def test_a_guest_ends_with_the_process_that_started_it() -> None:
    kernel_or_skip()
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert children(process.pid) == {pid}
        process.kill()
        process.wait()
        assert wait_until(lambda: not exists(pid))


STAND_IN = """#!{python}
import sys, time
words = sys.argv[1:]
if "-monitor" in words:
    sys.exit(0)  # the probe: a processor can be started
if words[words.index("-accel") + 1] != "kvm":
    sys.exit("software emulation was asked for")
print({said!r}, "emulation failure", sep="\\n", file=sys.stderr, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no /dev/kvm here")
@pytest.mark.parametrize("said", ["KVM internal error. Suberror: 1", "nothing of it"])
def test_where_kvm_gives_up_software_emulation_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setitem(BOOT_SECONDS, Accel.KVM, 1.5)
    qemu = tmp_path / QEMU
    qemu.write_text(STAND_IN.format(python=sys.executable, said=said))
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    accel.cache_clear()
    machine = MachineConfig(tmp_path / "bzImage", (qemu,), 256)
    try:
        with pytest.raises(LabError, match="software emulation was asked for"), boot(machine):
            pass
        with pytest.raises(LabError, match="emulation failure"), boot(machine, Accel.KVM):
            pass
    finally:
        accel.cache_clear()
    assert children() == set()


@pytest.mark.lab
def test_a_file_that_is_no_kernel_does_not_boot(tmp_path: Path) -> None:
    kernel_or_skip()
    image = tmp_path / "bzImage"
    image.write_bytes(bytes(1 << 16))
    with (
        pytest.raises(LabError, match=r"qemu.*kernel") as caught,
        boot(MachineConfig(image, (image,), 256), Accel.TCG),
    ):
        pass
    assert caught.value.code == HOST_LACKS
    assert "\n" not in str(caught.value)
    assert children() == set()
