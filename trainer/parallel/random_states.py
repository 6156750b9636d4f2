"""The states of a rank's random generators, as tensors that a checkpoint holds: of torch, its device, NumPy, Python."""

import random

import numpy as np
import torch
from torch import Tensor


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's generators by library; shapes (N,), each with its own N."""
    _, words, place, has_normal, normal = np.random.get_state(legacy=True)  # noqa: NPY002 - whoever draws from it
    version, numbers, spare = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": torch.tensor([place, has_normal, normal], dtype=torch.float64),
        "python": torch.tensor([version, *numbers], dtype=torch.int64),
        "python_rest": torch.tensor([float("nan") if spare is None else spare], dtype=torch.float64),
    }
    if device.type == "cuda":
        states["device"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on drawing where states were taken."""
    torch.set_rng_state(states["torch"])
    place, has_normal, normal = states["numpy_rest"].tolist()
    words = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, int(place), int(has_normal), normal))  # noqa: NPY002 - as above
    version, *numbers = states["python"].tolist()
    spare = states["python_rest"].item()
    random.setstate((version, tuple(numbers), None if np.isnan(spare) else spare))
    if device.type == "cuda" and "device" in states:
        torch.cuda.set_rng_state(states["device"], device)
