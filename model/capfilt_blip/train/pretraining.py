"""Pre-training, and the matcher's finetuning: images and texts are contrasted and matched.

    pretraining         ITC + ITM + LM on a whole Blip  (arXiv:2201.12086, sec. 3.2)
    matcher_finetuning  ITC + ITM on a BlipMatcher      (sec. 3.3)

B rows of this process, L text tokens, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from capfilt_blip import losses
from capfilt_blip.attention import Memory
from capfilt_blip.blip import Blip, BlipCaptioner, BlipMatcher
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.contrast import Contrast
from capfilt_blip.train.engine import Engine, TextImageEngine
from capfilt_blip.train.matching import Matching
from capfilt_blip.train.objective import Losses, Part
from capfilt_blip.train.pairs import PairReader, Pairs, Texts
from capfilt_blip.train.settings import (
    PLAIN,
    EngineSettings,
    MatcherSettings,
    PretrainSettings,
    StepMetrics,
)
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.transforms import normalise
from capfilt_blip.vision import VisionTransformer


def pretraining(
    model: Blip,
    *,
    tokenizer: Tokenizer,
    settings: PretrainSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> TextImageEngine:
    """Teach a BLIP to contrast, to match and to write, on pairs that are believed true.

    Args:
        model: changed in place.
        tokenizer: the model's.
        settings: what is learnt.
        engine: how it is computed.
        world: the processes that share each batch.
    """
    world.share(model.parameters())  # before the slow encoders copy them
    return Engine(
        model,
        pretrain_objective(model, tokenizer=tokenizer, settings=settings, world=world),
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def matcher_finetuning(
    model: BlipMatcher,
    *,
    tokenizer: Tokenizer,
    settings: MatcherSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> TextImageEngine:
    """Teach a matcher to tell true pairs from false; arguments as of `pretraining`."""
    world.share(model.parameters())
    start = torch.tensor(settings.temperature, device=model.itm_head.weight.device)
    objective = PairObjective(
        model,
        captioner=None,
        temperature=nn.Parameter(start),
        tokenizer=tokenizer,
        settings=settings,
        world=world,
    )
    return Engine(
        model,
        objective,
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def pretrain_objective(
    model: Blip, *, tokenizer: Tokenizer, settings: PretrainSettings, world: World
) -> PairObjective:
    """ITC, ITM and LM on the whole model (arXiv:2201.12086, sec. 3.2)."""
    return PairObjective(
        model.matching(),
        captioner=model.captioning(),
        temperature=model.temp,
        tokenizer=tokenizer,
        settings=settings,
        world=world,
    )


class PairObjective:
    """ITC and ITM on a matcher; with a captioner that shares its image encoder, LM too.

    Args:
        matcher: learns ITC and ITM.
        captioner: learns LM, reading the same keys and values; None leaves LM out.
        temperature: of ITC, learnt.
        tokenizer: of both.
        settings: see `PretrainSettings` and `MatcherSettings`.
        world: the processes.
    """

    def __init__(
        self,
        matcher: BlipMatcher,
        *,
        captioner: BlipCaptioner | None,
        temperature: nn.Parameter,
        tokenizer: Tokenizer,
        settings: PretrainSettings | MatcherSettings,
        world: World,
    ) -> None:
        self.temperature: nn.Parameter | None = temperature
        self.metrics: Callable[..., StepMetrics] = StepMetrics
        self._matcher = matcher
        self._captioner = captioner
        self._tokenizer = tokenizer
        self._label_smoothing = (
            settings.label_smoothing if isinstance(settings, PretrainSettings) else 0.0
        )
        self._reader = PairReader(
            tokenizer,
            max_tokens=settings.max_tokens,
            negatives=settings.contrast.negatives,
            seed=settings.seed,
            world=world,
        )
        self._contrast = Contrast(
            matcher, temperature=temperature, settings=settings.contrast, world=world
        )
        self._matching = Matching(matcher, enc_id=tokenizer.enc_id, world=world)

    def prepare(
        self, parts: Sequence[TextImageBatch], *, step: int, num_samples: int
    ) -> list[Part]:
        """Tokenise each text once, and find out what matches what."""
        device = self._matcher.itm_head.weight.device
        read = self._reader.read(parts, step=step, num_samples=num_samples, device=device)
        return [
            Part(
                counts=_counts(pairs),
                losses=partial(self._losses, images=part.images, pairs=pairs),
            )
            for part, pairs in zip(parts, read, strict=True)
        ]

    def begin(self, *, step: int) -> None:
        """Bound the temperature, and weigh the slow encoders' belief."""
        self._contrast.begin(step=step)

    def end(self) -> None:
        """Fill the queue, and move the slow encoders."""
        self._contrast.end()

    def vision_encoders(self) -> list[VisionTransformer]:
        """The slow one."""
        return self._contrast.vision_encoders()

    def tensors(self) -> dict[str, Tensor]:
        """The slow weights and the queue."""
        return self._contrast.tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over slow weights and queue."""
        self._contrast.load(tensors)

    def _losses(self, counts: Tensor, *, images: Tensor, pairs: Pairs) -> Losses:
        """ITC and ITM, and LM if there is a captioner, of (B, S, S, 3) uint8 images."""
        num_rows, num_tokens, num_pairs = counts
        matcher = self._matcher
        pixels = normalise(images.to(matcher.itm_head.weight.device))
        image_embeds = matcher.vision(pixels)
        # Cross-attention is shared, so encoder and decoder read the same keys and values.
        memory = matcher.text_encoder.project_memory(image_embeds)
        contrasted = self._contrast.loss(
            pairs,
            cls_id=self._tokenizer.cls_id,
            pixels=pixels,
            image_embeds=image_embeds,
            num_rows=num_rows,
        )
        matched = self._matching.loss(pairs, contrasted, memory=memory, num_pairs=num_pairs)
        told = self._lm(_texts(pairs), memory, num_tokens=num_tokens)
        told |= {"itc_loss": contrasted.loss, "itm_loss": matched.loss}
        total = torch.stack(list(told.values())).sum()  # BLIP weighs all losses the same
        return Losses(total=total, told={**told, "itm_accuracy": matched.accuracy})

    def _lm(self, texts: Texts, memory: Memory, *, num_tokens: Tensor) -> dict[str, Tensor]:
        captioner = self._captioner
        if captioner is None:
            return {}
        ids = texts.read_as(self._tokenizer.dec_id)
        loss = losses.lm_loss(
            captioner.lm_logits(ids, texts.mask, memory),
            ids,
            texts.mask,
            label_smoothing=self._label_smoothing,
            num_tokens=num_tokens,
        )
        return {"lm_loss": loss}


def _texts(pairs: Pairs) -> Texts:
    """The true texts, (B, L)."""
    return Texts(ids=pairs.own.ids[0], mask=pairs.own.mask[0])


def _counts(pairs: Pairs) -> Tensor:
    """Rows, tokens that LM learns, and pairs that ITM learns: (3,) int64."""
    num_tokens = losses.num_learnt_tokens(_texts(pairs).mask)
    return torch.stack(
        [num_tokens.new_tensor(len(pairs.text_ids)), num_tokens, pairs.num_itm_pairs]
    )
