"""The readers of Hugging Face configs, by family."""
