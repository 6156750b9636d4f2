"""The model: consecutive layers of a Hugging Face decoder, under the parameter names of the whole.

Shapes: B rows of a micro-batch, T tokens of a row, D hidden size, V vocabulary. The model does not know that it is
parallel: under sequence parallelism a stage after the first sees its own part of T, while positions are always those
of whole rows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from trainer.parallel.attention import lengths
from trainer.parallel.loss import loss_sum

FAMILIES = ("mistral", "llama", "qwen2", "qwen3")
"""Model types whose layers are laid out alike; `trainer_limits` refuses the others."""


class Stage(nn.Module):
    """One chunk of a decoder: embedding if first, layers, final norm and vocabulary projection if last.

    Its parameters have the names they have in the whole model (`model.layers.7.mlp.up_proj.weight`), so that
    checkpoints fit any plan.
    """

    def __init__(
        self,
        whole: nn.Module,
        layers: Sequence[int],
        *,
        first: bool,
        last: bool,
        packed: bool,
        takes_lengths: bool = False,
    ) -> None:
        """Take the parts of a whole model that this stage holds.

        Args:
            whole: a `...ForCausalLM`, usually on the meta device; the parts are shared with it, not copied.
            layers: indices of its layers.
            first: whether the stage holds the embedding, and takes token ids.
            last: whether it holds the vocabulary projection, and gives logits.
            packed: rows hold several documents, told apart by positions that start again at 0.
            takes_lengths: the attention's kernel is told where documents begin, instead of taking a mask.
        """
        super().__init__()
        decoder: Any = whole.model
        self.config: PreTrainedConfig = decoder.config
        self.first, self.last = first, last
        self.packed, self.takes_lengths = packed, packed and takes_lengths
        self.chunks_loss = False
        """Whether the vocabulary projection gives the loss itself (`loss.take_loss`), and logits are never whole."""
        self.model: Any = nn.Module()
        if first:
            self.model.embed_tokens = decoder.embed_tokens
        self.model.layers = nn.ModuleDict({str(i): decoder.layers[i] for i in layers})
        if last:
            self.model.norm = decoder.norm
            self.lm_head: Any = whole.lm_head
        self.model.rotary_emb = decoder.rotary_emb

    @property
    def layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Index and layer, in order."""
        return ((int(index), layer) for index, layer in self.model.layers.items())

    @property
    def ties_embeddings(self) -> bool:
        """Whether the vocabulary projection is the embedding."""
        return self.first and self.last and bool(self.config.tie_word_embeddings)

    def forward(
        self,
        x: Tensor,
        position_ids_BT: Tensor,
        labels_BT: Tensor | None = None,
        num_targets: int = 1,
        num_documents: int = 0,
    ) -> Tensor:
        """Return hidden states, shape (B, T, D); of the last stage logits, shape (B, T, V), or its loss, shape ().

        Args:
            x: token ids, shape (B, T), of the first stage; hidden states of the others.
            position_ids_BT: position of each token in its document.
            labels_BT: of a last stage that chunks the loss.
            num_targets: over which its loss is a mean.
            num_documents: of packed rows, at least as many as they hold.
        """
        h_BTD = self.model.embed_tokens(x) if self.first else x
        cos_sin = self.model.rotary_emb(h_BTD, position_ids=position_ids_BT)
        masks = self._masks(h_BTD, position_ids_BT)
        told = lengths(position_ids_BT, num_documents) if self.takes_lengths else {}
        for index, layer in self.layers:
            h_BTD = layer(
                h_BTD,
                attention_mask=masks(self._attention_kind(index)),
                position_ids=position_ids_BT,
                position_embeddings=cos_sin,
                use_cache=False,
                **told,
            )
        if not self.last:
            return h_BTD
        h_BTD = self.model.norm(h_BTD)
        out: Tensor = self.lm_head(h_BTD, labels_BT, num_targets) if self.chunks_loss else self.lm_head(h_BTD)
        return out

    def loss(self, out: Tensor, labels_BT: Tensor, num_targets: int) -> Tensor:
        """Return the share of the mean loss over so many targets that rows have, of what `forward` gave for them."""
        return out if self.chunks_loss else loss_sum(out, labels_BT) / num_targets

    def _attention_kind(self, index: int) -> str:
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None:
            return str(kinds[index])
        return "full_attention" if getattr(self.config, "sliding_window", None) is None else "sliding_attention"

    def _masks(self, h_BTD: Tensor, position_ids_BT: Tensor) -> Callable[[str], Any]:
        """Return what gives the mask of a kind of attention: None where the kernel's own causal mask is all it takes.

        Positions are handed over only where the mask keeps documents apart: looking for documents waits for the device.
        """
        stand_in = h_BTD.new_empty(position_ids_BT.shape).unsqueeze(-1)  # shape and dtype are all that is read of it
        positions = position_ids_BT if self.packed and not self.takes_lengths else None
        made: dict[str, Any] = {}

        def mask(kind: str) -> Any:
            if kind not in made:
                create = create_causal_mask if kind == "full_attention" else create_sliding_window_causal_mask
                made[kind] = create(self.config, stand_in, None, None, position_ids=positions)
            return made[kind]

        return mask

    @torch.no_grad()
    def materialize(self, device: torch.device) -> None:
        """Give parameters memory on a device, and compute the buffers, which no checkpoint holds."""
        self.to_empty(device=device)
        if self.ties_embeddings:  # memory was given to each name apart
            self.lm_head.weight = self.model.embed_tokens.weight
        self.model.rotary_emb = type(self.model.rotary_emb)(config=self.config).to(device)


def meta_model(config: PreTrainedConfig, attention: str, dtype: torch.dtype) -> nn.Module:
    """Return a whole model without memory, its attention run by the kernel of a name such as `sdpa`."""
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    return model.train()
