"""A look at an exported model: what it answers to an instruction."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from trainer.data.prompt import FORM


@torch.inference_mode()
def sample(model: Path, instruction: str, num_tokens: int = 96) -> str:
    """Return what an exported model writes after an instruction, the likeliest token each time.

    Args:
        model: folder that `from_pretrained` reads.
        instruction: in the words of the dataset.
        num_tokens: at most.
    """
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    prompt = tokenizer(FORM.format(instruction=instruction, input=""), return_tensors="pt", return_token_type_ids=False)
    written = network.generate(
        **prompt, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id or 0
    )
    return str(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
