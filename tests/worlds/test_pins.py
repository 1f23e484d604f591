# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a capture sees pinned is refused, as the kernel refuses it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mthp.image.capture.command import captured, main
from mthp.image.capture.host import THP
from mthp.image.capture.pins import held_memory, ranges_shown
from mthp.image.capture.run import CaptureOptions
from mthp.image.fields import Fields
from mthp.image.snapshot import Snapshot
from mthp.image.snapshot_checks import check_process
from mthp.predict.image import capture, load
from mthp.words.files import FileError
from mthp.words.results import ScanResult
from mthp.worlds.unseen import LIKELY, held_pages

from ..image.children import TABLE, child

pytestmark = pytest.mark.skipif(not os.path.isdir(THP), reason="no THP in this kernel")

REGISTERED = """
p = reserve(4 * TABLE)
write(p, 0, 4 * 512)
ring = libc.syscall(425, 8, ctypes.create_string_buffer(120))
buffer = (ctypes.c_uint64 * 2)(p, 2 * TABLE)
ok = ring >= 0 and libc.syscall(427, ring, 0, buffer, 1) == 0
refused = sum(not advise(p + k * TABLE, TABLE, MADV_COLLAPSE) for k in range(2))
ready(p=p, ok=int(ok), refused=refused)
"""


def test_buffers_registered_with_io_uring(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.npz"
    with child(REGISTERED) as kid:
        if not kid.facts["ok"]:
            pytest.skip("no io_uring here")
        image = capture(kid.pid)
        with captured([kid.pid], CaptureOptions()) as (meta, _):
            assert json.loads(json.dumps(meta)) == meta, (
                "a live capture's does not go through a file"
            )
        assert main(["--pid", str(kid.pid), "-o", str(hidden), "--quiet", "--redact"]) == 0
    assert kid.facts["refused"] == 2, "so did the kernel"
    assert isinstance(image.data, Snapshot)
    start = kid.facts["p"]
    assert image.data.processes[0].pins == ((start, start + 2 * TABLE),)
    for each in (image, load(hidden)):
        run = each.run(each.configured(enabled="2048kB=always", max_ptes_none=0))
        (use,) = (vma for vma in run.mappings if vma.end - vma.start >= 4 * TABLE and vma.after)
        assert use.after == {0: 2 * TABLE, 9: 2 * TABLE}
        refused = {refusal.status for refusal in run.refusals if refusal.pages == 512}
        assert refused == {ScanResult.PAGE_COUNT}
        assert not any("VmPin" in sentence for sentence in run.outcome.basis.assumptions)


SPLICED = """
p = reserve(4 * TABLE)
write(p, 0, 4 * 512)
r, w = os.pipe()
inherited, kept = os.pipe()
os.write(kept, b"x" * 5000)
buffer = (ctypes.c_uint64 * 2)(p + TABLE + 7 * 4096, 8 * 4096)
ok = libc.vmsplice(w, buffer, 1, 0) == 8 * 4096
refused = sum(not advise(p + k * TABLE, TABLE, MADV_COLLAPSE) for k in range(2))
os.write(os.pipe()[1], b"less than a page")
ready(p=p, ok=int(ok), refused=refused)
"""


def test_memory_in_a_pipe_is_bounded_by_what_waits_there() -> None:
    with child(SPLICED) as kid:
        if not kid.facts["ok"]:
            pytest.skip("no vmsplice here")
        image = capture(kid.pid)
    assert isinstance(image.data, Snapshot)
    (process,) = image.data.processes
    assert sorted(process.piped) == [5000, 8 * 4096]
    held = held_pages(process, LIKELY, image.data.geometry)
    assert sorted(held.sum(axis=1)[held.any(axis=1)]) == [2, 8]


INHERITED = REGISTERED.replace("refused=refused", "kid=kid").replace(
    "ready(",
    """
kid = os.fork()
if not kid:
    libc.prctl(1, signal.SIGKILL)
    signal.pause()
ready(""",
)


def test_a_fork_has_none_of_its_parents_pins() -> None:
    with child(INHERITED) as kid:
        if not kid.facts["ok"]:
            pytest.skip("no io_uring here")
        assert held_memory(kid.facts["kid"], vm_pin=False).pins == []
        assert held_memory(kid.facts["kid"], vm_pin=True).pins, "those that its parent's ring shows"
        assert held_memory(kid.pid, vm_pin=False).pins


def test_buffers_that_meet_or_overlap_are_one_range() -> None:
    one = "UserFiles:\t0\nUserBufs:\t2\n    0: 0x5000/4096\n    1: 0x1800/4096\nPollList:\n"
    two = "UserBufs:\t2\n    0: 0x3000/1\n    1: 0x9001/8192\n"
    assert ranges_shown((one, two)) == [[0x1000, 0x4000], [0x5000, 0x6000], [0x9000, 0xC000]]


@pytest.mark.parametrize(
    "ranges", [[[4096]], [[8192, 4096]], [["a", "b"]], [[0, 8192], [4096, 9000]], 7]
)
def test_ranges_that_cannot_be(ranges: object) -> None:
    with pytest.raises(FileError, match="pins"):
        check_process(
            Fields({"pid": 1, "status": {}, "tearing": {}, "pins": ranges}, "processes[0].")
        )
