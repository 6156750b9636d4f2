# One assumes that asking a fresh optimizer for its state (get_optimizer_state_dict, as for a checkpoint at step 0) only reads it.
# What happens: torch lets the optimizer take a step on gradients of zero first; Adam stays at step 1, and its first true update is 0.744 of what it was.
# Seen with torch 2.13.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 numpy==2.4.6
cat > show.py <<'PY'
import math

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

print("torch", torch.__version__)


def train(asked: bool, betas: tuple[float, float], steps: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return the first update, the weights after so many steps, and Adam's own count of steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False)
    rows, wanted = torch.randn(256, 64), torch.randn(256, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=betas)
    if asked:
        get_optimizer_state_dict(model, optimizer)  # what a checkpoint before the first step does
    start = model.weight.detach().clone()
    for step in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(rows), wanted).backward()
        optimizer.step()
        if step == 0:
            first = model.weight.detach() - start * (1 - 1e-3 * 1e-2)  # without the decay
    return first, model.weight.detach(), optimizer.state[model.weight]["step"].item()


for betas in ((0.9, 0.999), (0.9, 0.95)):
    first, last, count = train(asked=False, betas=betas, steps=100)
    first_asked, last_asked, count_asked = train(asked=True, betas=betas, steps=100)
    ratio = (first_asked.abs().mean() / first.abs().mean()).item()
    b1, b2 = betas
    expected = (1 - b1) / (1 - b1**2) / math.sqrt((1 - b2) / (1 - b2**2))  # bias corrections of step 2, moments of step 1
    apart = ((last_asked - last).norm() / last.norm()).item()
    print(f"betas {betas}: after 100 steps Adam counts {count:.0f}, and {count_asked:.0f} where its state was asked for before")
    print(f"  first update {ratio:.4f} of the undisturbed one (bias corrections of step 2: {expected:.4f})")
    print(f"  weights after 100 steps are apart by {apart:.1e} of their norm")
    assert (count, count_asked) == (100, 101)
    assert abs(ratio - expected) < 0.005 and ratio < 0.75
    assert apart > 1e-4
print("asking for the state changed the training")
PY
env/bin/python show.py
