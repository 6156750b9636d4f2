import re
from pathlib import Path

import pytest

from hardware.catalog import Catalog, catalog_template, load_catalog

FILLED = {
    "sheet": '"2026-01-15 https://example.com/sheet the data sheet"',
    "id": {"accelerator": '"my-chip"', "node": '"my-chip-x4"', "flavor": '"mine"'},
    "hbm_bytes": '"96 GB"',
    "hbm_bytes_per_s": '"4 TB/s"',
    "bf16_flop_per_s": '"700 TFLOP/s"',
    "fp32_flop_per_s": '"60 TFLOP/s"',
    "num_compute_units": "120",
    "tdp_w": '"600 W"',
    "accelerator": '"my-chip"',
    "node": '"my-chip-x4"',
    "num_devices": "4",
    "num_nodes": "1",
}


def filled(text: str) -> str:
    """Return the template with a chip of its own."""
    kind, lines = "", []
    for line in text.split("\n"):
        kind = line.strip("[]") if line.startswith("[[") else kind
        key = line.partition(" = ")[0]
        value = FILLED.get(key)
        value = value[kind] if isinstance(value, dict) else value
        told = re.sub(r'= ("\.\.\."|0(?= |$))', lambda _, v=value: f"= {v}", line) if value else line
        told = told.replace("value = 0.0", "value = 0.8").replace("span = 0", "span = 4")
        lines.append(told.replace('bytes_per_s = "..."', 'bytes_per_s = "400 GB/s"'))
    return "\n".join(lines)


def load(folder: Path, text: str) -> Catalog:
    """Return the catalog with a file of this text."""
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_catalog([path])


def test_a_template_that_is_filled_in_loads(tmp_path: Path) -> None:
    """Filled in, it is an accelerator, a node and a flavor of the catalog."""
    catalog = load(tmp_path, filled(catalog_template()))
    flavor = catalog.flavor("mine")
    assert (flavor.num_devices, catalog.node(flavor.node).accelerator) == (4, "my-chip")
    assert catalog.accelerator("my-chip").hbm_bytes == 96e9


def test_what_is_not_filled_in_is_one_line(tmp_path: Path) -> None:
    """As it is printed it does not load, nor with a line of it left as it is; the error is one line."""
    with pytest.raises(ValueError, match=r"mine\.toml: accelerator '\.\.\.': "):
        load(tmp_path, catalog_template())
    for key in ("hbm_bytes", "num_compute_units", "tdp_w", "bf16_flop_per_s"):
        whole, empty = (
            re.search(rf"^{key} = .*$", text, re.MULTILINE) for text in (filled(catalog_template()), catalog_template())
        )
        assert whole is not None
        assert empty is not None
        with pytest.raises(ValueError, match=rf"accelerator 'my-chip': {key}: ") as error:
            load(tmp_path, filled(catalog_template()).replace(whole[0], empty[0]))
        assert str(error.value).isprintable()


def test_optional_lines_load_too(tmp_path: Path) -> None:
    """The lines that are comments, taken in and filled in, are a host and a price."""
    text = filled(catalog_template().replace("# host = ", "host = "))
    price = re.sub(r"^# ", "", text[text.index("# [[price]]") :], flags=re.MULTILINE).replace("0.0", "2.5")
    price = price.replace('accelerator = "..."', 'accelerator = "my-chip"')
    catalog = load(tmp_path, text + price)
    host = catalog.node("my-chip-x4").host
    assert host is not None
    assert host.memory_bytes == 2**40
    assert catalog.latest_prices("my-chip")[0].usd_per_device_h == 2.5
