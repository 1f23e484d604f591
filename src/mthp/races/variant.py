# SPDX-License-Identifier: GPL-2.0-or-later
"""Put other functions in the place of the engine's, for a while.

A variant is compiled beside what it replaces; wherever the engine uses one of its own functions, it
finds the variant's while the variant is in force. The engine's files know nothing of it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import unwrap
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from mthp.races.edits import Edit, edited, source_of


class VariantError(Exception):
    """A protocol that cannot be used; one line says why."""


@dataclass(frozen=True)
class Variant:
    """A text in force. functions: all that it defines. replacing: those of them that took an engine
    function's place and are not the same.
    """

    file: str
    text: str
    functions: tuple[FunctionType, ...]
    replacing: tuple[FunctionType, ...]


IN_FORCE: Final[list[Variant]] = []


@dataclass(frozen=True)
class Replacement:
    """module: below mthp. name: of a function, or a class's method ("Isolation.take_page")."""

    module: str
    name: str
    new: FunctionType

    @property
    def old(self) -> FunctionType | None:
        """The engine's function of that name, if there is one."""
        return engine_function(self.module, self.name)

    @property
    def is_other(self) -> bool:
        """Whether the new function does something else than the old one, as far as its own code goes."""
        if self.old is None:
            return True
        is_same = _act(self.old.__code__) == _act(self.new.__code__)  # of wrappers, both may be
        return not is_same or _act(unwrap(self.old).__code__) != _act(unwrap(self.new).__code__)


def _act(code: CodeType) -> tuple[object, ...]:
    """What code does, wherever it stands."""
    constants = [_act(each) if isinstance(each, CodeType) else each for each in code.co_consts]
    return code.co_code, code.co_names, *constants


@contextmanager
def applied(edits: Sequence[Edit]) -> Iterator[None]:
    """The engine runs with the edits until the end of the block."""
    with replaced(edited(edits)):
        yield


@contextmanager
def replaced(texts: dict[str, str]) -> Iterator[None]:
    """The engine runs with these texts for its modules until the end of the block.

    VariantError: there is no such module, or its text is not Python, or fails.
    """
    variants: list[ModuleType] = []
    with ExitStack() as undo:
        for module, text in texts.items():
            try:
                original = importlib.import_module(f"mthp.{module}")
                variant = compiled(original.__name__, str(original.__file__), text)
                variants.append(variant)
                every = [Replacement(module, *each) for each in functions_of(variant)]
                found = [each for each in every if each.old is not None]
                new = tuple(each.new for each in every)
                other = tuple(each.new for each in found if each.is_other)
                install(found, variants, undo)
                IN_FORCE.append(Variant(str(original.__file__), text, new, other))
                undo.callback(IN_FORCE.pop)
            except Exception as error:
                raise VariantError(f"{module}: {type(error).__name__}: {error}") from error
        yield


def compiled(name: str, file: str, text: str) -> ModuleType:
    """A module of that name, which nobody can import. Raises what the text raises.

    Where the name is an engine module's, classes that are as they stand there are the engine's own.
    """
    module = ModuleType(name)
    module.__file__ = file
    tree = ast.parse(text, file)
    if name in sys.modules:
        original = sys.modules[name]
        before = ast.parse(source_of(name.removeprefix("mthp.")))
        same = {ast.dump(each) for each in before.body if isinstance(each, ast.ClassDef)}
        kept = [e for e in tree.body if isinstance(e, ast.ClassDef) and ast.dump(e) in same]
        vars(module).update({each.name: vars(original)[each.name] for each in kept})
        tree.body = [each for each in tree.body if each not in kept]
    exec(compile(tree, file, "exec"), module.__dict__)
    return module


def functions_of(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """The functions that a module defines, and those of its classes as Class.method."""
    for name, value in list(vars(module).items()):
        is_here = getattr(value, "__globals__", None) is vars(
            module
        )  # though it may wrap another's
        if getattr(value, "__module__", None) != module.__name__ and not is_here:
            continue
        if isinstance(value, FunctionType):
            yield name, value
        elif isinstance(value, type):
            for method, function in vars(value).items():
                if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                    yield f"{name}.{method}", function


def engine_function(module: str, name: str) -> FunctionType | None:
    """The engine's function of a name, or None."""
    found: Any = importlib.import_module(f"mthp.{module}")
    for part in name.split("."):
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return found if isinstance(found, FunctionType) else None


def install(
    replacements: Sequence[Replacement], variants: Sequence[ModuleType], undo: ExitStack
) -> None:
    """Put each in its place. Objects of the engine's classes stay what they are: their classes get the
    new methods, and the variants' own texts find those classes.
    """
    for each in replacements:
        owner, _, name = each.name.rpartition(".")
        if not owner:
            put([*our_modules(), *variants], name, each.old, each.new, undo)
            continue
        before = getattr(sys.modules[f"mthp.{each.module}"], owner)
        for variant in variants:
            if getattr(vars(variant).get(owner), "__module__", None) == variant.__name__:
                setattr(variant, owner, before)
        if each.is_other:
            put([before], name, each.old, each.new, undo)


def put(holders: Sequence[Any], name: str, old: object, new: object, undo: ExitStack) -> None:
    """Wherever the old one is found by its name."""
    for holder in holders:
        if vars(holder).get(name) is old:
            undo.callback(setattr, holder, name, old)
            setattr(holder, name, new)


def our_modules() -> list[ModuleType]:
    """Those that are loaded."""
    return [module for name, module in sys.modules.items() if name.startswith("mthp.")]
