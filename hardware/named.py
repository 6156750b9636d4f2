"""What a catalog file names once, in its [named], and its records use."""

from typing import Any

from hardware.errors import shown, unknown_name

_OF_TABLES = ("source", "sources", "efficiency", "matmul_efficiency", "hbm_efficiency", "links", "network", "host")
"""Fields whose values are tables, which a file may give by their names in its [named]."""

MOST_NAMED_PARTS = 200
"""Values of what a file names.  # assumed: ten times those of a link"""


def spelt_out_names(named: object, file: str) -> dict[str, Any]:
    """Return what a file names, itself spelt out: a name may use those above it."""
    if not isinstance(named, dict):
        raise ValueError(f"{file}: named is not a table; write [named]")
    spelt: dict[str, Any] = {}
    for name, value in named.items():
        try:
            spelt[name] = spelt_out(value, spelt, "sources")
            _refuse_large(spelt[name])
        except (RecursionError, ValueError) as error:
            what = str(error) if isinstance(error, ValueError) else "its tables are nested too deep; write one"
            raise ValueError(f"{file}: named {shown(name)}: {what}") from error
    return spelt


def _refuse_large(value: object) -> None:
    """Refuse what names that double what they name would make without end."""
    parts = [value]
    for part in parts:
        parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        if len(parts) > MOST_NAMED_PARTS:
            raise ValueError(f"holds more than {MOST_NAMED_PARTS} values; name its parts")


def spelt_out(value: Any, named: dict[str, Any], key: str = "") -> Any:
    """Return a record's values, each name of what several records share replaced by what the file's [named] has."""
    if isinstance(value, dict):
        return {inner: spelt_out(item, named, inner) if inner in _OF_TABLES else item for inner, item in value.items()}
    if isinstance(value, list):
        return [spelt_out(item, named, key) for item in value]
    if not isinstance(value, str):
        return value
    if value not in named:
        if key in ("source", "sources"):  # a page itself
            return value
        if not named:
            raise ValueError(f"{key}: {shown(value)} is not named above this; name it in [named] first")
        raise ValueError(f"{key}: {unknown_name('name of [named]', value, named)}")
    return named[value]
