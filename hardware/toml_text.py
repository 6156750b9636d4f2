"""TOML as this project writes it: a table a block, and the records of a catalog as its files hold them."""

import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from hardware.models import Accelerator, Flavor, Instance, Node, Price

_TABLES: dict[type, str] = {
    Accelerator: "accelerator",
    Node: "node",
    Flavor: "flavor",
    Instance: "instance",
    Price: "price",
}


def catalog_text(records: Iterable[Accelerator | Node | Flavor | Instance | Price]) -> str:
    """Return records as a catalog file holds them; the texts of several, one after another, are one file.

    Fields that keep their default are left out, numbers have six digits. Ends in an empty line.
    """
    return "".join(map(_block, records))


def _block(record: Accelerator | Node | Flavor | Instance | Price) -> str:
    values = record.model_dump(exclude_defaults=True)
    lines = [f"[[{_TABLES[type(record)]}]]", *(f"{key} = {toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n\n"


def toml_value(value: Any) -> str:
    r"""Return a value as TOML; numbers are cut to six digits, and an array of arrays or tables takes a line per item.

    >>> toml_value((1 / 3, 2))
    '[0.333333, 2]'
    >>> print(toml_value({"note": 'a "pair"', "checked": date(2026, 1, 15)}))
    { note = "a \"pair\"", checked = 2026-01-15 }
    """
    match value:
        case float():
            return repr(float(f"{value:.6g}"))
        case date():
            return value.isoformat()
        case Mapping():
            return f"{{ {', '.join(f'{key} = {toml_value(item)}' for key, item in value.items())} }}"
        case tuple():
            rows = [toml_value(item) for item in value]
            nested = any(isinstance(item, tuple | Mapping) for item in value)
            return "[\n  " + ",\n  ".join(rows) + ",\n]" if nested else "[" + ", ".join(rows) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")  # JSON leaves it; TOML wants it escaped
