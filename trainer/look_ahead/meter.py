"""Bytes of all tensors that are alive, and what those of the fullest moment were for."""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


@dataclass(slots=True)
class _Held:
    """A storage, from its first tensor to its last."""

    num_bytes: int
    purpose: str


class Meter(TorchDispatchMode):
    """Follows every storage that an operation under it returns, until nothing refers to it any more.

    What a storage is for shows later than that it is there: a gradient when its parameter gets it, a buffer when it is
    sent. So the changes are written down, and summed by purpose up to the fullest moment at the end.

    It goes over a `FakeTensorMode`. What one operation allocates and frees by itself is not seen.
    """

    def __init__(self) -> None:
        """Begin with nothing held."""
        super().__init__()
        self._held: dict[int, _Held] = {}
        self._changes: list[tuple[_Held, int]] = []
        self._now = self._peak = self._changes_to_peak = 0
        self._in_optimizer = False
        self._plain_resize = torch.UntypedStorage.resize_

    def reset_peak(self) -> None:
        """Forget what has gone; the peak is what is held now."""
        self._changes = [(held, held.num_bytes) for held in self._held.values()]
        self._peak, self._changes_to_peak = self._now, len(self._changes)

    def peak(self) -> dict[str, int]:
        """Return the bytes of the fullest moment by purpose."""
        found = dict.fromkeys(PURPOSES, 0)
        for held, change in self._changes[: self._changes_to_peak]:
            found[held.purpose] += change
        return found

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
        for leaf in tree_leaves(result):
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
        if self._now > self._peak:
            self._peak, self._changes_to_peak = self._now, len(self._changes)

    def _purpose(self) -> str:
        """Return what a new tensor is for until more is said; repeated forward passes have gradients on."""
        in_backward = torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()  # noqa: SLF001
        return "temporary" if in_backward or self._in_optimizer else "activations"


def _storages(value: Any) -> Iterable[torch.UntypedStorage]:
    """Return the storages of a tensor, or of this rank's part of it; none of what is no tensor, or has no memory."""
    if not isinstance(value, Tensor) or value.device.type == "meta":
        return ()
    return get_untyped_storages(value)
