# SPDX-License-Identifier: GPL-2.0-or-later
"""The test's program: compiled from a small tree in the shape of the kernel's."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.kernels.tools import Tool, missing
from mthp.lab.session.selftest import arguments_for, build

needs_compiler = pytest.mark.skipif(
    bool({Tool.COMPILER, Tool.STATIC_LIBC} & set(missing())), reason="needs a static libc"
)


PT_INTERP = 3


def segments(elf: bytes) -> list[int]:
    """The types of a program's segments."""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    return [struct.unpack_from("<I", elf, table + size * i)[0] for i in range(count)]


def tree(folder: Path, program: str) -> Path:
    files = {
        "tools/testing/selftests/mm/khugepaged.c": program,
        "tools/testing/selftests/mm/vm_util.c": "int three(void) { return 3; }\n",
        "tools/testing/selftests/kselftest.h": "int three(void);\n",
    }
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@needs_compiler
def test_the_program_is_built_from_its_units_and_stands_alone(tmp_path: Path) -> None:
    source = tree(tmp_path, '#include "kselftest.h"\nint main(void) { return three(); }\n')
    program = tmp_path / "program"
    program.write_bytes(build(source))
    program.chmod(0o755)
    assert subprocess.run([program], check=False).returncode == 3
    assert PT_INTERP not in segments(program.read_bytes())


@needs_compiler
def test_a_program_that_does_not_compile(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"cannot build .*khugepaged\.c: .*error: ") as refused:
        build(tree(tmp_path, "int main(void) { return unknown; }\n"))
    assert refused.value.code == HOST_LACKS
    assert "\n" not in str(refused.value)


def test_a_host_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("cc") is None
    with pytest.raises(LabError, match="no C compiler") as refused:
        build(tree(tmp_path / "tree", ""))
    assert refused.value.code == HOST_LACKS


def test_arguments() -> None:
    assert arguments_for(None) == ()
    assert arguments_for(4) == ("-c", "4", "mthp_khugepaged:anon")
