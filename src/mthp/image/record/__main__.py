# SPDX-License-Identifier: GPL-2.0-or-later
"""What `python3 -m mthp.image.record` runs, and what runs first in mthp-record.pyz."""

import sys

if sys.version_info < (3, 8):  # noqa: UP036 - what is older runs this file, and no other of ours
    sys.stderr.write("mthp-record: Python 3.8 or newer is needed\n")
    sys.exit(5)

from mthp.image.record.command import main

sys.exit(main())
