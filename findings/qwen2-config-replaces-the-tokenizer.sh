# One assumes that AutoTokenizer.from_pretrained gives back the tokenizer whose tokenizer.json lies in the folder.
# What happens: beside a qwen2 config.json only its vocabulary stays; text is split as Qwen2 does, digit by digit: one with numbers is 2.2 times as many tokens.
# Seen with transformers 5.23.0, tokenizers 0.23.3 on 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet transformers==5.23.0 tokenizers==0.23.3
cat > show.py <<'PY'
import warnings

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
inner = Tokenizer(models.BPE())
inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # as GPT-2: digits together
inner.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
)
text = "in 2024 we ran 4096 steps of 2048 tokens at 1000 tokens a second\n    return 100\n"
inner.train_from_iterator([text] * 50, trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>")
tokens = {"as saved": tokenizer.tokenize(text)}
for config in (MistralConfig, LlamaConfig, Qwen3Config, Qwen2Config):
    folder = config.model_type
    tokenizer.save_pretrained(folder)
    config().save_pretrained(folder)
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    tokens[folder] = loaded.tokenize(text)
    print(f"beside a {folder:8} config: {type(loaded).__name__:17} makes {len(tokens[folder]):2} tokens of the text")
for folder in ("as saved", "qwen2"):
    print(f"{folder}: {' '.join(tokens[folder])}")
assert tokens["mistral"] == tokens["llama"] == tokens["qwen3"] == tokens["as saved"]
assert len(tokens["qwen2"]) > 2 * len(tokens["as saved"])
PY
env/bin/python show.py
