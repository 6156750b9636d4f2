"""Bytes of all tensors that are alive, and what those of the fullest moment were for."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

PURPOSES = (
    "parameters",
    "gathered_parameters",
    "gradients",
    "optimizer",
    "activations",
    "communication_buffers",
    "temporary",
)
"""Parameters: what this rank keeps of them between steps; gathered ones are whole, in the type of the products.
Activations: what forward passes made, repeated ones included; temporary: backward passes and the optimizer."""


def _attention_flop(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flop(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


FLOP_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,  # noqa: SLF001
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,  # noqa: SLF001
}
"""As `torch.utils.flop_counter` counts, and attention on fake tensors of the processor as on those of a device."""


@dataclass(slots=True)
class _Held:
    """A storage, from its first tensor to its last."""

    num_bytes: int
    purpose: str


class Meter(TorchDispatchMode):
    """Follows every storage that an operation under it returns, until nothing refers to it any more.

    What a storage is for shows later than that it is there: a gradient when its parameter gets it, a buffer when it is
    sent. So the changes are written down, and summed by purpose up to the fullest moment at the end.

    It goes over a `FakeTensorMode`. What one operation allocates and frees by itself is not seen, nor are the tensors
    of another such mode: those in which DTensor looks at whole shapes.
    """

    def __init__(self) -> None:
        """Begin with nothing held."""
        super().__init__()
        self._held: dict[int, _Held] = {}
        self._changes: list[tuple[_Held, int]] = []
        self._now = 0
        self._phase = ""
        self._fullest: dict[str, tuple[int, int]] = {}
        self._in_optimizer = self._looks_away = self.is_fused = False
        self._plain_resize = torch.UntypedStorage.resize_
        self._fake_mode: Any = None
        self.num_flop = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let layers be compiled beneath; else torch runs them uncompiled under a mode."""
        return True

    def reset_peak(self) -> None:
        """Forget what has gone; the peak is what is held now."""
        self._changes = [(held, held.num_bytes) for held in self._held.values()]
        self._fullest = {self._phase: (self._now, len(self._changes))}

    def enter_phase(self, name: str) -> None:
        """Say which part of a step begins; a part may come many times."""
        self._phase = name
        self._note_fullest()

    def peaks(self) -> dict[str, dict[str, int]]:
        """Return the bytes by purpose of the fullest moment of each phase."""
        moments = {count: name for name, (_, count) in self._fullest.items()}
        at = {name: count for name, (_, count) in self._fullest.items()}
        found, now = {0: dict.fromkeys(PURPOSES, 0)}, dict.fromkeys(PURPOSES, 0)
        for number, (held, change) in enumerate(self._changes, start=1):
            now[held.purpose] += change
            if number in moments:
                found[number] = dict(now)
        return {name: found[count] for name, count in at.items()}

    def peak(self) -> dict[str, int]:
        """Return the bytes of the fullest moment by purpose."""
        return max(self.peaks().values(), key=lambda found: sum(found.values()), default=dict.fromkeys(PURPOSES, 0))

    def mark(self, purpose: str, tensors: Iterable[Tensor | None]) -> None:
        """Say what tensors are for, and have been since they were made."""
        for tensor in tensors:
            for storage in _storages(tensor):
                self._see(storage).purpose = purpose

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Take what is made within as temporary."""
        self._in_optimizer = True
        yield
        self._in_optimizer = False

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Count nothing of what is made and computed within."""
        before, self._looks_away = self._looks_away, True
        try:
            yield
        finally:
            self._looks_away = before

    # --- how it is measured -------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Begin to follow; the resizing of a storage, by which FSDP2 frees gathered weights, is no operation."""
        plain = self._plain_resize

        @wraps(plain)
        def resize(storage: torch.UntypedStorage, num_bytes: int) -> None:
            plain(storage, num_bytes)
            if id(storage) in self._held:
                self._see(storage)

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign,assignment]
        self._fake_mode = active_fake_mode()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop following."""
        super().__exit__(*error)
        torch.UntypedStorage.resize_ = self._plain_resize  # type: ignore[method-assign]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and see what it returned."""
        if any(issubclass(kind, torch.distributed.tensor.DTensor) for kind in types):
            return NotImplemented  # it comes again, as operations on the shards
        if func is torch.ops._c10d_functional.wait_tensor.default:  # noqa: SLF001
            return args[0]  # a fake one is a new tensor, a real one the same
        result = func(*args, **(kwargs or {}))
        if self._looks_away:
            return result
        leaves = tree_leaves(result)
        if any(isinstance(leaf, FakeTensor) and leaf.fake_mode is not self._fake_mode for leaf in leaves):
            return result
        if (flop := FLOP_FORMULAS.get(func._overloadpacket)) is not None:  # noqa: SLF001 - as torch's FlopCounterMode
            self.num_flop += flop(*args, **(kwargs or {}), out_val=result)
        if self.is_fused:
            return result
        for leaf in leaves:
            for storage in _storages(leaf):
                self._see(storage)
        if func.namespace == "c10d" and func.name() != "c10d::send":  # what is sent on is kept for its own sake
            self._see_buffers(args)
        return result

    def _see(self, storage: torch.UntypedStorage) -> _Held:
        """Count a storage, or its change of size."""
        held = self._held.get(id(storage))
        if held is None:
            held = self._held[id(storage)] = _Held(0, self._purpose())
            weakref.finalize(storage, self._drop, id(storage)).atexit = False
        self._change(held, storage.nbytes() - held.num_bytes)
        return held

    def _see_buffers(self, args: Any) -> None:
        for leaf in tree_leaves(args):
            for storage in _storages(leaf):
                held = self._see(storage)
                if held.purpose in {"activations", "temporary"}:
                    held.purpose = "communication_buffers"

    def _drop(self, key: int) -> None:
        held = self._held.pop(key)
        self._change(held, -held.num_bytes)

    def _change(self, held: _Held, change: int) -> None:
        if not change:
            return
        held.num_bytes += change
        self._now += change
        self._changes.append((held, change))
        self._note_fullest()

    def _note_fullest(self) -> None:
        fullest = self._fullest.get(self._phase)
        if fullest is None or self._now > fullest[0]:
            self._fullest[self._phase] = (self._now, len(self._changes))

    def _purpose(self) -> str:
        """Return what a new tensor is for until more is said; repeated forward passes have gradients on."""
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()  # noqa: SLF001
        return "temporary" if in_backward or self._in_optimizer else "activations"


@contextmanager
def fused() -> Iterator[None]:
    """Leave out what is made within, of whatever meter is at work: a compiler keeps it in registers."""
    meters = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, Meter)]
    for meter in meters:
        meter.is_fused = True
    yield
    for meter in meters:
        meter.is_fused = False


def _storages(value: Any) -> Iterable[torch.UntypedStorage]:
    """Return the storages of a tensor, or of this rank's part of it; none of what is no tensor, or has no memory."""
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return ()
    return get_untyped_storages(value)
