# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules. Each rule is a function from a source tree to complaints; each is shown to
complain about a bad tree, and none may complain about ours."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPDX = "# SPDX-License-Identifier: GPL-2.0-or-later"

FREE = {"", "api", "cli", "demo", "__main__"}
"""At the top: they may import everything. The empty name is the package itself."""

MAX_MODULE_LINES = 620
MAX_FUNCTION_LINES = 75

ENGINE = {"words", "machine", "mm", "khugepaged", "vectorised"}
MAY_IMPORT: dict[str, set[str]] = {
    "words": set(),
    "machine": {"words"},
    "mm": {"words", "machine"},
    "khugepaged": {"words", "machine", "mm"},
    "vectorised": {"words", "machine", "mm", "khugepaged"},
    "laws": ENGINE,
    "races": ENGINE | {"laws"},
    "explore": {"machine.clock", "machine.step", "machine.task", "words.processes"},
    "image": {"words"},
    "worlds": ENGINE | {"image"},
    "predict": ENGINE | {"image", "worlds"},
    "plan": ENGINE | {"image", "worlds", "predict"},
    "fleet": ENGINE | {"image", "worlds", "predict", "plan"},
    "calibrate": {"words"},
    "check": ENGINE | {"laws", "races", "explore", "lab.kernels.herd", "lab.errors"},
    "lab": {"words", "image"},
    "life": ENGINE | {"image", "worlds"},
    "compare": ENGINE | {"laws", "image", "worlds", "predict", "plan", "life", "lab"},
    "report": {
        "words",
        "predict.records",
        "plan.records",
        "fleet.records",
        "life.recorded_records",
        "check.records",
        "explore.outcome",
        "compare.records",
        "compare.coverage",
    },
}
"""Room -> the rooms (or single modules) it may import, besides itself."""

LAB = ["errors", "geometry", "kernels", "vm", "program", "session", "draw", "compile"]
"""The lab's sub-rooms, in their order: each imports itself and those before it. (guest: none.)"""


@cache
def parsed(text: str) -> ast.Module:
    """The tree of a text, made once: each rule looks at all of them."""
    return ast.parse(text)


@dataclass(frozen=True)
class Module:
    """One source file. name: dotted, below mthp: 'mm.pgtable_types', '' for the package's __init__."""

    path: Path
    name: str

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return parsed(self.text)

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def modules(root: Path) -> Iterator[Module]:
    """The modules under root/src/mthp."""
    source = root / "src" / "mthp"
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        yield Module(path, ".".join(parts).removesuffix("__init__").removesuffix("."))


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, wherever it stands in it.

    `from a import b` gives a.b: whether b is a module is not known here.
    """
    package = ["mthp", *module.name.split(".")] if module.name else ["mthp"]
    if not module.is_package:
        package = package[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")]
            start = ".".join(part for part in base if part)
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)


def own_imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, name below mthp) of what a module imports from this project."""
    for line, name in imports(module):
        top, _, below = name.partition(".")
        if top == "mthp" and below not in ("", "__version__"):
            yield line, below


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# --- the rules ------------------------------------------------------------------------------


def imports_go_one_way(root: Path) -> Iterator[str]:
    """Words, machine, mm, khugepaged, laws, races; the others as MAY_IMPORT says."""
    for module in modules(root):
        if module.room in FREE:
            continue
        if module.room not in MAY_IMPORT:
            yield f"{module.name}: a room that MAY_IMPORT does not know"
            continue
        allowed = MAY_IMPORT[module.room]
        for line, name in own_imports(module):
            room = name.partition(".")[0]
            single = {each for each in allowed if name == each or name.startswith(f"{each}.")}
            if room != module.room and not single:
                yield f"{module.name}:{line}: imports {name}"


def no_import_circle(root: Path) -> Iterator[str]:
    """No module imports itself by way of others, and none does so for its types alone."""
    known = {module.name: module for module in modules(root)}
    imported = {
        name: {target for _, each in own_imports(module) if (target := _module_of(each, known))}
        for name, module in known.items()
    }
    while leaves := {name for name, below in imported.items() if not below & imported.keys()}:
        imported = {name: imported[name] for name in imported.keys() - leaves}
    while roots := imported.keys() - set().union(*imported.values()):
        imported = {name: imported[name] for name in imported.keys() - roots}
    for name in sorted(imported):
        yield f"{name}: imports itself, by way of {sorted(imported[name] & imported.keys())}"


def _module_of(name: str, known: dict[str, Module]) -> str:
    """The module that an imported name is, or stands in."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def the_lab_imports_one_way(root: Path) -> Iterator[str]:
    """A sub-room of the lab imports only those before it in LAB; `guest` imports nothing of ours."""
    for module in modules(root):
        if module.room == "lab" and module.name != "lab":
            own = module.name.split(".")[1]
            place = LAB.index(own) if own in LAB else -1
            for line, name in own_imports(module):
                other = name.split(".")[1] if name.startswith("lab.") else ""
                if place < 0 or (other in LAB and LAB.index(other) > place):
                    yield f"{module.name}:{line}: imports {name}"


def the_specification_has_no_arrays(root: Path) -> Iterator[str]:
    """khugepaged/ and mm/ do everything word by word; arrays are for vectorised/."""
    for module in modules(root):
        if module.room in {"mm", "khugepaged"}:
            for line, name in imports(module):
                if name.partition(".")[0] == "numpy":
                    yield f"{module.name}:{line}: imports {name}"


SHIPPED = (
    "image.capture",
    "image.record",
    "words.files",
    "words.resident",
    "words.streams",
    "words.units",
)
"""What mthp-snap.pyz and mthp-record.pyz consist of."""


def capture_stands_alone(root: Path) -> Iterator[str]:
    """The capture is shipped to production hosts: Python 3.8, its standard library, and itself."""

    def is_shipped(name: str) -> bool:
        return any(name == each or name.startswith(f"{each}.") for each in SHIPPED)

    for module in modules(root):
        if not is_shipped(module.name):
            continue
        try:
            tree = ast.parse(module.text, feature_version=(3, 8))
        except SyntaxError as error:
            yield f"{module.name}:{error.lineno}: not Python 3.8"
            continue
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            of_builtin = isinstance(call.func, ast.Subscript) and isinstance(
                call.func.value, ast.Name
            )
            if of_builtin or any(keyword.arg == "strict" for keyword in call.keywords):
                yield f"{module.name}:{call.lineno}: not Python 3.8"
        for line, name in imports(module):
            top, _, below = name.partition(".")
            if top not in sys.stdlib_module_names and not (top == "mthp" and is_shipped(below)):
                yield f"{module.name}:{line}: imports {name}"


def modules_are_short(root: Path) -> Iterator[str]:
    """One room, one thing."""
    for module in modules(root):
        lines = len(module.text.splitlines())
        if lines > MAX_MODULE_LINES:
            yield f"{module.name}: {lines} lines, at most {MAX_MODULE_LINES}"


def functions_are_short(root: Path) -> Iterator[str]:
    """From the first line of the def to the last of its body."""
    for module in modules(root):
        for node in functions(module):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                most = MAX_FUNCTION_LINES
                yield f"{module.name}:{node.lineno}: {node.name} has {lines} lines, at most {most}"


def modules_say_what_they_are(root: Path) -> Iterator[str]:
    """The licence on the first line, and a docstring; an __init__ may have the first alone."""
    for module in modules(root):
        if module.text.partition("\n")[0] != SPDX:
            yield f"{module.name or 'mthp'}: the first line is not the SPDX line"
        if not module.is_package and not ast.get_docstring(module.tree):
            yield f"{module.name}: no docstring"


def the_project_stands_alone(root: Path) -> Iterator[str]:
    """Nothing refers to what lies beside the clone."""
    beside = "../" + "shared"
    suffixes = {".py", ".md", ".toml", ".txt", ".json", ".html", ".yml", ".yaml", ".cfg", ".sh", ""}
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if name in {".ci", ".github"} or name[0] != "."]
        for path in sorted(Path(folder, name) for name in files):
            text = path.suffix in suffixes and path.is_file()
            if text and beside in path.read_text(encoding="utf-8", errors="replace"):
                yield f"{path.relative_to(root)}: mentions {beside}"


def public_things_have_docstrings(root: Path) -> Iterator[str]:
    """Public classes, functions and methods; methods of one return may let their name speak."""
    for module in modules(root):
        for node, owner in _definitions(module.tree, ""):
            if not ast.get_docstring(node) and not _may_be_silent(node, owner):
                yield f"{module.name}:{node.lineno}: {owner}{node.name} has no docstring"


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.Module | ast.ClassDef, owner: str) -> Iterator[tuple[Definition, str]]:
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node, owner
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, f"{owner}{node.name}.")


def _may_be_silent(node: Definition, owner: str) -> bool:
    names = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
    if names & {"overload", "override", "setter"}:
        return True
    return bool(owner) and len(node.body) == 1 and isinstance(node.body[0], ast.Return)


def the_engine_knows_no_mutants(root: Path) -> Iterator[str]:
    """Rules are taken away from outside; the engine does not know that they can be."""
    for module in modules(root):
        if module.room in {"machine", "mm", "khugepaged"}:
            for number, line in enumerate(module.text.splitlines(), 1):
                for word in ("mutant", "variant"):
                    if word in re.sub("(in|co)variant", "", line.lower()):
                        yield f"{module.name}:{number}: mentions {word}"


WRITERS = {
    *("write_text", "write_bytes", "mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile"),
    *("SpooledTemporaryFile", "TemporaryDirectory", "copyfile", "copy2", "fdopen"),
    *("symlink", "symlink_to", "hardlink_to", "rename", "renames", "mkfifo", "mknod"),
}
WRITING_FLAGS = {"O_CREAT", "O_WRONLY", "O_RDWR", "O_APPEND", "O_TRUNC"}
MAY_WRITE = ("words.files", "words.streams", "lab.guest.")
"""The one place, the standard streams, and what runs in guests alone."""


def files_are_written_in_one_place(root: Path) -> Iterator[str]:
    """Who writes a file, or makes a temporary one, asks words/files.py to."""
    for module in modules(root):
        if module.name.startswith(MAY_WRITE):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and _writes(node):
                yield f"{module.name}:{node.lineno}: writes a file: {ast.unparse(node)[:60]}"


def _writes(call: ast.Call) -> bool:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name in WRITERS:
        return bool(owner)
    if name != "open" or owner == "archive":
        return False
    if owner == "os":
        return any(flag in ast.unparse(call) for flag in WRITING_FLAGS)
    # Of open(path, mode), and of lzma's and the like, it is the second; of a path, the first.
    modes = [*call.args[0 if owner else 1 : 2], *(each.value for each in call.keywords)]
    texts = [each.value for each in modes if isinstance(each, ast.Constant)]
    return any(
        isinstance(each, str) and re.fullmatch("[rbt]*[wax+][wbt+]*", each) for each in texts
    )


ONLY_IN_TESTS = {"benchmarks", "data", "litmus", "mutation", "selftests", "lab", "fuzzing"}
"""Directories under tests/ that need no room of the same name."""


def mirror_of_the_source(root: Path) -> Iterator[str]:
    """A package of tests has the name of a package of the source."""
    tests = root / "tests"
    for init in sorted(tests.rglob("__init__.py")):
        package = init.parent.relative_to(tests)
        known = not package.parts or package.parts[0] in ONLY_IN_TESTS
        if not known and not (root / "src" / "mthp" / package).is_dir():
            yield f"tests/{package}: there is no src/mthp/{package}"
    for path in sorted(tests.rglob("test_*.py")):
        if not (path.parent / "__init__.py").exists():
            yield f"{path.relative_to(root)}: its directory has no __init__.py"


TESTED_BY_MODULE = ("khugepaged", "mm")


def engine_modules_have_their_test_file(root: Path) -> Iterator[str]:
    """Each module of khugepaged/ and mm/ is tested by the file of its name."""
    for module in modules(root):
        if module.room in TESTED_BY_MODULE and not module.is_package:
            folder, _, name = module.name.rpartition(".")
            test = Path("tests", *folder.split("."), f"test_{name}.py")
            if not (root / test).exists():
                yield f"{module.name}: there is no {test}"


def no_class_name_twice(root: Path) -> Iterator[str]:
    """One word, one thing: no two modules have a public class of one name."""
    where: dict[str, str] = {}
    for module in modules(root):
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                if node.name in where:
                    yield f"{module.name}: class {node.name} is in {where[node.name]} too"
                where[node.name] = module.name


def the_command_prints_what_is_safe(root: Path) -> Iterator[str]:
    """On stdout by cli/options.py show() and print_json(), or on a SafeConsole: names are a stranger's."""
    for module in modules(root):
        if module.room != "cli" or module.name == "cli.options":
            continue
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "print":
                continue
            if all(each.arg != "file" for each in node.keywords):
                yield f"{module.name}:{node.lineno}: prints with print()"


Rule = Callable[[Path], Iterator[str]]
RULES: list[Rule] = [
    imports_go_one_way,
    no_import_circle,
    no_class_name_twice,
    the_lab_imports_one_way,
    the_command_prints_what_is_safe,
    the_specification_has_no_arrays,
    capture_stands_alone,
    files_are_written_in_one_place,
    modules_are_short,
    functions_are_short,
    modules_say_what_they_are,
    the_project_stands_alone,
    public_things_have_docstrings,
    the_engine_knows_no_mutants,
    mirror_of_the_source,
    engine_modules_have_their_test_file,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_our_tree_keeps_the_rule(rule: Rule) -> None:
    complaints = list(rule(ROOT))
    assert not complaints, "\n".join(complaints)


# --- the rules can fail ---------------------------------------------------------------------

GOOD = f'{SPDX}\n"""A module."""\n'

BAD: list[tuple[Rule, str, str, str]] = [
    (
        imports_go_one_way,
        "words/units.py",
        "from mthp.machine import step",
        "words.units:3: imports machine",
    ),
    (
        imports_go_one_way,
        "machine/step.py",
        "import mthp.mm.pgtable_types",
        "imports mm.pgtable_types",
    ),
    (
        imports_go_one_way,
        "mm/pgtable_types.py",
        "from mthp.khugepaged import scan",
        "imports khugepaged",
    ),
    (
        imports_go_one_way,
        "mm/pgtable_types.py",
        "from ..khugepaged import scan",
        "imports khugepaged.scan",
    ),
    (imports_go_one_way, "mm/pgtable_types.py", "from .. import races", "imports races"),
    (
        imports_go_one_way,
        "mm/pgtable_types.py",
        "def f():\n    import mthp.races",
        "imports races",
    ),
    (imports_go_one_way, "khugepaged/scan.py", "from mthp.races import cast", "imports races"),
    (imports_go_one_way, "mm/fork.py", "from mthp.khugepaged import scan", "khugepaged.scan"),
    (imports_go_one_way, "laws.py", "from mthp.races import one", "laws:3: imports races"),
    (imports_go_one_way, "races/one.py", "from mthp.worlds import build", "imports worlds.build"),
    (imports_go_one_way, "explore/s.py", "from mthp.machine.locks import A", "machine.locks"),
    (
        imports_go_one_way,
        "explore/s.py",
        "from mthp.words.units import Geometry",
        "imports words.units",
    ),
    (imports_go_one_way, "image/a.py", "from mthp.machine.step import b", "imports machine"),
    (imports_go_one_way, "words/a.py", "from mthp.image import scenario", "imports image"),
    (imports_go_one_way, "lab/a.py", "from mthp.khugepaged import scan", "imports khugepaged"),
    (imports_go_one_way, "predict/a.py", "from mthp.report import tables", "imports report"),
    (imports_go_one_way, "compare/a.py", "from mthp import cli", "imports cli"),
    (
        imports_go_one_way,
        "report/a.py",
        "from mthp.predict.passes import b",
        "imports predict.passes",
    ),
    (
        imports_go_one_way,
        "report/a.py",
        "from mthp.mm.pgtable_types import b",
        "imports mm.pgtable_types",
    ),
    (
        the_lab_imports_one_way,
        "lab/vm/a.py",
        "from mthp.lab.program.program import b",
        "lab.vm.a:3: imports lab.program.program",
    ),
    (the_lab_imports_one_way, "lab/draw/a.py", "from mthp.lab import compile", "lab.compile"),
    (the_lab_imports_one_way, "lab/guest/a.py", "import mthp.words.units", "words.units"),
    (imports_go_one_way, "attic/a.py", "", "attic.a: a room that MAY_IMPORT does not know"),
    (imports_go_one_way, "khugepaged/a.py", "from mthp.vectorised import lru", "vectorised.lru"),
    (
        the_specification_has_no_arrays,
        "mm/rmap.py",
        "import numpy as np",
        "mm.rmap:3: imports numpy",
    ),
    (
        the_specification_has_no_arrays,
        "khugepaged/scan.py",
        "def f():\n    from numpy.typing import NDArray",
        "khugepaged.scan:4: imports numpy.typing",
    ),
    (the_command_prints_what_is_safe, "cli/a.py", "def f():\n    print(1)", "cli.a:4: prints with"),
    (capture_stands_alone, "image/capture/a.py", "import numpy", "imports numpy"),
    (
        capture_stands_alone,
        "image/capture/a.py",
        "from mthp.words.settings import Settings",
        "imports mthp.words.settings",
    ),
    (capture_stands_alone, "image/capture/a.py", "from .. import runs", "imports mthp.image.runs"),
    (capture_stands_alone, "words/files.py", "from mthp.words import events", "mthp.words.events"),
    (capture_stands_alone, "words/units.py", "import numpy as np", "words.units:3: imports numpy"),
    (
        capture_stands_alone,
        "image/capture/a.py",
        "with (open('a') as a, open('b') as b):\n    pass",
        "image.capture.a:4: not Python 3.8",
    ),
    (
        capture_stands_alone,
        "image/capture/a.py",
        "a = list[int]()",
        "image.capture.a:3: not Python 3.8",
    ),
    (
        capture_stands_alone,
        "image/capture/a.py",
        "a = zip((1,), (2,), strict=True)",
        "image.capture.a:3: not Python 3.8",
    ),
    *(
        (files_are_written_in_one_place, "lab/a.py", text, "lab.a:3: writes a file")
        for text in (
            "open('a', 'w')",
            "path.open('xb')",
            "gzip.open(name, mode='wt')",
            "open('a', 'r+b')",
            "os.open(name, os.O_RDWR | os.O_CREAT)",
            "path.write_text('a')",
            "tempfile.TemporaryDirectory()",
            "shutil.copytree(a, b, copy_function=shutil.copyfile(a, b))",
            "made.rename(place)",
        )
    ),
    (
        modules_are_short,
        "mm/pgtable_types.py",
        "x = 1\n" * 619,
        "mm.pgtable_types: 621 lines, at most 620",
    ),
    (
        functions_are_short,
        "mm/pgtable_types.py",
        "class A:\n    def walk(self):\n" + "        x = 1\n" * 75,
        "mm.pgtable_types:4: walk has 76 lines, at most 75",
    ),
    (
        the_project_stands_alone,
        "mm/pgtable_types.py",
        "# see ../" + "shared/x",
        "mentions ../" + "shared",
    ),
    (
        public_things_have_docstrings,
        "mm/pgtable_types.py",
        "class A:\n    x = 1",
        "mm.pgtable_types:3: A has no",
    ),
    (
        public_things_have_docstrings,
        "mm/pgtable_types.py",
        "def f():\n    pass",
        "mm.pgtable_types:3: f has no",
    ),
    (
        public_things_have_docstrings,
        "mm/pgtable_types.py",
        'class A:\n    """A."""\n    def f(self):\n        x = 1\n        return x',
        "mm.pgtable_types:5: A.f has no docstring",
    ),
    (
        the_engine_knows_no_mutants,
        "mm/pgtable_types.py",
        "# a Mutant may",
        "mm.pgtable_types:3: mentions mutant",
    ),
    (the_engine_knows_no_mutants, "machine/a.py", "variants = 1", "mentions variant"),
    (the_engine_knows_no_mutants, "khugepaged/a.py", "# the variant", "mentions variant"),
]


def write(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(("rule", "path", "text", "complaint"), BAD)
def test_the_rule_can_fail(
    tmp_path: Path, rule: Rule, path: str, text: str, complaint: str
) -> None:
    write(tmp_path, f"src/mthp/{path}", GOOD)
    assert path.startswith("attic") or not list(rule(tmp_path))
    write(tmp_path, f"src/mthp/{path}", GOOD + text)
    complaints = list(rule(tmp_path))
    assert len(complaints) == 1
    assert complaint in complaints[0]


def test_no_import_circle_can_fail(tmp_path: Path) -> None:
    write(tmp_path, "src/mthp/mm/a.py", GOOD + "from mthp.mm import b\n")
    write(tmp_path, "src/mthp/mm/b.py", GOOD + "from mthp.mm.c import C\n")
    write(tmp_path, "src/mthp/mm/c.py", GOOD)
    write(tmp_path, "src/mthp/mm/d.py", GOOD + "from mthp.mm import a, c\n")
    assert not list(no_import_circle(tmp_path))
    types_alone = "if TYPE_CHECKING:\n    from mthp.mm.b import B\n"
    write(tmp_path, "src/mthp/mm/c.py", GOOD + types_alone)
    assert list(no_import_circle(tmp_path)) == [
        "mm.b: imports itself, by way of ['mm.c']",
        "mm.c: imports itself, by way of ['mm.b']",
    ]


def test_no_class_name_twice_can_fail(tmp_path: Path) -> None:
    write(tmp_path, "src/mthp/mm/a.py", GOOD + "class Vma: ...\nclass _Own: ...\n")
    write(tmp_path, "src/mthp/mm/b.py", GOOD + "class _Own: ...\n")
    assert not list(no_class_name_twice(tmp_path))
    write(tmp_path, "src/mthp/mm/b.py", GOOD + "class Vma: ...\n")
    assert list(no_class_name_twice(tmp_path)) == ["mm.b: class Vma is in mm.a too"]


def test_modules_say_what_they_are_can_fail(tmp_path: Path) -> None:
    write(tmp_path, "src/mthp/__init__.py", f"{SPDX}\n")
    assert not list(modules_say_what_they_are(tmp_path))
    write(tmp_path, "src/mthp/mm/__init__.py", "")
    write(tmp_path, "src/mthp/mm/pgtable_types.py", f"{SPDX}\nx = 1\n")
    write(tmp_path, "src/mthp/words/units.py", '"""Units."""\n')
    assert list(modules_say_what_they_are(tmp_path)) == [
        "mm: the first line is not the SPDX line",
        "mm.pgtable_types: no docstring",
        "words.units: the first line is not the SPDX line",
    ]


def test_the_project_stands_alone_can_fail_outside_the_source(tmp_path: Path) -> None:
    write(tmp_path, "docs/a.md", "see ../" + "shared/design.md\n")
    write(tmp_path, "Makefile", "run:\n\tcp ../" + "shared/x .\n")
    write(tmp_path, ".venv/lib/a.py", "# ../" + "shared\n")
    assert [each.partition(":")[0] for each in the_project_stands_alone(tmp_path)] == [
        "Makefile",
        "docs/a.md",
    ]


def test_mirror_of_the_source_can_fail(tmp_path: Path) -> None:
    write(tmp_path, "src/mthp/mm/pgtable_types.py", GOOD)
    for good in ("tests/__init__.py", "tests/mm/__init__.py", "tests/litmus/__init__.py"):
        write(tmp_path, good, GOOD)
    assert not list(mirror_of_the_source(tmp_path))
    write(tmp_path, "tests/attic/__init__.py", GOOD)
    write(tmp_path, "tests/swap/test_a.py", GOOD)
    assert list(mirror_of_the_source(tmp_path)) == [
        "tests/attic: there is no src/mthp/attic",
        "tests/swap/test_a.py: its directory has no __init__.py",
    ]


def test_engine_modules_have_their_test_file_can_fail(tmp_path: Path) -> None:
    for module in ("mm/rmap", "khugepaged/scan", "laws/table", "mm/__init__"):
        write(tmp_path, f"src/mthp/{module}.py", GOOD)
    assert list(engine_modules_have_their_test_file(tmp_path)) == [
        "khugepaged.scan: there is no tests/khugepaged/test_scan.py",
        "mm.rmap: there is no tests/mm/test_rmap.py",
    ]
    write(tmp_path, "tests/mm/test_rmap.py", GOOD)
    write(tmp_path, "tests/khugepaged/test_scan.py", GOOD)
    assert not list(engine_modules_have_their_test_file(tmp_path))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("khugepaged/a.py", "from mthp.mm.pgtable_types import b\nfrom mthp.machine import step\n"),
        ("explore/a.py", "from mthp.machine.step import b\nfrom mthp.machine import step\n"),
        ("report/a.py", "from mthp.predict.records import b\nimport mthp.words.events\n"),
        ("report/a.py", "from mthp.predict import records\n"),
        ("compare/a.py", "from mthp.khugepaged import a\nfrom mthp.image.scenario import b\n"),
        ("image/a.py", "from mthp.image.runs import b\nfrom . import c\n"),
        ("lab/draw/a.py", "from mthp.image.scenario import b\nfrom mthp.lab.program import c\n"),
        ("cli.py", "from mthp.report import tables\nfrom mthp import __version__\n"),
        ("mm/a.py", "# an in" + "variant, covariant\n"),
        ("lab/a.py", "open('w')\narchive.open(name, 'w')\nos.open(a, os.O_RDONLY)\n"),
        ("lab/a.py", "path.open('rb')\nwith replacing(path) as file:\n    file.write(b'w')\n"),
        ("mm/a.py", 'class A:\n    """A."""\n    def f(self):\n        return 1\n'),
    ],
)
def test_what_the_rules_allow(tmp_path: Path, path: str, text: str) -> None:
    write(tmp_path, f"src/mthp/{path}", GOOD + text)
    test = Path(path).with_name(f"test_{Path(path).name}")
    for file in (Path("__init__.py"), test.with_name("__init__.py"), test):
        write(tmp_path, f"tests/{file}", GOOD)
    assert [complaint for rule in RULES for complaint in rule(tmp_path)] == []


def test_rooms_that_do_not_exist_yet_break_nothing(tmp_path: Path) -> None:
    assert [complaint for rule in RULES for complaint in rule(tmp_path)] == []
