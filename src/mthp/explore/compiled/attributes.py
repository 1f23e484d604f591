# SPDX-License-Identifier: GPL-2.0-or-later
"""How attributes are got at past whatever watches them."""

from __future__ import annotations

from collections.abc import Callable
from types import MemberDescriptorType
from typing import Any

from mthp.explore.compiled.containers import ABSENT, Unrecordable


def put_as(put: Callable[[Any, str, Any], None], attribute: str, thing: Any, value: Any) -> None:
    """Put an attribute back: its name comes first, as journals want it."""
    put(thing, attribute, value)


def refuse_deletion(thing: Any, attribute: str) -> None:
    """For classes whose objects are recorded."""
    raise Unrecordable(f"{type(thing).__name__}.{attribute} is deleted")


def is_frozen(of: type) -> bool:
    """Of a dataclass: whether its objects are values."""
    return bool(of.__dataclass_params__.frozen)  # type: ignore[attr-defined]


Get = Callable[[Any, str], Any]
Put = Callable[[Any, str, Any], None]


def _get_from_dict(thing: Any, attribute: str) -> Any:
    return thing.__dict__.get(attribute, ABSENT)


def _put_in_dict(thing: Any, attribute: str, value: Any) -> None:
    if value is ABSENT:
        thing.__dict__.pop(attribute, None)
    else:
        thing.__dict__[attribute] = value


def _slot_access(member: MemberDescriptorType) -> tuple[Get, Put]:
    def get(thing: Any, _: str) -> Any:
        try:
            return member.__get__(thing)
        except AttributeError:
            return ABSENT

    def put(thing: Any, _: str, value: Any) -> None:
        if value is ABSENT:
            member.__delete__(thing)
        else:
            member.__set__(thing, value)

    return get, put


_ACCESS: dict[tuple[type, str], tuple[Get, Put]] = {}


def access(of: type, attribute: str) -> tuple[Get, Put]:
    """How an attribute of the class's objects is got at, past anything that records."""
    found = _ACCESS.get((of, attribute))
    if found is None:
        found = _get_from_dict, _put_in_dict
        for each in of.__mro__:
            member = vars(each).get(attribute)
            if isinstance(member, MemberDescriptorType):
                found = _slot_access(member)
                break
        _ACCESS[of, attribute] = found
    return found


def attributes(thing: Any, recorded: type) -> list[tuple[str, Get, Put]]:
    """The attributes a thing has now."""
    of = recorded.__mro__[1]
    names = list(getattr(thing, "__dict__", ()))
    for each in of.__mro__:
        slots = vars(each).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return [
        (name, *access(of, name))
        for name in names
        if not name.startswith("__") and access(of, name)[0](thing, name) is not ABSENT
    ]
