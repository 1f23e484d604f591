# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies the Python that runs this into the guest, where it runs the helper and the capture."""

from __future__ import annotations

import importlib.util
import marshal
import sys
import sysconfig
from importlib import resources
from pathlib import Path

from mthp.image.zipped import sources_of
from mthp.lab.errors import HOST_LACKS, LabError
from mthp.lab.vm.files import HOST, GuestFiles

LAB = "/lab"
HELPER, CAPTURES = f"{LAB}/helper.py", f"{LAB}/captures.py"
_SCRIPTS = ("helper.py", "register.py", "captures.py")
_UNUSED = (
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "site-packages",
    "dist-packages", "pydoc_data", "distutils", "__pycache__",
    "config-*", "_tkinter*", "_test*", "_ctypes_test*", "xxlimited*",
)  # fmt: skip
"""Parts of the standard library that neither the capture nor the recipes import."""


def add_interpreter(files: GuestFiles) -> str:
    """Add Python, its standard library and the lab's scripts; returns the interpreter's path.

    LabError (5): this Python's own files cannot be found.
    """
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_paths(vars={"installed_base": sys.base_prefix})["stdlib"])
    if not (base.is_file() and library.is_dir()):
        raise LabError(HOST_LACKS, f"{base}: not a Python that can be copied")
    path = files.add_program(HOST, str(base))
    files.add_tree(HOST, str(library), _UNUSED)
    _add_compiled(files, str(library))
    guest = resources.files("mthp.lab") / "guest"
    scripts = {name: (guest / name).read_bytes() for name in _SCRIPTS}
    for name, text in {**scripts, **sources_of()}.items():
        place = f"{LAB}/{name}"
        files.add_bytes(place, text)
        files.add_bytes(importlib.util.cache_from_source(place), _HEADER + _compile(place, text))
    return path


def _add_compiled(files: GuestFiles, below: str) -> None:
    """Add the bytecode of every module, marked as unchecked (PEP 552): an initramfs keeps no times, and
    compiling is slow in a guest."""
    for path, source in files.modules(below):
        compiled = importlib.util.cache_from_source(path)
        files.add_bytes(
            compiled, _HEADER + (_payload(Path(compiled)) or _compile(path, source.read_bytes()))
        )


_UNCHECKED_HASH = 1
_HEADER = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little") + bytes(8)


def _payload(compiled: Path) -> bytes | None:
    """The code in a file that this Python compiled before; None if there is no such file."""
    try:
        data = compiled.read_bytes()
    except OSError:
        return None
    return data[len(_HEADER) :] if data.startswith(importlib.util.MAGIC_NUMBER) else None


def _compile(path: str, text: bytes) -> bytes:
    try:
        return marshal.dumps(compile(text, path, "exec", dont_inherit=True))
    except (SyntaxError, ValueError) as error:
        raise LabError(HOST_LACKS, f"{path}: {error}") from None
