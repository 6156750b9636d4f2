"""A config document read key by key, so that every error names the model, the key and the rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardware.errors import shown

MAX_SIZE = 2**31
"""No size of a config reaches this; above it a config is a mistake (or an attack), not a model."""

MOST_LAYERS = 2**14
"""A hundred times those of the deepest model; a plan of each split of more would take for ever."""

LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers")


@dataclass(frozen=True, slots=True)
class Config:
    """A config document read key by key, so that every error names the model, the key and the rule."""

    document: Mapping[str, Any]
    name: str

    def size(self, key: str, default: int | None = None) -> int:
        """Return a positive integer; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"model {shown(self.name)}: its config lacks {key!r}; add it as a positive integer")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not a positive integer below 2**31")
        if key in LAYER_KEYS and value > MOST_LAYERS:
            raise ValueError(
                f"model {shown(self.name)}: {key} = {value} is more than {MOST_LAYERS:,} layers, which no model has; "
                "correct it in its config"
            )
        return value

    def told(self, *keys: str, default: int | None = None) -> tuple[str, int]:
        """Return the first of several keys that is there, else the first of all, and the positive integer under it."""
        key = next((name for name in keys if self.document.get(name) is not None), keys[0])
        return key, self.size(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """Return a boolean; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not true or false")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a finite number; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_SIZE:
            raise ValueError(f"model {shown(self.name)}: {key} = {shown(value)} is not a finite number")
        return float(value)

    def count(self, key: str, default: int) -> int:
        """Return an integer that may be 0; `null` and a missing key take the default."""
        return 0 if self.document.get(key) == 0 else self.size(key, default)

    def names(self, key: str, default: Sequence[str] | None) -> list[str]:
        """Return a list of names, one for each of the model's layers; `null` and a missing key take the default."""
        value = self.document.get(key)
        if value is None:
            if default is None:
                raise ValueError(f"model {shown(self.name)}: its config lacks {key!r}; add the type of each layer")
            return list(default)
        num_layers = self.document.get("num_hidden_layers") or (len(value) if isinstance(value, list) else 0)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value) or len(value) != num_layers:
            raise ValueError(
                f"model {shown(self.name)}: {key} = {shown(value)} "
                f"is not a list of num_hidden_layers = {num_layers} names"
            )
        return list(value)
