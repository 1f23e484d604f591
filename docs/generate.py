# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the pages of docs/ that are made from the code: `make docs`. The tests hold them to it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mthp.check.check import hunt
from mthp.laws.table import LAWS
from mthp.races.cast.all import SUBJECTS
from mthp.races.mutants.rules import MUTANTS
from mthp.races.mutants.rules import SUBJECTS as MUTANTS_BY_SUBJECT
from mthp.races.questions import QUESTIONS
from mthp.races.world import PARTS
from mthp.report.svg import svg_text

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "mthp"
ROOMS = ("khugepaged", "mm", "machine", "words", "races")
NOT_MODELLED = """
Not modelled, of `mm/khugepaged.c`: the file and shmem path (`collapse_file`, `collapse_scan_file`,
`collapse_pte_mapped_thp`, `retract_page_tables` and what they call) and the thread's own life
(`khugepaged_init`, `start_stop_khugepaged`, `set_recommended_min_free_kbytes`). The sysfs files'
`_show` and `_store` functions are `words/settings.py` and `words/settings_text.py`; the allocation
mask of `alloc_hugepage_khugepaged_gfpmask()` is the argument that lets `Allocator.alloc` reclaim and
compact; `hugepage_madvise()` is a flag of the `Vma`.
"""


def definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(dotted name, docstring) of each class, function and method."""

    def walk(node: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[str, str]]:
        for each in node.body:
            if isinstance(each, ast.ClassDef | ast.FunctionDef):
                yield owner + each.name, ast.get_docstring(each) or ""
                if isinstance(each, ast.ClassDef):
                    yield from walk(each, f"{owner}{each.name}.")

    return walk(tree, "")


def citations(docstring: str) -> Iterator[str]:
    """The text behind each "Kernel:" of a docstring, up to the next empty line."""
    return (found[1] for found in re.finditer(r"Kernel: (.*?)(?:\n\n|\Z)", docstring, re.DOTALL))


def home_files(docstring: str) -> tuple[str, dict[str, str]]:
    """The first kernel file that a module names, and function -> file for those in parentheses."""
    first = ""
    files: dict[str, str] = {}
    for text in citations(docstring):
        for path, functions in re.findall(r"([\w/-]+\.[chS]\b)(?:\s\(([^)]*)\))?", text):
            first = first or path
            files |= dict.fromkeys(re.findall(r"\w+", functions), path)
    return first, files


def cited(name: str, docstring: str, module: str) -> Iterator[tuple[str, str]]:
    """(kernel file, kernel function) for each function that a docstring's "Kernel:" names.

    Where it names no file, the file is that which the module's docstring gives the function, or
    the first one there; where it names a file alone, the function has the kernel's name.
    """
    first, files = home_files(module)
    for text in citations(docstring):
        if name.islower() and re.fullmatch(r"[\w/-]+\.[chS]\.", text):
            yield text[:-1], name
        file = ""
        for path, function in re.findall(r"([\w/-]+\.[chS]\b)|(\w+)\(\)", text):
            file = path or file
            if function:
                yield file or files.get(function, first), function


def kernel_map() -> str:
    """The page that leads from a kernel function to ours, file by file."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for room in ROOMS:
        for path in sorted((SOURCE / room).rglob("*.py")):
            ours = str(path.relative_to(SOURCE))
            tree = ast.parse(path.read_text(encoding="utf-8"))
            module = ast.get_docstring(tree) or ""
            for name, docstring in definitions(tree):
                for file, function in cited(name, docstring, module):
                    found[file][function].append(f"`{ours}` `{name}`")
    lines = [
        "# From the kernel's functions to ours",
        "",
        "`make docs` makes this page from the docstrings, and a test holds it to them. Files and names",
        "are those of Linux 7.3, and ours are below `src/mthp/`. A function that is not here is not",
        "modelled, or is part of a function that is.",
    ]
    lines += ["", "| kernel file | ours |", "|---|---|"]
    for file in sorted(found):
        places = sorted({each.split()[0] for ours in found[file].values() for each in ours})
        if file == "mm/khugepaged.c":
            places = ["`khugepaged/`", *(each for each in places if "khugepaged/" not in each)]
        anchor = re.sub(r"[^\w-]", "", file.lower())
        lines.append(f"| [{file}](#{anchor}) | {', '.join(places)} |")
    for file in sorted(found):
        lines += ["", f"## {file}", "", "| kernel | here |", "|---|---|"]
        for function in sorted(found[file], key=lambda each: (each.lstrip("_"), each)):
            lines.append(f"| `{function}()` | {', '.join(found[file][function])} |")
    return "\n".join(lines) + "\n" + NOT_MODELLED


def rivals_table() -> str:
    """All rivals by subject, and what each needs to itself."""
    lines = []
    for subject, rivals in SUBJECTS.items():
        lines += [f"### {subject}", "", "| rival | what it does | takes |", "|---|---|---|"]
        for rival in rivals:
            takes = ", ".join(sorted(part.value for part in rival.takes))
            lines.append(f"| `{rival.name}` | {rival.what} | {takes} |")
        lines.append("")
    return "\n".join(lines)


def mutants_table() -> str:
    """All mutants by subject: where each shows, and the laws that may say so."""
    lines = []
    for subject, mutants in MUTANTS_BY_SUBJECT.items():
        lines += [
            f"### {subject}",
            "",
            "| | without | from | shows in | laws |",
            "|---|---|---|---|---|",
        ]
        for each in mutants:
            world = f"`{each.world.name}` {' + '.join(each.world.rivals)}".strip()
            laws = ", ".join(map(str, each.laws)) or f"none: {each.masked_by}"
            lines.append(f"| {each.id} | {each.rule} | {each.where} | {world} | {laws} |")
        lines.append("")
    return "\n".join(lines)


def laws_table() -> str:
    """Every law, and the functions that look for what breaks it."""
    lines = ["| | law | looked for by |", "|---|---|---|"]
    for law in LAWS.values():
        checks = (
            f"`{each.__module__.split('.')[-1]}.{each.__name__}`" for each in law.checks.values()
        )
        lines.append(f"| {law.number} | {law.sentence} | {', '.join(checks)} |")
    return "\n".join(lines)


def race_tables() -> str:
    """The page of what the race checker knows: laws, rivals, mutants and questions."""
    questions = (f"| `{each.id}` | {each.asked} |" for each in QUESTIONS.values())
    return "\n".join(
        (
            "# Laws, rivals, mutants and questions",
            "",
            "`make docs` makes this page from the code. What the words mean is in the",
            "[reference](races-reference.md).",
            "",
            "## Laws",
            "",
            laws_table(),
            "",
            "The functions are in `laws/`; each is given what its moment in `laws/table.py` says.",
            "",
            "## Parts of a world's name",
            "",
            "| part | meaning |",
            "|---|---|",
            *(f"| `{name}` | {meaning} |" for name, meaning in PARTS.items()),
            "",
            "## Rivals",
            "",
            "Two rivals that take the same part, or one that takes the whole window, cannot be in one world.",
            "",
            rivals_table(),
            "## Mutants",
            "",
            mutants_table(),
            "## Questions",
            "",
            "| | what if? |",
            "|---|---|",
            *questions,
            "",
        )
    )


def picture(mutant: str) -> str:
    """A mutant's race."""
    violation = hunt(MUTANTS[mutant]).violation
    assert violation is not None
    return svg_text(violation)


PICTURES = ("A2", "A3", "A16")
PAGES: dict[str, Callable[[], str]] = {
    "kernel-map.md": kernel_map,
    "race-tables.md": race_tables,
    **{f"drawings/{mutant}.svg": partial(picture, mutant) for mutant in PICTURES},
}
"""Page below docs/ -> the function that makes its text."""

if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make(), encoding="utf-8")
