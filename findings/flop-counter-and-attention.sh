# One assumes that torch's FlopCounterMode counts the attention of a layer alike wherever the layer lies, and half of the scores where it is causal.
# What happens: scaled_dot_product_attention counts 0 on a processor, all T x T scores on the meta device, causal or not; an encoder layer in eval mode counts 0 whole.
# Seen with torch 2.13.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > show.py <<'PY'
import warnings
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

warnings.filterwarnings("ignore")
print("torch", torch.__version__)
ROWS, HEADS, TOKENS, DIM = 1, 4, 256, 64
scores = 2 * 2 * ROWS * HEADS * TOKENS**2 * DIM  # FLOP of two products over all T x T


def count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def attention(device: str, is_causal: bool, backend: SDPBackend | None = None) -> int:
    q, k, v = (torch.randn(ROWS, HEADS, TOKENS, DIM, device=device, requires_grad=True) for _ in range(3))
    if backend is None:
        return count(lambda: scaled_dot_product_attention(q, k, v, is_causal=is_causal).sum().backward())
    with sdpa_kernel(backend):
        return count(lambda: scaled_dot_product_attention(q, k, v, is_causal=is_causal).sum().backward())


found = {
    (place, is_causal): attention(device, is_causal, backend) / scores
    for place, device, backend in (
        ("on the processor", "cpu", None),
        ("on the processor, math kernel", "cpu", SDPBackend.MATH),
        ("on the meta device", "meta", None),
    )
    for is_causal in (False, True)
}
for (place, is_causal), passes in found.items():
    print(f"attention {place:29} causal {is_causal!s:5}: {passes:.1f} times the forward FLOP of all scores, forward and backward")
layer = torch.nn.TransformerEncoderLayer(HEADS * DIM, HEADS, 4 * HEADS * DIM, batch_first=True)
rows = torch.randn(ROWS, TOKENS, HEADS * DIM)
training = count(lambda: layer(rows))
with torch.no_grad():
    evaluation = count(lambda: layer.eval()(rows))
print(f"encoder layer: {training:,} FLOP forward in training mode, {evaluation:,} in evaluation")
assert found["on the processor", True] == found["on the processor", False] == 0
assert found["on the meta device", True] == found["on the meta device", False] == 3
assert training > 0 and evaluation == 0
PY
env/bin/python show.py
