import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hardware.catalog import load_catalog
from hardware.models import Accelerator, Flavor, Instance, Node, Price
from hardware.toml_text import catalog_text, toml_value

CATALOG = load_catalog()

plain = (
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.dates()
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
)
names = st.text("abc_-1", min_size=1)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def listed(value: Any) -> Any:
    """Return a value with lists for tuples, as a TOML reader has them, and numbers of six digits."""
    if isinstance(value, tuple):
        return [listed(item) for item in value]
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


@given(value=values)
def test_what_is_written_is_read(value: Any) -> None:
    """A TOML reader finds the value that was written, whatever its text holds, up to the sixth digit of numbers."""
    assert tomllib.loads(f"value = {toml_value(value)}") == {"value": listed(value)}


def test_the_packaged_catalog_survives_its_text() -> None:
    """Every record of the packaged catalog, written and read again, is the same up to its sixth digit."""
    models = {"accelerator": Accelerator, "node": Node, "flavor": Flavor, "instance": Instance, "price": Price}
    records = (*CATALOG.accelerators, *CATALOG.nodes, *CATALOG.flavors, *CATALOG.instances, *CATALOG.prices)
    document = tomllib.loads(catalog_text(records))
    read = [models[table].model_validate(row) for table, rows in document.items() for row in rows]
    assert [listed(record.model_dump()) for record in read] == [listed(record.model_dump()) for record in records]
