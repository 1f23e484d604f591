# SPDX-License-Identifier: GPL-2.0-or-later
"""Small packages, and a small signed archive of them as a folder."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path

CONTROL = """Package: {name}
Version: 1
Architecture: amd64
Maintainer: nobody <nobody@localhost>
Installed-Size: 10
Description: a test
"""


def deb(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A package with these files."""
    root = folder / name
    for path, data in {"DEBIAN/control": CONTROL.format(name=name).encode(), **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    subprocess.run(["dpkg-deb", "-b", str(root), str(folder)], check=True, capture_output=True)
    (file,) = folder.glob(f"{name}_*.deb")
    return file


class SignedFolder:
    """An archive that apt takes from a folder, signed with a key made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keyring = folder / "keyring.gpg"
        self._keys = folder / "keys"
        self._keys.mkdir(parents=True, mode=0o700)
        self._gpg("--passphrase", "", "--quick-generate-key", "a test", "ed25519", "sign", "never")
        self.keyring.write_bytes(self._gpg("--export"))

    def publish(self, suite: str, files: Iterable[Path]) -> None:
        """Offer these packages in a suite."""
        pool = self.folder / "pool"
        pool.mkdir(exist_ok=True)
        records = []
        for file in files:
            data = file.read_bytes()
            (pool / file.name).write_bytes(data)
            records.append(
                CONTROL.format(name=file.name.partition("_")[0])
                + f"Filename: pool/{file.name}\nSize: {len(data)}\n"
                + f"SHA256: {hashlib.sha256(data).hexdigest()}\n"
            )
        lists = "\n".join(records).encode()
        home = self.folder / "dists" / suite
        (home / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
        (home / "main/binary-amd64/Packages").write_bytes(lists)
        release = (
            f"Suite: {suite}\nCodename: {suite}\nComponents: main\nArchitectures: amd64\n"
            "Date: Mon, 01 Jan 2024 00:00:00 UTC\nSHA256:\n"
            f" {hashlib.sha256(lists).hexdigest()} {len(lists)} main/binary-amd64/Packages\n"
        )
        (home / "InRelease").write_bytes(self._gpg("--clearsign", data=release.encode()))

    def close(self) -> None:
        """End the agent that gpg started."""
        home = ["--homedir", str(self._keys)]
        subprocess.run(["gpgconf", *home, "--kill", "gpg-agent"], check=True, capture_output=True)

    def _gpg(self, *words: str, data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self._keys), "--batch", "--yes", *words]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout
