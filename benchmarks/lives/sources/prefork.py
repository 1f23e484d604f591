# SPDX-License-Identifier: GPL-2.0-or-later
"""A prefork server: loads its data, forks four workers, and each answers what it accepts.

A request makes a worker read some of the data, and so write reference counts into pages that it shares with
the others, and keep an answer of its own.
"""

import os
import random
import signal
import socket
import sys

random.seed(1)
data = {n: [f"{n}-{i}" for i in range(6)] for n in range(20_000)}
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1])
listening.listen(64)
for _ in range(4):
    if not os.fork():
        answers = []
        while True:
            peer, _ = listening.accept()
            if asked := peer.recv(16):
                first = int(asked)
                words = (word for n in range(first, first + 150) for word in data[n])
                answers.append(",".join(words))
                peer.sendall(b"%d" % len(answers[-1]))
            peer.close()
signal.pause()
