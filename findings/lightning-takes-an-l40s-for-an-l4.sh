# One assumes that the MFU of Lightning's ThroughputMonitor divides by the dense tensor-core peak of the device, so that two machines compare.
# What happens: an L40S and an L40 get the peak of an L4 (121 TFLOP/s), an A40 and an RTX A6000 that without tensor cores, an H100 NVL 2.4 times its own.
# Seen with lightning 2.6.6, torch 2.13.0 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet torch==2.13.0 lightning==2.6.6
cat > show.py <<'PY'
from unittest.mock import patch

import lightning
import torch
from lightning.fabric.utilities.throughput import get_available_flops

print("lightning", lightning.__version__, "torch", torch.__version__)
DENSE = {  # bfloat16 FLOP/s of tensor cores, 32-bit accumulation, by the makers' data sheets; half of what they print as sparse
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA RTX A6000": 154.8e12,
    "NVIDIA H100 NVL": 835.5e12,
}
ratios = {}
for name, dense in DENSE.items():
    with patch("torch.cuda.get_device_name", return_value=name):  # the name is all that Lightning asks the device for
        taken = get_available_flops(torch.device("cuda", 0), torch.bfloat16)
    ratios[name] = dense / taken
    print(f"{name:22} {taken / 1e12:7.1f} TFLOP/s taken, {dense / 1e12:6.1f} by its data sheet: "
          f"a run at 40 % of the peak shows an MFU of {0.4 * ratios[name]:.0%}")
assert all(abs(ratios[name] - 1) < 0.01 for name in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA L4"))
assert ratios["NVIDIA L40S"] > 2.9 and ratios["NVIDIA L40"] > 1.4
assert ratios["NVIDIA A40"] > 3.9 and ratios["NVIDIA RTX A6000"] > 3.9
assert ratios["NVIDIA H100 NVL"] < 0.45
PY
env/bin/python show.py
