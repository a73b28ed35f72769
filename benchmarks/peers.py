"""Ours and transformers' models with the same random weights, and the same work asked of both.

Weights are random, but larger than initial ones: else all images would look alike, and equal
answers mean little. Logits are as peaked as a trained model's: nuclei hold a few tokens of 30,524.
Texts are kept from ending early, so that every caption is the same work.

Letters: I images, B texts (text b reads image b // (B / I)), T tokens, S image side in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn

from capfilt_blip.attention import Memory
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.checkpoint import save_model
from capfilt_blip.config import BlipConfig
from capfilt_blip.decode import EagerWriting, Generated, Limits
from capfilt_blip.graphs import CapturedWriting
from capfilt_blip.sampling import Sampling
from capfilt_blip.tokenizer import Tokenizer

NUM_TOKENS = 20
"""Tokens of every caption, and of every text that is scored."""
TOP_P = 0.9
LOGIT_DEVIATION = 6.0
"""Of logits over the vocabulary: so much that a few tokens have 90 % of the probability."""

ModelT = TypeVar("ModelT", Blip, BlipCaptioner, BlipMatcher)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionPair:
    """One captioner, twice."""

    ours: BlipCaptioner
    writing: EagerWriting | CapturedWriting
    theirs: Any  # transformers' BlipForConditionalGeneration

    def greedy(self, pixels: Tensor, *, num_tokens: int = NUM_TOKENS) -> Tensor:
        """Write one likeliest caption per image.

        Returns:
            (I, num_tokens - 1) int64; the last token is left out, since ours may end there.
        """
        generated = self.writing.greedy(
            self._memory(pixels, num_captions=1, num_tokens=num_tokens),
            prompt_ids=[self.ours.config.bos_token_id],
            limits=_limits(num_tokens),
        )
        return generated.token_ids[:, : num_tokens - 1]

    def their_greedy(self, pixels: Tensor, *, num_tokens: int = NUM_TOKENS) -> Tensor:
        """Do the same with transformers."""
        ids: Tensor = self.theirs.generate(pixel_values=pixels, **_fixed(num_tokens))
        return ids[:, 1:num_tokens].cpu()

    def drawn(self, pixels: Tensor, *, num_captions: int) -> Generated:
        """Draw captions of each image from nuclei."""
        return self.writing.sampled(
            self._memory(pixels, num_captions=num_captions, num_tokens=NUM_TOKENS),
            prompt_ids=[self.ours.config.bos_token_id],
            row_keys=list(range(num_captions * len(pixels))),
            limits=_limits(NUM_TOKENS),
            sampling=Sampling(top_p=TOP_P),
        )

    def their_drawn(self, pixels: Tensor, *, num_captions: int) -> Tensor:
        """Do the same with transformers; (B, T) int64, the first token included."""
        ids: Tensor = self.theirs.generate(
            pixel_values=pixels,
            do_sample=True,
            top_p=TOP_P,
            top_k=0,
            num_return_sequences=num_captions,
            **_fixed(NUM_TOKENS),
        )
        return ids

    def _memory(self, pixels: Tensor, *, num_captions: int, num_tokens: int) -> Memory:
        num_queries = num_captions * (1 + num_tokens)
        return self.ours.text_decoder.memory_for(self.ours.vision(pixels), num_queries=num_queries)

    def their_logprobs(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Let transformers judge captions: (B,) float32, log-probability of each.

        Args:
            pixels: (I, 3, S, S).
            token_ids: (B, T) int64, as ours generated them.
        """
        ids = token_ids.to(pixels.device)
        first = ids.new_full((len(ids), 1), self.ours.config.bos_token_id)
        repeated = pixels.repeat_interleave(len(ids) // len(pixels), dim=0)
        read = self.theirs(pixel_values=repeated, input_ids=torch.cat([first, ids[:, :-1]], 1))
        logprobs: Tensor = read.logits.float().log_softmax(-1)
        return logprobs.gather(2, ids[:, :, None])[:, :, 0].sum(1).cpu()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePair:
    """One filter, twice."""

    ours: BlipMatcher
    theirs: Any  # transformers' BlipForImageTextRetrieval

    def itm(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Judge texts of images: (B, 2) float32, the probabilities of "no match" and "match"."""
        memory = self.ours.text_encoder.project_memory(self.ours.vision(pixels))
        mask = torch.ones_like(token_ids, dtype=torch.bool)
        return self.ours.itm_logits(token_ids, mask, memory).float().softmax(-1).cpu()

    def their_itm(self, pixels: Tensor, token_ids: Tensor) -> Tensor:
        """Do the same with transformers, which reads pairs of one image and one text."""
        repeated = pixels.repeat_interleave(len(token_ids) // len(pixels), dim=0)
        scores: Tensor = self.theirs(
            input_ids=token_ids, pixel_values=repeated, attention_mask=torch.ones_like(token_ids)
        ).itm_score
        return scores.float().softmax(-1).cpu()


def caption_pair(
    config: BlipConfig,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> CaptionPair:
    """Make a captioner of random weights, save it to the folder, and load it into transformers."""
    model = made_lively(BlipCaptioner(config)).eval()
    save_model(folder, model=model, tokenizer=tokenizer)
    peer = transformers.BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    model = model.to(device, dtype)
    writing = EagerWriting(model) if device == "cpu" else CapturedWriting(model)
    return CaptionPair(ours=model, writing=writing, theirs=peer.to(device).eval())


def score_pair(
    config: BlipConfig,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> ScorePair:
    """Make a filter of random weights, save it to the folder, and load it into transformers."""
    model = made_lively(BlipMatcher(config)).eval()
    save_model(folder, model=model, tokenizer=tokenizer)
    peer = transformers.BlipForImageTextRetrieval.from_pretrained(folder, dtype=dtype)
    return ScorePair(ours=model.to(device, dtype), theirs=peer.to(device).eval())


def made_lively(model: ModelT) -> ModelT:
    """Draw weights anew, so that each layer hands on as much as it takes in."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            gain = LOGIT_DEVIATION if name.endswith("words.weight") else 1.0
            nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))
    return model


def random_texts(config: BlipConfig, num_texts: int) -> Tensor:
    """Return (num_texts, NUM_TOKENS) int64, [CLS] first: what transformers reads."""
    ids = torch.randint(5, config.text.vocab_size - 5, (num_texts, NUM_TOKENS))
    ids[:, 0] = config.cls_token_id
    return ids


def config_of(size: str) -> tuple[BlipConfig, Tokenizer]:
    """Return the sizes, and a tokenizer whose vocabulary has as many tokens.

    Args:
        size: base, large, tiny, or small: a second tiny one, of other sizes.
    """
    configs = {
        "base": BlipConfig.base,
        "large": BlipConfig.large,
        "tiny": lambda: BlipConfig.tiny(vocab_size=1_000),
        "small": lambda: BlipConfig.tiny(vocab_size=1_000, width=64, text_depth=2),
    }
    config = configs[size]()
    special = {"[PAD]": config.pad_token_id, "[CLS]": config.cls_token_id}
    special |= {"[SEP]": config.sep_token_id, "[UNK]": config.cls_token_id - 1}
    special |= {"[MASK]": config.sep_token_id + 1}
    special |= {"[DEC]": config.bos_token_id, "[ENC]": config.enc_token_id}
    taken = set(special.values())
    words = {f"w{i}": i for i in range(config.text.vocab_size) if i not in taken}
    return config, Tokenizer(special | words)


def quiet_transformers() -> None:
    """Keep its hints and progress bars out of the table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _limits(num_tokens: int) -> Limits:
    return Limits(min_new_tokens=num_tokens - 1, max_new_tokens=num_tokens)


def _fixed(num_tokens: int) -> dict[str, int]:
    return {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
