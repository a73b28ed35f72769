"""What can go wrong in training that no retry mends; each text is one line."""

from __future__ import annotations


class TrainingError(ArithmeticError):
    """A loss or the gradient is not a finite number; the weights are those before the step."""


class StateError(ValueError):
    """A saved state is damaged, or is that of another training."""
