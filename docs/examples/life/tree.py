# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that fills memory and frees some of it: what docs/examples/life/tree.npz was recorded of."""

import json
import random

random.seed(1)
tree = {f"key{i}": [random.random() for _ in range(random.randrange(8))] for i in range(60_000)}
for i in range(0, 60_000, 3):
    del tree[f"key{i}"]
text = json.dumps(tree)
kept = [bytes(random.randrange(100, 300_000)) for _ in range(300)]
del kept[::2]
