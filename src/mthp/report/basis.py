# SPDX-License-Identifier: GPL-2.0-or-later
"""What a plan, a sweep or a checkup is about, and what it rests on."""

from __future__ import annotations

from typing import Any

from mthp.plan.records import Basis
from mthp.report.page import SafeConsole


def name_of(basis: Basis) -> str:
    """The target, and where it is from if that is not the same."""
    where = "" if basis.source in ("", basis.target) else f" ({basis.source})"
    return basis.target + where


def render_basis(page: SafeConsole, basis: Basis) -> None:
    """Print what the answer is about."""
    page.line(f"{name_of(basis)}: profile {basis.profile} ({basis.profile_reason})", "bold")


def render_assumptions(page: SafeConsole, basis: Basis) -> None:
    """Print what is assumed and not seen; what every capture has, on a verbose page alone."""
    usual = frozenset[str]() if page.verbose else basis.usual
    page.bullets("Assumed", [each for each in basis.assumptions if each not in usual])
    page.bullets("Not seen", [each for each in basis.unseen if each not in usual])


def basis_values(basis: Basis) -> dict[str, Any]:
    """What the answer is about, as JSON values."""
    return {
        "target": basis.target,
        "source": basis.source,
        "profile": basis.profile,
        "profile_reason": basis.profile_reason,
    }
