"""Visual question answering: an encoder reads the question in the image, a decoder answers it.

The decoder sees no image: its memory is the question as the encoder has understood it
(arXiv:2201.12086, sec. 5.3, fig. 5a).

Letters: B answers, Q questions (answer b is about question b // (B / Q)), I images (question q is
about image q // (Q / I)), L text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from capfilt_blip.attention import Memory
from capfilt_blip.config import BlipConfig
from capfilt_blip.text import LanguageModelHead, TextStack
from capfilt_blip.vision import VisionTransformer


class BlipVqa(nn.Module):
    """The image-grounded encoder for questions and the decoder for answers; nothing is shared."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_encoder = TextStack(config.text)
        # It reads questions, which are as wide as texts, whatever the width of the image tokens.
        self.text_decoder = TextStack(
            dataclasses.replace(config.text, image_width=config.text.width)
        )
        self.lm_head = LanguageModelHead(config.text)

    def read_questions(self, token_ids: Tensor, mask: Tensor, image_memory: Memory) -> Memory:
        """Understand questions, once for all their answers.

        Args:
            token_ids: (Q, L) int64, [ENC] first; the questions about one image follow each other.
            mask: (Q, L) bool, True where a token is real; the decoder does not see the others.
            image_memory: of I images, from `text_encoder.project_memory`.
        """
        hidden = self.text_encoder.fuse(token_ids, mask, image_memory)
        return self.text_decoder.project_memory(hidden, mask=mask)

    def lm_logits(self, token_ids: Tensor, mask: Tensor, questions: Memory) -> Tensor:
        """Predict each next token of answers that are given.

        Args:
            token_ids: (B, L) int64, [DEC] first; the answers to one question follow each other.
            mask: (B, L) bool, True where a token is real.
            questions: of `read_questions`.

        Returns:
            (B, L, V) logits; position l predicts token l + 1.
        """
        return self.token_logits(self.text_decoder.decode(token_ids, mask, questions))

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        logits: Tensor = self.lm_head(hidden, self.text_decoder.embeddings.words.weight)
        return logits
