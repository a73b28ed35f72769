"""The rows that `benchmarks/gpu.py` measures, a module per group."""
