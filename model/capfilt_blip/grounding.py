"""Visual grounding: which box of the image does a phrase mean? The box is written, as four tokens.

As in mmpretrain's BlipGrounding; the paper has no such model. One text stack reads the phrase, a
second reads it again in the image, a third writes centre x, centre y, width and height, each as one
of 641 tokens for 0 to 1, with image and phrase for its memory.

Letters: B phrases and images, P image tokens, L text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from capfilt_blip.attention import Memory
from capfilt_blip.config import BlipConfig
from capfilt_blip.text import LanguageModelHead, TextStack
from capfilt_blip.vision import VisionTransformer


class BlipGrounding(nn.Module):
    """Three text stacks and an image encoder; nothing is shared."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        if config.vision.width != config.text.width:
            raise ValueError(
                f"image tokens are {config.vision.width} wide and text tokens "
                f"{config.text.width}; grounding reads both side by side and needs one width"
            )
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_encoder = TextStack(config.text)
        self.multimodal_encoder = TextStack(config.text)
        self.text_decoder = TextStack(config.text)
        self.lm_head = LanguageModelHead(config.text)

    def read_phrases(self, pixels: Tensor, token_ids: Tensor, mask: Tensor) -> Memory:
        """Read phrases in their images.

        Args:
            pixels: (B, 3, S, S) float, normalised.
            token_ids: (B, L) int64, [CLS] first.
            mask: (B, L) bool, True where a token is real.

        Returns:
            What the box decoder reads: P image tokens and L text tokens.
        """
        image_embeds = self.vision(pixels)
        image_memory = self.multimodal_encoder.project_memory(image_embeds)
        alone = self.text_encoder.encode(token_ids, mask)
        fused = self.multimodal_encoder.fuse_embedded(alone, mask, image_memory)
        seen = torch.cat([mask.new_ones(image_embeds.shape[:2]), mask], dim=1)  # (B, P + L)
        both = torch.cat([image_embeds, fused], dim=1)  # (B, P + L, D)
        return self.text_decoder.project_memory(both, mask=seen)

    def lm_logits(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Predict each next token of boxes that are given.

        Args:
            token_ids: (B, L) int64, the token that begins a box first.
            mask: (B, L) bool, True where a token is real.
            memory: of `read_phrases`.

        Returns:
            (B, L, V) logits; position l predicts token l + 1.
        """
        return self.token_logits(self.text_decoder.decode(token_ids, mask, memory))

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        logits: Tensor = self.lm_head(hidden, self.text_decoder.embeddings.words.weight)
        return logits
