from __future__ import annotations

import hashlib
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from capfilt.config import TrainSection
from capfilt.errors import CapfiltError, CheckpointError, ShardError, Stopped
from capfilt.io.images import ImageDecoder, ImageLimits
from capfilt.io.storage import Store
from capfilt.records import PHASES
from capfilt.stopping import stop_on_signals
from capfilt.workers.batches import SourceImage
from capfilt.workers.train import Given, Notebook, Trained, TrainWorker
from capfilt.workers.trainer_batches import TRAINING_PIXELS
from capfilt.workers.trainer_pairs import TrainingPair, TrainingSet
from capfilt.workers.trainer_progress import ProgressFolder
from tests.small_run import planted_shards, write_models

OPTIONS = TrainSection(
    size="tiny", image_size_px=16, finetune_image_size_px=32, batch_size=2, queue_size=4,
    pretrain_steps=6, finetune_steps=1, warmup_steps=3, log_every=2,
)  # fmt: skip


def pair(number: int, payload: bytes | None = None) -> TrainingPair:
    image = planted_shards()[0][number].image
    assert image is not None
    payload = image[1] if payload is None else payload
    source = SourceImage(
        key=str(number), payload=payload, sha256=hashlib.sha256(payload).hexdigest()
    )
    return TrainingPair(image=source, text=f"a red circle {number}")


PAIRS = TrainingSet(web=[pair(0), pair(1)], human=[pair(2), pair(3)])


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    with ImageDecoder(ImageLimits(), part=TRAINING_PIXELS) as decoder:
        yield decoder


def trained(
    models: Path,
    decoder: ImageDecoder,
    pairs: TrainingSet = PAIRS,
    *,
    seed: int = 0,
    start: Path | None = None,
    continued: Path | None = None,
    progress: ProgressFolder | None = None,
    **options: object,
) -> Trained:
    given = Given(tokenizer=models / "captioner", start=start, continued=continued)
    # A folder of its own for each training: what one leaves there the next would go on from.
    nowhere = Store.at_url("memory://train-tests").child(secrets.token_hex(8))
    worker = TrainWorker(
        OPTIONS.model_copy(update=options),
        given,
        decoder,
        notebook=Notebook(progress=progress or ProgressFolder(nowhere, num_kept=1)),
        seed=seed,
        device="cpu",
    )
    [result] = worker([pairs])
    return result


@pytest.fixture(scope="module")
def result(models: Path, decoder: ImageDecoder) -> Trained:
    return trained(models, decoder)


def test_steps_are_logged_as_asked_and_the_last_of_a_phase_always(result: Trained) -> None:
    logged = [(step.phase, step.step, step.num_samples) for step in result.steps]
    assert logged == [
        ("pretrain", 0, 2), ("pretrain", 2, 6), ("pretrain", 4, 10), ("pretrain", 5, 12),
        ("captioner", 0, 2), ("filter", 0, 2),
    ]  # fmt: skip


def test_every_phase_has_the_losses_it_trains_with(result: Trained) -> None:
    losses = {
        s.phase: [s.itc_loss is not None, s.itm_loss is not None, s.lm_loss is not None]
        for s in result.steps
    }
    assert losses == {
        "pretrain": [True, True, True],
        "captioner": [False, False, True],
        "filter": [True, True, False],
    }


def test_the_same_training_gives_the_same_bytes(
    models: Path, decoder: ImageDecoder, result: Trained
) -> None:
    assert trained(models, decoder) == result


def test_another_seed_is_another_training(
    models: Path, decoder: ImageDecoder, result: Trained
) -> None:
    assert trained(models, decoder, seed=1).steps != result.steps


def test_training_can_start_with_eyes_that_see(models: Path, decoder: ImageDecoder) -> None:
    start = models / "captioner"
    still = {"learning_rate": 1e-12, "pretrain_steps": 1, "image_size_px": 32}
    files = {(f, n): b for f, n, b in trained(models, decoder, start=start, **still).files}
    before = load((start / "model.safetensors").read_bytes())
    after = load(files["blip", "model.safetensors"])
    vision = [name for name in before if name.startswith("vision_model.")]
    assert vision
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in vision)
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    assert not torch.allclose(after[words], before[words], atol=0.01)


def test_training_can_go_on_from_all_weights_of_a_model(
    models: Path, decoder: ImageDecoder, result: Trained, tmp_path: Path
) -> None:
    for folder, name, payload in result.files:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(payload)
    still = {"learning_rate": 1e-12, "pretrain_steps": 1}
    again = trained(models, decoder, seed=1, continued=tmp_path / "blip", **still)
    before, after = (
        load({(f, n): b for f, n, b in one.files}["blip", "model.safetensors"])
        for one in (result, again)
    )
    assert before.keys() == after.keys()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


def test_a_start_with_another_vocabulary_is_refused(
    models: Path, decoder: ImageDecoder, tmp_path: Path
) -> None:
    write_models(tmp_path, vocab_size=112)
    with pytest.raises(CheckpointError, match=r"train\.start: .* set train\.tokenizer"):
        trained(models, decoder, start=tmp_path / "captioner")


def test_images_that_are_all_broken_end_the_training(models: Path, decoder: ImageDecoder) -> None:
    pairs = [pair(0, b"no image"), pair(1, b"no image")]
    with pytest.raises(CapfiltError, match=r"16 images in a row .* \d: image_unreadable \("):
        trained(models, decoder, TrainingSet(web=pairs, human=pairs))


def test_a_pair_whose_image_is_broken_is_counted_once(models: Path, decoder: ImageDecoder) -> None:
    human = [pair(2), pair(3), pair(4), pair(5, b"no image")]
    result = trained(models, decoder, TrainingSet(web=[], human=human), batch_size=4)
    assert result.lost == {"image_unreadable": 1}


def test_a_single_human_pair_is_too_few(models: Path, decoder: ImageDecoder) -> None:
    with pytest.raises(CapfiltError, match="at least 2 pairs, and there are 1"):
        trained(models, decoder, TrainingSet(web=PAIRS.web, human=PAIRS.human[:1]))


class Dying(list[TrainingPair]):
    """Pairs that can be read so many times."""

    reads_left = 0

    def __getitem__(self, row: object) -> TrainingPair:  # type: ignore[override]  # rows alone
        assert isinstance(row, int)
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ShardError("the power is gone")
        return super().__getitem__(row)


def folder_at(url: Path | str) -> ProgressFolder:
    return ProgressFolder(Store.at_url(str(url)), num_kept=1)


@pytest.mark.parametrize("num_reads", [1, 7, 9])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_training_that_ends_anywhere_and_goes_on_gives_the_same_bytes(
    models: Path, decoder: ImageDecoder, result: Trained, tmp_path: Path, kind: str, num_reads: int
) -> None:
    url = str(tmp_path) if kind == "local" else f"memory://{tmp_path.name}"
    web, human = Dying(PAIRS.web), Dying(PAIRS.human)
    web.reads_left = human.reads_left = num_reads
    with pytest.raises(ShardError, match="power"):
        trained(models, decoder, TrainingSet(web=web, human=human),
                progress=folder_at(url), checkpoint_steps=2)  # fmt: skip
    begun = {phase for phase in PHASES if Store.at_url(url).names(phase)}
    assert begun == {1: set(), 7: {"pretrain"}, 9: {"pretrain", "captioner"}}[num_reads]
    assert trained(models, decoder, progress=folder_at(url), checkpoint_steps=4) == result


def test_a_training_that_is_asked_to_stop_saves_where_it_stands_and_goes_on_there(
    models: Path, decoder: ImageDecoder, result: Trained, tmp_path: Path
) -> None:
    said = r"^pretrain: stopped after step 1 of 6; the same command goes on from there$"
    with stop_on_signals(), pytest.raises(Stopped, match=said):
        signal.raise_signal(signal.SIGTERM)
        trained(models, decoder, progress=folder_at(tmp_path))
    assert [path.name for path in (tmp_path / "pretrain").glob("step-*")]
    assert trained(models, decoder, progress=folder_at(tmp_path)) == result


def test_a_finished_training_is_not_done_again(
    models: Path, decoder: ImageDecoder, result: Trained, tmp_path: Path
) -> None:
    assert trained(models, decoder, progress=folder_at(tmp_path)) == result
    unreadable = TrainingSet(web=Dying(PAIRS.web), human=Dying(PAIRS.human))
    assert trained(models, decoder, unreadable, progress=folder_at(tmp_path)) == result


def test_a_loss_that_is_no_number_is_told_in_one_line(models: Path, decoder: ImageDecoder) -> None:
    with pytest.raises(CapfiltError, match=r"^train: step \d: \w+ is nan"):
        trained(models, decoder, learning_rate=1e30, warmup_steps=0)
