# SPDX-License-Identifier: GPL-2.0-or-later
"""Access to Debian's archive through apt, with a private configuration.

The system's lists, cache and settings are not changed, and nothing is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

from mthp.lab.errors import BAD_INPUT, HOST_LACKS, LabError
from mthp.words.files import replace_text
from mthp.words.processes import end_with_parent
from mthp.words.units import KIB

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MAIN_SUITES = {
    *("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"),
    *("buster", "bullseye", "bookworm", "trixie", "forky", "duke"),
}
_CONFIG = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "{folder}/none.d";
Dir::Etc::preferences "{folder}/none";
Dir::Etc::preferencesparts "{folder}/none.d";
Dir::State "{folder}/state";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class NoSuite(LabError):
    """The archive does not have that suite."""


@dataclass(frozen=True)
class Source:
    """One line or stanza of apt's sources."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class Archive:
    """A Debian archive: where it is, and the keys that its lists are signed with."""

    address: str
    keyring: Path = KEYRING


@dataclass(frozen=True)
class Package:
    """A package in the archive. size, installed_size: bytes, of its file and unpacked."""

    name: str
    version: str
    size: int
    installed_size: int


def parse_list(text: str) -> Iterator[Source]:
    """The "deb" lines of a .list file."""
    for line in text.splitlines():
        found = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]+)", line)
        words = found[2].split() if found else []
        if found and len(words) >= 2:
            options = dict(option.partition("=")[::2] for option in (found[1] or "").split())
            signed_by = options.get("signed-by", "")
            yield Source((words[0],), (words[1],), tuple(words[2:]), signed_by)


def parse_stanzas(text: str) -> Iterator[Source]:
    """The "deb" stanzas of a .sources file (deb822) that are not switched off."""
    for fields in _stanzas(text):
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            yield Source(
                tuple(fields.get("uris", "").split()),
                tuple(fields.get("suites", "").split()),
                tuple(fields.get("components", "").split()),
                fields.get("signed-by", ""),
            )


def _stanzas(text: str) -> Iterator[Message]:
    """The stanzas of a deb822 file: the fields of mail headers, and comments, which are left out."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", "\n".join(lines).strip()):
        yield message_from_string(stanza)


def system_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """The system's own sources, in apt's order. Files that cannot be read count as empty."""
    found: list[Source] = []
    parts = folder / "sources.list.d"
    files = sorted(path for path in parts.glob("*") if path.suffix in (".list", ".sources"))
    for path in (folder / "sources.list", *files):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        found += parse_stanzas(text) if path.suffix == ".sources" else parse_list(text)
    return found


def debian_archive(sources: Iterable[Source]) -> Archive:
    """The first archive that serves a main suite of Debian.

    One signed by Debian's keyring is preferred, since other archives use the same names of suites.
    LabError: there is none.
    """
    fitting = [
        (_distrust(source), uri)
        for source in sources
        if _MAIN_SUITES.intersection(source.suites) and "main" in source.components
        for uri in source.uris
        if not uri.startswith("cdrom:")
    ]
    if not fitting:
        raise LabError(
            HOST_LACKS,
            "this host's apt sources name no archive of Debian: "
            "mthp lab setup --kernel PATH takes a kernel from anywhere",
        )
    return Archive(min(fitting, key=lambda each: each[0])[1])


def _distrust(source: Source) -> int:
    if "debian-archive" in source.signed_by:
        return 0
    return 2 if source.signed_by else 1


class PrivateApt:
    """apt for one suite of Debian; everything it writes is below one folder."""

    def __init__(self, folder: Path, archive: Archive, suite: str) -> None:
        """Write the configuration. LabError: this host lacks apt or the keyring; a path apt cannot use."""
        for command in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(command) is None:
                raise LabError(
                    HOST_LACKS,
                    f"{command} is not on this host: "
                    "mthp lab setup --kernel PATH takes a kernel from anywhere",
                )
        if not archive.keyring.exists():
            what = f"{archive.keyring} is missing: apt-get install debian-archive-keyring"
            raise LabError(HOST_LACKS, what)
        if '"' in str(folder) or not str(folder).isprintable():
            raise LabError(BAD_INPUT, f"{folder}: apt takes no path like this one (set MTHP_CACHE)")
        self.suite = suite
        self._config = folder / "apt.conf"
        try:
            for below in ("none.d", "state", "lists/partial", "cache/archives/partial"):
                (folder / below).mkdir(parents=True, exist_ok=True)
            replace_text(folder / "state" / "status", "")
            replace_text(self._config, _CONFIG.format(folder=folder))
            line = f"deb [signed-by={archive.keyring}] {archive.address} {suite} main\n"
            replace_text(folder / "sources.list", line)
        except OSError as error:
            raise LabError(HOST_LACKS, f"cannot write {folder}: {error.strerror}") from None

    def update(self) -> None:
        """Fetch the suite's lists. LabError: the archive does not answer; NoSuite: it lacks the suite."""
        try:
            self._run("apt-get", "-qq", "update")
        except LabError as error:
            if "does not have a Release file" in str(error):
                raise NoSuite(HOST_LACKS, f"the archive has no suite {self.suite}") from None
            raise

    def packages(self, pattern: str) -> list[Package]:
        """The packages of the suite whose names match the regular expression."""
        lines = self._run("apt-cache", "search", "--names-only", pattern).splitlines()
        names = sorted({line.partition(" ")[0] for line in lines})
        if not names:
            return []
        return list(parse_records(self._run("apt-cache", "show", *names)))

    def with_dependencies(self, names: Sequence[str]) -> list[Package]:
        """These packages and all that they depend on, without recommendations.

        LabError: the suite has no such package.
        """
        simulated = self._run(
            "apt-get", "--simulate", "--no-install-recommends", "-qq", "install", *names
        )
        found = re.findall(r"^Inst (\S+)", simulated, re.MULTILINE)
        shown = self._run("apt-cache", "show", "--no-all-versions", *dict.fromkeys(found))
        return list(parse_records(shown))

    def download(self, folder: Path, *packages: Package) -> list[Path]:
        """Fetch the files of packages into a folder, in their order. LabError: that failed."""
        wanted = [f"{package.name}={package.version}" for package in packages]
        self._run("apt-get", "-qq", "download", *wanted, cwd=folder)
        return [_file_of(package, folder) for package in packages]

    def _run(self, command: str, *words: str, cwd: Path | None = None) -> str:
        return run_apt([command, "-c", str(self._config), *words], cwd=cwd)


def _file_of(package: Package, folder: Path) -> Path:
    found = list(folder.glob(f"{package.name}_*.deb"))
    if len(found) != 1:
        raise LabError(HOST_LACKS, f"apt-get download left no file of {package.name}")
    return found[0]


def run_apt(words: Sequence[str], cwd: Path | None = None) -> str:
    """Run one of apt's commands; its output. LabError: it failed; the text is its own complaint."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", check=False, env=env, cwd=cwd,
        stdin=subprocess.DEVNULL, preexec_fn=end_with_parent(),
    )  # fmt: skip
    if done.returncode:
        raise LabError(HOST_LACKS, f"{_short(words)}: {_complaint(done.stderr)}")
    return done.stdout


def unpack_deb(file: Path, folder: Path) -> None:
    """Unpack a package's files below a folder. LabError: it is damaged."""
    done = subprocess.run(
        ["dpkg-deb", "-x", str(file), str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = done.stderr.strip().partition("\n")[0]
        raise LabError(HOST_LACKS, f"{file.name} cannot be unpacked: {why}")


def _short(words: Sequence[str]) -> str:
    kept = [word for word in words if word != "-c" and not word.endswith("apt.conf")]
    return " ".join(kept[:4])


def _complaint(text: str) -> str:
    """The first error that apt prints, else the first warning, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ranked = sorted(lines, key=lambda line: 0 if line[:2] == "E:" else 1 if line[:2] == "W:" else 2)
    return ranked[0] if ranked else "failed without a word"


def parse_records(text: str) -> Iterator[Package]:
    """The packages of `apt-cache show`; of several versions of one the first, the newest."""
    seen: set[str] = set()
    for fields in _stanzas(text):
        name = fields.get("package", "")
        if name and name not in seen:
            seen.add(name)
            yield Package(
                name,
                fields.get("version", ""),
                _number(fields, "size"),
                _number(fields, "installed-size") * KIB,
            )


def _number(fields: Message, key: str) -> int:
    text = fields.get(key, "")
    return int(text) if re.fullmatch(r"\d{1,18}", text) else 0
