# SPDX-License-Identifier: GPL-2.0-or-later
"""A sweep as one HTML file for a colleague: it loads nothing, and all is there without its script too.

The script sorts the table, copies lines and moves about the dots. Texts of strangers are escaped, and the
page's own policy lets no script run but ours.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from itertools import groupby
from math import sqrt

from mthp import __version__
from mthp.plan.records import BulkVerdict, Sweep
from mthp.report.basis import name_of
from mthp.report.phrases import percent, plural
from mthp.report.sweep import (
    boot_parameter,
    grounds_text,
    headline,
    plan_name,
    sizes_text,
    tmpfiles_lines,
    tuned_lines,
    wish_text,
    within_text,
    writes,
)
from mthp.words.files import one_line
from mthp.words.settings import Enabled
from mthp.words.units import human_bytes

MAPPINGS_SHOWN, NAMES_SHOWN = 20, 6
_RANK = ("other", "on", "now", "take")
"""Classes of settings, from those that another betters to what is recommended."""
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 720, 100, 672, 48, 440, 540
"""Of the plot, and of its field: pixels, where the screen has so many."""

_CSS = """
:root{color-scheme:light;--paper:#fff;--ink:#1f2328;--dim:#59636e;--line:#d1d9e0;--soft:#f3f5f8;
--good:#1a7f37;--mark:#0969da;--now:#bc4c00}
@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;--paper:#0d1117;--ink:#e6edf3;
--dim:#9aa4af;--line:#353c45;--soft:#171d26;--good:#4ac26b;--mark:#58a6ff;--now:#f0883e}}
*{box-sizing:border-box;print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{margin:0 auto;padding:1.2rem 1rem 3rem;max-width:54rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 .6rem}.lead{font-size:1.08rem}
h2{font-size:1.15rem;margin:2.2rem 0 .5rem;break-after:avoid}dt{font-weight:bold}dd{margin:0 0 .4rem}
p,.bar+figcaption{margin:.2rem 0 .8rem}.dim,figcaption,dd{color:var(--dim)}figure{margin:0;break-inside:avoid}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.6rem;padding:0}
.figures li{list-style:none;background:var(--soft);border-radius:.5rem;padding:.6rem .8rem}
.figures b{display:block;font-size:1.35rem;line-height:1.3}
pre{background:var(--soft);border-radius:.5rem;padding:.7rem .8rem;overflow-x:auto;font-size:.84rem}
button{font:inherit;color:inherit;background:none;border:1px solid var(--line);border-radius:.3rem;
cursor:pointer}button.copy{float:right;margin:.3rem 0 0 .5rem}
svg{display:block;width:100%;height:auto;font-size:14px}svg text{fill:var(--dim)}
.axis,.front{stroke:var(--line);fill:none}.front{stroke:var(--mark);stroke-width:2;opacity:.5}
.limit{stroke:var(--now);stroke-dasharray:6 5}.over{fill:var(--now);opacity:.08}
.dot{outline:none;fill:var(--dim);stroke:var(--dim);fill-opacity:.2}
.dot.on{fill:var(--mark);stroke:var(--mark);fill-opacity:.5}.dot.now{fill:var(--now);stroke:var(--now)}
.dot.take{fill:var(--good);stroke:var(--good);fill-opacity:.9;stroke-width:4}
.dot:hover,.dot:focus{stroke:var(--ink);stroke-width:4}
.name{font-weight:bold;paint-order:stroke;stroke:var(--paper);stroke-width:5px}
svg .name.take{fill:var(--good)}svg .name.now{fill:var(--now)}
.bar{display:flex;height:2.2rem;border-radius:.3rem;overflow:hidden;margin:.2rem 0}
.bar span{min-width:1px}.key{display:inline-block;width:.8em;height:.8em;margin:0 .4em 0 .6em}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}th button{border:0;padding:0;font-weight:bold}
th[aria-sort] button::after{content:" \\2195"}th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
tr.take{background:var(--soft);font-weight:bold;color:var(--good)}tr.other{color:var(--dim)}
tr.now{color:var(--now)}:focus-visible{outline:2px solid var(--mark);outline-offset:2px}
@media(max-width:34rem){svg{font-size:24px}pre{white-space:pre-wrap}}
@media print{body{font-size:11pt;max-width:none}button.copy{display:none}.scroll{overflow:visible}
table{font-size:8pt}pre{white-space:pre-wrap}tr{break-inside:avoid}}
"""
_JS = """
const all=(what,where=document)=>[...where.querySelectorAll(what)];
for(const pre of all('pre')){const b=document.createElement('button');b.textContent='Copy';b.className='copy';
 pre.before(b);
 b.onclick=()=>{getSelection().selectAllChildren(pre);
  b.textContent=document.execCommand('copy')?'Copied':'Selected'}}
const read=document.getElementById('read'),dots=all('.dot');
dots.forEach((dot,k)=>{const say=()=>{read.textContent=dot.getAttribute('aria-label')};
 dot.onmouseenter=dot.onfocus=dot.onclick=say;
 dot.onkeydown=e=>{const to={ArrowRight:1,ArrowDown:1,ArrowLeft:-1,ArrowUp:-1}[e.key];
  if(to){e.preventDefault();dots[(k+to+dots.length)%dots.length].focus()}}});
for(const table of all('table.sorts'))all('thead th',table).forEach((th,k,ths)=>{
 const b=document.createElement('button');b.append(...th.childNodes);th.append(b);
 b.onclick=()=>{const up=th.ariaSort!=='ascending',body=table.tBodies[0];
  ths.forEach(each=>{each.ariaSort='none'});th.ariaSort=up?'ascending':'descending';
  const key=row=>Number(row.cells[k].dataset.v);
  body.append(...[...body.rows].sort((a,c)=>(up?1:-1)*(key(a)-key(c))))}});
"""
_WORDS = """
<h2>The words</h2><dl>
<dt>Folio</dt><dd>A block of memory that Linux handles as one. A small one is a single page; large ones are
less work, and let one TLB entry reach more where the processor can.</dd>
<dt>TLB entry</dt><dd>What the processor keeps of where memory is. It has a few thousand; where they do not
reach, programs wait. Counted here: one for each page, one for each huge page of a whole page table.</dd>
<dt>khugepaged</dt><dd>The kernel's thread that merges small pages of running programs.</dd>
<dt>max_ptes_none</dt><dd>How many empty pages such a merge of a whole page table may fill up: the more, the
more is merged, and the more memory is used. For smaller folios only 0 and the most count.</dd></dl>"""


def html_text(sweep: Sweep) -> str:
    """The whole file."""
    script = b64encode(sha256(_JS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'"
    parts = (_answer, _how, _plot, _bars, _mappings, _settings, _grounds)
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_title(sweep)}: {_text(sweep.basis.target)}</title>",
            f"<style>{_CSS}</style>\n</head>\n<body>\n<main>",
            *(line for part in parts for line in part(sweep)),
            f"{_WORDS}\n</main>\n<script>{_JS}</script>\n</body>\n</html>\n",
        )
    )


def _text(text: str) -> str:
    """A stranger's text as the page may have it."""
    return escape(one_line(text))


def _title(sweep: Sweep) -> str:
    if sweep.chosen is None:
        return "No setting gives what was asked for"
    if not sweep.gains:
        return "Recommended: leave the settings as they are"
    if not any(mode is not Enabled.NEVER for mode in sweep.chosen.settings.sizes.values()):
        return "Recommended: no huge pages by khugepaged"
    return f"Recommended: huge pages of {plan_name(sweep.chosen)}"


def _plan(sweep: Sweep) -> BulkVerdict:
    """What the page is about: what is recommended, or comes nearest."""
    return sweep.nearest if sweep.gains or sweep.chosen is None else sweep.now


def _kinds(sweep: Sweep) -> list[tuple[BulkVerdict, str, str]]:
    """Every plan, that for what is set first, with its class and its mark."""
    mark = "nearest" if sweep.chosen is None else "recommended"
    found = [(sweep.now, "now", "now set")]
    for plan, front in zip(sweep.plans, sweep.front, strict=True):
        if plan is _plan(sweep):
            found.append((plan, "take", mark))
        else:
            found.append((plan, "on", "front") if front else (plan, "other", ""))
    return found


def _figures(plan: BulkVerdict) -> str:
    share = plan.memory_added / max(sum(plan.before.values()), 1)
    return (
        f"{percent(plan.large, plan.mapped)} in large folios, {plan.translations:,} TLB entries, "
        f"{human_bytes(plan.memory_added)} ({100 * share:.2g} %) more memory"
    )


def _answer(sweep: Sweep) -> Iterator[str]:
    """What is recommended, in plain words, and why."""
    plan, now, tried = _plan(sweep), sweep.now, plural(len(sweep.plans), "setting")
    yield f'<p class="dim">Huge pages for {_text(name_of(sweep.basis))}</p><h1>{_title(sweep)}</h1>'
    lead = escape(headline(sweep))
    if sweep.gains:
        lead = (
            "This tells Linux how far to merge small pages into larger ones. Predicted: "
            f"{percent(plan.large, plan.mapped)} of {human_bytes(plan.mapped)} will be in large folios, and "
            f"the processor needs {plan.translations:,} TLB entries to reach all of it instead of "
            f"{now.translations:,}. That takes {human_bytes(plan.memory_added)} more memory."
        )
    yield f'<p class="lead">{lead}</p><ul class="figures">'
    for name, value, before in (
        ("In large folios", *(percent(each.large, each.mapped) for each in (plan, now))),
        ("TLB entries", *(f"{each.translations:,}" for each in (plan, now))),
        ("Memory added", *(human_bytes(each.memory_added) for each in (plan, now))),
        ("Copied, once", *(human_bytes(each.copied_bytes) for each in (plan, now))),
        ("Done within", *(within_text(each) for each in (plan, now))),
    ):
        yield f"<li>{name}<b>{value}</b>as set now: {before}</li>"
    setting = f"{plan_name(now)} (enabled={sweep.base.enabled}, {boot_parameter(sweep.base)})"
    yield f'</ul><p class="dim">As set now: {setting}.</p>'
    if not sweep.gains:
        return
    hold = sum(not sweep.wish.missed_by(each) for each in sweep.plans)
    why = (
        f"Why: {hold:,} of {tried} tried hold to what was asked for: {wish_text(sweep.wish)}. Of these, "
        f"{plan_name(plan)} needs the fewest TLB entries; among equals, it has the least in small folios."
    )
    if sweep.wish.missed_by(now):
        why += f" What is set now does not: {_figures(now)}."
    if fewer := [each for each in sweep.plans if each.translations < plan.translations]:
        other = min(fewer, key=lambda each: (-each.translations, each.price))
        why += f" The next with fewer, {plan_name(other)}, does not: {_figures(other)}."
    yield f"<p>{escape(why)}</p>"


def _how(sweep: Sweep) -> Iterator[str]:
    """How it is written, until the next boot and for ever."""
    if not sweep.gains:
        return
    lines = writes(sweep.base, _plan(sweep).settings)
    echoes = [f"echo {value} > {path}" for path, value in lines]
    until, tmpfiles, tuned = (
        escape("\n".join(each)) for each in (echoes, tmpfiles_lines(lines), tuned_lines(lines))
    )
    yield (
        "<h2>How to set it</h2><p>As root, until the next boot; it holds for all programs of the machine:</p>"
        f"<pre>{until}</pre><p>To keep it, in a file such as <code>/etc/tmpfiles.d/huge-pages.conf</code> "
        f"(systemd):</p><pre>{tmpfiles}</pre><p>Or as a profile of tuned, in "
        f"<code>/etc/tuned/huge-pages/tuned.conf</code>:</p><pre>{tuned}</pre><p>Or the sizes alone as a "
        "boot parameter, which makes every "
        f"size that it does not name never:</p><pre>{boot_parameter(_plan(sweep).settings)}</pre>"
    )


# --- the plot ---------------------------------------------------------------------------------


class _Field:
    """Where things are on the plot: shares to the right, bytes added upwards."""

    def __init__(self, plans: list[BulkVerdict]) -> None:
        added = sorted(plan.memory_added for plan in plans)
        least, most = min(0, added[0]), max(0, added[-1]) or 1 << 20
        self.step = 1 << max((most - least) // 4, 1023).bit_length()
        self.low, self.high = least // self.step, -(-most // self.step)
        self.most = max(1, *(plan.translations for plan in plans))

    def x(self, share: float) -> float:
        return round(_LEFT + 20 + share * (_RIGHT - _LEFT - 20), 1)

    def y(self, added: float) -> float:
        part = (added / self.step - self.low) / (self.high - self.low)
        return round(_BOTTOM - part * (_BOTTOM - _TOP), 1)

    def place(self, plan: BulkVerdict) -> tuple[float, float]:
        """The middle of a plan's dot."""
        return self.x(plan.large / max(plan.mapped, 1)), self.y(plan.memory_added)

    def dot(self, equal: list[tuple[BulkVerdict, str, str]]) -> str:
        """One dot for plans of one price, the area as the TLB entries. That of note comes first."""
        plan, kind, mark = equal[0]
        names = "; ".join(plan_name(each) for each, *_ in equal[:NAMES_SHOWN])
        more = f" and {len(equal) - NAMES_SHOWN} more" if len(equal) > NAMES_SHOWN else ""
        text = escape(f"{mark}{': ' if mark else ''}{names}{more}: {_figures(plan)}")
        x, y = self.place(plan)
        radius = max(12 * sqrt(plan.translations / self.most), 7 if kind == "take" else 3.5)
        stop = -1 if kind == "other" else 0
        return (
            f'<circle class="dot {kind}" tabindex="{stop}" role="img" aria-label="{text}" cx="{x}" '
            f'cy="{y}" r="{radius:.1f}"><title>{text}</title></circle>'
        )

    def label(self, plan: BulkVerdict, kind: str, mark: str) -> str:
        """The name of a dot: above it, and below it for what is set now."""
        (x, y), off = self.place(plan), 28 if kind == "now" else -14
        side = "end" if x > _WIDTH * 0.8 else "start" if x < _WIDTH * 0.2 else "middle"
        return f'<text class="name {kind}" x="{x}" y="{y + off}" text-anchor="{side}">{mark}</text>'


def _plot(sweep: Sweep) -> Iterator[str]:
    """All settings: memory added against the share in large folios."""
    kinds = _kinds(sweep)
    field = _Field([plan for plan, *_ in kinds])
    yield (
        "<h2>What every setting gives and costs</h2><figure>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" aria-label="Memory added against the share in '
        'large folios, a dot for each setting; the last table has the same figures">'
    )
    yield from _axes(sweep, field)
    front = [plan for plan, on in zip(sweep.plans, sweep.front, strict=True) if on]
    front.sort(key=lambda plan: (plan.memory_added, plan.large))
    points = " ".join("{},{}".format(*field.place(plan)) for plan in front)
    yield f'<polyline class="front" points="{points}"/>'
    groups = [
        sorted(equal, key=lambda each: -_RANK.index(each[1]))
        for _, equal in groupby(sorted(kinds[1:], key=_same), key=_same)
    ]
    groups.append(kinds[:1])
    groups.sort(key=lambda equal: (_RANK.index(equal[0][1]) // 2, -equal[0][0].translations))
    yield from map(field.dot, groups)
    yield from (field.label(*each) for each in kinds if each[1] in ("now", "take"))
    yield (
        "</svg><figcaption>Better is further to the right, further down, and a smaller dot: the area is the "
        "number of TLB entries. Blue, and joined, is the front: no other setting is as good in all three and "
        "better in one. Point at a dot, or use the Tab and arrow keys."
        '<br><output id="read"></output></figcaption></figure>'
    )


def _same(each: tuple[BulkVerdict, str, str]) -> tuple[int, ...]:
    """What settings have in common that are one dot."""
    return (*each[0].price[:3], each[0].large)


def _axes(sweep: Sweep, field: _Field) -> Iterator[str]:
    for tick in range(field.low, field.high + 1):
        y, name = field.y(tick * field.step), human_bytes(tick * field.step)
        yield f'<path class="axis" d="M{_LEFT} {y}H{_RIGHT}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 5}" text-anchor="end">{name}</text>'
    for share in (0, 25, 50, 75, 100):
        x = field.x(share / 100)
        yield f'<path class="axis" d="M{x} {_TOP}V{_BOTTOM}"/>'
        yield f'<text x="{x}" y="{_BOTTOM + 58}" text-anchor="middle">{share}%</text>'
    yield f'<text x="0" y="{_TOP - 20}">memory added</text>'
    yield f'<text x="{_RIGHT}" y="{_HEIGHT - 8}" text-anchor="end">in large folios</text>'
    most = sweep.wish.added
    if most is not None and (y := field.y(most * sum(sweep.now.before.values()))) > _TOP:
        yield f'<path class="over" d="M{_LEFT} {_TOP}H{_RIGHT}V{y}H{_LEFT}z"/>'
        yield f'<path class="limit" d="M{_LEFT} {y}H{_RIGHT}"/>'
        name = f"more than was asked for: {100 * most:g} %"
        yield f'<text class="name now" x="{_LEFT + 30}" y="{_TOP + 32}">{name}</text>'
    if sweep.wish.large is not None:
        x = field.x(sweep.wish.large)
        yield f'<path class="over" d="M{_LEFT} {_TOP}H{x}V{_BOTTOM}H{_LEFT}z"/>'
        yield f'<path class="limit" d="M{x} {_TOP}V{_BOTTOM}"/>'


# --- bars and tables ----------------------------------------------------------------------------


def _bars(sweep: Sweep) -> Iterator[str]:
    """Memory by size of folio, as it is and as it will be."""
    geometry, plan, now = sweep.base.geometry, _plan(sweep), sweep.now
    bars = [("As captured", now.before), (f"With {plan_name(plan)}", plan.after)]
    if plan is not now and now.after != now.before:
        bars.insert(1, (f"As set now, {plan_name(now)}, at the end", now.after))
    widest = max(1, *(sizes.total() for _, sizes in bars))
    yield "<h2>Memory by size of folio</h2>"
    for name, sizes in bars:
        parts = keys = ""
        for order in sorted(+sizes):
            hue = f"{48 + 172 * order // geometry.pmd_order} 65% 48%" if order else "215 8% 62%"
            style = f"background:hsl({hue})"
            parts += f'<span style="width:{100 * sizes[order] / widest:.2f}%;{style}"></span>'
            keys += f'<span class="key" style="{style}"></span>{geometry.size_name(order)}: '
            keys += f"{human_bytes(sizes[order])} "
        yield f'<figure>{name}<div class="bar">{parts}</div><figcaption>{keys}</figcaption></figure>'


def _mappings(sweep: Sweep) -> Iterator[str]:
    """Where the memory is added."""
    added = sorted(_plan(sweep).added_by_vma.items(), key=lambda item: (-item[1], item[0]))
    if not added:
        return
    yield f"<h2>Where memory is added</h2><p>With {plan_name(_plan(sweep))}, by mapping:</p>"
    yield '<div class="scroll"><table><tbody>'
    for (pid, start), size in added[:MAPPINGS_SHOWN]:
        process, mapping = map(_text, sweep.names[pid, start])
        name = f"{process} ({pid}) {mapping or 'anonymous'} at {start:#x}"
        yield f"<tr><td>{name}</td><td>{human_bytes(size)}</td></tr>"
    if rest := added[MAPPINGS_SHOWN:]:
        more = human_bytes(sum(size for _, size in rest))
        yield f"<tr><td>{plural(len(rest), 'mapping')} more</td><td>{more}</td></tr>"
    yield "</tbody></table></div>"


def _settings(sweep: Sweep) -> Iterator[str]:
    """Every setting, fewest TLB entries first."""
    heads = ("sizes", "max_ptes_none", "large", "TLB entries", "added", "copied", "within", "")
    yield '<h2>All settings</h2><div class="scroll" tabindex="0" role="region" aria-label="All settings">'
    yield '<table class="sorts"><thead><tr>'
    for head in heads:
        order = "ascending" if head == "TLB entries" else "none"
        yield f'<th scope="col" aria-sort="{order}">{head or "mark"}</th>'
    yield "</tr></thead><tbody>"
    for plan, kind, mark in sorted(_kinds(sweep), key=lambda each: each[0].translations):
        settings = plan.settings
        sizes = [order for order, mode in settings.sizes.items() if mode is not Enabled.NEVER]
        cells = (
            (sum(1 << order for order in sizes), sizes_text(settings)),
            (settings.max_ptes_none, settings.max_ptes_none),
            (plan.large / max(plan.mapped, 1), percent(plan.large, plan.mapped)),
            (plan.translations, f"{plan.translations:,}"),
            (plan.memory_added, human_bytes(plan.memory_added)),
            (plan.copied_bytes, human_bytes(plan.copied_bytes)),
            (plan.last_collapse_ms or 0, within_text(plan)),
            (_RANK.index(kind), mark),
        )
        row = "".join(f'<td data-v="{value}">{text}</td>' for value, text in cells)
        yield f'<tr class="{kind}">{row}</tr>'
    yield "</tbody></table></div>"


def _grounds(sweep: Sweep) -> Iterator[str]:
    """What all this rests on, and its"""
    yield (
        f"<h2>What this rests on</h2><p>A prediction, made by mthp {__version__} from the kernel's own path "
        f"(profile {_text(sweep.basis.profile)}: {_text(sweep.basis.profile_reason)}), not a measurement. "
        f"{escape(grounds_text(sweep))}</p>"
    )
    for name, texts in (("Assumed", sweep.basis.assumptions), ("Not seen", sweep.basis.unseen)):
        if texts:
            items = "".join(f"<li>{_text(text)}</li>" for text in texts)
            yield f"<details><summary>{name} ({len(texts)})</summary><ul>{items}</ul></details>"
