"""Training of BLIP, in one process or many: pre-training, and finetuning for each task."""
