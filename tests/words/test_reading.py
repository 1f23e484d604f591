# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever stands in a file, reading it ends, in a bounded size, with a value or with one line."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mthp.words import reading
from mthp.words.files import FileError
from mthp.words.reading import DEPTH, numbered_lines, parse_json, parse_object, read_json, read_text


def test_json_is_read() -> None:
    assert parse_json('{"a": [1, {"b": "[[[{{\\"["}]}') == {"a": [1, {"b": '[[[{{"['}]}
    assert parse_json(b'"\xc3\xbc"') == "ü"
    with pytest.raises(FileError, match="not an object"):
        parse_object("[1]")


@pytest.mark.parametrize("depth", [1, DEPTH, DEPTH + 1, 900, 100_000])
@pytest.mark.parametrize("inner", ["", '"]}"', '"\\\\"', '{"[": "{"}'])
def test_the_depth_is_bounded(depth: int, inner: str) -> None:
    depth -= inner.startswith("{")
    text = "[" * depth + inner + "]" * depth
    if depth + inner.startswith("{") <= DEPTH:
        assert json.dumps(parse_json(text)) == text
        return
    with pytest.raises(FileError, match=f"^bad JSON: nested deeper than {DEPTH}$"):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, '["' * 1000, "9" * 5000, b"\xff\xfe", "{"]
)
def test_what_is_no_json_is_one_line(text: str | bytes) -> None:
    with pytest.raises(FileError) as caught:
        parse_json(text)
    assert str(caught.value).startswith("bad JSON: ") and len(str(caught.value)) < 100


@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_every_document_that_is_not_deep_is_read(document: object) -> None:
    assert parse_json(json.dumps(document)) == document
    assert (
        parse_json(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        == document
    )


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/fd/0"])
def test_devices_are_not_read(path: str) -> None:
    if path.startswith("/proc") and os.path.isfile(path):
        pytest.skip("standard input is a file")
    for read in (read_text, read_json, lambda path: list(numbered_lines(path))):
        with pytest.raises(FileError, match=f"^{path}: not a regular file$"):
            read(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(FileError, match="not a regular file"):
        list(numbered_lines(tmp_path / "pipe.jsonl"))


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LINE_BYTES", 1000)
    (tmp_path / "text").write_text("x" * 999 + "\n")
    assert read_text(tmp_path / "text", 1000) == "x" * 999 + "\n"
    with pytest.raises(FileError, match="more than 999 B"):
        read_text(tmp_path / "text", 999)
    for suffix, pack in (("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)):
        path = tmp_path / f"lines{suffix}"
        path.write_bytes(pack(b"a\n\nb\r\n" + b"c" * 999 + b"\n"))
        assert [number for number, _ in numbered_lines(path)] == [1, 3, 4]
        path.write_bytes(pack(b"a\n" + b"c" * 10**7))
        with pytest.raises(FileError, match=f"^{path}:2: more than 1000 B$"):
            list(numbered_lines(path))


def test_a_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(FileError, match=f"^{tmp_path}/x: bad JSON: "):
        read_json(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(FileError, match=f"^{tmp_path}/x: not a text in UTF-8$"):
        read_text(tmp_path / "x")
    with pytest.raises(FileError, match=f"^{tmp_path}/y: No such file or directory$"):
        read_json(tmp_path / "y")
