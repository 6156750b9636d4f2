"""What a run trains, on what, how, and where it writes: plain values, checked without a look at the machine."""

from dataclasses import dataclass, field
from pathlib import Path

from estimator.work.plan import Plan
from hardware.errors import shown
from trainer.data.dataset import DataConfig
from trainer.parallel.adapters import AdapterConfig
from trainer.parallel.optimizer import OptimizerConfig

ATTENTIONS = ("sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "eager")
"""Kernels by their names in transformers; all but torch's own `sdpa`, `flex_attention` and `eager` need a package."""

PRECISIONS = ("bf16-mixed", "bf16", "fp32")
"""Mixed: 32-bit weights, gradients and moments are kept, products run in bfloat16. bf16: all are bfloat16."""

MODEL_FOLDER, ADAPTER_FOLDER, CHECKPOINT_FOLDER = "model", "adapter", "checkpoints"


@dataclass(frozen=True)
class TrainConfig:
    """A run.

    Raises:
        ValueError: a value breaks its rule.
    """

    model: str = ""
    """"" is a tiny Mistral from random weights; a folder or hub id is a checkpoint; a config.json, random weights."""
    data: DataConfig = field(default_factory=DataConfig)
    plan: Plan = field(default_factory=Plan)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    adapters: AdapterConfig | None = None
    """Beside frozen weights; None trains all weights."""
    start_adapter: str = ""
    """Folder of adapters to begin with, of the same config; "" draws them."""
    merges: bool = False
    """Write the model with its adapters added at the end too."""
    global_batch: int = 8
    """Rows of a step, over all ranks."""
    epochs: int = 2
    num_steps: int = 0
    """Instead of the epochs' steps; 0 for theirs, until the rows are counted."""
    precision: str = "bf16-mixed"
    attention: str = "sdpa"
    compiles: bool = False
    """Compile each layer."""
    flavor: str = ""
    """Name of the devices of the run."""
    accelerator: str = ""
    """Catalog id of each of them."""
    stack: str = ""
    """Name of the stack that the forecast is of."""
    seed: int = 0
    """Of random weights."""
    output: Path = Path("runs/latest")
    resume: str = ""
    """"" starts anew, "auto" continues the output folder's newest checkpoint, else a checkpoint's folder."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 writes one only when stopped."""
    keep: int = 2
    """Checkpoints kept."""
    keep_best: bool = False
    """Keep the one with the least loss on held-out rows too, which are evaluated before each."""
    async_save: bool = True
    """Write checkpoints while training goes on."""
    final_checkpoint: bool = True
    """Write one before the export."""
    passed_over: str | None = None
    """Of checkpoints newer than `resume`, why they are not taken, where it was verified just before; None where it is
    still to be verified."""
    eval_every: int = 0
    """Steps between evaluations on the held-out rows; 0 evaluates at the end, if there are any."""
    hang_timeout_s: float = 0.0
    """How long no phase of a step may end [s]; 0 for the rule of `trainer.jobs.hang`."""
    exports: bool = True
    """Write a Hugging Face checkpoint at the end."""

    def __post_init__(self) -> None:
        """Refuse what no run has."""
        for name, value, least in (
            ("batch", self.global_batch, 1),
            ("epochs", self.epochs, 1),
            ("steps", self.num_steps, 0),
            ("checkpoint-every", self.checkpoint_every, 0),
            ("keep", self.keep, 1),
            ("eval-every", self.eval_every, 0),
        ):
            if not least <= value < 2**40:
                raise ValueError(f"{name}: {value} is not from {least} to 2**40 - 1; give a count in that range")
        for name, given, known in (
            ("precision", self.precision, PRECISIONS),
            ("attention", self.attention, ATTENTIONS),
        ):
            if given not in known:
                raise ValueError(f"{name}: {shown(given)} is not one of {', '.join(known)}")
        if not 0 <= self.hang_timeout_s < 2**30:
            raise ValueError(f"hang-timeout: {self.hang_timeout_s} is not from 0 to 2**30; give seconds in that range")
        if self.eval_every and not self.data.eval_rows:
            raise ValueError(f"eval-every: {self.eval_every} steps, but no rows are held out; give --eval-rows too")
        if self.keep_best and not self.data.eval_rows:
            raise ValueError("keep-best: by the loss on held-out rows, but none are held out; give --eval-rows too")
        self._refuse_adapters()
        if self.compiles and self.plan.tp > 1 and self.plan.recomputation == "full":
            raise ValueError(
                f"compile: torch repeats no compiled layer that tp={self.plan.tp} splits; give --no-compile, or "
                "recomputation=selective"
            )
        if self.compiles and self.plan.schedule == "zero_bubble":
            raise ValueError(
                "compile: schedule=zero_bubble splits backward passes, which compiled layers do not; give one"
            )

    @property
    def can_split(self) -> bool:
        """Whether tensor parallelism may split the layers: its ranks would each leave out inputs of their own."""
        return self.adapters is None or not self.adapters.dropout

    def _refuse_adapters(self) -> None:
        if self.adapters is None and (self.start_adapter or self.merges):
            raise ValueError("merge: there are no adapters to add; give --lora RANK, or leave out --merge")
        if self.adapters is not None and not self.can_split and self.plan.tp > 1:
            raise ValueError(
                f"lora-dropout: {self.adapters.dropout:g} under tp={self.plan.tp}, whose ranks would each leave out "
                "inputs of their own; give 0, or use tp=1"
            )
