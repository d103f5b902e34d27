"""References to secrets, ``${secret:NAME}``, and how they are filled in. Pure: no I/O, and no value is kept here.

A reference is all that a config, a record or a message ever holds; the agent puts the value in when it submits. It may
stand anywhere in a text, ``"Bearer ${secret:HF_TOKEN}"``. ``${secret:NAME#key}`` means one key of a secret that is a
JSON object. A dollar sign before one is doubled: ``$${secret:NAME}`` is the text ``${secret:NAME}``, no reference.

The macros of :mod:`launch.resolve`, ``${run_id}``, hold no colon: neither syntax matches the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launch.errors import ConfigError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]{0,254}(#[A-Za-z0-9_.-]{1,128})?")
_MEANING = "a letter or '_', then letters, digits, '_', '.', '/' and '-', and perhaps '#' and a key"
_REFERENCE = re.compile(r"(\$+)\{secret:([^{}]*)(\}?)")


def check_name(name: str) -> str:
    """Return the name of a secret, ``NAME`` or ``NAME#key``.

    Raises:
        ConfigError: it cannot be one.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"secret {name!r}: a secret's name is {_MEANING}")
    return name


def references(value: Any) -> frozenset[str]:
    """Return the names of the secrets that a value of JSON's types refers to, however deep; keys are not looked at.

    Raises:
        ConfigError: something begins like a reference and is none.
    """
    return frozenset(name for text in _texts(value) for name in _names(text))


def foreign_references(own: Mapping[str, Any], effective: Mapping[str, Any]) -> frozenset[str]:
    """Return the names that a launch has brought into a config: those that its queue does not have in the same place.

    Args:
        own: the queue's own config.
        effective: with what the launch made of it.
    """
    return frozenset(_foreign(own, effective))


def _foreign(own: Any, effective: Any) -> Iterator[str]:
    if isinstance(effective, Mapping):
        for key, value in effective.items():
            yield from _foreign(own.get(key) if isinstance(own, Mapping) else None, value)
    elif effective != own:
        yield from references(effective) - references(own)


def check_references(value: Any, *, where: str) -> None:
    """Raise a ConfigError, with its path, if something in a value begins like a reference and is none."""
    try:
        references(value)
    except ConfigError as exc:
        raise ConfigError(f"{where}: {exc}") from None


def render(value: Any, get: Callable[[str], str], *, rest: Callable[[str], str] = str) -> tuple[Any, frozenset[str]]:
    """Return the value with every reference filled in, and the values that were put in.

    What a secret contains is text, whatever it looks like: neither references nor macros in it mean anything.

    Args:
        value: of JSON's types.
        get: returns the secret of a name, ``NAME`` or ``NAME#key``.
        rest: what becomes of the texts around the references; by default they stay.

    Raises:
        ConfigError: something begins like a reference and is none.
    """
    used: set[str] = set()

    def fill(name: str) -> str:
        used.add(secret := get(name))
        return secret

    return _rendered(value, fill, rest), frozenset(used)


def _rendered(value: Any, fill: Callable[[str], str], rest: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return "".join(fill(text) if is_name else rest(text) for text, is_name in _parts(value))
    if isinstance(value, Mapping):
        return {key: _rendered(item, fill, rest) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rendered(item, fill, rest) for item in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _names(text: str) -> Iterator[str]:
    return (part for part, is_name in _parts(text) if is_name)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield ``(text, False)`` and ``(name, True)`` in their order."""
    plain, end = "", 0
    for found in _REFERENCE.finditer(text):
        dollars, inner, closing = found.groups()
        plain += text[end : found.start()] + "$" * (len(dollars) // 2)
        end = found.end()
        if len(dollars) % 2 == 0:
            plain += found[0][len(dollars) :]
            continue
        if not closing or _NAME.fullmatch(inner) is None:
            raise ConfigError(
                f"{found[0]!r} is no reference to a secret: write ${{secret:NAME}}, the name being {_MEANING}; "
                "write $$ for $ where it is meant as text"
            )
        yield plain, False
        yield inner, True
        plain = ""
    yield plain + text[end:], False
