# SPDX-License-Identifier: GPL-2.0-or-later
"""Real kernels in virtual machines: states are made there by system calls, and khugepaged is recorded.

`errors` and `geometry` serve all sub-rooms. Each sub-room imports only those before it:

- `kernels`: kernels, their modules, their sources and herd7, fetched from Debian into the cache.
- `vm`: QEMU, the files of a guest, and the channel to its agent.
- `program`: programs of operations, what they declare, which are legal, and how they are shrunk.
- `session`: a booted guest that runs programs, and real programs, and records what khugepaged does.
- `draw`: random programs from a seed.
- `compile`: the program that makes a scenario's declared state.

`guest` runs inside the guest: the agent in C, and the Python helper, which import nothing from here.
"""
