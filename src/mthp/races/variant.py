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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any


@dataclass(frozen=True)
class Edit:
    """A piece of a module's text, which occurs in it once, and what stands there instead."""

    module: str
    old: str
    new: str


def source_of(module: str) -> str:
    """The text of one of our modules, by its name below mthp."""
    file = importlib.import_module(f"mthp.{module}").__file__
    assert file is not None
    return Path(file).read_text(encoding="utf-8")


def edited(edits: Sequence[Edit]) -> dict[str, str]:
    """Module -> its text after all edits of it. ValueError where a piece is not there once."""
    texts: dict[str, str] = {}
    for edit in edits:
        text = texts.get(edit.module) or source_of(edit.module)
        if text.count(edit.old) != 1:
            raise ValueError(f"{edit.module} holds this {text.count(edit.old)} times:\n{edit.old}")
        texts[edit.module] = text.replace(edit.old, edit.new)
    return texts


@contextmanager
def applied(edits: Sequence[Edit]) -> Iterator[None]:
    """The engine runs with the edits until the end of the block."""
    with replaced(edited(edits)):
        yield


@contextmanager
def replaced(texts: dict[str, str]) -> Iterator[None]:
    """The engine runs with these texts for its modules until the end of the block."""
    undo: list[tuple[ModuleType, str, Any]] = []
    try:
        for module, text in texts.items():
            _install(importlib.import_module(f"mthp.{module}"), text, undo)
        yield
    finally:
        for holder, name, value in reversed(undo):
            setattr(holder, name, value)


class VariantError(Exception):
    """A protocol file that cannot be used; one line says why."""


def protocol(file: Path) -> AbstractContextManager[None]:
    """The engine with a user's own text of one of its modules, or of some of its functions.

    The file is an edited copy of a module below khugepaged/, under the module's name, or any file:
    then each function in it that has the name of an engine function takes that one's place.
    OSError: it cannot be read. VariantError: it is not Python, or replaces nothing.
    """
    text = file.read_text(encoding="utf-8")
    try:
        compile(text, str(file), "exec")
    except SyntaxError as error:
        raise VariantError(f"line {error.lineno}: {error.msg}") from None
    return _protocol(file, text)


@contextmanager
def _protocol(file: Path, text: str) -> Iterator[None]:
    undo: list[tuple[ModuleType, str, Any]] = []
    variant = ModuleType("mthp.protocol")
    variant.__file__ = str(file)
    try:
        exec(compile(text, str(file), "exec"), variant.__dict__)
        for name, value in vars(variant).items():
            if not isinstance(value, FunctionType) or value.__code__.co_filename != str(file):
                continue
            for holder in _our_modules():
                before = holder.__dict__.get(name)
                if holder.__name__.startswith(_ENGINE) and isinstance(before, FunctionType):
                    undo.append((holder, name, before))
        if not undo:
            raise VariantError(f"{file}: no function in it has the name of an engine function")
        replaced_names = {name for _, name, _ in undo}
        for holder in _our_modules():
            for name in replaced_names:
                before = holder.__dict__.get(name)
                if isinstance(before, FunctionType):
                    undo.append((holder, name, before))
                    setattr(holder, name, getattr(variant, name))
        yield
    finally:
        for holder, name, value in reversed(undo):
            setattr(holder, name, value)


_ENGINE = ("mthp.khugepaged.", "mthp.mm.", "mthp.machine.", "mthp.rivals.")


def _install(original: ModuleType, text: str, undo: list[tuple[ModuleType, str, Any]]) -> None:
    variant = ModuleType(original.__name__)
    variant.__file__ = original.__file__
    exec(compile(text, str(original.__file__), "exec"), variant.__dict__)
    for name, value in vars(variant).items():
        before = getattr(original, name, None)
        if isinstance(value, FunctionType) and value.__module__ == original.__name__:
            for holder in _our_modules():
                if before is not None and holder.__dict__.get(name) is before:
                    undo.append((holder, name, before))
                    setattr(holder, name, value)


def _our_modules() -> list[ModuleType]:
    return [module for name, module in sys.modules.items() if name.startswith("mthp.")]
