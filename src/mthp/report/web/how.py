# SPDX-License-Identifier: GPL-2.0-or-later
"""How settings are written, and what an answer rests on, on a page."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from mthp import __version__
from mthp.predict.records import Basis
from mthp.report.sweep import boot_parameter, tmpfiles_lines, tuned_lines, writes
from mthp.report.web.page import text_of
from mthp.words.settings import Settings

WORDS = (
    '<p class="dim">A <b>folio</b> is what Linux keeps as one piece of memory: a page, usually of 4 KiB, '
    "or many that lie together. <b>TLB entries</b> are what the processor remembers addresses by: the fewer "
    "a program needs, the less it waits for them. <b>max_ptes_none</b> says how many pages that the program "
    "never used may become part of one huge page; that is what adds memory.</p>"
)
"""What the words mean that the answer cannot do without."""


def how_lines(base: Settings, settings: Settings) -> Iterator[str]:
    """How to come from one setting to another, until the next boot and for ever; nothing where they are the
    same."""
    lines = writes(base, settings)
    if not lines:
        return
    echoes = [f"echo {value} > {path}" for path, value in lines]
    back = [f"echo {value} > {path}" for path, value in writes(settings, base)]
    until, tmpfiles, tuned, undo = (
        escape("\n".join(each))
        for each in (echoes, tmpfiles_lines(lines), tuned_lines(lines), back)
    )
    yield (
        "<h2>How to set it</h2><p>As root, until the next boot. It holds for all programs of the machine, "
        "whose page faults may take new memory in these sizes too, which the figures here leave out:</p>"
        f"<pre>{until}</pre><details><summary>To undo it</summary><p>What is merged already stays so until "
        f"the program frees it:</p><pre>{undo}</pre></details>"
        "<details><summary>To keep it: systemd, tuned, or a boot parameter</summary>"
        "<p>In a file such as <code>/etc/tmpfiles.d/huge-pages.conf</code> "
        f"(systemd):</p><pre>{tmpfiles}</pre><p>Or as a profile of tuned, in "
        f"<code>/etc/tuned/huge-pages/tuned.conf</code>:</p><pre>{tuned}</pre><p>Or the sizes alone as a "
        "boot parameter, which makes every "
        f"size that it does not name never:</p><pre>{boot_parameter(settings)}</pre></details>"
    )


def rests_on(basis: Basis, grounds: str) -> Iterator[str]:
    """What all this rests on: how it was made, what is assumed, and what was not seen."""
    yield (
        f"<h2>What this rests on</h2><p>A prediction, made by mthp {__version__} from the kernel's own path "
        f"(profile {text_of(basis.profile)}: {text_of(basis.profile_reason)}), not a measurement. "
        f"{escape(grounds)}</p>"
    )
    for name, texts in (("Assumed", basis.assumptions), ("Not seen", basis.unseen)):
        if texts:
            items = "".join(f"<li>{text_of(text)}</li>" for text in texts)
            yield f"<details><summary>{name} ({len(texts)})</summary><ul>{items}</ul></details>"
