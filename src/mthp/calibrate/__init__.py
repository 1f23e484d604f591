# SPDX-License-Identifier: GPL-2.0-or-later
"""What collapses, faults and flushes cost on this host: measured on memory of mthp's own alone."""
