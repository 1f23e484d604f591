# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading live processes: runs on any host with Python 3.8, shipped to it as one file.

The package imports itself, of words/ files.py, resident.py, streams.py and units.py, and the standard
library alone.
"""
