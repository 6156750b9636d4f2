"""The forms of tables of microbenchmarks: kernels and collectives, each beside its prediction.

Each is predicted by the functions that a step is made of, at the catalog's best rates of its device. What they miss by
is what a stack sustains of those rates, and what the shape costs beyond `compute.shape_efficiency`.
"""

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from estimator.runs.tables import Count, Label, MaybeAmount, MaybeCount, Text
from estimator.formulas.collectives import all_reduce_seconds, gather_seconds
from estimator.formulas.compute import FUSED_ATTENTION_RATE, Rates, matmul_seconds, sustained_rates
from estimator.stack.efficiencies import PARAMETERS, Efficiencies
from estimator.formulas.machine import Machine
from estimator.runs.microbench_vocabulary import Timing, devices_of, timing_of
from estimator.runs.csv_rows import Form
from hardware.catalog import Catalog
from hardware.errors import shown
from hardware.models import Accelerator, MatmulPrecision
from hardware.units import MIB

LEAST_FLOP = 1e9
"""Of a product that is compared.  # assumed: a layer's smallest has more"""

LEAST_S = 1e-5
"""Of a kernel that is compared.  # assumed: below, its launch and its first loads are what is timed"""

LEAST_POSITIONS = 1024
"""Of a fused attention that is compared: its rate, which is predicted alike of all, is that of long sequences.

measured: kernels of 141 to 559 positions reach a tenth to a fourth of it (AMD-AGI/TraceLens, H100 and MI300X)
"""

CACHE_BYTES = {"Ampere": 40e6, "Hopper": 50e6, "Blackwell": 126e6, "CDNA2": 8e6, "CDNA3": 256e6, "CDNA4": 256e6}
"""Last cache of a device, by architecture.  # datasheet: NVIDIA's L2, AMD's L2 (CDNA2) and Infinity Cache"""

LEAST_CACHES = 2.0
"""Bytes of an element-wise op that is compared, over those of the last cache.  # assumed: most then goes to memory"""

RATE_TOLERANCE = 0.1
"""A row's rate and time tell the same within this: a mean of rates is not the rate of the mean time."""

BEST = Efficiencies(**dict.fromkeys(PARAMETERS, 1.0))
"""What a stack would be that sustains the best measured rates."""

_PRECISIONS: tuple[tuple[MatmulPrecision, re.Pattern[str]], ...] = (
    ("fp8", re.compile(r"fp8|Float8")),
    ("fp32", re.compile(r"fp32|'float'|'double'")),
    ("bf16", re.compile(r"bf16|fp16|BFloat16|Half")),
)

_STRIDES = re.compile(r"stride_\w+=\(([\d, ]*)\)")
_POSITIONS = re.compile(r"(?:N_Q=|N_KV=|\bseq |\bN)(\d{1,9})")


def _figure(cell: Any) -> Any:
    """Return a cell, blank where its source rounds it to nothing."""
    return "" if isinstance(cell, str) and cell.strip() in ("0.0", "0") else cell


Figure = Annotated[MaybeAmount, BeforeValidator(_figure)]


class OpRow(Form, frozen=True):
    """A row of `op_microbench.csv`: a kernel, its shape, its rate or its mean time."""

    mark: ClassVar[str] = "tflops_mean"

    source: Label
    gpu: Text
    op: Label
    category: Label
    rows: Annotated[MaybeCount, Field(alias="M")]
    columns: Annotated[MaybeCount, Field(alias="N")]
    inner: Annotated[MaybeCount, Field(alias="K")]
    batch: MaybeCount
    params: Text
    tflops_mean: Figure
    tb_per_s_mean: Figure
    time_us_mean: Figure
    count: MaybeCount

    def timing(self, name: str, catalog: Catalog) -> Timing:
        """Return the timing of a row; a ValueError says why it is none."""
        devices = devices_of(self.gpu, catalog)
        if self.category == "GEMM":
            kind, ratio_on = self._product()
        elif re.match(r"SDPA_|flash attention", self.category):
            kind, ratio_on = self._attention()
        elif self.category in ("HBM", "UnaryElementwise", "BinaryElementwise", "Normalization"):
            kind, ratio_on = self._moved()
        else:
            raise ValueError(f"category: {shown(self.category)} is no op of a language model's step")
        return timing_of(name, self.source, self.op, kind, {device.id: ratio_on(device) for device in devices})

    def _product(self) -> tuple[str, Callable[[Accelerator], float]]:
        precision = next((name for name, words in _PRECISIONS if words.search(self.params)), None)
        if precision not in ("bf16", "fp8"):
            raise ValueError(
                f"params: {precision or 'unstated'} products are not compared, only those of 16 and 8 bits"
            )
        m, n, k = (float(self._stated(name)) for name in ("rows", "columns", "inner"))
        if (self.batch or 1) > 1:
            raise ValueError(f"batch: {self.batch} products in one kernel are not modelled")
        flop = 2.0 * m * n * k
        seconds = self._seconds(flop)
        kind = "8-bit product" if precision == "fp8" else "product"

        def ratio_on(device: Accelerator) -> float:
            unit: MatmulPrecision = "fp8" if precision == "fp8" else device.usual_precision
            best = _best_rates(device, unit)
            peak = device.peaks[unit]
            _refuse_beyond(flop / seconds, peak, "FLOP/s", device)
            rate = {"flop_per_s": best.weights_flop_per_s, "bytes_per_s": best.bytes_per_s}
            return float(matmul_seconds(m, n, k, num_compute_units=best.num_compute_units, **rate)) / seconds

        return kind, ratio_on

    def _attention(self) -> tuple[str, Callable[[Accelerator], float]]:
        if "flash_impl=False" in self.params:
            raise ValueError("params: flash_impl=False, which is no fused kernel of training")
        positions = min(map(int, _POSITIONS.findall(self.params)), default=0)
        if positions < LEAST_POSITIONS:
            raise ValueError(f"params: {positions or 'unstated'} positions; {LEAST_POSITIONS} and more are compared")
        if self.tflops_mean is None:
            raise ValueError("tflops_mean: not stated")
        measured = self.tflops_mean * 1e12
        direction = "backward" if re.search(r"bwd|backward", self.category) else "forward"

        def ratio_on(device: Accelerator) -> float:
            _refuse_beyond(measured, device.usual_flop_per_s, "FLOP/s", device)
            best = float(_best_rates(device, device.usual_precision).attention_flop_per_s)
            return measured / (best * FUSED_ATTENTION_RATE[direction])

        return f"attention {direction}", ratio_on

    def _moved(self) -> tuple[str, Callable[[Accelerator], float]]:
        if self.tb_per_s_mean is None:
            raise ValueError("tb_per_s_mean: not stated")
        measured = self.tb_per_s_mean * 1e12
        streams = self.category == "HBM"
        if not streams and self.time_us_mean is None:
            raise ValueError("time_us_mean: not stated")
        if any("0" in re.split(r", ?", strides) for strides in _STRIDES.findall(self.params)):
            raise ValueError("params: an operand is repeated (stride 0); it moves less than its shape says")
        moved = measured * (self.time_us_mean or 0) / 1e6

        def ratio_on(device: Accelerator) -> float:
            cache = CACHE_BYTES.get(device.architecture.split(" ")[0])
            if not streams and cache is None:
                raise ValueError(f"gpu: the cache of {device.id} is not known")
            if cache and not streams and moved < LEAST_CACHES * cache:
                raise ValueError(f"dims: {moved / 1e6:.3g} MB, which a cache of {cache / 1e6:g} MB holds in good part")
            _refuse_beyond(measured, device.hbm_bytes_per_s, "bytes/s", device)
            return measured / float(_best_rates(device, device.usual_precision).bytes_per_s)

        return "stream" if streams else "element-wise", ratio_on

    def _stated(self, field: str) -> int:
        value: int | None = getattr(self, field)
        if value is None:
            raise ValueError(f"{type(self).model_fields[field].alias}: not stated")
        return value

    def _seconds(self, flop: float) -> float:
        """Return a product's seconds: as timed, else as its rate tells."""
        told = self.time_us_mean and self.time_us_mean / 1e6
        implied = self.tflops_mean and flop / (self.tflops_mean * 1e12)
        seconds = told or implied
        if seconds is None:
            raise ValueError("tflops_mean: neither a rate nor a time is stated")
        if flop < LEAST_FLOP or seconds < LEAST_S:
            raise ValueError(
                f"M: a product of {flop / 1e9:.3g} GFLOP in {seconds * 1e6:.3g} us is too small to compare"
            )
        if told and implied and abs(np.log(told / implied)) > RATE_TOLERANCE:
            raise ValueError(f"time_us_mean: {told * 1e6:g} us is stated, {implied * 1e6:.4g} follows from the rate")
        return seconds

    @property
    def kernels(self) -> tuple[str, float, int] | None:
        """What tells its kernels from others in its file; None where they were not timed."""
        return (self.source, self.time_us_mean, self.count) if self.time_us_mean and self.count else None


class CollectiveRow(Form, frozen=True):
    """A row of `collective_microbench.csv`: bus bandwidth of a collective of one size."""

    mark: ClassVar[str] = "busbw_GBps"

    source: Label
    gpu: Text
    devices: Annotated[Count, Field(alias="n_gpus")]
    nodes: Count
    op: Label
    msg_bytes: Text
    busbw_GBps: Text  # noqa: N815 - the column's name
    condition: Text

    kernels: ClassVar[None] = None
    """Never nested."""

    def timing(self, name: str, catalog: Catalog) -> Timing:
        """Return the timing of a row; a ValueError says why it is none."""
        op = re.sub(r"[\s_-]", "", self.op.casefold())
        kind = next(
            (k for k in ("all-reduce", "all-gather", "reduce-scatter") if op.startswith(k.replace("-", ""))), ""
        )
        if not kind:
            raise ValueError(f"op: {shown(self.op)} is not compared")
        if "waiting for peers" in self.condition:
            raise ValueError("condition: a time that holds waiting for peers is no measure of the link")
        if "minimum" in self.condition:
            raise ValueError("condition: an expected minimum is no measurement")
        if self.devices < 2:
            raise ValueError("n_gpus: one device has nobody to send to")
        size, rate = _plain(self.msg_bytes, "msg_bytes"), _plain(self.busbw_GBps, "busbw_GBps") * 1e9
        passes = 2.0 if kind == "all-reduce" else 1.0
        measured = passes * (self.devices - 1) / self.devices * size / rate
        ratios = {
            device.id: self._predicted(kind, size, device.id, catalog) / measured
            for device in devices_of(self.gpu, catalog)
        }
        sizes = "< 1 MiB" if size < MIB else "< 64 MiB" if size < 64 * MIB else ">= 64 MiB"
        return timing_of(name, f"{self.source} {self.condition}", self.op, f"{kind} {sizes}", ratios)

    def _predicted(self, kind: str, size: float, accelerator: str, catalog: Catalog) -> float:
        machine = Machine.of(catalog, catalog.flavor_of(accelerator, self.devices))
        if self.nodes != machine.num_nodes:
            raise ValueError(f"nodes: {self.nodes} are stated, {machine.num_nodes} of the catalog hold the devices")
        collective = all_reduce_seconds if kind == "all-reduce" else gather_seconds
        return float(collective(size, machine.devices_per_node, self.nodes, machine))


def _plain(cell: str, column: str) -> float:
    """Return the positive number that a cell is."""
    if not re.fullmatch(r"\d{1,20}(?:\.\d{1,20})?", cell, re.ASCII) or not float(cell):
        raise ValueError(f"{column}: {shown(cell) if cell else 'not stated, which'} is not one positive number")
    return float(cell)


def _refuse_beyond(rate: float, peak: float | None, unit: str, device: Accelerator) -> None:
    if peak is not None and rate > peak:
        raise ValueError(f"gpu: {rate:.4g} {unit} are more than the peak of {device.id}, {peak:.4g}")


def _best_rates(device: Accelerator, precision: MatmulPrecision) -> Rates:
    return sustained_rates(device, BEST, precision)


FORMS: tuple[type[OpRow] | type[CollectiveRow], ...] = (OpRow, CollectiveRow)
