# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m mthp, and the command mthp."""

import signal
import sys


def start() -> int:
    """Run the command. Ctrl-C while modules are loaded, and at the end, ends it without a word."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from mthp.cli import main

    signal.signal(signal.SIGINT, heard)
    code = main()
    if heard is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


if __name__ == "__main__":
    sys.exit(start())
