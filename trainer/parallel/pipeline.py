"""One pass of a step's rows through the stages of this rank: forward, backward, and nothing else."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import loss_parallel

from estimator.work.plan import Plan
from trainer.parallel.mesh import Place
from trainer.parallel.model import Stage

SCHEDULES: dict[str, type[PipelineScheduleSingle | PipelineScheduleMulti]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,  # with one chunk per stage this is ZB-H1
}


@dataclass(frozen=True)
class Rows:
    """The rows of one data-parallel rank for one step, on its device; shapes (B, T)."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    documents: tuple[int, ...] = ()
    """In each row, where rows are packed: what the host knows need not be asked of the device."""

    def micro_batches(self, count: int) -> list["Rows"]:
        """Split along the rows."""
        parts = (t.chunk(count) for t in (self.input_ids, self.labels, self.position_ids))
        each = len(self.documents) // count
        documents = (self.documents[i * each : (i + 1) * each] for i in range(count))
        return [Rows(*part) for part in zip(*parts, documents, strict=True)]


class Passes:
    """Runs forward and backward passes of a plan; one code for training and for evaluation."""

    def __init__(
        self,
        stages: Sequence[Stage],
        plan: Plan,
        place: Place,
        *,
        seq_len: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Prepare the schedule.

        Args:
            stages: the chunks of this rank, in order, parallelized and materialized.
            plan: the plan.
            place: the mesh.
            seq_len: tokens of a row.
            dtype: of the hidden states that stages exchange.
            device: where they are.
        """
        self.stages, self.plan, self.place = stages, plan, place
        self.is_last = any(stage.last for stage in stages)
        self.is_first = any(stage.first for stage in stages)
        self._schedule: Any = None
        if plan.num_stages > 1:
            chunks = [self._chunk(i, stage, seq_len, dtype, device) for i, stage in enumerate(stages)]
            kind = SCHEDULES[plan.schedule]
            alone = issubclass(kind, PipelineScheduleSingle)
            self._schedule = kind(
                chunks[0] if alone else chunks,  # type: ignore[arg-type]
                n_microbatches=plan.num_micro_batches,
                loss_fn=stages[-1].loss,  # of the last stage; called nowhere else
                scale_grads=False,
            )

    def _chunk(
        self, number: int, stage: Stage, seq_len: int, dtype: torch.dtype, device: torch.device
    ) -> PipelineStage:
        """Return a stage as the runtime takes it, its shapes given so that no pass is spent on finding them."""
        plan, mesh = self.plan, self.place.mesh
        rows, config = plan.batch_per_device, stage.config
        split = seq_len // plan.tp if plan.sequence_parallel else seq_len

        def hidden(*, requires_grad: bool) -> Tensor:
            shape = (rows, split, config.hidden_size)
            return torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)

        def output(*, requires_grad: bool) -> Tensor:
            if not stage.last:
                return hidden(requires_grad=requires_grad)
            if stage.chunks_loss:
                return torch.empty((), device="meta", requires_grad=requires_grad)
            shape = (rows, seq_len, config.vocab_size // plan.tp)
            local = torch.empty(shape, dtype=dtype, device="meta", requires_grad=requires_grad)
            return DTensor.from_local(local, mesh["tp"], [Shard(-1)], run_check=False) if plan.tp > 1 else local

        ids = torch.empty(rows, seq_len, dtype=torch.long, device="meta")
        return PipelineStage(
            stage,
            self.place.stage + number * plan.num_stages,
            plan.num_stages * plan.virtual_stages,
            device,
            input_args=ids if stage.first else hidden(requires_grad=True),
            output_args=output(requires_grad=True),
            input_grads=None if stage.first else hidden(requires_grad=False),
            output_grads=None if stage.last else hidden(requires_grad=False),
            group=mesh.get_group("pp"),
        )

    def train(self, rows: Rows, num_targets: int) -> Tensor:
        """Run forward and backward passes over the rows of a step; gradients are left in the parameters.

        Args:
            rows: all rows of this data-parallel rank.
            num_targets: positions with a target in the whole global batch, over which the loss is a mean.

        Returns:
            This rank's part of the loss, a sum over its own rows; shape (). 0 but on the last stage's first
            tensor-parallel rank, so that the parts of all ranks sum to the loss.
        """
        with self._vocabulary_split():
            if self._schedule is not None:
                return self._part(self._run_schedule(rows, num_targets, backward=True), rows)
            (stage,) = self.stages
            losses = []
            micro_batches = rows.micro_batches(self.plan.num_micro_batches)
            for number, part in enumerate(micro_batches, start=1):
                self._synchronize_gradients(stage, is_last=number == len(micro_batches))
                loss = _loss(stage, part, num_targets)
                loss.backward()
                losses.append(loss.detach())
            return self._part(losses, rows)

    @torch.no_grad()
    def evaluate(self, rows: Rows, num_targets: int) -> Tensor:
        """Return this rank's part of the loss of rows, as `train` does, without gradients."""
        with self._vocabulary_split():
            if self._schedule is not None:
                losses = self._run_schedule(rows, num_targets, backward=False)
            else:
                (stage,) = self.stages
                parts = rows.micro_batches(self.plan.num_micro_batches)
                losses = [_loss(stage, part, num_targets) for part in parts]
            for module in (module for stage in self.stages for module in stage.modules()):
                if isinstance(module, FSDPModule):  # no backward pass follows that would
                    module.reshard()
            return self._part(losses, rows)

    def _part(self, losses: Sequence[Tensor], rows: Rows) -> Tensor:
        whole = [loss.full_tensor() if isinstance(loss, DTensor) else loss for loss in losses]
        if not whole or self.place.tp_rank:
            return torch.zeros((), device=rows.input_ids.device)
        return torch.stack(whole).sum()

    def _run_schedule(self, rows: Rows, num_targets: int, *, backward: bool) -> list[Tensor]:
        losses: list[Tensor] = []
        run = self._schedule.step if backward else self._schedule.eval
        run(
            *([rows.input_ids] if self.is_first else []),
            position_ids_BT=rows.position_ids,
            num_documents=max(sum(part.documents) for part in rows.micro_batches(self.plan.num_micro_batches)),
            **({"labels_BT": rows.labels, "num_targets": num_targets} if self.is_last else {}),
            target=rows.labels if self.is_last else None,
            losses=losses if self.is_last else None,
            loss_kwargs={"num_targets": num_targets},
            return_outputs=False,
        )
        return [loss.detach() for loss in losses]

    def _synchronize_gradients(self, stage: Stage, *, is_last: bool) -> None:
        """Reduce gradients after each micro-batch where only their shard is kept (ZeRO-2, 3), else after the last."""
        if isinstance(stage, FSDPModule):
            stage.set_requires_gradient_sync(is_last or self.plan.zero_stage >= 2)
            stage.set_requires_all_reduce(is_last)  # between nodes that hold copies, once is enough
            stage.set_is_last_backward(is_last)
            stage.set_reshard_after_backward(is_last or self.plan.zero_stage == 3)

    def _vocabulary_split(self) -> AbstractContextManager[None]:
        return loss_parallel() if self.plan.tp > 1 else nullcontext()


def _loss(stage: Stage, rows: Rows, num_targets: int) -> Tensor:
    """Return the loss of a micro-batch on a stage that is alone."""
    out = stage(rows.input_ids, rows.position_ids, rows.labels, num_targets, sum(rows.documents))
    return stage.loss(out, rows.labels, num_targets)
