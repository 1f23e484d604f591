# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of kernels, each in a folder of its own.

kernels/<release>/ holds vmlinuz, modules/ (the tree lib/modules/<release>), config and kernel.json.
A folder is complete as soon as it is there.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.lab.kernels.modules import ModuleTree
from mthp.words.files import copy_new, put_in_place, scratch, write_new
from mthp.words.reading import read_json
from mthp.words.units import human_bytes

SCHEMA_VERSION = 1
RELEASE = re.compile(r"[0-9][A-Za-z0-9.+~_-]*")
"""A kernel's release, or the beginning of one; it names a folder."""

_CONFIG_FACTS = re.compile(
    r"CONFIG_(TRANSPARENT_HUGEPAGE\w*|KSM|MEMCG|SWAP|ZRAM|ZRAM_BACKEND_LZ4|USERFAULTFD|NUMA|HZ"
    r"|MEMORY_FAILURE|HWPOISON_INJECT|KPROBES|DEBUG_INFO_BTF|PROC_KCORE|PROC_PAGE_MONITOR|DEBUG_VM"
    r"|IO_URING|VIRTIO_CONSOLE|VIRTIO_FS|PREEMPT\w*|IDLE_PAGE_TRACKING|LRU_GEN\w*)"
)
_BOOT_MAGIC = b"HdrS"
_X86_64 = 62
_BANNER = re.compile(rb"Linux version (\S+) \(")
_MARGIN = 16 << 20


@dataclass(frozen=True)
class Origin:
    """Where a kernel came from: a suite of Debian with the packages (name=version), or a path."""

    source: str
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class CachedKernel:
    """One kernel of the cache. modules: its tree lib/modules/<release>; None where it has none."""

    release: str
    image: Path
    modules: Path | None
    origin: Origin
    sha256: str = ""
    config: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Some of its configuration: CONFIG_… -> value; empty if its config file is unknown."""

    def module(self, name: str) -> list[Path]:
        """The files to load, in this order, for a module; none where it is built in.

        Errors: LabError, this kernel has no such module.
        """
        if self.modules is None:
            raise LabError(HOST_LACKS, f"kernel {self.release} has no modules: no {name}")
        return ModuleTree(self.modules).load_order(name)


def cache_dir() -> Path:
    """The folder for fetched files: MTHP_CACHE, else mthp in the user's cache folder. LabError: the
    user has none."""
    own = os.environ.get("MTHP_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        raise LabError(HOST_LACKS, f"no folder for the cache: {base!r} (MTHP_CACHE=DIR gives one)")
    return Path(base) / "mthp"


def kernels_dir() -> Path:
    """The folder of the kernels' folders."""
    return cache_dir() / "kernels"


def installed() -> list[CachedKernel]:
    """The kernels of the cache, oldest release first. LabError: one of them is damaged, or the
    cache cannot be read."""
    with _cache_errors("read"):
        folders = [path.parent for path in kernels_dir().glob("[0-9]*/kernel.json")]
    return sorted(map(_read, folders), key=lambda kernel: version_key(kernel.release))


def find(name: str | None = None) -> CachedKernel:
    """Find the kernel of a release, else the newest whose release begins so (7.3: any 7.3.x); with
    no name the newest of all. LabError: there is none."""
    kernels = installed()
    fitting = [kernel for kernel in kernels if name is None or matches(kernel.release, name)]
    for kernel in fitting:
        if kernel.release == name:
            return kernel
    if fitting:
        return fitting[-1]
    if name is None:
        raise LabError(HOST_LACKS, "no kernel in the cache: run mthp lab setup")
    there = ", ".join(kernel.release for kernel in kernels) or "none"
    raise LabError(
        HOST_LACKS,
        f"no kernel {name} in the cache (there: {there}): run mthp lab setup --release {name}",
    )


def matches(release: str, wanted: str) -> bool:
    """Whether wanted is the release or a beginning that ends with a whole number."""
    return release.startswith(wanted) and not release[len(wanted) :][:1].isdigit()


def version_key(release: str) -> tuple[int, ...]:
    """A key that sorts releases by age; 7.4.0-rc3 comes before 7.4.0."""
    parts = re.findall(r"rc|\d{1,18}", release)
    return (*(-1 if part == "rc" else int(part) for part in parts), 0)


def check_release(text: str) -> str:
    """Return the text if it can be the beginning of a release; raise LabError otherwise."""
    if not RELEASE.fullmatch(text):
        raise LabError(BAD_INPUT, f"{text!r} is not the beginning of a kernel's release (try 7.3)")
    return text


def release_of_image(path: Path) -> str:
    """The release that an image names: in a bzImage's header, or in the banner of a vmlinux.

    Kernel: Documentation/arch/x86/boot.rst (kernel_version); init/version.c (linux_banner)
    Errors: LabError, no such file or not a kernel for x86-64.
    """
    if path.exists() and not path.is_file():
        raise LabError(BAD_INPUT, f"{path}: not a plain file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            release = _bzimage_release(data) or _vmlinux_release(data)
    except OSError as error:
        raise LabError(BAD_INPUT, f"{path}: {error.strerror or error}") from None
    except ValueError:
        release = None
    if release is None or not RELEASE.fullmatch(release):
        what = "not a Linux kernel image for x86-64 (a bzImage or a vmlinux)"
        raise LabError(BAD_INPUT, f"{path}: {what}")
    return release


def _bzimage_release(data: mmap.mmap) -> str | None:
    if len(data) < 0x210 or data[0x202:0x206] != _BOOT_MAGIC:
        return None
    (offset,) = struct.unpack_from("<H", data, 0x20E)
    text = data[0x200 + offset :][:256] if offset else b""
    return text.partition(b"\0")[0].partition(b" ")[0].decode(errors="replace")


def _vmlinux_release(data: mmap.mmap) -> str | None:
    if data[:4] != b"\x7fELF" or len(data) < 64:
        return None
    if struct.unpack_from("<H", data, 18) != (_X86_64,):
        return None
    found = _BANNER.search(data)
    return found[1].decode(errors="replace") if found else None


def modules_tree(folder: Path, release: str) -> Path:
    """The tree of that release at or below a folder: itself, or lib/modules/<release> in it.

    Errors: LabError, no modules there, or those of another kernel.
    """
    for below in ("", release, f"lib/modules/{release}", f"usr/lib/modules/{release}"):
        tree = ModuleTree(folder / below)
        if (tree.folder / "kernel").is_dir() and tree.files:
            built_for = tree.release()
            if built_for != release:
                raise LabError(
                    BAD_INPUT, f"{tree.folder}: modules of {built_for}, the kernel is {release}"
                )
            return tree.folder
    what = "no such folder" if not folder.is_dir() else f"no modules of {release} in it"
    raise LabError(BAD_INPUT, f"{folder}: {what}")


@contextmanager
def staging() -> Iterator[Path]:
    """A folder in the cache to prepare a kernel in, gone afterwards.

    Errors: LabError, the cache cannot be written.
    """
    with _cache_errors("write"):
        kernels_dir().mkdir(parents=True, exist_ok=True)
        with scratch(kernels_dir()) as folder:
            yield folder


@contextmanager
def _cache_errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise LabError(HOST_LACKS, f"cannot {what} the cache {kernels_dir()}: {why}") from None


def check_room(needed: int) -> None:
    """Raise LabError unless the cache's disk has that many bytes free, and 16 MiB more."""
    place = kernels_dir()
    with _cache_errors("write"):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
    if free < needed + _MARGIN:
        raise LabError(
            HOST_LACKS,
            f"no room: {human_bytes(needed + _MARGIN)} needed for {kernels_dir()}, "
            f"{human_bytes(free)} free (MTHP_CACHE=DIR puts the cache elsewhere)",
        )


def add_copy(image: Path, modules: Path | None) -> CachedKernel:
    """Put a kernel from anywhere into the cache; an older one of the same release goes.

    image: a bzImage or vmlinux; modules: its tree, as modules_tree() takes it.
    Errors: LabError, not a kernel, modules of another, no room.
    """
    release = release_of_image(image)
    tree = None if modules is None else modules_tree(modules, release)
    check_room(image.stat().st_size + (_bytes_below(tree) if tree else 0))
    with staging() as work:
        folder = work / "kernel"
        folder.mkdir()
        copy_new(image, folder / "vmlinuz")
        if tree:
            _copy_tree(tree, folder / "modules")
        return keep(folder, release, Origin(str(image.absolute())))


def _copy_tree(tree: Path, to: Path) -> None:
    try:
        shutil.copytree(tree, to, ignore=_links_to_sources, copy_function=copy_new)
    except shutil.Error as error:
        source, _, why = error.args[0][0]
        raise LabError(BAD_INPUT, f"{source}: cannot be copied: {why}") from None


def _links_to_sources(folder: str, names: list[str]) -> list[str]:
    """The links `build` and `source`: they lead to a tree that may be large, and is not needed."""
    return [name for name in names if Path(folder, name).is_symlink()]


def _bytes_below(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def keep(folder: Path, release: str, origin: Origin) -> CachedKernel:
    """Move a folder prepared under staging() to its place: vmlinuz, modules/ and config in it."""
    config = folder / "config"
    with (folder / "vmlinuz").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    document = {
        "schema_version": SCHEMA_VERSION,
        "release": release,
        "source": origin.source,
        "packages": origin.packages,
        "sha256": digest,
        "config": config_facts(config.read_text()) if config.is_file() else {},
    }
    write_new(folder / "kernel.json", (json.dumps(document, indent=1) + "\n").encode())
    place = kernels_dir() / release
    put_in_place(folder, place)
    return _read(place)


def config_facts(text: str) -> dict[str, str]:
    """The part of a kernel's .config that matters here: CONFIG_… -> value, without unset ones."""
    pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {key: value for key, _, value in pairs if _CONFIG_FACTS.fullmatch(key)}


def _read(folder: Path) -> CachedKernel:
    path = folder / "kernel.json"
    try:
        document = read_json(path)
        kernel = CachedKernel(
            release=str(document["release"]),
            image=folder / "vmlinuz",
            modules=folder / "modules" if (folder / "modules").is_dir() else None,
            origin=Origin(str(document["source"]), tuple(map(str, document["packages"]))),
            sha256=str(document["sha256"]),
            config={str(key): str(value) for key, value in document["config"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kernel = None
    if kernel is None or not kernel.image.is_file():
        raise LabError(HOST_LACKS, f"{folder}: damaged; remove it and run mthp lab setup")
    return kernel
