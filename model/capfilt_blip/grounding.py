"""Visual grounding: which box of the image does a phrase mean? The box is written, as four tokens.

As in mmpretrain's BlipGrounding; the paper has no such model. One text stack reads the phrase, a
second reads it again in the image, a third writes centre x, centre y, width and height, each as one
of 641 tokens for 0 to 1, with image and phrase for its memory.

Letters: I images, B phrases (phrase b is about image b // (B / I)), P image tokens, L text tokens,
D width, V vocabulary.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capfilt_blip.attention import KV, Memory
from capfilt_blip.blip import Blip
from capfilt_blip.boxes import BoxTokens
from capfilt_blip.config import BlipConfig
from capfilt_blip.starts import copied_vision, task_config
from capfilt_blip.text import LanguageModelHead, TextStack
from capfilt_blip.vision import VisionTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenImages:
    """What is computed of images once, for all their phrases."""

    for_phrases: Memory
    """What the multimodal encoder reads."""
    for_boxes: Memory
    """What the box decoder reads, before the phrase."""


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

    @classmethod
    def from_blip(cls, blip: Blip, *, image_size_px: int = 384) -> BlipGrounding:
        """Return a model to be finetuned, made of copies of a pre-trained BLIP's parts.

        Both encoders start as the pre-trained encoder, which has read texts alone and in images.
        mmpretrain does not say what its weights were trained from.

        Args:
            blip: with a vocabulary that holds the tokens of `BoxTokens`.
            image_size_px: side of the images to be read; 384 is mmpretrain's.

        Raises:
            ValueError: image and text tokens of the BLIP differ in width, as in the large one.
        """
        # mmpretrain's vision transformer skips no branches here.
        config = task_config(blip.config, image_size_px=image_size_px, drop_path=0.0)
        with torch.device("meta"):
            model = cls(config)
        model.vision = copied_vision(blip.vision, config=config)
        model.text_encoder = copy.deepcopy(blip.text_encoder)
        model.multimodal_encoder = copy.deepcopy(blip.text_encoder)
        model.text_decoder = copy.deepcopy(blip.text_decoder)
        model.lm_head = copy.deepcopy(blip.lm_head)
        return model.train(blip.training)

    def see(self, pixels: Tensor) -> SeenImages:
        """Look at images, (I, 3, S, S) float, normalised."""
        image_embeds = self.vision(pixels)
        return SeenImages(
            for_phrases=self.multimodal_encoder.project_memory(image_embeds),
            for_boxes=self.text_decoder.project_memory(image_embeds),
        )

    def read_phrases(self, token_ids: Tensor, mask: Tensor, images: SeenImages) -> Memory:
        """Read phrases in their images.

        Args:
            token_ids: (B, L) int64, [CLS] first; the phrases about one image follow each other.
            mask: (B, L) bool, True where a token is real.
            images: I images, of `see`.

        Returns:
            B memories of P image tokens and L text tokens, for the box decoder.
        """
        alone = self.text_encoder.encode(token_ids, mask)
        fused = self.multimodal_encoder.fuse_embedded(alone, mask, images.for_phrases)
        return _side_by_side(
            images.for_boxes, self.text_decoder.project_memory(fused, mask=mask), phrase_mask=mask
        )

    def bin_logits(self, bins: Tensor, memory: Memory, *, tokens: BoxTokens) -> Tensor:
        """Predict each bin of boxes that are given, from those before it.

        Args:
            bins: (B, 4) int64, of `boxes.to_bins`; the last only stands for what is predicted.
            memory: B phrases, of `read_phrases`.
            tokens: of the model's vocabulary.

        Returns:
            (B, 4, 641) logits.
        """
        bin_ids = tokens.bin_ids.to(bins.device)
        start = bins.new_full((len(bins), 1), tokens.start_id)
        token_ids = torch.cat([start, bin_ids[bins[:, :3]]], dim=1)  # (B, 4)
        mask = torch.ones_like(token_ids, dtype=torch.bool)
        hidden = self.text_decoder.decode(token_ids, mask, memory)
        return self.token_logits(hidden)[..., bin_ids]

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Map hidden states of the decoder, (..., D), to logits, (..., V)."""
        logits: Tensor = self.lm_head(hidden, self.text_decoder.embeddings.words.weight)
        return logits


@torch.inference_mode()
def write_boxes(
    model: BlipGrounding, memory: Memory, *, tokens: BoxTokens
) -> tuple[Tensor, Tensor]:
    """Write the box of each phrase, taking the likeliest bin at every step.

    Args:
        model: in eval mode.
        memory: B phrases, of `read_phrases`.
        tokens: of the model's vocabulary; nothing else can be written.

    Returns:
        (B, 4) int64 bins for `boxes.from_bins`, and (B,) float32 log-probabilities: the sum over
        the four bins, each among the 641.
    """
    bin_ids = tokens.bin_ids.to(memory.device)
    decoder = model.text_decoder
    cache = decoder.new_cache(num_texts=len(memory), num_tokens=4)
    token_ids = bin_ids.new_full((len(memory), 1), tokens.start_id)
    bins, logprobs = [], torch.zeros(len(memory), device=memory.device)
    for position in range(4):
        hidden = decoder.step(token_ids, position=position, cache=cache, memory=memory)
        among_bins = model.token_logits(hidden)[:, bin_ids].float().log_softmax(-1)  # (B, 641)
        best, chosen = among_bins.max(-1)
        logprobs += best
        bins.append(chosen)
        token_ids = bin_ids[chosen, None]
    return torch.stack(bins, dim=1), logprobs


def _side_by_side(images: Memory, phrases: Memory, *, phrase_mask: Tensor) -> Memory:
    """Put the memory of each phrase behind the memory of its image: (B, H, P + L, D/H)."""
    copies = len(phrases) // len(images)
    layers: list[KV] = []
    for (image_key, image_value), (key, value) in zip(images.layers, phrases.layers, strict=True):
        image_key, image_value = (
            part.repeat_interleave(copies, dim=0) for part in (image_key, image_value)
        )
        layers.append((torch.cat([image_key, key], dim=2), torch.cat([image_value, value], dim=2)))
    num_image_tokens = images.layers[0][0].shape[2]
    seen = phrase_mask.new_ones(len(phrases), num_image_tokens)
    return Memory(layers=layers, mask=torch.cat([seen, phrase_mask], dim=1))
