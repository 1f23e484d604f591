# SPDX-License-Identifier: GPL-2.0-or-later
"""Write the pages of docs/ that are made from the code: `make docs`. The tests hold them to it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

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


def cited(docstring: str, module: str) -> Iterator[tuple[str, str]]:
    """(kernel file, kernel function) for each function that a docstring's "Kernel:" names.

    Where it names no file, the file is that which the module's docstring gives the function, or
    the first one there.
    """
    first, files = home_files(module)
    for text in citations(docstring):
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
                for file, function in cited(docstring, module):
                    found[file][function].append(f"`{ours}` `{name}`")
    lines = [
        "# From the kernel's functions to ours",
        "",
        "`make docs` makes this page from the docstrings, and a test holds it to them. The files are those",
        "of Linux 7.3, and ours are below `src/mthp/`. A function that is not here is not modelled, or is",
        "part of a function that is.",
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


PAGES = {"kernel-map.md": kernel_map}
"""Page below docs/ -> the function that makes its text."""

if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make(), encoding="utf-8")
