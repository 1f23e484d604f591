# SPDX-License-Identifier: GPL-2.0-or-later
"""A user's own protocol, from a file: functions that take the engine's places, rivals, worlds, declarations.

What such a file imports from here is Rival and what describes one, and Declares. It may define

- functions: one whose name an engine function has takes that one's place; private ones (_name) and
  methods only in a file that is named as their module, or where REPLACES lists them;
- REPLACES: {module: [name, ...]}, the module as "mm.folio", a method as "Isolation.take_page";
- RIVALS: a sequence of Rival; WORLDS: names such as "pmd:zap" or "window+daemon:a+b", which are checked
  besides the default ones; DECLARES: a Declares.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from inspect import signature
from pathlib import Path
from time import monotonic
from traceback import extract_tb
from types import MappingProxyType, ModuleType
from typing import Any, Final, NoReturn

from mthp.laws import declares
from mthp.laws.declares import Declares
from mthp.laws.watch import Watch
from mthp.machine.clock import ticking
from mthp.machine.hold import Rank
from mthp.machine.task import Endless, Task
from mthp.races.cast import all as cast
from mthp.races.cast.rival import (
    ELSEWHERE,
    FIRST,
    HOLE,
    PAGES,
    WINDOW,
    OnStage,
    Reach,
    Rival,
    StagePart,
)
from mthp.races.stage import START, Stage
from mthp.races.variant import (
    IN_FORCE,
    Replacement,
    Variant,
    VariantError,
    compiled,
    engine_function,
    functions_of,
    install,
    our_modules,
    put,
)
from mthp.words.reading import read_text
from mthp.words.results import KernelBug

__all__ = [
    "ELSEWHERE", "FIRST", "HOLE", "PAGES", "START", "WINDOW", "Declares", "Rank", "Reach", "Rival", "Stage",
    "StagePart",
]  # fmt: skip

OWN_MODULE: Final = "mthp.protocol"
"""The name of a protocol's module, unless it is an edited copy of the engine's."""
READY_WITHIN: Final = 10
"""Seconds in which a file must be loaded, and in which a rival of it must have prepared a stage."""
_ROOMS: Final = ("khugepaged", "mm", "machine")
_BESIDES: Final = ("races.secondary_mmu", "races.lockless_walker")


@dataclass(frozen=True)
class Protocol(Variant):
    """A protocol file. rule: how its functions find their places. replaces: what they replaced, as
    "mm/memory.py do_anonymous_page". worlds: as it names them.
    """

    digest: str
    rule: str
    replaces: tuple[str, ...]
    worlds: tuple[str, ...]

    def document(self) -> dict[str, object]:
        """The document that JSON output has of it."""
        return {"file": self.file, "sha256": self.digest, "replaces": list(self.replaces)}


@contextmanager
def protocol(file: Path) -> Iterator[Protocol]:
    """The engine with a user's protocol until the end of the block.

    FileError: it cannot be read. VariantError: it is not Python, fails, or replaces nothing; and
    whatever fails in it later on, while the engine runs it.
    """
    text = read_text(file)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    with ExitStack() as undo:
        put([os], "_exit", os._exit, _exit(str(file), os._exit), undo)
        with _in_force(file, text, digest) as record:
            yield record


@contextmanager
def _in_force(file: Path, text: str, digest: str) -> Iterator[Protocol]:
    original = _module_named(file)
    module = _executed(file, text, f"mthp.{original}" if original else OWN_MODULE)
    found = list(_replacements(module, original))
    rivals, worlds, declared = _extras(module)
    if not (found or rivals or worlds):
        raise VariantError(_nothing(module))
    for each in found:
        _check_signature(each)
    changed = [each for each in found if each.is_other]
    record = Protocol(
        str(file),
        text,
        tuple(function for _, function in functions_of(module)),
        tuple(each.new for each in changed),
        digest,
        f"an edited copy of {_path(original)}" if original else "functions by their names",
        tuple(f"{_path(each.module)} {each.name}" for each in changed),
        worlds,
    )
    with ExitStack() as undo:
        install(found, [module], undo)
        names = tuple(rival.name for rival in rivals)
        every = MappingProxyType({**cast.RIVALS, **{rival.name: rival for rival in rivals}})
        put(our_modules(), "RIVALS", cast.RIVALS, every, undo)
        put(our_modules(), "LAWFUL", cast.LAWFUL, (*cast.LAWFUL, *names), undo)
        put(our_modules(), "DECLARED", declares.DECLARED, declared, undo)
        put([Watch], "raised", Watch.raised, _raised(record, Watch.raised), undo)
        IN_FORCE.append(record)
        undo.callback(IN_FORCE.pop)
        try:
            yield record
        except SystemExit as error:
            raise VariantError(_fault(str(file), error)) from None


def in_force() -> Protocol | None:
    """The protocol file in force."""
    last = IN_FORCE[-1] if IN_FORCE else None
    return last if isinstance(last, Protocol) else None


# Reading the file


def _module_named(file: Path) -> str:
    """The module below mthp whose name the file has; "" if it has none's. VariantError: it has several's,
    or has a name with a dot that is none's.
    """
    stem = file.stem
    last = {module: module.rpartition(".")[2] for module in _engine()}
    if "." in stem:
        if stem in _engine():
            return stem
        raise VariantError(
            f"there is no engine module {stem}{_near(stem.rpartition('.')[2], last.values())}"
        )
    named = [module for module in _engine() if last[module] == stem]
    if len(named) > 1:
        raise VariantError(f"call it {' or '.join(f'{module}.py' for module in named)}")
    return named[0] if named else ""


@cache
def _engine() -> tuple[str, ...]:
    """The engine's modules, below mthp."""
    found = []
    for room in _ROOMS:
        path = importlib.import_module(f"mthp.{room}").__path__
        found += [f"{room}.{each.name}" for each in pkgutil.iter_modules(path)]
    for name in (*found, *_BESIDES):
        importlib.import_module(f"mthp.{name}")
    return (*found, *_BESIDES)


def _executed(file: Path, text: str, name: str) -> ModuleType:
    try:
        ast.parse(text, str(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise VariantError(f"not Python: {error}") from None
    try:
        with _in_time("loaded"):
            return compiled(name, str(file), text)
    except (Exception, SystemExit, Endless) as error:
        raise VariantError(_fault(str(file), error)) from None


@contextmanager
def _in_time(what: str) -> Iterator[None]:
    """Endless: what the file does takes too long; again and again, if the file catches it."""
    until = monotonic() + READY_WITHIN

    def tick() -> None:
        nonlocal until
        if monotonic() > until:
            until += READY_WITHIN
            raise Endless(f"it is not {what} within {READY_WITHIN} s")

    with ticking(tick):
        yield


def _replacements(module: ModuleType, original: str) -> Iterator[Replacement]:
    """What the file's functions replace. VariantError: that cannot be told, or is not there."""
    own, listed = dict(functions_of(module)), set()
    replaces = vars(module).get("REPLACES", {})
    if not isinstance(replaces, dict):
        raise VariantError("REPLACES is not a dict of lists of names")
    for place, names in replaces.items():
        if place not in _engine():
            near = _near(place, _engine())
            raise VariantError(f"REPLACES: there is no engine module {place}{near}")
        for name in names:
            if name not in own:
                raise VariantError(f"REPLACES: {name} is not defined in the file{_near(name, own)}")
            if engine_function(place, name) is None:
                raise VariantError(f"REPLACES: {place} has no {name}{_near(name, _names(place))}")
            listed.add(name)
            yield Replacement(place, name, own[name])
    for name, function in own.items():
        if name in listed:
            continue
        if original and engine_function(original, name) is not None:
            yield Replacement(original, name, function)
        elif not re.match("_[^_]", name) and "." not in name:
            places = [place for place in _engine() if name in _names(place)]
            if len(places) > 1:
                raise VariantError(f"{name}() is in {' and '.join(places)}: say in REPLACES which")
            if places:
                yield Replacement(places[0], name, function)


def _names(place: str) -> list[str]:
    """The functions and methods of a module."""
    return [name for name, _ in functions_of(importlib.import_module(f"mthp.{place}"))]


def _path(module: str) -> str:
    return f"{module.replace('.', '/')}.py"


def _near(name: object, names: Iterable[str]) -> str:
    near = get_close_matches(str(name), list(names), 1)
    return f"; is {near[0]} meant?" if near else ""


def _nothing(module: ModuleType) -> str:
    """Why a file replaces nothing."""
    names = [name for place in _engine() for name in _names(place)]
    for own, _ in functions_of(module):
        if near := _near(own, names):
            return f"there is no engine function {own}{near}"
    return "no function in it has the name of an engine function"


def _check_signature(replacement: Replacement) -> None:
    """VariantError: the engine's calls would not fit the function."""
    assert replacement.old is not None
    old, new = signature(replacement.old), signature(replacement.new)
    every = [each for each in old.parameters.values() if each.kind is not each.VAR_POSITIONAL]
    try:
        for given in (every, [each for each in every if each.default is each.empty]):
            by_place = [each.name for each in given if each.kind is not each.KEYWORD_ONLY]
            new.bind(*by_place, **{e.name: None for e in given if e.kind is e.KEYWORD_ONLY})
    except TypeError:
        line = replacement.new.__code__.co_firstlineno
        raise VariantError(
            f"line {line}: {replacement.name}() takes the place of that in "
            f"{_path(replacement.module)}, and not its arguments ({', '.join(old.parameters)}); a helper "
            "of the file's own needs another name"
        ) from None


def _extras(module: ModuleType) -> tuple[tuple[Rival, ...], tuple[str, ...], Declares]:
    """RIVALS, WORLDS and DECLARES."""
    rivals, worlds = vars(module).get("RIVALS", ()), vars(module).get("WORLDS", ())
    declared = vars(module).get("DECLARES", declares.DECLARED)
    if not isinstance(rivals, list | tuple) or not all(isinstance(each, Rival) for each in rivals):
        raise VariantError("RIVALS is not a sequence of Rival")
    if not isinstance(worlds, list | tuple) or not all(isinstance(each, str) for each in worlds):
        raise VariantError('WORLDS is not a sequence of names such as "pmd:zap"')
    if not isinstance(declared, Declares):
        raise VariantError("DECLARES is not a Declares")
    for rival in rivals:
        if rival.name in cast.RIVALS or not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", rival.name):
            raise VariantError(
                f"RIVALS: {rival.name!r} is another rival's name, or is not like one"
            )
    file = str(module.__file__)
    guarded = tuple(replace(each, prepare=_guarded(file, each.prepare)) for each in rivals)
    return guarded, tuple(worlds), declared


# Faults of the file


def _guarded(file: str, prepare: OnStage) -> OnStage:
    """Prepare a stage so that whatever is raised is the file's fault."""

    def guarded(stage: Stage) -> None:
        try:
            with _in_time("prepared"):
                prepare(stage)
        except (Exception, Endless) as error:
            raise VariantError(_fault(file, error)) from None

    return guarded


def _exit(file: str, really: Callable[[int], NoReturn]) -> Callable[[int], NoReturn]:
    """os._exit() that says whose fault it is, if the file calls it; workers end by it too."""

    def exit_or_raise(status: int) -> NoReturn:
        if sys._getframe(1).f_code.co_filename == file:
            raise SystemExit(status)
        really(status)

    return exit_or_raise


def _raised(own: Protocol, judge: Any) -> Any:
    """Watch.raised() while a file is in force: it raises VariantError where the file is at fault."""
    names = tuple(f"{function.__qualname__}()" for function in own.functions)

    def raised(watch: Watch, task: Task, error: Exception | Endless) -> None:
        places = [frame.filename for frame in extract_tb(error.__traceback__)]
        is_call = isinstance(error, TypeError) and str(error).startswith(names)
        is_slip = isinstance(error, _SLIPS) and own.file in places
        if (is_call or is_slip or own.file in places[-1:]) and not _is_finding(error):
            raise VariantError(_fault(own.file, error))
        judge(watch, task, error)

    return raised


_SLIPS: Final = (TypeError, AttributeError, NameError, ImportError)


def _is_finding(error: Exception | Endless) -> bool:
    """What a race can come to, in a protocol that is written as it should be: a broken rule, an
    assertion, something that is not there any more.
    """
    if isinstance(error, KernelBug | AssertionError | LookupError | Endless):
        return True
    is_null = getattr(error, "obj", error) is None or "'NoneType'" in str(error)
    return isinstance(error, AttributeError | TypeError) and is_null


def _fault(file: str, error: BaseException) -> str:
    lines = [frame for frame in extract_tb(error.__traceback__) if frame.filename == file]
    where = f"line {lines[-1].lineno}, in {lines[-1].name}: " if lines else ""
    said = str(error).partition("\n")[0]
    what = "" if isinstance(error, Endless) else f"{type(error).__name__}: "
    return f"{where}{what}{said}".rstrip(": ")
