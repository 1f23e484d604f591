# SPDX-License-Identifier: GPL-2.0-or-later
"""`python3 -m mthp.image.capture`, and what runs first in mthp-snap.pyz."""

import sys

from mthp.image.capture.command import main

sys.exit(main())
