# SPDX-License-Identifier: GPL-2.0-or-later
"""A column that is packed as it comes is, in the end, what was put into it."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mthp.image.capture import columns
from mthp.image.capture.columns import Column, npy_header

ROW = 8
rows = st.builds(
    lambda kind, count: bytes((kind * k + kind) % 251 for k in range(ROW * count)),
    st.integers(0, 3),
    st.integers(1, 12),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), rows),
        st.tuples(st.sampled_from(["truncate", "read", "patch"]), st.integers(0, 80)),
    ),
    max_size=24,
)


@pytest.mark.parametrize("level", [0, 1, 6])
@settings(deadline=None, max_examples=60)
@given(done=steps)
def test_a_column_holds_what_was_put_into_it(
    level: int, done: list[tuple[str, bytes | int]]
) -> None:
    expected = bytearray()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "SOME_BYTES", 4 * ROW)
        patch.setattr(columns, "_RARE", 1)  # what packs at all is remembered
        column = Column(io.BytesIO(), level)
        for what, value in done:
            if isinstance(value, bytes):
                column.add(value)
                expected += value
            elif what == "truncate":
                column.truncate(ROW * value)
                del expected[ROW * value :]
            elif ROW * value < len(expected):
                at = slice(ROW * value, ROW * value + ROW)
                if what == "patch":
                    column.patch(at.start, b"patched!")
                    expected[at] = b"patched!"
                assert column.read(at.start, ROW) == expected[at]
        assert b"".join(column.chunks()) == expected
        target, header = io.BytesIO(), npy_header("|u1", (len(expected),))
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("first", b"x")
            column.write(archive, "it.npy", header)
            archive.writestr("last", b"y")
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["first", "it.npy", "last"]
        assert zlib.crc32(header + expected) == archive.getinfo("it.npy").CRC
    target.seek(0)
    assert np.load(target)["it"].tobytes() == expected


def test_what_comes_again_is_packed_once() -> None:
    file = io.BytesIO()
    column = Column(file, 1)
    for k in range(40):
        column.add(bytes((k % 4,)) * columns.SOME_BYTES)
    assert len(file.getvalue()) < 4 * columns.SOME_BYTES // 100
    assert b"".join(column.chunks()) == b"".join(
        bytes((k % 4,)) * columns.SOME_BYTES for k in range(40)
    )
