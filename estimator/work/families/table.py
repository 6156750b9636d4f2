"""The reader of each `model_type`."""

from collections.abc import Callable
from functools import partial

from estimator.work.config import Config
from estimator.work.families.dense import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gemma4,
    glm,
    gpt2,
    llama,
    ministral,
    mistral,
    mpt,
    olmo2,
    olmo3,
    qwen2,
    qwen3,
    smollm3,
)
from estimator.work.families.hybrids import nemotron_h, qwen3_5, qwen3_5_moe, qwen3_next
from estimator.work.families.mixtures import (
    deepseek_v3,
    deepseek_v32,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    llama4,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
)
from estimator.work.layers import Shape

READERS: dict[str, Callable[[Config], Shape]] = {
    "bloom": bloom,
    "deepseek_v3": deepseek_v3,
    "deepseek_v32": deepseek_v32,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "gemma4_text": gemma4,
    "glm": glm,
    "glm4": partial(glm, family="glm4", num_post_norms=2),
    "glm4_moe": glm4_moe,
    "glm4_moe_lite": glm4_moe_lite,
    "gpt2": gpt2,
    "gpt_oss": gpt_oss,
    "granite": partial(llama, family="granite"),
    "kimi_k2": deepseek_v3,
    "llama": llama,
    "llama4_text": llama4,
    "ministral": ministral,
    "ministral3": partial(mistral, family="ministral3"),
    "mistral": mistral,
    "mixtral": mixtral,
    "mpt": mpt,
    "nemotron_h": nemotron_h,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "olmoe": olmoe,
    "phi3": partial(mistral, family="phi3"),
    "phimoe": phimoe,
    "qwen2": qwen2,
    "qwen2_moe": qwen2_moe,
    "qwen3": qwen3,
    "qwen3_5_moe_text": qwen3_5_moe,
    "qwen3_5_text": qwen3_5,
    "qwen3_moe": qwen3_moe,
    "qwen3_next": qwen3_next,
    "smollm3": smollm3,
}
"""By `model_type`. Kimi K2's code is not in transformers; its layers are DeepSeek-V3's, as its config says."""
