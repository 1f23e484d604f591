# SPDX-License-Identifier: GPL-2.0-or-later
"""A program that fills an arena and zeroes most of it: what docs/examples/life/zeroes.npz was recorded of."""

import ctypes
import time

MIB = 1 << 20
arena = bytearray(64 * MIB)
at = ctypes.addressof(ctypes.c_char.from_buffer(arena))
ctypes.memset(at, 0x5A, 64 * MIB)
time.sleep(2)
ctypes.memset(at + 10 * MIB, 0, 40 * MIB)
time.sleep(2)
ctypes.memset(at + 10 * MIB, 1, 6 * MIB)
time.sleep(2)
