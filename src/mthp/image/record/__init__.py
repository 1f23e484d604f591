# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording a program's memory as it runs: with Python 3.8 on any host, shipped to it as one file.

The package imports itself, image/capture/, what that imports, and the standard library alone.
"""
