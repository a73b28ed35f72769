"""The captioner's finetuning: LM behind a prompt (arXiv:2201.12086, sec. 3.3).

B rows of this process, L text tokens, S image side.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from capfilt_blip import losses
from capfilt_blip.blip import BlipCaptioner
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.batches import TextImageBatch
from capfilt_blip.train.engine import Engine, TextImageEngine
from capfilt_blip.train.objective import Losses, Part, PlainObjective
from capfilt_blip.train.pairs import Texts
from capfilt_blip.train.settings import PLAIN, CaptionerSettings, EngineSettings, StepMetrics
from capfilt_blip.train.world import ALONE, World
from capfilt_blip.transforms import normalise


def captioner_finetuning(
    model: BlipCaptioner,
    *,
    tokenizer: Tokenizer,
    settings: CaptionerSettings,
    engine: EngineSettings = PLAIN,
    world: World = ALONE,
) -> TextImageEngine:
    """Teach a captioner to continue the prompt.

    Args:
        model: changed in place.
        tokenizer: the model's.
        settings: what is learnt.
        engine: how it is computed.
        world: the processes that share each batch.
    """
    read = partial(_part, model=model, tokenizer=tokenizer, settings=settings)
    return Engine(
        model,
        PlainObjective(read, metrics=StepMetrics),
        optimizer=settings.optimizer,
        settings=engine,
        world=world,
        seed=settings.seed,
    )


def _part(
    batch: TextImageBatch,
    *,
    model: BlipCaptioner,
    tokenizer: Tokenizer,
    settings: CaptionerSettings,
) -> Part:
    """Tokenise texts behind the prompt."""
    device, prompt = model.lm_head.bias.device, settings.prompt
    encoded = tokenizer.encode(
        batch.texts, first="dec", max_tokens=settings.max_tokens, prompt=prompt
    )
    texts = Texts(ids=encoded.ids.to(device), mask=encoded.mask.to(device))
    num_prompt_tokens = len(tokenizer.prompt_ids(prompt))
    num_tokens = losses.num_learnt_tokens(texts.mask, num_prompt_tokens=num_prompt_tokens)
    return Part(
        counts=torch.stack([num_tokens.new_tensor(len(batch)), num_tokens]),
        losses=partial(
            _losses,
            model=model,
            images=batch.images,
            texts=texts,
            num_prompt_tokens=num_prompt_tokens,
            label_smoothing=settings.label_smoothing,
        ),
    )


def _losses(
    counts: Tensor,
    *,
    model: BlipCaptioner,
    images: Tensor,
    texts: Texts,
    num_prompt_tokens: int,
    label_smoothing: float,
) -> Losses:
    """LM of (B, L) texts and (B, S, S, 3) uint8 images."""
    _, num_tokens = counts
    image_embeds = model.vision(normalise(images.to(model.lm_head.bias.device)))
    memory = model.text_decoder.project_memory(image_embeds)
    loss = losses.lm_loss(
        model.lm_logits(texts.ids, texts.mask, memory),
        texts.ids,
        texts.mask,
        num_prompt_tokens=num_prompt_tokens,
        label_smoothing=label_smoothing,
        num_tokens=num_tokens,
    )
    return Losses(total=loss, told={"lm_loss": loss})
