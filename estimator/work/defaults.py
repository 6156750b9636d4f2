"""What is asked where nothing else is said: the seed run."""

SEED_MODEL = "mistralai/Mistral-7B-v0.1"
SEED_SEQ_LEN = 2048
"""Tokens per row."""
SEED_BATCH = 256
"""Rows per optimizer step, over all devices."""
SEED_ROWS = 18612
SEED_EPOCHS = 2
SEED_STACK = "moai-24.2"
# documented: the fine-tune of the MoAI platform's tutorial, version 24.2, whose log is in reports/measured/moai
