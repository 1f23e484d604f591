# SPDX-License-Identifier: GPL-2.0-or-later
"""The ratchet: what a collapse adds below the PMD's order never comes back (docs/findings.md).

    python docs/examples/ratchet.py               the steps on the engine
    python docs/examples/ratchet.py --kernel 7.3  and on a real kernel, in a guest (`mthp lab setup` first)

A program has 32 pages in a table of 2 MiB, one in each 64 KiB. khugepaged collapses with max_ptes_none 511;
then the limit is lowered and the shrinkers run, as they do when memory is short.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mthp.image.runs import FolioToken, PageKind, parse_folio_token, parse_runs
from mthp.life.layout import layout
from mthp.life.program import parse_program
from mthp.life.run import Life

PAGES = 512
SIZES = {4: "64kB", 9: "2048kB"}
RUNS = ((4, False), (9, False), (9, True))
"""The order that is enabled, and whether the shrinkers come by once before the limit is lowered."""
DROP = "w /proc/sys/vm/drop_caches 2"


def program(order: int, early: bool) -> dict[str, Any]:
    """The steps with one size enabled, in the format of recorded programs."""
    operations: list[str | list[Any]] = [
        f"s mmap 0 {PAGES}",
        f"s wr 0 {PAGES} 16",
        f"s adv 0 {PAGES} 14",
        "scan",
        *[DROP] * early,
        ["set", 1 << order, 409],
        DROP,
        ["set", 1 << order, 0],
        DROP,
        DROP,
    ]
    steps = [{"op": each} for each in operations]
    name = SIZES[order] + (", shrinkers before the limit is lowered" if early else "")
    return {"id": name, "orders": [order], "max_ptes_none": 511, "pre": [], "steps": steps}


Row = tuple[str, int, str]
"""A step, how many pages there are after it, and in folios of which orders."""


def row(operation: object, tokens: list[FolioToken]) -> Row:
    pages = Counter(token.order for token in tokens if token.kind is PageKind.FOLIO)
    folios = (f"{nr >> order} of order {order}" for order, nr in sorted(pages.items()))
    name = f"max_ptes_none = {operation[2]}" if isinstance(operation, list) else str(operation)
    return name.replace("w /proc/sys/vm/", ""), sum(pages.values()), ", ".join(folios) or "none"


def on_the_engine(document: dict[str, Any]) -> Iterator[Row]:
    parsed = parse_program(document)
    life = Life.of_program(parsed)
    for step_of, step in zip(document["steps"], parsed.steps, strict=True):
        life.perform(step.operation)
        (tokens,) = layout(life.mm("s"), range(PAGES))
        yield row(step_of["op"], tokens)


def on_a_kernel(documents: list[dict[str, Any]], kernel: str) -> Iterator[list[Row]]:
    from mthp.lab.kernels.kernels import find
    from mthp.lab.session.boot import Guest, booted
    from mthp.lab.session.programs import COUNTED, run_program

    found = find(kernel)
    with booted(found, Guest(memory=512), counted=COUNTED) as guest:
        for document in documents:
            record = run_program(guest.session, document, found.release)
            rows = []
            for step in record["steps"]:
                (mapping,) = step["processes"]["s"]
                runs = parse_runs(mapping["folios"], parse_folio_token)
                rows.append(row(step["op"], [token for nr, token in runs for _ in range(nr)]))
            yield rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kernel", help="a kernel of the lab's cache, such as 7.3")
    args = parser.parse_args(arguments)
    documents = [program(*each) for each in RUNS]
    if args.kernel is None:
        runs = [list(on_the_engine(each)) for each in documents]
    else:
        runs = list(on_a_kernel(documents, args.kernel))
    for document, rows in zip(documents, runs, strict=True):
        print(document["id"])
        for operation, pages, folios in rows[2:]:
            print(f"  {operation:19} {pages:3} pages: {folios}")


if __name__ == "__main__":
    main()
