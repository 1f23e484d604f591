# SPDX-License-Identifier: GPL-2.0-or-later
"""What an answer is about, and what it rests on."""

from __future__ import annotations

from typing import Any

from mthp.predict.records import Basis
from mthp.report.page import SafeConsole
from mthp.report.phrases import plural


def name_of(basis: Basis) -> str:
    """The target, and where it is from if that is not the same."""
    where = "" if basis.source in ("", basis.target) else f" ({basis.source})"
    return basis.target + where


def profile_of(basis: Basis) -> str:
    """The profile, and why it is this one."""
    reason = f" ({basis.profile_reason})" if basis.profile_reason else ""
    return f"profile {basis.profile}{reason}"


def render_basis(page: SafeConsole, basis: Basis) -> None:
    """Print what the answer is about."""
    page.line(f"{name_of(basis)}: {profile_of(basis)}", "bold")


def render_caveats(page: SafeConsole, basis: Basis) -> None:
    """Print what a prediction rests on; what every capture has in common in one line."""
    usual = frozenset[str]() if page.verbose else basis.usual
    page.bullets("Assumed", [each for each in basis.assumptions if each not in usual])
    page.bullets("Not seen", [each for each in basis.unseen if each not in usual])
    folded = sum(each in usual for each in (*basis.assumptions, *basis.unseen))
    if folded:
        page.console.print()
        page.line(
            f"Predicted, with {plural(folded, 'caveat')} that every capture has: --verbose", "dim"
        )


def basis_values(basis: Basis) -> dict[str, Any]:
    """What the answer is about, as JSON values."""
    return {
        "target": basis.target,
        "source": basis.source,
        "profile": basis.profile,
        "profile_reason": basis.profile_reason,
    }


def caveat_values(basis: Basis) -> dict[str, list[str]]:
    """What the answer rests on, as JSON values."""
    return {"assumptions": list(basis.assumptions), "unseen": list(basis.unseen)}
