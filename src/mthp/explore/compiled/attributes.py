# SPDX-License-Identifier: GPL-2.0-or-later
"""How attributes are read and written past whatever watches them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MemberDescriptorType
from typing import Any

from mthp.explore.compiled.kinds import ABSENT

Get = Callable[[Any], Any]
Put = Callable[[Any, Any], None]


@cache
def access(of: type, attribute: str) -> tuple[Get, Put]:
    """Functions that read and write an attribute of the class's objects; what is not there is ABSENT."""
    found = (vars(each).get(attribute) for each in of.__mro__)
    slot = next((each for each in found if isinstance(each, MemberDescriptorType)), None)
    return _in_dict(attribute) if slot is None else _in_slot(slot)


def _in_dict(attribute: str) -> tuple[Get, Put]:
    def get(thing: Any) -> Any:
        return thing.__dict__.get(attribute, ABSENT)

    def put(thing: Any, value: Any) -> None:
        if value is ABSENT:
            thing.__dict__.pop(attribute, None)
        else:
            thing.__dict__[attribute] = value

    return get, put


def _in_slot(slot: MemberDescriptorType) -> tuple[Get, Put]:
    def get(thing: Any) -> Any:
        try:
            return slot.__get__(thing)
        except AttributeError:
            return ABSENT

    def put(thing: Any, value: Any) -> None:
        if value is ABSENT:
            slot.__delete__(thing)
        else:
            slot.__set__(thing, value)

    return get, put


def attributes(thing: Any, of: type) -> list[str]:
    """The names of the attributes that an object of a class has now."""
    names = list(getattr(thing, "__dict__", ()))
    for each in of.__mro__:
        slots = vars(each).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [
        name
        for name in names
        if not name.startswith("__") and access(of, name)[0](thing) is not ABSENT
    ]
