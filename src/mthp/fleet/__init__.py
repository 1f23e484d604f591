# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots of many machines under a grid of settings, by Dask, into Parquet.

`work` does one snapshot, `run` all of them, and `gather` makes the answer of what is on disk. `records` alone
does without pyarrow and Dask.
"""
