# One assumes that a FLOP counter sees the experts of a mixture: they are most of its products.
# What happens: transformers 5 runs them as one grouped product; FlopCounterMode, fvcore, calflops, ptflops and thop count 0 for it: 12 % of Mixtral is left.
# Seen with torch 2.13.0, transformers 5.23.0, fvcore 0.1.5.post20221221, calflops 0.3.2, ptflops 0.7.5, thop 0.1.1.post2209072238 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 \
    fvcore==0.1.5.post20221221 calflops==0.3.2 ptflops==0.7.5 thop==0.1.1.post2209072238
cat > show.py <<'PY'
import contextlib
import io
import logging
import warnings
from importlib.metadata import version

import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
import calflops
import fvcore.nn
import ptflops
import thop
import transformers
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig, MixtralForCausalLM

transformers.logging.set_verbosity_error()
print(*(f"{name} {version(name)}," for name in ("torch", "transformers", "fvcore", "calflops", "ptflops", "thop")))
TOKENS, HIDDEN, FFN, VOCABULARY, LAYERS, EXPERTS, TOP_K, KV = 64, 256, 896, 128, 2, 8, 2, 64
ids = torch.arange(TOKENS)[None]


def by_torch(model: torch.nn.Module) -> float:
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    return counter.get_total_flops()


def by_profiler(model: torch.nn.Module) -> float:
    with profile(with_flops=True) as profiler:
        model(input_ids=ids)
    return sum(event.flops for event in profiler.key_averages())


def by_fvcore(model: torch.nn.Module) -> float:
    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=x, use_cache=False).logits

    return 2 * fvcore.nn.FlopCountAnalysis(Logits(), ids).total()  # it counts multiplications with their addition as one


def by_calflops(model: torch.nn.Module) -> float:
    kwargs = {"input_ids": ids}
    return calflops.calculate_flops(model, kwargs=kwargs, print_results=False, print_detailed=False, output_as_string=False)[0]


def by_ptflops(model: torch.nn.Module) -> float:
    return 2 * ptflops.get_model_complexity_info(
        model,
        (TOKENS,),
        as_strings=False,
        print_per_layer_stat=False,
        backend="aten",
        input_constructor=lambda _: {"input_ids": ids},
    )[0]


def by_thop(model: torch.nn.Module) -> float:
    return 2 * thop.profile(model, inputs=(ids,), verbose=False)[0]


attention = 2 * TOKENS * HIDDEN * (2 * HIDDEN + 2 * KV)  # its four projections; scores are left out on both sides
experts = TOP_K * 3 * 2 * TOKENS * HIDDEN * FFN
exact = LAYERS * (attention + 2 * TOKENS * HIDDEN * EXPERTS + experts) + 2 * TOKENS * HIDDEN * VOCABULARY
print(f"exact, without attention's scores: {exact / 1e6:.1f} MFLOP, of which experts {LAYERS * experts / exact:.0%}")
shares: dict[tuple[str, str], float] = {}
for implementation in ("grouped_mm", "eager"):
    for count in (by_torch, by_fvcore, by_calflops, by_ptflops, by_thop, by_profiler):
        model = MixtralForCausalLM(  # the proportions of Mixtral-8x7B, a sixteenth as wide
            MixtralConfig(
                num_hidden_layers=LAYERS,
                hidden_size=HIDDEN,
                intermediate_size=FFN,
                num_attention_heads=4,
                num_key_value_heads=1,
                vocab_size=VOCABULARY,
            )
        ).eval()
        if implementation == "grouped_mm":
            assert model.config._experts_implementation == implementation  # what one gets unasked
        model.set_experts_implementation(implementation)
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            share = count(model) / exact
        shares[implementation, count.__name__] = share
        print(f"experts as {implementation:10} {count.__name__.replace('_', ' '):12} counts {share:6.1%} of the exact FLOP")
for count in (by_torch, by_fvcore, by_calflops, by_ptflops, by_thop):
    assert shares["grouped_mm", count.__name__] < 0.2
assert 0.99 < shares["eager", "by_torch"] < 1.01 and 0.99 < shares["grouped_mm", "by_profiler"] < 1.03
PY
env/bin/python show.py
