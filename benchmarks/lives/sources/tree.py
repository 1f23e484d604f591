# SPDX-License-Identifier: GPL-2.0-or-later
"""Fills CPython's heap with a tree, drops a third, writes and reads it as JSON, keeps every other blob."""

import json
import random
import sys


def mark(name: str) -> None:
    """Say where we are, and wait."""
    print(f"mark {name}", flush=True)
    sys.stdin.readline()


random.seed(1)
tree = {f"key{i}": [random.random() for _ in range(random.randrange(8))] for i in range(40_000)}
mark("filled")
for i in range(0, 40_000, 3):
    del tree[f"key{i}"]
text = json.dumps(tree)
again = json.loads(text)
mark("written and read")
del again
kept = [bytes(random.randrange(100, 300_000)) for _ in range(150)]
del kept[::2]
mark("done")
