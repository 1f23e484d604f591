# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects the files that a program needs in the guest, from this host or from unpacked packages."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.vm.cpio import Cpio
from mthp.lab.vm.elf import Needs, is_elf, needs, script_interpreter
from mthp.words.files import write_new

PROGRAM_FOLDERS = ("/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin")
_LIBRARY_FOLDERS = (
    *("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"),
    *("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"),
)
"""The folders in which the loader searches by default, on Debian and elsewhere."""


class Root:
    """A tree of files that absolute paths are resolved in; links in it cannot lead out of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, path: str) -> Path | None:
        """The file on this host for an absolute path in the tree, links followed; None if there is none."""
        found = self._follow(PurePosixPath(path), 40)
        return found if found is not None and found.exists() else None

    def _follow(self, path: PurePosixPath, left: int) -> Path | None:
        here = self.folder
        for index, part in enumerate(path.parts[1:], 2):
            here = here / part
            if here.is_symlink():
                if not left:
                    return None
                inside = PurePosixPath("/", *path.parts[1 : index - 1])
                target = os.path.normpath(inside / os.readlink(here))
                return self._follow(PurePosixPath(target, *path.parts[index:]), left - 1)
        return here

    def program(self, name: str) -> str | None:
        """The absolute path of a program named as on a command line; None if there is none."""
        if name.startswith("/"):
            return name if self.find(name) else None
        paths = (f"{folder}/{name}" for folder in PROGRAM_FOLDERS)
        return next((path for path in paths if self._is_program(path)), None)

    def _is_program(self, path: str) -> bool:
        found = self.find(path)
        return found is not None and found.is_file() and os.access(found, os.X_OK)


HOST = Root(Path("/"))


class GuestFiles:
    """Files for an initramfs, by their paths in the guest."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path | bytes, int]] = {}

    def add_bytes(self, path: str, data: bytes) -> None:
        """Add a file with these contents."""
        self._files[path] = (data, 0o644)

    def add_program(self, root: Root, name: str) -> str:
        """Add a program and all that loading it needs; returns its path in the guest.

        LabError (2): no such program, or one that cannot run there; (5) a library is missing.
        """
        path = root.program(name)
        if path is None:
            raise LabError(BAD_INPUT, f"no program {name} in {root.folder}")
        self._add_loaded(root, path, _missing_library)
        return path

    def add_tree(self, root: Root, path: str, skip: Iterable[str] = ()) -> None:
        """Add a file, or all files below a folder, with the libraries that they need and that exist.

        skip: patterns of names to leave out. LabError (2): there is no such path.
        """
        found = root.find(path)
        if found is None:
            raise LabError(BAD_INPUT, f"no file {path} in {root.folder}")
        if found.is_file():
            self._add_loaded(root, path, _leave_out)
            return
        left_out = tuple(skip)
        for entry in sorted(os.listdir(found)):
            inside = f"{path.rstrip('/')}/{entry}"
            wanted = not any(fnmatch.fnmatchcase(entry, pattern) for pattern in left_out)
            if wanted and _is_plain(root.find(inside)):
                self.add_tree(root, inside, left_out)

    def modules(self, below: str) -> list[tuple[str, Path]]:
        """(path in the guest, file here) of the Python modules below a folder."""
        return [
            (path, source)
            for path, (source, _) in self._files.items()
            if path.startswith(below) and path.endswith(".py") and isinstance(source, Path)
        ]

    def pack(self, target: Path) -> Path:
        """Write an initramfs; returns its path. LabError: one of them cannot be read."""
        archive = Cpio()
        for path, (data, mode) in sorted(self._files.items()):
            try:
                archive.add(path, data if isinstance(data, bytes) else data.read_bytes(), mode)
            except OSError as error:
                raise LabError(HOST_LACKS, f"{data!s}: {error.strerror}") from None
        write_new(target, archive.pack())
        return target

    def _add_loaded(self, root: Root, path: str, missing: Callable[[str, str], None]) -> None:
        """Add a file with its interpreter and libraries. missing: called with (path, library)."""
        found = root.find(path)
        if found is None or path in self._files:
            return
        self._files[path] = (found, stat.S_IMODE(found.stat().st_mode) | 0o444)
        try:
            with found.open("rb") as file:
                head = file.read(256)
            wanted = needs(found.read_bytes()) if is_elf(head) else None
        except (OSError, ValueError) as error:
            raise LabError(BAD_INPUT, f"{found}: {error}") from None
        interpreter = wanted.interpreter if wanted else script_interpreter(head)
        if interpreter:
            if root.find(interpreter) is None:
                missing(path, interpreter)
            self._add_loaded(root, interpreter, missing)
        if wanted:
            self._add_libraries(root, path, wanted, missing)

    def _add_libraries(
        self, root: Root, path: str, wanted: Needs, missing: Callable[[str, str], None]
    ) -> None:
        own = root.find(path)
        origins = [str(PurePosixPath(path).parent)]
        if own is not None and own.is_relative_to(root.folder):
            # A link may have been followed to a file whose libraries lie beside it.
            origins.append("/" + str(own.relative_to(root.folder).parent))
        folders = [
            os.path.normpath(each.replace("$ORIGIN", place).replace("${ORIGIN}", place))
            for each in wanted.search
            for place in dict.fromkeys(origins)
        ]
        for name in wanted.libraries:
            places = [f"{folder}/{name}" for folder in (*folders, *_LIBRARY_FOLDERS)]
            at = next((place for place in places if root.find(place)), None)
            if at is None:
                missing(path, name)
            else:
                self._add_loaded(root, at, missing)


def _missing_library(path: str, name: str) -> None:
    raise LabError(HOST_LACKS, f"{path} needs {name}, which is not there (--with takes files)")


def _leave_out(path: str, name: str) -> None:
    """Ignore a missing library: it is a plug-in's, which stays unused."""


def _is_plain(found: Path | None) -> bool:
    return found is not None and (found.is_file() or found.is_dir()) and os.access(found, os.R_OK)
