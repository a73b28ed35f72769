"""The image encoder: a pre-norm vision transformer (timm style; arXiv:2010.11929).

All output tokens are what the text side cross-attends; token 0, the class token, is what the ITC
projection reads.

Letters: B batch, P image tokens (class token first), D width, H heads, S image side in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.config import VisionConfig
from capfilt_blip.recompute import layer_calls

_IMAGES_AT_ONCE = 2
"""On a CPU, out of training: what the layers hand on then stays in the cache (7 MB of the MLP's
inside for two images of ViT-B at 384 px), and products of that size are no slower than larger."""


class VisionTransformer(nn.Module):
    """Turn images into tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size_px
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.positions = nn.Parameter(torch.empty(1, config.num_tokens, config.width))
        self.patches = nn.Conv2d(3, config.width, kernel_size=patch, stride=patch)
        drop_paths = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.layers = nn.ModuleList(VisionLayer(config, drop_path=p) for p in drop_paths)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.num_recomputed = 0  # see `recompute_activations`
        self._initialise()

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised images.

        Args:
            pixels: (B, 3, S, S) float, from `transforms.normalise`.

        Returns:
            (B, P, D), after the final LayerNorm; token 0 is the class token.
        """
        if pixels.is_cpu and not torch.is_grad_enabled():
            return torch.cat([self._encode(part) for part in torch.split(pixels, _IMAGES_AT_ONCE)])
        return self._encode(pixels)

    def _encode(self, pixels: Tensor) -> Tensor:
        tokens = (
            self.patches(pixels.to(self.positions.dtype)).flatten(2).transpose(1, 2)
        )  # (B, P - 1, D)
        class_token = self.class_token.expand(len(tokens), -1, -1)
        tokens = torch.cat([class_token, tokens], dim=1) + self.positions
        calls = layer_calls(self.layers, num_recomputed=self.num_recomputed, training=self.training)
        for call in calls:
            tokens = call(tokens)
        normed: Tensor = self.norm(tokens)
        return normed

    def _initialise(self) -> None:
        # As in DeiT and the original BLIP: truncated normal of 0.02, biases 0, LayerNorm 1 and 0.
        for weight in (self.class_token, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


class VisionLayer(nn.Module):
    """One transformer layer: LayerNorm before self-attention and before the MLP."""

    def __init__(self, config: VisionConfig, *, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attention = VisionAttention(width=config.width, num_heads=config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(width=config.width, mlp_width=config.mlp_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, P, D) to (B, P, D)."""
        tokens = tokens + self._maybe_skipped(self.attention(self.norm1(tokens)))
        return tokens + self._maybe_skipped(self.mlp(self.norm2(tokens)))

    def _maybe_skipped(self, branch: Tensor) -> Tensor:
        # Stochastic depth (arXiv:1603.09382): whole images skip the branch; the others are scaled
        # up to keep the expectation.
        if not self.training or self.drop_path == 0:
            return branch
        keep = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * keep / (1 - self.drop_path)


class VisionAttention(nn.Module):
    """Full self-attention; the rows of its one projection are query, key, value in this order."""

    def __init__(self, *, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, P, D) to (B, P, D)."""
        B, P, D = tokens.shape
        qkv = self.qkv(tokens).view(B, P, 3, self.num_heads, D // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # 3 of (B, H, P, D/H)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(B, P, D))
        return out


class VisionMlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, *, width: int, mlp_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, mlp_width)
        self.down = nn.Linear(mlp_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, P, D) to (B, P, D)."""
        out: Tensor = self.down(F.gelu(self.up(tokens)))
        return out


def resize_positions(positions: Tensor, *, num_tokens: int) -> Tensor:
    """Fit position embeddings to another image size, as BLIP does before it finetunes.

    The class token's row stays; the square grid of the others is resized bicubically.

    Args:
        positions: (1, P, D).
        num_tokens: P of the new size, one more than a square number.

    Returns:
        (1, num_tokens, D), of the same dtype.
    """
    if positions.shape[1] == num_tokens:
        return positions
    old_side, new_side = (round((count - 1) ** 0.5) for count in (positions.shape[1], num_tokens))
    grid = positions[:, 1:].float().view(1, old_side, old_side, -1)
    grid = grid.permute(0, 3, 1, 2)  # (1, D, old_side, old_side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    grid = grid.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)  # (1, num_tokens - 1, D)
    return torch.cat([positions[:, :1], grid], dim=1)
