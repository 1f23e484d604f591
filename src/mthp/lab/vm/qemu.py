# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: boot a kernel and an initramfs, talk, and never leave a process behind.

Nothing about huge pages here. KVM where it works, software emulation (TCG) otherwise; whether it
works is found out by trying.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.vm.channel import Channel, GuestGone

QEMU = "qemu-system-x86_64"
BOOT_SECONDS = 60.0
ANSWER_SECONDS = 60.0
PROBE_SECONDS = 20.0
PR_SET_PDEATHSIG = 1
ERRORS = "qemu.err"


class Accel(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class MachineConfig:
    """What the guest is made of. memory: MiB. arguments: words on the kernel's command line."""

    kernel: Path
    initramfs: tuple[Path, ...]
    memory: int = 1024
    cpus: int = 1
    arguments: tuple[str, ...] = ()


@dataclass
class VirtualMachine:
    """A running guest: its channel, what runs it, what it said on its console, and QEMU's errors."""

    channel: Channel
    accel: Accel
    pid: int
    console: Path
    errors: Path

    def why_it_ended(self) -> str:
        """The line of the console that says why it ended: the panic, or the last one; QEMU's own
        where the guest never spoke."""
        lines = _lines(self.console)
        telling = [line for line in lines if "panic" in line.lower() or "mthp agent" in line]
        silent = "it said nothing on its console"
        return (telling or lines or _lines(self.errors) or [silent])[-1]


def qemu_path() -> str:
    """Where QEMU is; LabError (5) with what to install."""
    path = shutil.which(QEMU)
    if path is None:
        raise LabError(
            HOST_LACKS, f"{QEMU} is not installed (Debian: apt-get install qemu-system-x86)"
        )
    return path


@functools.cache
def accel() -> Accel:
    """KVM where QEMU can start a processor with it, else software emulation.

    A /dev/kvm may be there and yet not work: so one is started, for an instant.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Accel.TCG
    command = [qemu_path(), *_common(Accel.KVM), "-monitor", "stdio"]
    try:
        probe = subprocess.run(
            command, input="quit\n", capture_output=True, text=True, timeout=PROBE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Accel.TCG
    return Accel.KVM if probe.returncode == 0 else Accel.TCG


@contextlib.contextmanager
def boot(machine: MachineConfig, how: Accel | None = None) -> Iterator[VirtualMachine]:
    """A guest whose agent has answered; ended when the block is left, however it is left.

    LabError (5) where QEMU cannot be started or the kernel does not get as far as the agent.
    GuestGone from any later command that meets no answer.
    """
    with tempfile.TemporaryDirectory(prefix="mthp-lab-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(home / "port"))
        listener.listen(1)
        initramfs = _joined(machine.initramfs, home / "initramfs")
        process = _start(machine, how or accel(), home, initramfs)
        stack.callback(_end, process)
        stream = stack.enter_context(_accept(listener, process, home))
        channel = Channel(stream, BOOT_SECONDS, lambda: process.poll() is None)
        guest = VirtualMachine(
            channel, how or accel(), process.pid, home / "console", home / ERRORS
        )
        try:
            channel.wait_ready()
        except GuestGone as error:
            raise LabError(
                HOST_LACKS, f"the guest does not boot: {error}; {guest.why_it_ended()}"
            ) from None
        channel.patience = ANSWER_SECONDS
        yield guest


def _common(how: Accel) -> list[str]:
    cpu = "host" if how is Accel.KVM else "qemu64"
    return ["-accel", how.value, "-cpu", cpu, "-nodefaults", "-no-user-config", "-display", "none"]


def _start(
    machine: MachineConfig, how: Accel, home: Path, initramfs: Path
) -> subprocess.Popen[bytes]:
    words = ("console=ttyS0", "quiet", "panic=-1", *machine.arguments)
    command = [
        *(qemu_path(), *_common(how), "-machine", "pc", "-no-reboot"),
        *("-m", str(machine.memory), "-smp", str(machine.cpus)),
        *("-kernel", str(machine.kernel), "-initrd", str(initramfs), "-append", " ".join(words)),
        *("-serial", f"file:{home / 'console'}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=host,path={home / 'port'}"),
        *("-device", "virtserialport,chardev=host,name=mthp"),
    ]
    with (home / ERRORS).open("wb") as errors:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, preexec_fn=_die_with_us
        )


def _die_with_us() -> None:
    """In the child: end when the process that started it ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _accept(listener: socket.socket, process: subprocess.Popen[bytes], home: Path) -> socket.socket:
    listener.settimeout(0.2)
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            return listener.accept()[0]
    said = _lines(home / ERRORS)
    raise LabError(HOST_LACKS, f"{QEMU} does not start: {said[-1] if said else process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _joined(parts: Sequence[Path], target: Path) -> Path:
    """The kernel unpacks archives that follow one another, each from a 4-byte boundary."""
    if len(parts) == 1:
        return parts[0]
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as data:
                shutil.copyfileobj(data, out)
            out.write(b"\0" * (-out.tell() % 4))
    return target


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not empty; none where it cannot be read."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
