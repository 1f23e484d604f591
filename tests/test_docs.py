# SPDX-License-Identifier: GPL-2.0-or-later
"""What the documents name exists: functions, commands, files, divergences, statuses."""

from __future__ import annotations

import ast
import doctest
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mthp.cli import build_parser, main
from mthp.mm.huge_mm import VmaGate
from mthp.predict.records import WindowGate
from mthp.report.refusals import RESULT_REASONS, reason_text
from mthp.words.units import Geometry
from tests.report.samples import REFUSALS
from tests.test_architecture import ENGINE, MAY_IMPORT

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "mthp"
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
)
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
DIVERGENCES = next((ROOT / "docs" / "decisions").glob("0006-*.md")).read_text(encoding="utf-8")

Definition = ast.ClassDef | ast.FunctionDef


@cache
def definitions(path: str) -> dict[str, Definition]:
    """Dotted name -> definition, of one source file."""
    found: dict[str, Definition] = {}

    def walk(node: ast.Module | ast.ClassDef, owner: str) -> None:
        for each in node.body:
            if isinstance(each, Definition):
                found[owner + each.name] = each
                if isinstance(each, ast.ClassDef):
                    walk(each, f"{owner}{each.name}.")

    walk(ast.parse((SOURCE / path).read_text(encoding="utf-8")), "")
    return found


@cache
def generated() -> dict[str, str]:
    """Page below docs/ -> what docs/generate.py makes of the code as it is."""
    pages: dict[str, Callable[[], str]] = runpy.run_path(str(ROOT / "docs" / "generate.py"))[
        "PAGES"
    ]
    return {page: make() for page, make in pages.items()}


@pytest.mark.parametrize(("page", "text"), generated().items(), ids=list(generated()))
def test_generated_pages_are_those_of_the_code(page: str, text: str) -> None:
    assert (ROOT / "docs" / page).read_text(encoding="utf-8") == text, "make docs"


def test_every_function_of_the_kernel_map_has_a_file() -> None:
    headings = re.findall(r"^## (.*)$", generated()["kernel-map.md"], re.MULTILINE)
    assert [each for each in headings if not re.fullmatch(r"[\w/-]+\.[chS]", each)] == []


def test_every_room_is_in_architecture() -> None:
    for path in SOURCE.iterdir():
        if path.is_dir() and any(path.glob("*.py")):
            assert f"`{path.name}/`" in ARCHITECTURE, path.name


def test_architecture_says_what_each_room_may_import() -> None:
    said = {}
    for room, imports in re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", ARCHITECTURE, re.MULTILINE):
        named = {each.partition(".")[0] for each in re.findall(r"`([\w.]+)`", imports)}
        said[room] = named | (ENGINE if "the engine" in imports else set()) - {room}
    assert said.pop("cli") == set()
    assert said == {
        room: {each.partition(".")[0] for each in imports}
        for room, imports in MAY_IMPORT.items()
        if (SOURCE / room).is_dir()
    }


def test_architecture_is_one_page() -> None:
    lines = ARCHITECTURE.splitlines()
    assert len(lines) <= 90
    assert [line for line in lines if len(line) > 110] == []


@cache
def names(path: str) -> set[str]:
    """What one source file defines: functions, classes, methods and its own values."""
    found = set(definitions(path))
    for node in ast.parse((SOURCE / path).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_functions_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, name in re.findall(r"`((?:[\w.-]+/)+[\w-]+\.py)`(?:,? `([\w.]+)(?:\(\))?`)?", text):
        assert any((each / path).exists() for each in (SOURCE, ROOT, page.parent)), path
        if name and (SOURCE / path).exists():
            assert name in names(path), f"{path}: no {name}"


def commands(page: Path) -> Iterator[str]:
    """Command lines of `mthp` in the console blocks of a page."""
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            command = line.removeprefix("$ ").partition(" | ")[0]
            if line.startswith("$ mthp ") and "TARGET [" not in line:
                yield command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_commands(page: Path) -> None:
    for command in commands(page):
        build_parser().parse_args(shlex.split(command)[1:])


def test_the_readme_has_commands() -> None:
    verbs = {shlex.split(command)[1] for command in commands(ROOT / "README.md")}
    assert verbs == {
        "calibrate",
        "collapse",
        "plan",
        "sweep",
        "doctor",
        "snap",
        "record",
        "life",
        "diff",
        "check",
        "lab",
    }


def test_files_in_the_readmes_commands_exist() -> None:
    for command in commands(ROOT / "README.md"):
        for word in shlex.split(command):
            if word.startswith(("src/", "tests/")):
                assert (ROOT / word.partition("#")[0]).is_file(), command


def outputs() -> Iterator[tuple[str, str, list[str]]]:
    """(page, command, lines shown), for what a clone runs within a second; the line "…" stands for
    lines left out, and nothing else is."""
    for page in (ROOT / "README.md", *TESTED):
        text = page.read_text(encoding="utf-8")
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, *lines = part.splitlines()
                lines = [line for line in lines if line]
                if set(lines) - {"…"} and runs_here(command, lines):
                    yield str(page.relative_to(ROOT)), command, lines


TESTED = [
    *(ROOT / "docs").glob("races*.md"),
    ROOT / "docs" / "questions-people-ask.md",
    ROOT / "docs" / "protocols.md",
    ROOT / "docs" / "life.md",
    *(ROOT / "docs" / "questions").glob("*.md"),
]


def runs_here(command: str, lines: list[str]) -> bool:
    """Whether a command needs nothing that is not in a clone, and little time."""
    long = any(float(each) >= 1 for each in re.findall(r"(\d+\.\d) s$", "\n".join(lines), re.M))
    told = command.startswith(("mthp check --world", "mthp check --mutant", "mthp replay"))
    told |= command.startswith(("mthp check --protocol docs/", "mthp collapse docs/examples/"))
    told |= command.startswith("mthp life docs/examples/")
    here = told or command.startswith("mthp diff") or "src/mthp/data" in command
    ours = re.sub(r"(src/mthp/data|docs/examples(/questions|/life)?)/", "", command)
    return here and not long and not set("|/").intersection(ours)


@pytest.mark.parametrize(("page", "command", "lines"), list(outputs()))
def test_pages_show_what_comes_out(
    page: str,
    command: str,
    lines: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plain(line: str) -> str:
        return re.sub(r"\d+\.\d+ s\b", "… s", line.rstrip())

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80" if page == "README.md" else "100")
    broken = any(line.startswith("law ") for line in lines)
    assert main(shlex.split(command)[1:]) == (4 if broken else 0)
    shown = [plain(line) for line in capsys.readouterr().out.splitlines() if line.strip()]
    begin, left_out = 0, False
    for line in lines:
        if line == "…":
            left_out = True
            continue
        assert plain(line) in shown[begin:], f"not shown, or not in this order: {line}"
        at = shown.index(plain(line), begin)
        assert left_out or at == begin, f"left out before this, without a line …: {shown[begin]}"
        begin, left_out = at + 1, False


@pytest.mark.parametrize("target", ["run", "test", "venv"])
def test_make_has_what_the_readme_says(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_the_ratchet_is_as_shown(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    shown = page.partition("$ python docs/examples/ratchet.py\n")[2].partition("```")[0]
    runpy.run_path(str(ROOT / "docs" / "examples" / "ratchet.py"))["main"]([])
    assert capsys.readouterr().out == shown and "32 of order 4" in shown


@pytest.mark.lab
def test_a_real_kernel_does_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    run = runpy.run_path(str(ROOT / "docs" / "examples" / "ratchet.py"))["main"]
    run([])
    wanted = capsys.readouterr().out
    run(["--kernel", "7.3"])
    assert capsys.readouterr().out == wanted


def test_every_divergence_is_listed() -> None:
    said = set()
    for path in sorted(SOURCE.rglob("*.py")):
        file = str(path.relative_to(SOURCE))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if "Divergence:" in (ast.get_docstring(tree) or ""):
            said.add(f"`{file}`")
        for name, node in definitions(file).items():
            if "Divergence:" in (ast.get_docstring(node) or ""):
                said.add(f"`{file}` `{name}`")
    listed = {row.strip() for row in re.findall(r"^\| (`[^|]*) \|", DIVERGENCES, re.MULTILINE)}
    assert listed == said


def test_every_refusal_is_explained() -> None:
    text = (ROOT / "docs" / "collapse.md").read_text(encoding="utf-8")
    words = {result.string: reason for result, reason in RESULT_REASONS.items()}
    words |= {
        each.name: reason_text(REFUSALS[0]._replace(status=each), Geometry()) for each in VmaGate
    }
    for status, reason in words.items():
        assert f"`{status}` | {reason} |" in text, status
    for gate in (WindowGate.EDGE, WindowGate.TOO_FEW, WindowGate.NOT_CHOSEN):
        assert f"`{gate.value}`" in text


@pytest.mark.parametrize(("page", "lines"), [("README.md", 4), ("docs/guide.md", 31)])
def test_python_on_the_pages_runs(page: str, lines: int) -> None:
    results = doctest.testfile(
        str(ROOT / page),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert results.attempted >= lines
    assert not results.failed
