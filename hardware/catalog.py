"""The catalog: records read from TOML files, the rules between them, and how to look them up.

The packaged files write what is long in single quotes: Python's TOML reader takes such a text whole, and one in double
quotes letter by letter, and every command loads the catalog.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from hardware.errors import first_error, shown, shown_path, unknown_name
from hardware.files import read_regular_file
from hardware.models import MOST_DEVICES, Accelerator, Flavor, Instance, Node, Price
from hardware.named import spelt_out, spelt_out_names
from hardware.units import MIB

Entry = Accelerator | Node | Flavor | Instance | Price
EntryT = TypeVar("EntryT", Accelerator, Node)
RecordT = TypeVar("RecordT", Instance, Price)

_TABLES: dict[str, type[Entry]] = {
    "accelerator": Accelerator,
    "node": Node,
    "flavor": Flavor,
    "instance": Instance,
    "price": Price,
}
"""Tables of a catalog file; a record may refer to those of the tables before its own."""

_DATA = resources.files("hardware") / "data"

MOST_FILE_BYTES = 8 * MIB
"""A larger catalog file is a mistake.  # assumed: seventy times the packaged files together"""

_SEVERAL = re.compile(r"(.+)-x([1-9][0-9]{0,6})", re.DOTALL)
"""A name, and how many of it."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Accelerators, nodes, flavors, cloud instances and prices, in the order of their files."""

    accelerators: tuple[Accelerator, ...] = ()
    nodes: tuple[Node, ...] = ()
    flavors: tuple[Flavor, ...] = ()
    instances: Sequence[Instance] = ()
    prices: Sequence[Price] = ()

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
        """Return the node of an id; a cloud instance is one, by its own `node_id`.

        >>> load_catalog().node("p4d-24xlarge").network.bytes_per_s * 8 / 1e9  # Gb/s
        400.0
        """
        nodes = {record.id: record for record in self.nodes}
        if name.casefold() in nodes:
            return nodes[name.casefold()]
        for instance in self.instances:
            if instance.node_id == name.casefold():
                return instance.as_node(nodes[instance.node])
        return _named("node", name, nodes)

    def flavor(self, name: str) -> Flavor:
        """Return the flavor of an id or of another spelling; of a cloud instance, or a node, `-xN` for N of them.

        `ID-N` is N devices of an accelerator, as `flavor_of` names them.

        >>> load_catalog().flavor("4xlarge").id
        '4xLarge.2048GB'
        >>> [load_catalog().flavor(name).num_devices for name in ("P5.48xlarge-x4", "h100-sxm-80gb-8")]
        [32, 8]
        """
        flavors = {spelling.casefold(): flavor for flavor in self.flavors for spelling in (flavor.id, *flavor.aliases)}
        if found := flavors.get(name.casefold()) or self._machines(name, 1):
            return found
        if (several := _SEVERAL.fullmatch(name)) and (found := self._machines(several[1], int(several[2]))):
            return found
        accelerator, _, count = name.casefold().rpartition("-")
        if count.isdecimal() and accelerator in {record.id for record in self.accelerators}:
            return self.flavor_of(accelerator, int(count[:12]))
        machines = {spelling: record.id for record in self.instances for spelling in (record.id, *record.aliases)}
        aliases = {alias: record.id for record in self.flavors for alias in record.aliases}
        nodes = {node.id: node.id for node in self.nodes}
        raise ValueError(unknown_name("flavor", name, [f.id for f in self.flavors], nodes | machines | aliases))

    def _machines(self, name: str, num_nodes: int) -> Flavor | None:
        """Return so many of a node, or of a cloud instance, as a flavor; None where no machine has the name."""
        folded = name.casefold()
        for node in self.nodes:
            if folded == node.id:
                _refuse_too_many(num_nodes * node.num_devices)
                return node.flavor(num_nodes * node.num_devices, _several(node.id, num_nodes))
        for instance in self.instances:
            if folded in (instance.id.casefold(), *map(str.casefold, instance.aliases)):
                _refuse_too_many(num_nodes * instance.num_devices)
                return instance.flavor(num_nodes, _several(instance.id, num_nodes))
        return None

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
        _refuse_too_many(num_devices)
        return node.flavor(num_devices)

    def latest_prices(self, accelerator: str, provider: str | None = None) -> tuple[Price, ...]:
        """Return the latest price of an accelerator from each provider and market.

        Of one provider, those that it asks, where it asks any; else of all.
        """
        wanted = self.accelerator(accelerator).id
        latest: dict[tuple[str, str], Price] = {}
        for price in self.prices:
            key = (price.provider, price.market)
            if price.accelerator == wanted and (key not in latest or price.on >= latest[key].on):
                latest[key] = price
        own = tuple(price for price in latest.values() if price.provider == provider)
        return own or tuple(latest.values())

    def with_file(self, path: Path) -> "Catalog":
        """Return this catalog with the records of one more file.

        Raises:
            ValueError: it cannot be read, or a record breaks a rule; one line that names the file and the record.
        """
        draft = _Draft(self)
        _add_file(draft, path, shown_path(path))
        return draft.catalog()

    def adding(self, record: Entry) -> "Catalog":
        """Return this catalog with one more record, which keeps the rules between records."""
        draft = _Draft(self)
        draft.add(record)
        return draft.catalog()


class _Packaged(Sequence[RecordT]):
    """Packaged records that are read when they are first asked for: few commands name an instance, or cost anything."""

    def __init__(self, read: Callable[[], Sequence[RecordT]]) -> None:
        self._read: Callable[[], Sequence[RecordT]] = read

    @cached_property
    def _records(self) -> tuple[RecordT, ...]:
        return tuple(self._read())

    @overload
    def __getitem__(self, index: int) -> RecordT: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[RecordT, ...]: ...
    def __getitem__(self, index: int | slice) -> RecordT | tuple[RecordT, ...]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._records == tuple(other)

    def __hash__(self) -> int:
        return hash(self._records)


class _Draft:
    """A catalog in the making: each record that is added keeps the rules between records."""

    def __init__(self, catalog: Catalog) -> None:
        self.accelerators = {record.id: record for record in catalog.accelerators}
        self.nodes = {record.id: record for record in catalog.nodes}
        self.flavors, self.instances = list(catalog.flavors), list(catalog.instances)
        self.prices = list(catalog.prices)
        self._before = catalog
        self._accelerator_ids = set(self.accelerators)
        self._driver_names = {name.casefold() for record in catalog.accelerators for name in record.driver_names}
        rented: list[Flavor | Instance] = [*catalog.flavors, *catalog.instances]
        self._names = {name.casefold() for record in rented for name in (record.id, *record.aliases)} | set(self.nodes)

    def add(self, record: Entry) -> None:
        """Take in a record; one that an earlier file has as it is, such as the same file, changes nothing."""
        if any(record is known or record == known for known in self._earlier(record)):
            return
        match record:
            case Accelerator():
                _take([record.id], self._accelerator_ids)
                _take(record.driver_names, self._driver_names)
                self.accelerators[record.id] = record
            case Node():
                _take([record.id], self._names)
                _named("accelerator", record.accelerator, self.accelerators)
                self.nodes[record.id] = record
            case Flavor():
                _take([record.id, *record.aliases], self._names)
                _refuse_misfit(record, self._node(record.node))
                self.flavors.append(record)
            case Instance():
                _take([record.id, *record.aliases], self._names)
                _refuse_more_than(self._node(record.node), record.num_devices)
                self.instances.append(record)
            case Price():
                _named("accelerator", record.accelerator, self.accelerators)
                self.prices.append(record)

    def begin_file(self) -> None:
        """Take what is there from here on as of earlier files."""
        self._before = self.catalog()

    def _earlier(self, record: Entry) -> Iterator[Entry]:
        """Yield the records of earlier files that may be this one."""
        match record:
            case Price():
                yield from (one for one in self._before.prices if one.accelerator == record.accelerator)
            case Flavor():
                yield from (one for one in self._before.flavors if one.id == record.id)
            case Instance():
                yield from (one for one in self._before.instances if one.id == record.id)
            case Node():
                yield from (one for one in self._before.nodes if one.id == record.id)
            case Accelerator():
                yield from (one for one in self._before.accelerators if one.id == record.id)

    def _node(self, name: str) -> Node:
        return self.nodes[name] if name in self.nodes else self.catalog().node(name)

    def catalog(self) -> Catalog:
        return Catalog(
            tuple(self.accelerators.values()),
            tuple(self.nodes.values()),
            tuple(self.flavors),
            tuple(self.instances),
            tuple(self.prices),
        )


def load_catalog(extra: Sequence[Path] = ()) -> Catalog:
    """Return the packaged catalog, with the records that user files add.

    Raises:
        ValueError: a file cannot be read, or a record breaks a rule; one line that names the file and the record.

    >>> load_catalog().accelerator("mi250").num_compute_units
    104
    """
    catalog = Catalog()
    for name in ("accelerators.toml", "nodes.toml", "flavors.toml"):
        catalog = _with_packaged(catalog, name)
    instances = _Packaged(lambda: _with_packaged(catalog, "instances.toml").instances)
    prices = _Packaged(lambda: _with_packaged(catalog, "prices.toml").prices)
    known = replace(catalog, instances=instances, prices=prices)
    if not extra:
        return known
    draft = _Draft(known)
    for path in extra:
        _add_file(draft, path, shown_path(path))
    return draft.catalog()


def catalog_template() -> str:
    """Return a catalog file with an accelerator, a node and a flavor, to be filled in.

    As it is, it does not load: the first of what is still to be filled in is the error.
    """
    return (_DATA / "template.toml").read_text(encoding="utf-8")


def _with_packaged(catalog: Catalog, name: str) -> Catalog:
    draft = _Draft(catalog)
    _add_file(draft, _DATA / name, name)
    return draft.catalog()


def _add_file(draft: _Draft, path: Traversable, file: str) -> None:
    document = _read(path, file)
    draft.begin_file()
    named = spelt_out_names(document.pop("named", {}), file)
    for key in document:
        if key not in _TABLES:
            raise ValueError(f"{file}: {unknown_name('table', key, [*_TABLES, 'named'])}")
    for table, model in _TABLES.items():
        rows = document.get(table, [])
        if not isinstance(rows, list):
            what = f"{file}: {table} is not an array of tables; write [[{table}]]"
            raise ValueError(what)
        for index, row in enumerate(rows, start=1):
            _add_row(draft, model, row, named, f"{file}: {table} {_label(row, index)}")


def _add_row(draft: _Draft, model: type[Entry], row: object, named: dict[str, Any], where: str) -> None:
    try:
        draft.add(model.model_validate(spelt_out(row, named) if named else row))
    except ValidationError as error:
        raise ValueError(f"{where}: {first_error(error)}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: its tables are nested too deep; write the fields of this record") from error


def _label(row: object, index: int) -> str:
    name = row.get("id") if isinstance(row, dict) else None
    return shown(name) if isinstance(name, str) else str(index)


def _read(path: Traversable, file: str) -> dict[str, Any]:
    try:
        content = read_regular_file(path, MOST_FILE_BYTES) if isinstance(path, Path) else path.read_bytes()
        text = content.decode("utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text; save it as UTF-8") from error
    except OSError as error:  # no permission, a name too long
        raise ValueError(f"{file}: cannot be read as a file; give a readable TOML file") from error
    try:
        return tomllib.loads(text)
    except (RecursionError, ValueError) as error:  # nested, or a number, too far for the reader
        raise ValueError(f"{file}: not valid TOML: {shown(str(error), 200)}; correct it there") from error


def _named(kind: str, name: str, records: Mapping[str, EntryT]) -> EntryT:
    if found := records.get(name) or records.get(name.casefold()):  # an id is in lower case
        return found
    raise ValueError(unknown_name(kind, name, records))


def _take(names: Iterable[str], taken: set[str]) -> None:
    """Take names that are neither taken nor twice among them."""
    for name in names:
        if name.casefold() in taken:
            raise ValueError(f"the name {shown(name)} is taken; choose another")
        taken.add(name.casefold())


def _several(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-x{number}"


def _refuse_misfit(flavor: Flavor, node: Node) -> None:
    most = flavor.num_nodes * node.num_devices
    if not most - node.num_devices < flavor.num_devices <= most:
        raise ValueError(
            f"num_devices: {flavor.num_devices} do not fit {flavor.num_nodes} nodes of {node.num_devices}; "
            f"set num_nodes = {-(-flavor.num_devices // node.num_devices)}"
        )


def _refuse_more_than(node: Node, num_devices: int) -> None:
    if num_devices > node.num_devices:
        raise ValueError(
            f"num_devices: {num_devices} are more than the {node.num_devices} of {node.id}; name a larger node"
        )


def _refuse_too_many(num_devices: int) -> None:
    if not 1 <= num_devices <= MOST_DEVICES:
        raise ValueError(f"num_devices={shown(num_devices)}: not a number of devices; use 1 to {MOST_DEVICES}")
