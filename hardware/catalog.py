"""The catalog: records read from TOML files, the rules between them, and how to look them up."""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from hardware.errors import first_error, shown, shown_path, unknown_name
from hardware.models import MOST_DEVICES, Accelerator, Flavor, Node, Price

Entry = Accelerator | Node | Flavor | Price
EntryT = TypeVar("EntryT", Accelerator, Node, Flavor)

_TABLES: dict[str, type[Entry]] = {"accelerator": Accelerator, "node": Node, "flavor": Flavor, "price": Price}
"""Tables of a catalog file; a record may refer to those of the tables before its own."""

_PACKAGED = ("accelerators.toml", "nodes.toml", "flavors.toml", "prices.toml")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Accelerators, nodes, flavors and prices, in the order of their files."""

    accelerators: tuple[Accelerator, ...] = ()
    nodes: tuple[Node, ...] = ()
    flavors: tuple[Flavor, ...] = ()
    prices: tuple[Price, ...] = ()

    def accelerator(self, name: str) -> Accelerator:
        """Return the accelerator of an id."""
        return _named("accelerator", name, {record.id: record for record in self.accelerators})

    def accelerator_named(self, driver_name: str) -> Accelerator:
        """Return the accelerator that a driver calls by a name.

        >>> load_catalog().accelerator_named("NVIDIA H100 80GB HBM3").id
        'h100-sxm-80gb'
        """
        for record in self.accelerators:
            if driver_name.casefold() in map(str.casefold, record.driver_names):
                return record
        raise ValueError(
            f"device {shown(driver_name)}: no accelerator of the catalog has this name; "
            "add an [[accelerator]] with it in driver_names to a --catalog FILE"
        )

    def node(self, name: str) -> Node:
        """Return the node of an id."""
        return _named("node", name, {record.id: record for record in self.nodes})

    def flavor(self, name: str) -> Flavor:
        """Return the flavor of an id or of another spelling.

        >>> load_catalog().flavor("4xlarge").id
        '4xLarge.2048GB'
        """
        aliases = {alias: record.id for record in self.flavors for alias in record.aliases}
        return _named("flavor", name, {record.id: record for record in self.flavors}, aliases)

    def node_of(self, accelerator: str) -> Node:
        """Return the first node that carries an accelerator."""
        wanted = self.accelerator(accelerator).id
        for node in self.nodes:
            if node.accelerator == wanted:
                return node
        raise ValueError(f"accelerator {shown(wanted)}: no node carries it; add a [[node]] to a catalog file")

    def flavor_of(self, accelerator: str, num_devices: int) -> Flavor:
        """Return a flavor of so many devices of an accelerator, on as few of its nodes as hold them.

        >>> load_catalog().flavor_of("mi300x", 12).num_nodes
        2
        """
        node = self.node_of(accelerator)
        if not 1 <= num_devices <= MOST_DEVICES:
            raise ValueError(f"num_devices={shown(num_devices)}: not a number of devices; use 1 to {MOST_DEVICES}")
        return Flavor(
            id=f"{node.accelerator}-{num_devices}",
            node=node.id,
            num_devices=num_devices,
            num_nodes=-(-num_devices // node.num_devices),
            sources=node.sources,
        )

    def latest_prices(self, accelerator: str) -> tuple[Price, ...]:
        """Return the latest price of an accelerator from each provider and market."""
        wanted = self.accelerator(accelerator).id
        latest: dict[tuple[str, str], Price] = {}
        for price in self.prices:
            key = (price.provider, price.market)
            if price.accelerator == wanted and (key not in latest or price.on >= latest[key].on):
                latest[key] = price
        return tuple(latest.values())

    def with_file(self, path: Path) -> "Catalog":
        """Return this catalog with the records of one more file.

        Raises:
            ValueError: it cannot be read, or a record breaks a rule; one line that names the file and the record.
        """
        return _with_file(self, path, shown_path(path))

    def adding(self, record: Entry) -> Self:
        """Return this catalog with one more record, which keeps the rules between records."""
        match record:
            case Accelerator():
                _refuse_taken([record.id], (other.id for other in self.accelerators))
                _refuse_taken(record.driver_names, (name for other in self.accelerators for name in other.driver_names))
                return replace(self, accelerators=(*self.accelerators, record))
            case Node():
                _refuse_taken([record.id], (other.id for other in self.nodes))
                self.accelerator(record.accelerator)
                return replace(self, nodes=(*self.nodes, record))
            case Flavor():
                taken = (name for other in self.flavors for name in (other.id, *other.aliases))
                _refuse_taken([record.id, *record.aliases], taken)
                _refuse_misfit(record, self.node(record.node))
                return replace(self, flavors=(*self.flavors, record))
            case Price():
                self.accelerator(record.accelerator)
                return replace(self, prices=(*self.prices, record))


def load_catalog(extra: Sequence[Path] = ()) -> Catalog:
    """Return the packaged catalog, with the records that user files add.

    Raises:
        ValueError: a file cannot be read, or a record breaks a rule; one line that names the file and the record.

    >>> load_catalog().accelerator("mi250").num_compute_units
    104
    """
    data = resources.files("hardware") / "data"
    catalog = Catalog()
    for name in _PACKAGED:
        catalog = _with_file(catalog, data / name, name)
    for path in extra:
        catalog = catalog.with_file(path)
    return catalog


def _with_file(catalog: Catalog, path: Traversable, file: str) -> Catalog:
    document = _read(path, file)
    for key in document:
        if key not in _TABLES:
            raise ValueError(f"{file}: {unknown_name('table', key, _TABLES)}")
    for table, model in _TABLES.items():
        rows = document.get(table, [])
        if not isinstance(rows, list):
            what = f"{file}: {table} is not an array of tables; write [[{table}]]"
            raise ValueError(what)
        for index, row in enumerate(rows, start=1):
            catalog = _with_row(catalog, model, row, f"{file}: {table} {_label(row, index)}")
    return catalog


def _with_row(catalog: Catalog, model: type[Entry], row: object, where: str) -> Catalog:
    try:
        return catalog.adding(model.model_validate(row))
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _label(row: object, index: int) -> str:
    name = row.get("id") if isinstance(row, dict) else None
    return shown(name) if isinstance(name, str) else str(index)


def _read(path: Traversable, file: str) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except (OSError, ValueError) as error:  # a folder, no permission, no path at all
        raise ValueError(f"{file}: cannot be read as a file; give a readable TOML file") from error
    try:
        return tomllib.loads(text)
    except (RecursionError, ValueError) as error:  # nested, or a number, too far for the reader
        raise ValueError(f"{file}: not valid TOML: {shown(str(error), 200)}; correct it there") from error


def _named(kind: str, name: str, records: dict[str, EntryT], aliases: dict[str, str] | None = None) -> EntryT:
    spellings = {spelling: spelling for spelling in records} | (aliases or {})
    folded = {spelling.casefold(): canonical for spelling, canonical in spellings.items()}
    if name.casefold() in folded:
        return records[folded[name.casefold()]]
    raise ValueError(unknown_name(kind, name, records, aliases))


def _refuse_taken(names: Iterable[str], taken: Iterable[str]) -> None:
    seen = {name.casefold() for name in taken}
    for name in names:
        if name.casefold() in seen:
            raise ValueError(f"the name {shown(name)} is taken; choose another")
        seen.add(name.casefold())


def _refuse_misfit(flavor: Flavor, node: Node) -> None:
    most = flavor.num_nodes * node.num_devices
    if not most - node.num_devices < flavor.num_devices <= most:
        raise ValueError(
            f"num_devices: {flavor.num_devices} do not fit {flavor.num_nodes} nodes of {node.num_devices}; "
            f"set num_nodes = {-(-flavor.num_devices // node.num_devices)}"
        )
