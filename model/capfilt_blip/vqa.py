"""Visual question answering: an encoder reads the question in the image, a decoder answers it.

The decoder sees no image: its memory is the question as the encoder has understood it
(arXiv:2201.12086, sec. 5.3, fig. 5a).

Letters: B answers, Q questions (answer b is about question b // (B / Q)), I images (question q is
about image q // (Q / I)), L text tokens, D width, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from typing import cast

import torch
from torch import Tensor, nn

from capfilt_blip.attention import Memory
from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig, TextConfig
from capfilt_blip.starts import copied_vision, task_config
from capfilt_blip.text import LanguageModelHead, TextLayer, TextStack, initialise_text
from capfilt_blip.vision import VisionTransformer

logger = logging.getLogger(__name__)


class BlipVqa(nn.Module):
    """The image-grounded encoder for questions and the decoder for answers; nothing is shared."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_encoder = TextStack(config.text)
        self.text_decoder = TextStack(_decoder_config(config.text))
        self.lm_head = LanguageModelHead(config.text)

    @classmethod
    def from_blip(cls, blip: Blip, *, image_size_px: int = 480, drop_path: float = 0.1) -> BlipVqa:
        """Return a model to be finetuned, made of copies of a pre-trained BLIP's parts.

        Encoder and decoder, tied in pre-training, go their own ways from here.

        In pre-training the decoder read image tokens, here it reads questions. Where image tokens
        have another width than text tokens (the large BLIP: 1024 and 768), the maps that give its
        cross-attention keys and values do not fit: they start anew, and a warning is logged. The
        original does the same in silence (salesforce/BLIP: load_checkpoint in models/blip.py).

        Args:
            blip: the pre-trained model; not changed.
            image_size_px: side of the images to be read; 480 is BLIP's.
            drop_path: chance that the last vision layer skips its branches in training, in [0, 1);
                0.1 is BLIP's.
        """
        with torch.device("meta"):
            model = cls(task_config(blip.config, image_size_px=image_size_px, drop_path=drop_path))
        model.vision = copied_vision(blip.vision, config=model.config)
        model.text_encoder = copy.deepcopy(blip.text_encoder)
        model.text_decoder = copy.deepcopy(blip.text_decoder)
        model.lm_head = copy.deepcopy(blip.lm_head)
        if model.text_decoder.config != _decoder_config(blip.config.text):
            _renew_keys_and_values(model.text_decoder)
        return model.train(blip.training)

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
            questions: of `read_questions`. `Memory.rows` fits it to questions that have different
                numbers of answers, as in training.

        Returns:
            (B, L, V) logits; position l predicts token l + 1.
        """
        return self.token_logits(self.text_decoder.decode(token_ids, mask, questions))

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        logits: Tensor = self.lm_head(hidden, self.text_decoder.embeddings.words.weight)
        return logits


def _decoder_config(text: TextConfig) -> TextConfig:
    # It reads questions, which are as wide as texts, whatever the width of the image tokens.
    return dataclasses.replace(text, image_width=text.width)


def _renew_keys_and_values(decoder: TextStack) -> None:
    """Have a decoder's cross-attention read texts in place of images, with new random weights."""
    image_width, width = decoder.config.image_width, decoder.config.width
    decoder.config = _decoder_config(decoder.config)
    words = decoder.embeddings.words.weight
    for layer in decoder.layers:
        heads = cast(TextLayer, layer).cross_attention.heads
        heads.key, heads.value = (
            nn.Linear(width, width, device=words.device, dtype=words.dtype) for _ in range(2)
        )
        heads.key.apply(initialise_text)
        heads.value.apply(initialise_text)
    logger.warning(
        "the answer decoder's cross-attention keys and values start anew in all %d layers: they "
        "read questions, %d wide, and those of pre-training read image tokens, %d wide",
        len(decoder.layers),
        width,
        image_width,
    )
