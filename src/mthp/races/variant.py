# SPDX-License-Identifier: GPL-2.0-or-later
"""Put another text in the place of an engine module's functions, for a while.

A variant is compiled beside the module it replaces; wherever the engine uses one of the module's
functions, it finds the variant's while the variant is applied. The engine's files know nothing of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mthp.races.edits import Edit, edited
from mthp.words.reading import read_text


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
                _install(importlib.import_module(f"mthp.{module}"), text, variants, undo)
            except Exception as error:
                raise VariantError(f"{module}: {type(error).__name__}: {error}") from error
        yield


class VariantError(Exception):
    """A protocol file that cannot be used; one line says why."""


@contextmanager
def protocol(file: Path) -> Iterator[None]:
    """The engine with a user's own text until the end of the block.

    A file named as a module below khugepaged/ (collapse.py) is an edited copy of it. Of any other
    file, each function that has the name of an engine function takes that one's place.
    FileError: it cannot be read. VariantError: it is not Python, fails, or replaces nothing.
    """
    text = read_text(file)
    try:
        compile(text, str(file), "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise VariantError(f"not Python: {error}") from None
    name = f"khugepaged.{file.stem}"
    if importlib.util.find_spec(f"mthp.{name}") is not None:
        with replaced({name: text}):
            yield
        return
    with ExitStack() as undo:
        _take_over(file, text, undo)
        yield


def _take_over(file: Path, text: str, undo: ExitStack) -> None:
    variant = ModuleType("mthp.protocol")
    try:
        exec(compile(text, str(file), "exec"), variant.__dict__)
    except Exception as error:
        raise VariantError(f"{type(error).__name__}: {error}") from None
    is_used = False
    engine = [module for module in _our_modules() if module.__name__.startswith(_ENGINE)]
    for name, value in vars(variant).items():
        if not isinstance(value, FunctionType) or value.__module__ != variant.__name__:
            continue
        found = {
            function
            for module in engine
            if isinstance(function := vars(module).get(name), FunctionType)
            and function.__module__ == module.__name__
        }
        if len(found) == 1:
            is_used = True
            _put(_our_modules(), name, found.pop(), value, undo)
    if not is_used:
        raise VariantError("no function in it has the name of an engine function")


def _put(holders: Sequence[Any], name: str, old: object, new: object, undo: ExitStack) -> None:
    """Wherever the old one is found by its name."""
    for holder in holders:
        if vars(holder).get(name) is old:
            undo.callback(setattr, holder, name, old)
            setattr(holder, name, new)


_ENGINE = (
    "mthp.khugepaged.",
    "mthp.mm.",
    "mthp.machine.",
    "mthp.races.secondary_mmu",
    "mthp.races.lockless_walker",
)


def _install(original: ModuleType, text: str, variants: list[ModuleType], undo: ExitStack) -> None:
    variant = ModuleType(original.__name__)
    variants.append(variant)
    variant.__file__ = original.__file__
    exec(compile(text, str(original.__file__), "exec"), variant.__dict__)
    for name, value in list(vars(variant).items()):
        if isinstance(value, type) and value.__module__ == original.__name__:
            setattr(variant, name, _grafted(getattr(original, name, value), value, undo))
    for name, value in vars(variant).items():
        before = getattr(original, name, None)
        is_own = isinstance(value, FunctionType) and value.__module__ == original.__name__
        if is_own and before is not None:
            _put([*_our_modules(), *variants], name, before, value, undo)


def _grafted(before: type, after: type, undo: ExitStack) -> type:
    """The class there was, with the methods of the new text: objects of it stay what they are."""
    for name, value in vars(after).items():
        old = vars(before).get(name)
        if isinstance(value, FunctionType) and isinstance(old, FunctionType):
            if value.__code__.co_code == old.__code__.co_code and (
                value.__code__.co_consts == old.__code__.co_consts
            ):
                continue
            _put([before], name, old, value, undo)
    return before


def _our_modules() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith("mthp.")]
