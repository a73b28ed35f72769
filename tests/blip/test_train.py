from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from capfilt_blip.blip import Blip
from capfilt_blip.config import BlipConfig
from capfilt_blip.tokenizer import Tokenizer
from capfilt_blip.train.alarms import Alarms
from capfilt_blip.train.batches import TextImageBatch, ids_of
from capfilt_blip.train.captioner import captioner_finetuning
from capfilt_blip.train.contrast import ContrastSettings
from capfilt_blip.train.optimizer import (
    CosineSchedule,
    DecaySchedule,
    Optimizer,
    OptimizerSettings,
)
from capfilt_blip.train.pretraining import matcher_finetuning, pretraining
from capfilt_blip.train.settings import (
    CaptionerSettings,
    MatcherSettings,
    PretrainSettings,
    StepMetrics,
)
from capfilt_blip.transforms import normalise

COLOURS = {"red": (220, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 220), "white": (250, 250, 250)}
TEXTS = [f"a {colour} wall" for colour in COLOURS]
TOKENIZER = Tokenizer.train(TEXTS, vocab_size=120)
SMALL_QUEUE = ContrastSettings(momentum=0.5, queue_size=8, num_ramp_steps=10)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blip() -> Blip:
    torch.manual_seed(0)
    config = BlipConfig.tiny(
        vocab_size=TOKENIZER.vocab_size, image_size_px=16, width=32, text_depth=1, dropout=0.0
    )
    return Blip(config)


def walls(num_batches: int) -> Iterator[TextImageBatch]:
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    images = colours.view(4, 1, 1, 3).expand(4, 16, 16, 3)
    for _ in range(num_batches):
        yield TextImageBatch(images=images, texts=TEXTS, image_ids=TEXTS)


def adam(*, peak: float = 2e-3, num_steps: int = 1000) -> OptimizerSettings:
    schedule = CosineSchedule(peak=peak, num_steps=num_steps)
    return OptimizerSettings(learning_rate=schedule, max_grad_norm=1.0)


def pretrained(
    num_steps: int, contrast: ContrastSettings = SMALL_QUEUE
) -> tuple[Blip, list[StepMetrics]]:
    model = blip()
    settings = PretrainSettings(optimizer=adam(num_steps=2 * num_steps), contrast=contrast)
    return model, list(
        pretraining(model, tokenizer=TOKENIZER, settings=settings).run(walls(num_steps))
    )


def test_pretraining_learns_all_three_losses_of_one_batch() -> None:
    model, metrics = pretrained(100, ContrastSettings(momentum=None))
    [batch] = walls(1)
    texts = TOKENIZER.encode(TEXTS, first="cls", max_tokens=30)
    matcher = model.matcher()
    images = matcher.image_vectors(model.vision(normalise(batch.images)))
    nearest = (images @ matcher.text_vectors(texts.ids, texts.mask).T).argmax(1)
    assert nearest.tolist() == [0, 1, 2, 3]
    assert metrics[-1].lm_loss < 0.5 * metrics[0].lm_loss  # type: ignore[operator]
    assert metrics[-1].itm_accuracy > 0.8  # type: ignore[operator]


def test_the_same_seed_gives_the_same_weights_to_the_last_bit() -> None:
    weights = [dict(pretrained(3)[0].named_parameters()) for _ in range(2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_pretraining_reaches_every_weight() -> None:
    before = dict(blip().named_parameters())
    after = dict(pretrained(2)[0].named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_encoder_and_decoder_stay_tied() -> None:
    model, _ = pretrained(2)
    assert model.text_encoder.embeddings is model.text_decoder.embeddings


def test_captioner_finetuning_learns_the_words_behind_the_prompt() -> None:
    model = blip().captioner()
    settings = CaptionerSettings(optimizer=adam(peak=4e-3), label_smoothing=0.0)
    engine = captioner_finetuning(model, tokenizer=TOKENIZER, settings=settings)
    metrics = list(engine.run(walls(60)))
    assert metrics[-1].loss < 0.1 and metrics[-1].itm_loss is None


def test_matcher_finetuning_learns_to_refuse_distractors() -> None:
    model = blip().matcher()
    batches = (
        TextImageBatch(images=b.images, texts=b.texts, distractors=[["click here"] * 4])
        for b in walls(60)
    )
    settings = MatcherSettings(optimizer=adam(), contrast=SMALL_QUEUE)
    list(matcher_finetuning(model, tokenizer=TOKENIZER, settings=settings).run(batches))
    batch = TOKENIZER.encode(["click here"], first="enc", max_tokens=35)
    embeds = model.vision(torch.zeros(1, 3, 16, 16))
    logits = model.itm_logits(batch.ids, batch.mask, model.text_encoder.project_memory(embeds))
    assert logits.argmax().item() == 0


def test_contrast_works_without_momentum() -> None:
    settings = MatcherSettings(optimizer=adam(), contrast=ContrastSettings(momentum=None))
    model = blip().matcher()
    engine = matcher_finetuning(model, tokenizer=TOKENIZER, settings=settings)
    metrics = list(engine.run(walls(60)))
    assert metrics[-1].itc_loss < 0.5 * metrics[0].itc_loss  # type: ignore[operator]


def test_a_batch_of_equal_texts_has_no_negatives_and_still_trains() -> None:
    [batch] = walls(1)
    same = TextImageBatch(images=batch.images, texts=["a red wall"] * 4)
    settings = MatcherSettings(optimizer=adam(), contrast=SMALL_QUEUE)
    engine = matcher_finetuning(blip().matcher(), tokenizer=TOKENIZER, settings=settings)
    metrics = engine.step(same)
    assert metrics.loss == pytest.approx(metrics.itc_loss + metrics.itm_loss)  # type: ignore


def test_metrics_count_steps_and_samples() -> None:
    _, metrics = pretrained(3)
    assert [m.step for m in metrics] == [0, 1, 2] and [m.num_samples for m in metrics] == [4, 8, 12]


@pytest.mark.slow
def test_a_stuck_itm_head_is_recognised() -> None:
    settings = MatcherSettings(optimizer=adam(peak=1e-6), contrast=ContrastSettings(momentum=None))
    model = blip().matcher()
    torch.nn.init.zeros_(model.itm_head.weight)
    with torch.no_grad():  # always says that one in three matches
        model.itm_head.bias.copy_(torch.tensor([2 / 3, 1 / 3]).log())
    alarms = Alarms()
    steps = matcher_finetuning(model, tokenizer=TOKENIZER, settings=settings).run(walls(500))
    assert "0.6365" in " ".join(line for metrics in steps for line in alarms.saw(metrics))


def test_cosine_schedule_warms_up_peaks_and_ends_at_the_least_rate() -> None:
    schedule = CosineSchedule(peak=1.0, num_steps=110, num_warmup_steps=10, least=0.1)
    rates = [schedule(step) for step in (0, 9, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.19, 1.0, 1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    "schedule", [partial(CosineSchedule, num_steps=10), partial(DecaySchedule, steps_per_epoch=5)]
)
def test_a_least_rate_above_the_peak_is_refused(schedule: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="least learning rate is 1e-06, above the peak of 1e-07"):
        schedule(peak=1e-7, least=1e-6)


def test_decay_schedule_loses_a_tenth_per_epoch_down_to_the_least_rate() -> None:
    schedule = DecaySchedule(peak=1.0, num_warmup_steps=2, steps_per_epoch=5, least=0.5)
    rates = [schedule(step) for step in (0, 1, 2, 4, 5, 10, 200)]
    assert rates == pytest.approx([0.75, 1.0, 1.0, 1.0, 0.9, 0.81, 0.5])


def test_a_warm_up_longer_than_an_epoch_ends_with_it_as_in_the_original() -> None:
    schedule = DecaySchedule(peak=1.0, num_warmup_steps=8, steps_per_epoch=4)
    rates = [schedule(step) for step in (3, 4, 7, 8)]
    assert rates == pytest.approx([0.5, 0.9, 0.9, 0.81])


def test_optimizer_is_torchs_adamw_with_decay_on_every_parameter() -> None:
    ours, theirs = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer = Optimizer([ours, ours], OptimizerSettings(learning_rate=lambda _: 0.1))
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.05)
    for step in range(3):
        optimizer.step((ours**2).sum(), step=step)
        reference.zero_grad()
        (theirs**2).sum().backward()  # type: ignore[no-untyped-call]
        reference.step()
    assert torch.equal(ours, theirs)


def test_gradient_is_clipped_and_its_own_length_reported() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    settings = OptimizerSettings(learning_rate=lambda _: 0.1, max_grad_norm=1.0)
    _, norm = Optimizer([weight], settings).step((weight * weight).sum() / 2, step=0)
    assert norm == pytest.approx(5.0)
    assert torch.allclose(weight.grad, torch.tensor([0.6, 0.8]))  # type: ignore[arg-type]


def test_batch_with_a_missing_text_is_refused() -> None:
    with pytest.raises(ValueError, match="4 images came with 3 texts"):
        TextImageBatch(images=torch.zeros(4, 16, 16, 3, dtype=torch.uint8), texts=TEXTS[:3])


def test_equal_names_have_equal_ids_and_others_not() -> None:
    ids = ids_of(["x", "y", "x"], device=torch.device("cpu"))
    assert ids[0] == ids[2] != ids[1]
