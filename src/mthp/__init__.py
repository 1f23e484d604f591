# SPDX-License-Identifier: GPL-2.0-or-later
"""khugepaged, executable: Linux's multi-size THP collapse as a specification that runs.

What stands in mthp.api is offered here, and loaded at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mthp.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Look up a name of mthp.api; its __all__ is what `from mthp import *` and help(mthp) offer."""
    if name == "__all__" or not name.startswith("_"):
        api = import_module("mthp.api")
        if name == "__all__":
            return api.__all__
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module 'mthp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["__version__", *import_module("mthp.api").__all__]
