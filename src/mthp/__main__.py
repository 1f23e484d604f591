# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m mthp."""

import sys

from mthp.cli import main

sys.exit(main())
