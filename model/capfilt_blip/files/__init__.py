"""Models in files: where they lie, what they hold, and whose names their tensors have."""
