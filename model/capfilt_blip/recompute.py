"""Activation recomputation (gradient checkpointing): less memory for one more forward pass.

A recomputed layer keeps its input only, and runs again in the backward pass. The result is the same
to the bit, dropout included. The original does so in the last layers of the vision transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(model: nn.Module, *, num_layers: int) -> None:
    """Have the last layers of every stack of a model recomputed in training.

    Args:
        model: any model of this package, or one of its stacks.
        num_layers: of each stack, vision and text, counted from its end; 0 turns it off.
    """
    for module in model.modules():
        if hasattr(module, "num_recomputed"):
            module.num_recomputed = num_layers  # type: ignore[assignment]  # not a Tensor


def layer_calls(
    layers: nn.ModuleList, *, num_recomputed: int, training: bool
) -> list[Callable[..., Tensor]]:
    """Return what to call for each layer: the layer, or in training the layer recomputed.

    Args:
        layers: of one stack, in order.
        num_recomputed: how many of them, from the end, are recomputed.
        training: whether the stack is in training mode.
    """
    first = len(layers) - num_recomputed if training else len(layers)
    return [
        layer if index < first else partial(checkpoint, layer, use_reentrant=False)
        for index, layer in enumerate(layers)
    ]
