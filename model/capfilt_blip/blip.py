"""BLIP: the model that is pre-trained, and the two models of CapFilt that are finetuned from it.

    Blip            vision + text decoder + text encoder, tied as in pre-training
    BlipCaptioner   vision + text decoder             writes synthetic texts (T_s)
    BlipMatcher     vision + text encoder             scores texts: ITM and ITC

`vqa`, `nlvr` and `grounding` hold the models of the other tasks.

Captioner and matcher never share weights: finetuned apart they make independent mistakes, which is
what makes filtering work (arXiv:2201.12086, table 4).

Letters: B texts, I images (text b reads image b // (B / I)), P image tokens, L text tokens,
D width, E shared width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capfilt_blip.attention import Memory
from capfilt_blip.config import BlipConfig
from capfilt_blip.text import LanguageModelHead, TextStack
from capfilt_blip.vision import VisionTransformer, resize_positions


class BlipCaptioner(nn.Module):
    """The image-grounded text decoder with its image encoder."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_decoder = TextStack(config.text)
        self.lm_head = LanguageModelHead(config.text)

    def forward(self, pixels: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Predict each next token of texts that are given.

        Args:
            pixels: (I, 3, S, S) float, normalised.
            token_ids: (B, L) int64, [DEC] first; the texts of one image follow each other.
            mask: (B, L) bool, True where a token is real.

        Returns:
            (B, L, V) logits; position l predicts token l + 1.
        """
        memory = self.text_decoder.project_memory(self.vision(pixels))
        return self.lm_logits(token_ids, mask, memory)

    def lm_logits(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Do what `forward` does, with images that `text_decoder.project_memory` has seen."""
        return self.token_logits(self.text_decoder.decode(token_ids, mask, memory))

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        logits: Tensor = self.lm_head(hidden, self.text_decoder.embeddings.words.weight)
        return logits


class BlipMatcher(nn.Module):
    """The unimodal and the image-grounded text encoder with their image encoder and heads."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_encoder = TextStack(config.text)
        self.vision_proj = nn.Linear(config.vision.width, config.shared_width)
        self.text_proj = nn.Linear(config.text.width, config.shared_width)
        self.itm_head = nn.Linear(config.text.width, 2)

    def itm_logits(self, token_ids: Tensor, mask: Tensor, memory: Memory) -> Tensor:
        """Judge whether texts describe their images.

        Args:
            token_ids: (B, L) int64, [ENC] first; the texts of one image follow each other.
            mask: (B, L) bool, True where a token is real.
            memory: of I images, from `text_encoder.project_memory`.

        Returns:
            (B, 2) logits; index 1 says that the text matches.
        """
        logits: Tensor = self.itm_head(self.text_encoder.fuse_first(token_ids, mask, memory))
        return logits

    def image_vectors(self, image_embeds: Tensor) -> Tensor:
        """Map image tokens, (I, P, Dimg), to unit vectors, (I, E)."""
        return F.normalize(self.vision_proj(image_embeds[:, 0]), dim=-1)

    def text_vectors(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Map texts, (B, L) with [CLS] first, to unit vectors, (B, E)."""
        return F.normalize(self.text_proj(self.text_encoder.encode_first(token_ids, mask)), dim=-1)


class Blip(nn.Module):
    """The pre-training model: encoder and decoder share all text parameters but self-attention.

    It computes nothing itself. `captioning` and `matching` show its parameters as the two finetuned
    models, so that a loss written for one of them serves pre-training too.

    Attributes:
        temp: temperature of the ITC softmax; scalar, starts at 0.07.
    """

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTransformer(config.vision)
        self.text_decoder = TextStack(config.text)
        self.lm_head = LanguageModelHead(config.text)
        self.text_encoder = self.text_decoder.twin()
        self.vision_proj = nn.Linear(config.vision.width, config.shared_width)
        self.text_proj = nn.Linear(config.text.width, config.shared_width)
        self.itm_head = nn.Linear(config.text.width, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def captioning(self) -> BlipCaptioner:
        """Return these very parameters, not copies, as a captioner."""
        with torch.device("meta"):
            view = BlipCaptioner(self.config)
        view.vision, view.text_decoder, view.lm_head = self.vision, self.text_decoder, self.lm_head
        view.training = self.training
        return view

    def matching(self) -> BlipMatcher:
        """Return these very parameters, not copies, as a matcher."""
        with torch.device("meta"):
            view = BlipMatcher(self.config)
        view.vision, view.text_encoder = self.vision, self.text_encoder
        view.vision_proj, view.text_proj, view.itm_head = (
            self.vision_proj,
            self.text_proj,
            self.itm_head,
        )
        view.training = self.training
        return view

    def captioner(self, *, image_size_px: int | None = None) -> BlipCaptioner:
        """Return a copy to be finetuned as a captioner, for another image size if one is given."""
        return _at_image_size(copy.deepcopy(self.captioning()), image_size_px)

    def matcher(self, *, image_size_px: int | None = None) -> BlipMatcher:
        """Return a copy to be finetuned as a matcher, for another image size if one is given."""
        return _at_image_size(copy.deepcopy(self.matching()), image_size_px)


M = TypeVar("M", BlipCaptioner, BlipMatcher)


def _at_image_size(model: M, image_size_px: int | None) -> M:
    if image_size_px is None:
        return model
    model.config = model.config.at_image_size(image_size_px)
    model.vision.config = model.config.vision
    positions = resize_positions(
        model.vision.positions.data, num_tokens=model.config.vision.num_tokens
    )
    model.vision.positions = nn.Parameter(positions)
    return model
