"""The captioner: images in, synthetic texts (T_s) out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from capfilt_blip.attention import Memory
from capfilt_blip.beam import Beams, generate_beams
from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.checkpoint import load_captioner
from capfilt_blip.decode import EagerWriting, Generated, Limits
from capfilt_blip.flops import caption_flops, image_flops, reading_flops
from capfilt_blip.graphs import CapturedWriting
from capfilt_blip.sampling import Sampling, row_key
from capfilt_blip.tasks.ahead import one_ahead
from capfilt_blip.tasks.placement import Device, NumberFormat, placed, weights_dtype
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.transforms import Images, fixed_batches, normalise, to_device, to_uint8

PROMPT = "a picture of "
"""What BLIP's captioner was finetuned to continue (arXiv:2201.12086, sec. 5.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """One generated text."""

    text: str
    """Without the prompt."""
    logprob: float
    """Log-probability of the generated tokens under the model as it is, summed over them: [SEP] is
    in, the prompt is not, and temperature, penalty, top-k and top-p play no part. Divide by
    `num_tokens` for a mean."""
    num_tokens: int
    """Tokens generated, [SEP] included; equal to max_new_tokens where the text may be cut off."""


class Captioner:
    """Writes captions. Equal images with equal keys get equal captions, whatever is around them.

    Args:
        model: a captioner; it is moved to the device and dtype, and to eval mode.
        tokenizer: the one the model was trained with.
        device: where it computes.
        dtype: what it computes in.
    """

    def __init__(
        self,
        model: BlipCaptioner,
        tokenizer: Tokenizer,
        *,
        device: Device = "cpu",
        dtype: NumberFormat = "float32",
    ) -> None:
        self._model = placed(model, device=device, dtype=dtype)
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        self._writing = (
            CapturedWriting(self._model)
            if self._device.type == "cuda"
            else EagerWriting(self._model)
        )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: Device = "cpu",
        dtype: NumberFormat = "float32",
    ) -> Captioner:
        """Load a captioner.

        Args:
            source: what `checkpoint.load_captioner` takes.
            tokenizer: directory or `vocab.txt`, for a source that has none, such as a `.pth`.
            device: where it computes.
            dtype: what it computes in.

        Raises:
            CheckpointError: the source cannot be read, or is no captioner.
        """
        model, loaded = load_captioner(source, tokenizer=tokenizer, dtype=weights_dtype(dtype))
        return cls(model, loaded, device=device, dtype=dtype)

    @property
    def image_size_px(self) -> int:
        """Side of the square images that arrays and tensors must hold."""
        return self._model.config.vision.image_size_px

    def caption(  # noqa: PLR0913  # the knobs of sampling, each set by somebody
        self,
        images: Images,
        *,
        prompt: str = PROMPT,
        num_captions: int = 1,
        top_p: float = 0.9,
        top_k: int = 0,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 20,
        seed: int = 0,
        round_: int = 0,
        keys: Sequence[str] | None = None,
        batch_size: int = 8,
    ) -> list[list[Caption]]:
        """Sample captions (nucleus sampling, arXiv:2201.12086, sec. 4.2).

        The noise of a caption depends on `seed`, `round_`, the image's key and the caption's index;
        batch mates and order change nothing. Another `batch_size`, dtype or machine may change the
        last bits of the logits, and so once in a while a word.

        The original's settings, which are not these defaults, are in `presets`:
        `caption(images, **ORIGINAL_NUCLEUS)`.

        Args:
            images: N images: (N, S, S, 3) uint8 with S = `image_size_px`, or PIL images.
            prompt: what each caption continues; not in the returned text. "" is no prompt: the
                captioner then says what it would say of itself.
            num_captions: of each image; they share one pass over the image.
            top_p: draw from the likeliest tokens that reach this probability together.
            top_k: and from so many at most; 0 is all.
            temperature: of the distribution, above 0.
            repetition_penalty: weakens tokens that were used before, the prompt's too; 1 is off.
            min_new_tokens: tokens before a caption may end. The prompt does not count.
            max_new_tokens: tokens after which it is cut off, [SEP] included and the prompt not.
            seed: of the run.
            round_: of the bootstrap; two rounds never share noise.
            keys: N names of the images, by default "0", "1", and so on.
            batch_size: images in one pass; memory grows with it. Fewer images are padded to it.

        Returns:
            For each image `num_captions` captions, in order.

        Raises:
            ValueError: an option is out of its bounds, or there are not as many keys as images.
        """
        if num_captions < 1:
            raise ValueError(f"num_captions is {num_captions}; it must be 1 or more")
        limits = Limits(
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
        )
        sampling = Sampling(top_p=top_p, top_k=top_k, temperature=temperature)
        pixels = to_uint8(images, side_px=self.image_size_px)
        names = _checked_keys(keys, num_images=len(pixels))
        row_keys = [
            [
                row_key(seed=seed, round_=round_, key=name, caption_index=i)
                for i in range(num_captions)
            ]
            for name in names
        ]
        prompt_ids = self._tokenizer.prompt_ids(prompt)
        captions: list[Caption] = []
        for memory, start in self._memories(
            pixels,
            batch_size=batch_size,
            tokens_each=num_captions * (len(prompt_ids) + max_new_tokens),
        ):
            batch_keys = row_keys[start : start + len(memory)]
            batch_keys += batch_keys[:1] * (len(memory) - len(batch_keys))
            generated = self._writing.sampled(
                memory,
                prompt_ids=prompt_ids,
                row_keys=[key for keys_of_image in batch_keys for key in keys_of_image],
                limits=limits,
                sampling=sampling,
            )
            captions += self._texts(generated)
        grouped = [captions[i : i + num_captions] for i in range(0, len(captions), num_captions)]
        return grouped[: len(pixels)]

    def greedy(
        self,
        images: Images,
        *,
        prompt: str = PROMPT,
        min_new_tokens: int = 1,
        max_new_tokens: int = 20,
        batch_size: int = 8,
    ) -> list[Caption]:
        """Write the caption of each image that takes the likeliest token at every step.

        Less diverse than `caption`, so of less use as training text (arXiv:2201.12086, sec. 4.2).
        The arguments are those of `caption`.
        """
        limits = Limits(min_new_tokens=min_new_tokens, max_new_tokens=max_new_tokens)
        prompt_ids = self._tokenizer.prompt_ids(prompt)

        def write(memory: Memory) -> Generated:
            return self._writing.greedy(memory, prompt_ids=prompt_ids, limits=limits)

        tokens_each = len(prompt_ids) + max_new_tokens
        return self._one_each(images, write, batch_size=batch_size, tokens_each=tokens_each)

    def beam(  # noqa: PLR0913  # the knobs of the search, each set by somebody
        self,
        images: Images,
        *,
        prompt: str = PROMPT,
        num_beams: int = 3,
        length_penalty: float = 1.0,
        repetition_penalty: float = 1.0,
        min_new_tokens: int = 1,
        max_new_tokens: int = 20,
        batch_size: int = 8,
    ) -> list[Caption]:
        """Write the caption of each image that a beam search finds.

        It is how BLIP is evaluated: `beam(images, **ORIGINAL_BEAM)`, see `presets`. The other
        arguments are those of `caption`.

        Args:
            images: N images.
            prompt: what each caption continues.
            num_beams: captions of an image that grow side by side.
            length_penalty: captions are compared by log-probability over length ** length_penalty:
                more favours longer ones.
            repetition_penalty: weakens tokens that were used before.
            min_new_tokens: tokens before a caption may end. The prompt does not count.
            max_new_tokens: tokens after which it is cut off, [SEP] included and the prompt not.
            batch_size: images in one pass, each with all its beams.

        Returns:
            One per image, in order.
        """
        limits = Limits(
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
        )
        beams = Beams(num_beams=num_beams, length_penalty=length_penalty)
        prompt_ids = self._tokenizer.prompt_ids(prompt)

        def write(memory: Memory) -> Generated:
            return generate_beams(
                self._model, memory, prompt_ids=prompt_ids, limits=limits, beams=beams
            )

        tokens_each = num_beams * (len(prompt_ids) + max_new_tokens)
        return self._one_each(images, write, batch_size=batch_size, tokens_each=tokens_each)

    def flops(self, captions: Sequence[Sequence[Caption]], *, prompt: str = PROMPT) -> int:
        """Count the operations that captions of `caption` need; see `capfilt_blip.flops`.

        Args:
            captions: of each image.
            prompt: that they continue.
        """
        config, prompt_tokens = self._model.config, len(self._tokenizer.prompt_ids(prompt))
        total = len(captions) * image_flops(config.vision)
        for of_image in captions:
            counts = [caption.num_tokens for caption in of_image]
            total += reading_flops(config, num_queries=prompt_tokens + sum(counts))
            total += caption_flops(config, prompt_tokens=prompt_tokens, new_tokens=counts)
        return total

    def _one_each(
        self,
        images: Images,
        write: Callable[[Memory], Generated],
        *,
        batch_size: int,
        tokens_each: int,
    ) -> list[Caption]:
        pixels = to_uint8(images, side_px=self.image_size_px)
        captions: list[Caption] = []
        for memory, _ in self._memories(pixels, batch_size=batch_size, tokens_each=tokens_each):
            captions += self._texts(write(memory))
        return captions[: len(pixels)]

    def _memories(
        self, pixels: Tensor, *, batch_size: int, tokens_each: int
    ) -> Iterator[tuple[Memory, int]]:
        """Yield what the decoder reads of each batch, and the number of images before it.

        Args:
            pixels: (N, S, S, 3) uint8.
            batch_size: images in a batch.
            tokens_each: that will be read or written about each image.
        """

        def encoded(batch: Tensor) -> Memory:
            embeds = self._model.vision(normalise(to_device(batch, self._device)))
            return self._model.text_decoder.memory_for(embeds, num_queries=tokens_each)

        start = 0
        for memory in one_ahead(
            fixed_batches(pixels, batch_size=batch_size), encoded, self._device
        ):
            yield memory, start
            start += len(memory)

    def _texts(self, generated: Generated) -> list[Caption]:
        rows = zip(generated.token_ids, generated.num_tokens, generated.logprobs, strict=True)
        return [
            Caption(
                text=self._tokenizer.decode(ids[:count]).strip(),
                logprob=float(logprob),
                num_tokens=int(count),
            )
            for ids, count, logprob in rows
        ]


def _checked_keys(keys: Sequence[str] | None, *, num_images: int) -> Sequence[str]:
    if keys is None:
        return [str(index) for index in range(num_images)]
    if len(keys) != num_images:
        raise ValueError(f"{len(keys)} keys were given for {num_images} images")
    return keys
