# SPDX-License-Identifier: GPL-2.0-or-later
"""Collects the files that a program needs in the guest, from this host or from unpacked packages."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.vm.cpio import Cpio, Owner
from mthp.lab.vm.elf import Needs, interpreters, is_elf, needs
from mthp.words.files import replacing
from mthp.words.units import human_bytes

PROGRAM_FOLDERS = ("/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin")
_OWN_FOLDERS = ("/proc", "/sys", "/dev")
"""Folders that every guest has of its own: whatever lay there would be hidden."""
_MOST_LINKS = 40
_LIBRARY_FOLDERS = (
    *("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"),
    *("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"),
)
"""The folders in which the loader searches by default, on Debian and elsewhere."""
_LOADER_FILE = "/etc/ld.so.conf"


class Root:
    """A tree of files that absolute paths are resolved in; links in it cannot lead out of it.

    programs: the folders in which a program named alone is looked for.
    """

    def __init__(self, folder: Path, programs: Iterable[str] = PROGRAM_FOLDERS) -> None:
        self.folder = folder
        self.programs = tuple(programs)

    def find(self, path: str) -> Path | None:
        """The file on this host for an absolute path in the tree, links followed; None if there is none."""
        place = self.resolve(path, {})
        found = None if place is None else self.at(place)
        return found if found is not None and found.exists() else None

    def at(self, place: str) -> Path:
        """The path on this host of a place in the tree, no link followed."""
        return self.folder / place.lstrip("/")

    def resolve(self, path: str, links: dict[str, str], known: Iterable[str] = ()) -> str | None:
        """Where a path leads in the tree; None: its links lead round in circles.

        links: place -> what the link says; those that are passed are added, and those that are there
        already hold. known: places that are folders, whatever the tree has there.
        """
        todo, here = list(PurePosixPath(path).parts[:0:-1]), PurePosixPath("/")
        left = _MOST_LINKS
        while todo:
            part = todo.pop()
            place = str(here / part)
            if part == "..":
                here = here.parent
                continue
            if place not in links and place not in known and self.at(place).is_symlink():
                links[place] = os.readlink(self.at(place))
            if place not in links:
                here = here / part
                continue
            left -= 1
            if not left:
                return None
            target = PurePosixPath(links[place])
            here = PurePosixPath("/") if target.is_absolute() else here
            todo += [each for each in reversed(target.parts) if each != "/"]
        return str(here)

    def program(self, name: str) -> str | None:
        """The absolute path of a program named as on a command line; None if there is none."""
        if name.startswith("/"):
            return name if self.find(name) else None
        paths = (f"{folder}/{name}" for folder in self.programs)
        return next((path for path in paths if self._is_program(path)), None)

    def required(self, name: str) -> str:
        """The same. LabError (2): there is none."""
        path = self.program(name)
        if path is None:
            raise LabError(BAD_INPUT, f"no program {name}{_inside(self)}")
        return path

    def owner(self, known: os.stat_result) -> Owner:
        """The owner in the guest of a file here; what was unpacked is root's."""
        return (known.st_uid, known.st_gid) if self.folder == Path("/") else (0, 0)

    def _is_program(self, path: str) -> bool:
        found = self.find(path)
        return found is not None and found.is_file() and os.access(found, os.X_OK)

    @functools.cached_property
    def library_folders(self) -> tuple[str, ...]:
        """Where the loader looks for a library that is not beside its program."""
        return (*self._configured(_LOADER_FILE, 8), *_LIBRARY_FOLDERS)

    def _configured(self, path: str, deep: int) -> Iterator[str]:
        """The folders that a file in the form of ld.so.conf(5) names, and those that it includes."""
        found = self.find(path)
        lines = found.read_text(errors="replace").splitlines() if found and deep else []
        for line in lines:
            words = line.partition("#")[0].split()
            if words[:1] != ["include"]:
                yield from words
                continue
            for pattern in words[1:]:
                beside = os.path.join(os.path.dirname(path), pattern)
                for each in sorted(self.at(beside).parent.glob(os.path.basename(pattern))):
                    yield from self._configured(f"{os.path.dirname(beside)}/{each.name}", deep - 1)


HOST = Root(
    Path("/"),
    dict.fromkeys(path for path in (*os.get_exec_path(), *PROGRAM_FOLDERS) if path[:1] == "/"),
)


class GuestFiles:
    """Files for an initramfs, by their paths in the guest. Links stay links.

    most: how many bytes they may have together.
    """

    def __init__(self, most: int = sys.maxsize) -> None:
        self._left = self._most = most
        self._files: dict[str, tuple[Path | bytes, int, Owner]] = {}
        self._folders: dict[str, tuple[int, Owner]] = {}
        self._links: dict[str, str] = {}
        self._whole: set[str] = set()

    def add_bytes(self, path: str, data: bytes) -> None:
        """Add a file with these contents."""
        self._put(HOST, self._place(HOST, path), data, 0o644, (0, 0))

    def add_folder(self, root: Root, path: str) -> None:
        """Add a folder without its files. LabError (2): the guest has one of its own there."""
        self._make_folder(root, self._place(root, path))

    def add_program(self, root: Root, name: str) -> str:
        """Add a program and all that loading it needs; returns its path in the guest.

        LabError (2): no such program, or one that cannot run there; (5) a library is missing.
        """
        path = root.required(name)
        self._add_loaded(root, path, _missing_library)
        return path

    def add_tree(self, root: Root, path: str, skip: Iterable[str] = ()) -> None:
        """Add a file, or all files below a folder, with the libraries that they need and that exist.

        Where a link leads comes along too, unless that is a folder above it. skip: patterns of names
        to leave out. LabError (2): there is no such path, or too much of it.
        """
        found = root.find(path)
        if found is None:
            raise LabError(BAD_INPUT, f"no file {path}{_inside(root)}")
        place = self._place(root, path)
        if found.is_file():
            self._add_loaded(root, path, _leave_out)
        elif place not in self._whole:
            self._whole.add(place)
            self._make_folder(root, place)
            left_out, real = tuple(skip), (root.resolve(path, {}) or "").rstrip("/")
            for entry in sorted(os.listdir(found)):
                if not any(fnmatch.fnmatchcase(entry, pattern) for pattern in left_out):
                    self._add_entry(root, f"{real}/{entry}", left_out)

    def _add_entry(self, root: Root, path: str, skip: tuple[str, ...]) -> None:
        """Add what a folder has. A link to what the guest has of its own is a link and no more."""
        links: dict[str, str] = {}
        target = root.resolve(path, links)
        if target is None or _is_own(target):
            self._links.update(links)
        elif links and f"{path}/".startswith(f"{target.rstrip('/')}/"):
            self._place(root, path)
        elif not _is_plain(root.find(path)):
            self._place(root, path)  # a link to nothing, if it is one
        else:
            self.add_tree(root, path, skip)

    def modules(self, below: str) -> list[tuple[str, Path]]:
        """(path in the guest, file here) of the Python modules below a folder."""
        folder = self._place(HOST, below)
        return [
            (path, source)
            for path, (source, *_) in self._files.items()
            if path.startswith(folder) and path.endswith(".py") and isinstance(source, Path)
        ]

    def pack(self, target: Path) -> Path:
        """Write an initramfs; returns its path. LabError: one of them cannot be read."""
        archive = Cpio()
        for path in sorted({*self._files, *self._folders, *self._links}):
            if path in self._links:
                archive.add_link(path, self._links[path])
            elif path in self._folders:
                archive.add_dir(path, *self._folders[path])
            else:
                archive.add(path, *self._files[path])
        try:
            with replacing(target) as file:
                archive.write(file)
        except (OSError, ValueError) as error:
            raise LabError(HOST_LACKS, f"the guest's files: {error}") from None
        return target

    # --- places -----------------------------------------------------------------------------

    def _place(self, root: Root, path: str) -> str:
        """Where a path leads in the guest; the links on its way are added.

        LabError (2): it leads into a folder that the guest has of its own, or round in circles.
        """
        place = root.resolve(path, self._links, self._folders)
        if place is None:
            raise LabError(BAD_INPUT, f"{path}: {os.strerror(errno.ELOOP)}")
        if _is_own(place):
            raise LabError(BAD_INPUT, f"{path} cannot be taken along: the guest has its own")
        return place

    def _make_folder(self, root: Root, place: str) -> None:
        while place != "/" and place not in self._folders:
            self._folders[place] = (0o755, (0, 0))
            with contextlib.suppress(OSError):
                known = root.at(place).stat()
                self._folders[place] = (stat.S_IMODE(known.st_mode), root.owner(known))
            place = os.path.dirname(place)

    def _put(self, root: Root, place: str, data: Path | bytes, mode: int, owner: Owner) -> None:
        self._make_folder(root, os.path.dirname(place))
        self._files[place] = (data, mode, owner)
        self._left -= len(data) if isinstance(data, bytes) else data.stat().st_size
        if self._left < 0:
            what = f"more than {human_bytes(self._most)} of files, up to {place}"
            raise LabError(BAD_INPUT, f"{what}: a guest of that size cannot hold them (--memory)")

    # --- what a program needs ---------------------------------------------------------------

    def _add_loaded(self, root: Root, path: str, missing: Callable[[str, str], None]) -> None:
        """Add a file with its interpreter and libraries. missing: called with (path, what)."""
        place = self._place(root, path)
        found = root.find(path)
        if found is None or place in self._files:
            return
        try:
            known = found.stat()
            with found.open("rb") as file:
                head = file.read(256)
            wanted = needs(found.read_bytes()) if is_elf(head) else None
        except (OSError, ValueError) as error:
            raise LabError(BAD_INPUT, f"{found}: {error}") from None
        self._put(root, place, found, stat.S_IMODE(known.st_mode), root.owner(known))
        for name in interpreters(head) if wanted is None else (wanted.interpreter,):
            if name:
                at = root.program(name)
                if at is None:
                    missing(path, name)
                else:
                    self._add_loaded(root, at, missing)
        if wanted:
            self._add_libraries(root, path, wanted, missing)

    def _add_libraries(
        self, root: Root, path: str, wanted: Needs, missing: Callable[[str, str], None]
    ) -> None:
        origins = (os.path.dirname(path), os.path.dirname(root.resolve(path, {}) or path))
        folders = [
            each.replace("$ORIGIN", place).replace("${ORIGIN}", place)
            for each in wanted.search
            for place in dict.fromkeys(origins)
        ]
        for name in wanted.libraries:
            places = [f"{folder}/{name}" for folder in (*folders, *root.library_folders)]
            at = next((place for place in places if root.find(place)), None)
            if at is None:
                missing(path, name)
            else:
                self._add_loaded(root, at, missing)


def _missing_library(path: str, name: str) -> None:
    raise LabError(HOST_LACKS, f"{path} needs {name}, which is not there (--with takes files)")


def _leave_out(path: str, name: str) -> None:
    """Ignore a missing library: it is a plug-in's, which stays unused."""


def _inside(root: Root) -> str:
    return "" if root is HOST else f" in {root.folder}"


def _is_own(place: str) -> bool:
    return any(f"{place}/".startswith(f"{folder}/") for folder in _OWN_FOLDERS)


def _is_plain(found: Path | None) -> bool:
    return found is not None and (found.is_file() or found.is_dir()) and os.access(found, os.R_OK)
