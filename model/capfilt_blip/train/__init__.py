"""Training of BLIP in one process: pre-training, and finetuning of captioner and matcher."""
