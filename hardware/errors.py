"""How an error reads: what was given, which rule it breaks, the mend; one line of ASCII, whatever was given."""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from pydantic import ValidationError

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_PLAIN = re.compile(r"\w{1,40}", re.ASCII)


def shown(value: object, length: int = 60) -> str:
    r"""Return a value as Python writes it, in ASCII, shortened to a length.

    >>> print(shown("two\nlines"))
    'two\nlines'
    """
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # tables thousands deep, integers of thousands of digits
        return f"<{type(value).__name__} too long to show>"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def shown_path(path: PurePath) -> str:
    """Return a path as it is where it is one line of ASCII, else as Python writes it."""
    name = str(path)
    return name if name.isascii() and name.isprintable() else shown(name)


def unknown_name(kind: str, name: str, known: Iterable[str], other_spellings: Mapping[str, str] | None = None) -> str:
    """Return the error of a name that is not among the known ones; `other_spellings` maps to the known ones.

    >>> unknown_name("flavor", "5xLarge", ["2xLarge", "4xLarge", "6xLarge"])
    "unknown flavor '5xLarge': did you mean 4xLarge or 6xLarge?"
    >>> unknown_name("flavor", "zzz", ["2xLarge", "4xLarge"])
    "unknown flavor 'zzz': use one of 2xLarge, 4xLarge"
    """
    canonical = {spelling: spelling for spelling in known}
    spellings = canonical | dict(other_spellings or {})
    near = list(dict.fromkeys(spellings[spelling] for spelling in _near(name, spellings)))
    mend = f"did you mean {' or '.join(near[:2])}?" if near else f"use one of {', '.join(canonical)}"
    return f"unknown {kind} {shown(name)}: {mend}"


def first_error(error: ValidationError) -> str:
    """Return the first thing that a record's validation refused, as `field: what is wrong; the mend`."""
    first = error.errors(include_url=False)[0]
    field = ".".join(part if _PLAIN.fullmatch(part) else shown(part) for part in map(str, first["loc"]))
    match first["type"]:
        case "value_error":
            what = str(first["ctx"]["error"])
        case "missing":
            what = "is missing; add it"
        case "extra_forbidden":
            what = "is not a field of this record; remove it or correct its name"
        case "model_type":
            what = f"{shown(first['input'])} is not a table; write the fields of this record"
        case _:
            what = f"{shown(first['input'])} does not fit; {first['msg'][0].lower()}{first['msg'][1:]}"
    return f"{field}: {what}" if field else what


def _near(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that `name` may have meant, nearest first.

    Those that begin with it; else those that differ only in their numbers ("5xLarge" is next to "4xLarge"); else those
    spelt alike.
    """
    from difflib import get_close_matches  # noqa: PLC0415 - only a misspelling needs it

    given = name[:60].casefold()
    folded = {spelling.casefold(): spelling for spelling in known}
    begun = [spelling for spelling in folded if given and spelling.startswith(given)]
    alike = [spelling for spelling in folded if _NUMBER.sub("#", spelling) == _NUMBER.sub("#", given)]
    alike.sort(key=lambda spelling: _number_distance(spelling, given))
    return [folded[spelling] for spelling in begun or alike or get_close_matches(given, folded)]


def _number_distance(first: str, second: str) -> float:
    pairs = zip(_NUMBER.findall(first), _NUMBER.findall(second), strict=True)
    return sum(abs(float(a) - float(b)) for a, b in pairs)
