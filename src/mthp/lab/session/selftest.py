# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own khugepaged selftest: compiled here, run in a guest."""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mthp.lab.errors import FAILED, HOST_LACKS, LabError
from mthp.lab.kernels.kernels import CachedKernel
from mthp.lab.kernels.source import SELFTESTS
from mthp.lab.session.kselftest import Output, parse_output
from mthp.lab.session.session import GuestSession
from mthp.lab.vm.channel import Channel, CommandFailed, GuestGone
from mthp.lab.vm.initramfs import build_initramfs, guest_modules
from mthp.lab.vm.qemu import MachineConfig, VirtualMachine, boot

__all__ = ["MTHP_ORDERS", "Invocation", "build", "guest_session", "run_selftest"]

MTHP_ORDERS = range(2, 9)
"""What -c may be: the orders below the PMD's that anonymous memory has a switch for."""

GUEST_MEMORY = 2560
"""MiB: one case holds 512 PMD-sized folios, 1 GiB, and wants each whole."""
PATIENCE_MS = 300_000
_PROGRAM = "/tmp/khugepaged"
_FLAGS = ("-static", "-O2", "-U_FORTIFY_SOURCE", "-D_GNU_SOURCE=", "-w")
_UNITS = ("khugepaged.c", "vm_util.c", "hugepage_settings.c", "thp_settings.c")
"""Where they are there: the settings' unit changed its name."""


@dataclass(frozen=True)
class Invocation:
    """One run of the program. mthp_order: None for its default, khugepaged and MADV_COLLAPSE."""

    mthp_order: int | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """Its arguments."""
        if self.mthp_order is None:
            return ()
        return ("-c", str(self.mthp_order), "mthp_khugepaged:anon")


def build(source: Path) -> bytes:
    """The program, linked statically with this host's compiler.

    source: a kernel's tree, or the parts of one. LabError (5): no compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise LabError(HOST_LACKS, "no C compiler (Debian: apt-get install gcc libc6-dev)")
    tests, tools = source.absolute() / SELFTESTS, source.absolute() / "tools"
    units = [str(tests / "mm" / name) for name in _UNITS if (tests / "mm" / name).is_file()]
    include = [f"-I{tests}", f"-I{tools}/include/uapi", "-isystem", f"{tools}/include"]
    with tempfile.TemporaryDirectory(prefix="mthp-selftest-") as folder:
        out = Path(folder) / "khugepaged"
        done = subprocess.run(
            [compiler, *_FLAGS, *include, "-o", str(out), *units], capture_output=True, text=True
        )
        if done.returncode:
            raise LabError(HOST_LACKS, f"{compiler} cannot build {units[0]}: {_why(done.stderr)}")
        return out.read_bytes()


def _why(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), (lines or ["it failed"])[-1])


@contextmanager
def guest_session(kernel: CachedKernel) -> Iterator[tuple[VirtualMachine, GuestSession]]:
    """A booted guest, swap on.

    LabError (5): it does not boot; (1): it ended in the middle, or cannot do what is asked.
    """
    machine = MachineConfig(
        kernel.image,
        (build_initramfs(kernel),),
        memory=GUEST_MEMORY,
        arguments=("damon_stat.enabled=0",),
    )
    with boot(machine) as guest:
        try:
            session = GuestSession(guest.channel)
            session.prepare([path for path, _ in guest_modules(kernel)])
            yield guest, session
        except GuestGone as error:
            raise LabError(FAILED, f"the guest: {error}; {guest.why_it_ended()}") from None
        except CommandFailed as error:
            raise LabError(FAILED, f"the guest of {kernel.release} cannot do: {error}") from None


def run_selftest(
    guest: VirtualMachine,
    program: bytes,
    wanted: Iterable[Invocation],
    begun: Callable[[str], None],
) -> dict[Invocation, Output]:
    """Run the program so, each time to its end. begun: told what is started."""
    channel = guest.channel
    channel.ask(f"put {_PROGRAM} 0 {len(program)}", program)
    outputs = {}
    for invocation in wanted:
        begun(" ".join(("khugepaged", *invocation.words)))
        outputs[invocation] = _run(channel, invocation)
    return outputs


def _run(channel: Channel, invocation: Invocation) -> Output:
    patience, channel.patience = channel.patience, PATIENCE_MS / 1000 + 30
    try:
        words = " ".join((_PROGRAM, *invocation.words))
        answer = channel.ask(f"exec {PATIENCE_MS} {words}")
    except CommandFailed as error:
        if error.errno != errno.ETIMEDOUT:
            raise
        return Output(0, (), f"it did not end within {PATIENCE_MS // 1000} s")
    finally:
        channel.patience = patience
    return parse_output(answer[8:].decode(errors="replace"))
