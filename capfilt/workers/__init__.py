"""The GPU's part of each stage: the only modules of the pipeline that import torch."""
