# One assumes that FSDP2 (fully_shard) over N ranks leaves each rank 1/N of a model's weights, gradients and optimizer state.
# What happens: it cuts the first dimension; transformers 5 fuses 8 experts into one (8, ...) tensor, so of 16 ranks 8 hold 1.97 times an even share, 8 hold 0.03.
# Seen with torch 2.13.0, transformers 5.23.0 (Mixtral-8x7B) on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 transformers==5.23.0
cat > show.py <<'PY'
import torch
import torch.distributed as dist
import transformers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import MixtralConfig, MixtralForCausalLM

print("torch", torch.__version__, "transformers", transformers.__version__)
STATES = 16  # bytes per parameter with Adam: weight, gradient and two moments, 32 bits each


def shares(world_size: int) -> list[float]:
    """Return each rank's parameters over an even share (the ranks are simulated one after another, on the meta device)."""
    found = []
    for rank in range(world_size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
        mesh = init_device_mesh("cpu", (world_size,))
        with torch.device("meta"):
            model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1))
        ends = [model.model.embed_tokens, model.lm_head, model.model.norm]
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        if rank == 0:
            weight = model.model.layers[0].mlp.experts.gate_up_proj
            print(f"{world_size} ranks: experts {tuple(weight.shape)}, of which rank 0 holds {tuple(weight.to_local().shape)}")
        end = sum(module.weight.to_local().numel() for module in ends)
        layers = sum(p.to_local().numel() for p in model.parameters()) - end
        even_end = sum(module.weight.numel() for module in ends) / world_size
        even_layers = sum(p.numel() for p in model.parameters()) / world_size - even_end
        held, even = end + 32 * layers, even_end + 32 * even_layers  # 32 layers as the model has, from the one made here
        found.append(held / even)
        if rank in (0, world_size - 1):
            print(f"  rank {rank:2}: {STATES * held / 2**30:6.1f} GiB of states; an even share is {STATES * even / 2**30:.1f} GiB")
        dist.destroy_process_group()
    return found


for world_size in (8, 16, 32):
    share = shares(world_size)
    print("  share of each rank, 1.00 being even:", " ".join(f"{s:.2f}" for s in share))
    assert len([s for s in share if s > 0.5]) == 8  # as many ranks as there are experts hold them
    assert world_size == 8 or min(share) < 0.15
    assert max(share) > 0.9 * world_size / 8
print("32 ranks need as much memory each as 8: the experts lie on 8 of them")
PY
env/bin/python show.py
