# SPDX-License-Identifier: GPL-2.0-or-later
"""What `python3 -m mthp.image.capture` runs, and what runs first in mthp-snap.pyz."""

import sys

from mthp.image.capture.command import main

sys.exit(main())
