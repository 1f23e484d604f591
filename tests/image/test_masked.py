# SPDX-License-Identifier: GPL-2.0-or-later
"""Parts of /proc and /sys that containers mask or hide: told apart, and said."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mthp.image.capture.host import THP
from mthp.image.snapshot import Snapshot, load
from mthp.image.zipped import write_zipapp
from mthp.predict.image import Image
from mthp.words.profiles import DEFAULT

PYTHON = "/usr/bin/python3"
MAY_MOUNT = (
    os.geteuid() == 0
    and shutil.which("unshare") is not None
    and shutil.which("setpriv") is not None
    and os.access(PYTHON, os.X_OK)
    and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
)
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not MAY_MOUNT, reason="needs root, unshare, setpriv, /usr/bin/python3"),
]
NOBODY = "setpriv --reuid 65534 --regid 65534 --clear-groups"


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process of root's that does nothing."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture(scope="module")
def program() -> Iterator[Path]:
    """The capture as hosts get it, where anybody can read it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        path = Path(name) / "snap.pyz"
        write_zipapp(path)
        path.chmod(0o755)
        yield path


def snap(program: Path, mounts: str, pid: int, under: str = "") -> tuple[int, str, Path]:
    """Exit code, stderr and the file of a capture in a mount namespace of its own."""
    out = program.parent / "x.npz"
    out.unlink(missing_ok=True)
    script = f"{mounts}; {under} {PYTHON} {program} --pid {pid} -o {out}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], check=False, capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr, out


def seen(program: Path, mounts: str, pid: int) -> tuple[Snapshot, str]:
    code, said, out = snap(program, mounts, pid)
    assert code == 0, said
    return load(out), said


@pytest.mark.parametrize("folder", ["/sys", THP])
def test_settings_that_are_masked(program: Path, sleeper: int, folder: str) -> None:
    """The kernel has huge pages all the same, and the settings can be given."""
    snapshot, said = seen(program, f"mount -t tmpfs none {folder}", sleeper)
    assert "transparent_hugepage is masked: the settings" in said
    assert snapshot.sysfs.get("enabled") is None and snapshot.geometry.pmd_size == 2 << 20
    image = Image(snapshot, "x", "y")
    settings = image.configured(enabled="always,2048kB=always", max_ptes_none=7)
    assert any(
        "no setting could be read" in each for each in image.run(settings).outcome.basis.assumptions
    )


def test_frames_that_are_masked(program: Path, sleeper: int) -> None:
    snapshot, said = seen(program, "mount --bind /dev/null /proc/kpageflags", sleeper)
    assert "/proc/kpageflags is masked: folio orders" in said
    assert not snapshot.privilege.kpageflags and snapshot.processes[0].kpageflags is None
    snapshot, said = seen(program, "mount --bind /dev/zero /proc/kpagecount", sleeper)
    assert "/proc/kpagecount is masked: how many processes share a page" in said
    assert snapshot.privilege.kpageflags and snapshot.processes[0].kpagecount is None
    world, _ = Image(snapshot, "x", "y").prepared(Image(snapshot, "x", "y").settings, DEFAULT, "")
    assert not world.torn
    assert any("not mapped exclusively" in each for each in world.assumptions)


@pytest.mark.parametrize("file", ["pagemap", "smaps"])
def test_files_of_the_process_that_are_masked(program: Path, sleeper: int, file: str) -> None:
    """It did not exit: the file says nothing."""
    code, said, _ = snap(program, f"mount --bind /dev/null /proc/{sleeper}/{file}", sleeper)
    assert code == 5
    assert said == f"mthp-snap: /proc/{sleeper}/{file} is masked: nothing can be read from it\n"


def test_free_memory_that_is_masked(program: Path, sleeper: int) -> None:
    snapshot, _ = seen(program, "mount --bind /dev/null /proc/buddyinfo", sleeper)
    said = Image(snapshot, "x", "y").run().outcome.basis.assumptions[-1]
    assert "as MemFree says; buddyinfo shows none of it" in said


def test_root_without_capabilities(program: Path, sleeper: int) -> None:
    bare = "setpriv --bounding-set -sys_admin --inh-caps -sys_admin"
    code, said, out = snap(program, "true", sleeper, bare)
    assert code == 0 and "CAP_SYS_ADMIN is missing, as in a container: folio orders" in said
    assert "not root" not in said
    assert load(out).privilege.root and not load(out).privilege.pfn
    lost = "-sys_ptrace,-sys_admin,-perfmon"
    blind = f"setpriv --bounding-set {lost} --inh-caps {lost}"
    with subprocess.Popen([*NOBODY.split(), "sleep", "1000"]) as other:
        code, said, _ = snap(program, "sleep 0.2", other.pid, blind)
        other.kill()
    assert code == 2 and "not ours to read: CAP_SYS_PTRACE is missing" in said


@pytest.mark.parametrize("how", ["1", "2"])
def test_a_process_that_proc_hides(program: Path, sleeper: int, how: str) -> None:
    """It is there: the kernel says so past /proc. One that is not there is another matter."""
    mounts = f"mount -t proc -o hidepid={how} proc /proc"
    code, said, _ = snap(program, mounts, sleeper, NOBODY)
    assert code == 2
    assert said.startswith(
        f"mthp-snap: process {sleeper} is there, but this /proc hides it (hidepid)"
    )
    code, said, _ = snap(program, mounts, 4194399, NOBODY)
    assert code == 2 and "no process 4194399" in said and "hide" not in said


def test_processes_that_proc_hides_are_counted(program: Path, sleeper: int) -> None:
    """Those that cgroups list, though /proc does not; what is left is this process's own user's."""
    mounts = "mount -t proc -o hidepid=2 proc /proc; mount -t cgroup2 none /sys/fs/cgroup"
    script = f"{mounts}; {NOBODY} sleep 100 & {mounts}; {NOBODY} {PYTHON} {program} --all -o OUT"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        out = Path(folder) / "x.npz"
        subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{script.replace('OUT', str(out))}; kill $!"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        (said,) = (line for line in load(out).unseen if "hidden by /proc" in line)
    assert int(said.split()[0]) > 1


def test_another_pid_namespace(program: Path, sleeper: int) -> None:
    """A container has its own numbers; and where /proc is not its own, 'self' is still itself."""
    out = program.parent / "y.npz"
    inner = f"{PYTHON} {program} --pid {sleeper} -o {out}; {PYTHON} {program} --pid self -o {out}"
    command = ["unshare", "-m", "-p", "-f", "sh", "-c"]
    done = subprocess.run(
        [*command, f"mount -t proc proc /proc; {inner}"], check=True, capture_output=True, text=True
    )
    assert f"no process {sleeper} in this PID namespace" in done.stderr
    assert load(out).processes[0].name.startswith("python")
    done = subprocess.run([*command, inner], check=True, capture_output=True, text=True)
    assert load(out).processes[0].name.startswith("python")
    assert load(out).processes[0].pid != 1
