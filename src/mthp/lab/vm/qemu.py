# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: boot a kernel and an initramfs, talk, and never leave a process behind.

This module knows nothing about huge pages. KVM is used if an attempt shows that it works, else software
emulation (TCG).
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
from mthp.lab.kernels.tools import QEMU
from mthp.lab.vm.channel import Channel, GuestGone

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
    """The guest's configuration. memory: MiB. arguments: words on the kernel's command line."""

    kernel: Path
    initramfs: tuple[Path, ...]
    memory: int = 1024
    cpus: int = 1
    arguments: tuple[str, ...] = ()


@dataclass
class VirtualMachine:
    """A running guest. console, errors: the files with its console output and with QEMU's errors."""

    channel: Channel
    pid: int
    console: Path
    errors: Path

    def why_it_ended(self) -> str:
        """The console's line about a panic, else its last line, else QEMU's last error."""
        lines = _lines(self.console)
        telling = [line for line in lines if "panic" in line.lower() or "mthp agent" in line]
        silent = "it said nothing on its console"
        return (telling or lines or _lines(self.errors) or [silent])[-1]


def qemu_path() -> str:
    """The path of QEMU. LabError (5): it is not installed."""
    path = shutil.which(QEMU)
    if path is None:
        raise LabError(
            HOST_LACKS, f"{QEMU} is not installed (Debian: apt-get install qemu-system-x86)"
        )
    return path


@functools.cache
def accel() -> Accel:
    """KVM where QEMU can start a processor with it, else software emulation.

    A /dev/kvm may exist and yet not work, so a virtual machine is started for a moment.
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
    """Boot a guest, up to the first answer of its agent. The guest ends with the block.

    how: the accelerator; None takes the best that works, and software emulation where KVM starts a
    processor and then cannot go on (as some nested virtual machines cannot).
    LabError (5): QEMU cannot be started, or the kernel does not start the agent. Later commands raise
    GuestGone if the guest does not answer.
    """
    with contextlib.ExitStack() as stack:
        try:
            guest = stack.enter_context(_booted(machine, how or accel()))
        except KvmFailed:
            if how is not None:
                raise
            guest = stack.enter_context(_booted(machine, Accel.TCG))
        yield guest


class KvmFailed(LabError):
    """Raised where KVM gave up on an instruction of the guest."""


@contextlib.contextmanager
def _booted(machine: MachineConfig, how: Accel) -> Iterator[VirtualMachine]:
    with tempfile.TemporaryDirectory(prefix="mthp-lab-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        errors = home / ERRORS
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(home / "port"))
        listener.listen(1)
        initramfs = _joined(machine.initramfs, home / "initramfs")
        process = _start(machine, how, home, initramfs)
        stack.callback(_end, process)
        stream = stack.enter_context(_accept(listener, process, home))
        channel = Channel(
            stream, BOOT_SECONDS, lambda: process.poll() is None and not _kvm_failed(errors)
        )
        guest = VirtualMachine(channel, process.pid, home / "console", errors)
        try:
            channel.wait_ready()
        except GuestGone as error:
            kind = KvmFailed if _kvm_failed(errors) else LabError
            raise kind(
                HOST_LACKS, f"the guest does not boot: {error}; {guest.why_it_ended()}"
            ) from None
        channel.patience = ANSWER_SECONDS
        yield guest


def _kvm_failed(errors: Path) -> bool:
    return any("KVM internal error" in line for line in _lines(errors))


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
    """Have the child, which runs this, end when its parent ends, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _accept(listener: socket.socket, process: subprocess.Popen[bytes], home: Path) -> socket.socket:
    listener.settimeout(0.2)
    while process.poll() is None:
        with contextlib.suppress(TimeoutError):
            return listener.accept()[0]
    errors = _lines(home / ERRORS)
    raise LabError(
        HOST_LACKS, f"{QEMU} does not start: {errors[-1] if errors else process.returncode}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _joined(parts: Sequence[Path], target: Path) -> Path:
    """Join archives into one file: the kernel unpacks each from a 4-byte boundary."""
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
