# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: boot a kernel and an initramfs, talk, and never leave a process behind.

This module knows nothing about huge pages. KVM is used if an attempt shows that it works, else software
emulation (TCG).
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import IO

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.tools import QEMU
from mthp.lab.vm.channel import Channel, GuestGone
from mthp.lab.vm.monitor import Monitor
from mthp.words.files import spooled
from mthp.words.processes import end_with_parent

ANSWER_SECONDS = 180.0
PROBE_SECONDS = 20.0


class Accel(StrEnum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


_EMULATED: dict[Accel, tuple[str, ...]] = {Accel.KVM: (), Accel.TCG: ("no_timer_check",)}
"""Words on the command line: on a busy host an emulated timer may not tick as often as the kernel would
have it within its first milliseconds, which it takes for a broken one and panics."""
BOOT_SECONDS = {Accel.KVM: 30.0, Accel.TCG: 600.0}
"""On a busy host software emulation takes minutes; a guest that ends is seen at once."""


@dataclass(frozen=True)
class MachineConfig:
    """The guest's configuration. memory: MiB. nodes: of NUMA, which share it; distance: of each from the
    next, in a row. disk: bytes of an empty disk, 0 for none. arguments: on the kernel's command line.
    dumped: its memory can be written to files, with what the kernel says of itself for their readers."""

    kernel: Path
    initramfs: tuple[Path, ...]
    memory: int = 1024
    cpus: int = 1
    nodes: int = 1
    distance: int = 20
    disk: int = 0
    arguments: tuple[str, ...] = ()
    dumped: bool = False


@dataclass
class VirtualMachine:
    """A running guest. console, errors: files with its console output and with QEMU's errors. monitor: of
    QEMU, where its memory can be dumped."""

    channel: Channel
    pid: int
    console: IO[bytes]
    errors: IO[bytes]
    monitor: Monitor | None = None

    def why_it_ended(self) -> str:
        """The console's line about a panic, else its last line, else QEMU's last error."""
        lines = _lines(self.console)
        telling = [line for line in lines if "Kernel panic" in line or "mthp agent" in line]
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
            command, input="quit\n", capture_output=True, text=True, timeout=PROBE_SECONDS,
            preexec_fn=end_with_parent(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Accel.TCG
    return Accel.KVM if probe.returncode == 0 else Accel.TCG


@contextlib.contextmanager
def boot(machine: MachineConfig, how: Accel | None = None) -> Iterator[VirtualMachine]:
    """Boot a guest, up to the first answer of its agent. The guest ends with the block.

    how: the accelerator; None takes the best that works, and software emulation where KVM starts a
    processor and then does not come as far as the agent (as in some nested virtual machines).
    LabError (5): QEMU cannot be started, or the kernel does not start the agent. Later commands raise
    GuestGone if the guest does not answer.
    """
    with contextlib.ExitStack() as stack:
        first = how or (Accel.TCG if _unfit else accel())
        try:
            guest = stack.enter_context(_booted(machine, first))
        except LabError:
            if how is not None or first is Accel.TCG:
                raise
            guest = stack.enter_context(_booted(machine, Accel.TCG))
            _unfit.append(first)
        yield guest


_unfit: list[Accel] = []
"""Accelerators without which a guest booted that did not with them: this process uses them no more."""


@contextlib.contextmanager
def _booted(machine: MachineConfig, how: Accel) -> Iterator[VirtualMachine]:
    with contextlib.ExitStack() as stack:
        console, errors = (stack.enter_context(spooled()) for _ in range(2))
        initramfs = stack.enter_context(_joined(machine.initramfs))
        (stream, port), (monitor, control) = (
            map(stack.enter_context, socket.socketpair()) for _ in range(2)
        )
        disk = stack.enter_context(spooled())
        disk.truncate(machine.disk)
        process = _start(machine, how, initramfs, (port, control), console, errors, disk)
        stack.callback(_end, process)
        port.close()
        control.close()
        channel = Channel(
            stream, BOOT_SECONDS[how], lambda: process.poll() is None and not _kvm_failed(errors)
        )
        asked = Monitor(monitor) if machine.dumped else None
        guest = VirtualMachine(channel, process.pid, console, errors, asked)
        try:
            channel.wait_ready()
        except GuestGone as error:
            why = f"the guest does not boot: {error}; {guest.why_it_ended()}"
            raise LabError(HOST_LACKS, why) from None
        channel.patience = ANSWER_SECONDS
        yield guest


def _kvm_failed(errors: IO[bytes]) -> bool:
    return any("KVM internal error" in line for line in _lines(errors))


def _common(how: Accel) -> list[str]:
    cpu = "host" if how is Accel.KVM else "qemu64"
    return ["-accel", how.value, "-cpu", cpu, "-nodefaults", "-no-user-config", "-display", "none"]


def _start(
    machine: MachineConfig,
    how: Accel,
    initramfs: IO[bytes],
    ports: tuple[socket.socket, socket.socket],
    console: IO[bytes],
    errors: IO[bytes],
    disk: IO[bytes],
) -> subprocess.Popen[bytes]:
    """Start QEMU. Its files have no names and its ports are descriptors: nothing can be left of them.

    ports: of the guest's agent, and of QEMU's monitor."""
    port, control = ports
    words = ("console=ttyS0", "quiet", "panic=-1", *_EMULATED[how], *machine.arguments)
    command = [
        *(qemu_path(), *_common(how), "-machine", "pc", "-no-reboot"),
        *("-m", str(machine.memory), "-smp", str(machine.cpus)),
        *("-kernel", str(machine.kernel), "-initrd", _path_in_child(initramfs)),
        *("-append", " ".join(words), "-serial", f"file:{_path_in_child(console)}"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=host,fd={port.fileno()}"),
        *("-device", "virtserialport,chardev=host,name=mthp"),
        *_nodes(machine),
    ]
    if machine.disk:
        drive = f"if=none,id=disk,format=raw,cache=unsafe,file={_path_in_child(disk)}"
        command += ["-drive", drive, "-device", "virtio-blk-pci,drive=disk"]
    if machine.dumped:
        command += ["-device", "vmcoreinfo", "-mon", "chardev=monitor,mode=control"]
        command += ["-chardev", f"socket,id=monitor,fd={control.fileno()}"]
    files = (initramfs, port, control, console, disk)
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
        pass_fds=[file.fileno() for file in files],
        preexec_fn=end_with_parent(),
    )  # fmt: skip


def _nodes(machine: MachineConfig) -> Iterator[str]:
    """The arguments for NUMA: the memory in equal parts (the last has the rest), the CPUs in turn."""
    for node in range(machine.nodes if machine.nodes > 1 else 0):
        size = machine.memory // machine.nodes
        size += machine.memory % machine.nodes if node + 1 == machine.nodes else 0
        cpus = "".join(f",cpus={cpu}" for cpu in range(node, machine.cpus, machine.nodes))
        yield from ("-object", f"memory-backend-ram,id=node{node},size={size}M")
        yield from ("-numa", f"node,nodeid={node},memdev=node{node}{cpus}")
    for one, other in combinations(range(machine.nodes), 2):
        far = min(_HERE + (machine.distance - _HERE) * (other - one), _FARTHEST)
        yield from ("-numa", f"dist,src={one},dst={other},val={far}")


_HERE, _FARTHEST = 10, 254
"""The distance of a node from itself, and the highest there is."""


def _path_in_child(file: IO[bytes]) -> str:
    path = f"/proc/self/fd/{file.fileno()}"
    file.flush()
    return path


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _joined(parts: Sequence[Path]) -> IO[bytes]:
    """Join archives into one file: the kernel unpacks each from a 4-byte boundary."""
    if len(parts) == 1:
        return parts[0].open("rb")
    out = spooled()
    for part in parts:
        with part.open("rb") as data:
            shutil.copyfileobj(data, out)
        out.write(b"\0" * (-out.tell() % 4))
    return out


def _lines(file: IO[bytes]) -> list[str]:
    """The lines of a file that are not empty."""
    text = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
