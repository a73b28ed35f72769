"""The finetuned models with their friendly faces."""
