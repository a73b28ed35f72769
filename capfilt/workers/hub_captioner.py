"""Any image-to-text model of transformers as the captioner.

The model's own processor makes its input, of squares of one size, so that all inputs of a run have
one shape; `keyed_sampling` draws the tokens. A checkpoint's own generation settings (beams,
penalties, lengths) are left aside: the recipe's count, and those are in the plan.

Letters: B images, L tokens of the prompt, with those that stand for the image.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchFeature,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from capfilt.config import DType
from capfilt.errors import CheckpointError
from capfilt.io.images import Fit
from capfilt.workers.hub_model import (
    OFFLINE,
    Square,
    explained,
    load_image_processor,
    load_model,
)
from capfilt.workers.keyed_sampling import Drawn, KeyedSampler
from capfilt.workers.kinds import takes_prompt
from capfilt.workers.protocols import ImageArray, Sampling
from capfilt_blip.decode import Limits
from capfilt_blip.sampling import Sampling as TokenSampling
from capfilt_blip.sampling import row_key
from capfilt_blip.tasks.captioner import Caption
from capfilt_blip.transforms import fixed_batches

CHAT_PROMPT = "Describe this image in one short sentence."
"""What a chat model is asked if the recipe has no prompt."""

MAX_VOCABULARY = 2**20
"""Tokens that `capfilt_blip.sampling` can rank; the largest vocabulary known to us has 262,208."""

_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionerParts:
    """A model with what makes its inputs and reads its outputs."""

    model: PreTrainedModel
    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase
    processor: ProcessorMixin | None  # joins images and a prompt; None if it takes no prompt


class HubCaptioner:
    """Writes with an image-to-text model of transformers.

    Args:
        parts: the model, in eval mode, and what belongs to it.
        square: what the model is shown of a picture.
    """

    def __init__(self, parts: CaptionerParts, square: Square) -> None:
        self._parts = parts
        self._square = square
        self._tokens = _special_tokens(parts.model, parts.tokenizer)
        # BLIP-2's own generate() hands over to that of the language model in it.
        for module in parts.model.modules():
            if hasattr(module, "generation_config"):
                module.generation_config = copy.deepcopy(self._tokens)

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        *,
        device: str,
        dtype: DType,
        image_size_px: int | None,
        sampling: Sampling,
    ) -> HubCaptioner:
        """Load a captioner, and let it write a few tokens about nothing.

        A model that cannot be run would otherwise fail row by row.

        Args:
            directory: of the model.
            device: where it computes.
            dtype: what it computes in.
            image_size_px: side of the squares shown to a model that takes any shape.
            sampling: what it will be asked for.

        Raises:
            CheckpointError: it cannot be loaded or does not write, or it takes pictures of any
                shape and `image_size_px` is None.
        """
        parts, square = _load_parts(directory, device=device, dtype=dtype)
        if square is None and image_size_px is not None:
            square = Square(side_px=image_size_px, fit=Fit())
        if square is None:
            raise CheckpointError(
                f"{directory}: this model takes pictures of any shape, and here all are shown as "
                "squares of one size; set caption.image_size_px to a side in pixels, such as 448"
            )
        captioner = cls(parts, square)
        with explained(directory, "used"):
            room = captioner.room(sampling.prompt)
            captioner.try_out(sampling)
        if room is not None and room < sampling.max_new_tokens:
            raise CheckpointError(
                f"{directory}: behind the prompt, with the image in it, there is room for {room} "
                f"tokens; caption.max_new_tokens is {sampling.max_new_tokens}"
            )
        return captioner

    @property
    def image_size_px(self) -> int:
        """Side of the squares it takes."""
        return self._square.side_px

    @property
    def fit(self) -> Fit:
        """How a picture is brought into such a square."""
        return self._square.fit

    def room(self, prompt: str | None) -> int | None:
        """Tokens there are positions for behind a prompt; None if the model counts none."""
        inputs = self._inputs(torch.from_numpy(self._grey_image()), prompt)
        num_tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else 1
        text = self._parts.model.config.get_text_config(decoder=True)
        positions: int | None = getattr(text, "max_position_embeddings", None)
        return None if positions is None else positions - num_tokens

    def try_out(self, sampling: Sampling) -> None:
        """Write up to two tokens about nothing: raises what a caption would raise."""
        few = replace(sampling, num_captions=1, batch_images=2, min_new_tokens=0, max_new_tokens=2)
        self.caption(self._grey_image(), keys=[""], sampling=few)

    def _grey_image(self) -> ImageArray:
        return np.full((1, self._square.side_px, self._square.side_px, 3), 128, np.uint8)

    def caption(
        self, images: ImageArray, *, keys: Sequence[str], sampling: Sampling
    ) -> list[list[Caption]]:
        """Sample captions; see `protocols.ImageCaptioner`.

        Each caption of an image is a pass of its own, so that the first ones do not depend on how
        many follow. No prompt means none, or `CHAT_PROMPT` for a chat model.
        """
        captions: list[list[Caption]] = [[] for _ in keys]
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        start = 0
        for batch in fixed_batches(pixels, batch_size=sampling.batch_images):
            names = list(keys[start : start + len(batch)])
            inputs = self._inputs(batch, sampling.prompt)
            for index in range(sampling.num_captions):
                filled = names + names[:1] * (len(batch) - len(names))
                drawn = self._draw(inputs, filled, index, sampling)
                for row, caption in zip(captions[start:], self._texts(drawn), strict=False):
                    row.append(caption)
            start += len(batch)
        return captions

    def flops(self, captions: Sequence[Sequence[Caption]], *, sampling: Sampling) -> None:
        """Not counted: each architecture has its own count."""

    @torch.inference_mode()
    def _draw(
        self, inputs: BatchFeature, keys: Sequence[str], index: int, sampling: Sampling
    ) -> Drawn:
        """Write the caption of that index of each image of a batch."""
        model = self._parts.model
        sampler = KeyedSampler(
            [
                row_key(seed=sampling.seed, round_=sampling.round, key=key, caption_index=index)
                for key in keys
            ],
            end_ids=_as_list(self._tokens.eos_token_id),
            limits=Limits(
                min_new_tokens=sampling.min_new_tokens,
                max_new_tokens=sampling.max_new_tokens,
                repetition_penalty=sampling.repetition_penalty,
            ),
            sampling=TokenSampling(
                top_p=sampling.top_p, top_k=sampling.top_k, temperature=sampling.temperature
            ),
            device=model.device,
        )
        settings = copy.deepcopy(self._tokens)
        settings.max_new_tokens = sampling.max_new_tokens
        model.generate(
            **inputs, generation_config=settings, logits_processor=LogitsProcessorList([sampler])
        )
        return sampler.drawn()

    def _inputs(self, batch: Tensor, prompt: str | None) -> BatchFeature:
        """What the model reads: the images, and the prompt if it takes one."""
        images = [Image.fromarray(image) for image in batch.numpy()]
        parts = self._parts
        if parts.processor is None:
            inputs = parts.image_processor(images, return_tensors="pt")
        elif parts.processor.chat_template is not None:
            inputs = _chat_inputs(
                parts.processor, images, CHAT_PROMPT if prompt is None else prompt
            )
        else:
            texts = [prompt or ""] * len(images)
            inputs = parts.processor(images=images, text=texts, return_tensors="pt")
            if not parts.model.config.is_encoder_decoder:
                inputs = _left_open(inputs, end_ids=_as_list(self._tokens.eos_token_id))
        if "token_type_ids" not in signature(parts.model.forward).parameters:
            inputs.pop("token_type_ids", None)
        return inputs.to(parts.model.device, parts.model.dtype)

    def _texts(self, drawn: Drawn) -> Iterator[Caption]:
        for token_ids, logprob in zip(drawn.token_ids, drawn.logprobs, strict=True):
            text = self._parts.tokenizer.decode(token_ids, skip_special_tokens=True)
            yield Caption(text=text.strip(), logprob=logprob, num_tokens=len(token_ids))


def _load_parts(
    directory: Path, *, device: str, dtype: DType
) -> tuple[CaptionerParts, Square | None]:
    model = load_model(AutoModelForImageTextToText, directory, device=device, dtype=dtype)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if vocabulary > MAX_VOCABULARY:
        raise CheckpointError(
            f"{directory}: the vocabulary has {vocabulary} tokens; {MAX_VOCABULARY} can be sampled"
        )
    image_processor, square = load_image_processor(directory)
    with explained(directory, "loaded"):
        if not takes_prompt(model.config.model_type):
            tokenizer = AutoTokenizer.from_pretrained(str(directory), **OFFLINE)
            processor = None
        else:
            processor = AutoProcessor.from_pretrained(str(directory), **OFFLINE)
            if not isinstance(processor, ProcessorMixin):
                raise CheckpointError(
                    f"{directory}: there is no processor that joins images and a prompt; "
                    "preprocessor_config.json or processor_config.json should name its class"
                )
            processor.image_processor = image_processor
            tokenizer = processor.tokenizer
    parts = CaptionerParts(
        model=model, image_processor=image_processor, tokenizer=tokenizer, processor=processor
    )
    return parts, square


def _special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Generation settings that name the special tokens and leave all else at its default."""
    own, text = model.generation_config, model.config.get_text_config(decoder=True)

    def named(name: str) -> int | list[int] | None:
        places = (own, text, tokenizer)
        return next((t for p in places if (t := getattr(p, name, None)) is not None), None)

    end_ids = _as_list(named("eos_token_id"))
    pad_id = named("pad_token_id")
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        bos_token_id=named("bos_token_id"),
        eos_token_id=end_ids or None,
        pad_token_id=end_ids[0] if pad_id is None and end_ids else pad_id,
        decoder_start_token_id=named("decoder_start_token_id"),
    )


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


def _chat_inputs(
    processor: ProcessorMixin, images: Sequence[Image.Image], prompt: str
) -> BatchFeature:
    """Each image with the prompt as a user's message, up to where the answer begins."""
    talks = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}],
            }
        ]
        for image in images
    ]
    return processor.apply_chat_template(
        talks, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def _left_open(inputs: BatchFeature, *, end_ids: Sequence[int]) -> BatchFeature:
    """Take off the end tokens a tokenizer puts behind a prompt: the caption goes on from it.

    Without a prompt nothing may be left; then the model begins with its own first token.
    """
    if "input_ids" not in inputs:
        return inputs
    rows = inputs["input_ids"]  # (B, L), all rows alike
    length = rows.shape[1]
    while length and int(rows[0, length - 1]) in end_ids:
        length -= 1
    for name in _TEXT_INPUTS:
        if name in inputs and length:
            inputs[name] = inputs[name][:, :length]
        elif not length:
            inputs.pop(name, None)
    return inputs
