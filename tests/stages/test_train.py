"""Train: which pairs it learns from, and what it leaves."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, DeterminismError, ShardError
from capfilt.io.commits import Table
from capfilt.io.storage import Store
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.pool import Fetched
from capfilt.records import HeldOutCaption, PublishedSample, TrainStep
from capfilt.stages import publish, train
from capfilt.stages.loop import bootstrap
from capfilt.stages.shards import Funnel
from capfilt.stages.tables import open_tables
from capfilt.workers.train import Trained
from capfilt.workers.trainer_pairs import TrainingPair, TrainingSet
from tests.small_run import SmallRun, files_of, rows_of, small_recipe, training


@pytest.fixture
def run(small_run: SmallRun, tmp_path: Path) -> SmallRun:
    """A run that is published and not trained on."""
    return small_run.copied_to(tmp_path / "run")


def pairs_of(run: SmallRun, **options: object) -> TrainingSet:
    sections = {"train": {**training(run.web), **options}}
    [pairs] = train.job(run.recipe(**sections), run.tables(**sections)).fetch(0).inputs
    return pairs


def trained(run: SmallRun, **options: object) -> Funnel:
    sections = {"train": {**training(run.web), **options}}
    return train.run(run.recipe(**sections), run.tables(**sections), LocalPool())


def test_every_published_text_and_every_human_text_is_a_pair(run: SmallRun) -> None:
    pairs = pairs_of(run)
    rows = rows_of(run.tables(), "publish", PublishedSample)
    for source, found in (("web", pairs.web), ("synthetic", pairs.synthetic)):
        assert Counter((p.image.sha256, p.text) for p in found) == Counter(
            (row.image_sha256, text.text)
            for row in rows
            for text in row.texts
            if text.text_source == source
        )
    assert len(pairs.human) == 6
    assert all(hashlib.sha256(p.image.payload).hexdigest() == p.image.sha256 for p in pairs.human)


def test_every_image_has_an_identity_of_its_own(run: SmallRun, tmp_path: Path) -> None:
    tar = tmp_path / "human.tar"
    tar.write_bytes(write_tar([("a.jpg", b"1"), ("a.txt", b"x"), ("a.jpg", b"2"), ("a.txt", b"y")]))
    assert len({pair.image.key for pair in pairs_of(run, human=str(tar)).human}) == 2


def test_three_models_and_their_steps_are_left(two_rounds: SmallRun) -> None:
    tables = two_rounds.tables(train=training(two_rounds.web))
    steps = rows_of(tables, "train", TrainStep)
    assert Counter(step.phase for step in steps) == {"pretrain": 3, "captioner": 2, "filter": 2}
    table = tables.of("train")
    listed = json.loads(table.read(0, "models"))
    stored = files_of(Path(table.store.url))
    assert {name: hashlib.sha256(stored[name]).hexdigest() for name in listed} == listed
    for folder in ("blip", "captioner", "filter"):
        assert {f"{folder}/config.json", f"{folder}/model.safetensors"} <= set(listed)


def test_training_in_another_folder_gives_the_same_bytes(
    two_rounds: SmallRun, tmp_path: Path
) -> None:
    again = two_rounds.copied_to(tmp_path / "run", without=["models", "round-001"])
    funnel = trained(again)
    assert (funnel.unit, funnel.rows_in, funnel.kept) == ("pair", 40, 40)
    folders = (run.folder / "round-000" / "models" for run in (again, two_rounds))
    first, second = map(files_of, folders)
    assert first == second


def test_a_sample_people_made_that_cannot_be_used_is_dropped_with_its_reason(
    run: SmallRun, tmp_path: Path
) -> None:
    original = (run.web / "human.tar").read_bytes()
    broken = [("z.jpg", b"not an image"), ("z.txt", b"nothing")]
    unpaired = [("x.txt", b"no image"), ("y.jpg", b"no text"), ("w.jpg", b"blank"), ("w.txt", b" ")]
    (tmp_path / "human.tar").write_bytes(original[:-1024] + write_tar(broken + unpaired))
    funnel = trained(run, human=str(tmp_path / "human.tar"), finetune_steps=4)
    assert funnel.dropped == {"image_missing": 1, "image_unreadable": 1, "text_missing": 2}
    assert (funnel.rows_in, funnel.kept) == (44, 40)


def test_committed_models_stay_when_a_second_training_gives_others(tmp_path: Path) -> None:
    table = Table(Store.at_url(str(tmp_path)), stage="train", round=0, plan="p")
    job = train.TrainJob(recipe=small_recipe(tmp_path, web=tmp_path, models=tmp_path), published=(),
                         human=(), tokenizer="", table=table)  # fmt: skip
    fetched = Fetched(inputs=[TrainingSet(web=[], human=[])])
    first, second = (
        Trained(files=(("captioner", "model.safetensors", payload),), steps=())
        for payload in (b"first", b"second")
    )
    (tmp_path / "captioner").mkdir()
    (tmp_path / "captioner" / "model.safetensors").write_bytes(b"of a try that was killed")
    job.commit(0, fetched, [first])
    with pytest.raises(DeterminismError, match="the first result is kept"):
        job.commit(0, fetched, [second])
    assert (tmp_path / "captioner" / "model.safetensors").read_bytes() == b"first"


@pytest.mark.parametrize("file", ["captioner/model.safetensors", "filter/config.json"])
def test_a_model_changed_after_training_is_not_used(
    two_rounds: SmallRun, tmp_path: Path, file: str
) -> None:
    run = two_rounds.copied_to(tmp_path / "run")
    sections = {"rounds": 2, "train": training(run.web)}
    path = Path(run.tables(**sections).of("train").store.url) / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CapfiltError, match=r"are not those that training wrote; restore them"):
        run.tables(1, **sections)


def test_a_field_corrected_after_a_failure_is_not_a_changed_setting(run: SmallRun) -> None:
    with pytest.raises(CapfiltError, match=r"human\.tar: no pair .* train\.human_text_field"):
        trained(run, human_text_field="title")
    assert trained(run, pretrain_steps=1, finetune_steps=1).kept == 40


def test_a_damaged_human_shard_is_named(run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "human.tar").write_bytes((run.web / "human.tar").read_bytes()[:-600])
    with pytest.raises(ShardError, match=r"human\.tar: damaged at byte"):
        trained(run, human=str(tmp_path / "human.tar"))


def without_tars(run: SmallRun) -> dict[str, object]:
    return {"publish": {"webdataset": False}, "train": training(run.web)}


def seen(pairs: Sequence[TrainingPair]) -> list[tuple[bytes, str, int]]:
    """What training sees of pairs: image, text, and the first pair of the same image."""
    keys = [pair.image.key for pair in pairs]
    return [(pair.image.payload, pair.text, keys.index(pair.image.key)) for pair in pairs]


def test_published_parquet_files_give_the_pairs_of_the_tars(run: SmallRun) -> None:
    sections = without_tars(run)
    publish.run(run.recipe(**sections), run.tables(**sections), LocalPool())
    job = train.job(run.recipe(**sections), run.tables(**sections))
    assert all(url.endswith(".parquet") for url in job.published)
    [found] = job.fetch(0).inputs
    of_tars = pairs_of(run)
    assert (seen(found.web), seen(found.synthetic)) == (seen(of_tars.web), seen(of_tars.synthetic))
    assert found.web
    assert found.synthetic


@pytest.mark.slow
def test_a_run_in_memory_trains_on_parquet_files_to_the_models_of_one_on_disk(
    two_rounds: SmallRun,
) -> None:
    recipe = small_recipe("memory://trains", web=two_rounds.web, models=two_rounds.models,
                          **without_tars(two_rounds))  # fmt: skip
    list(bootstrap(recipe, LocalPool(), rounds=1))
    in_memory = open_tables(recipe, 0).of("train").store
    on_disk = two_rounds.tables(train=training(two_rounds.web)).of("train").store
    names = [f"{folder}/model.safetensors" for folder in ("blip", "captioner", "filter")]
    assert [in_memory.read(name) for name in names] == [on_disk.read(name) for name in names]
    assert "_progress" not in in_memory.names()


def test_held_out_pairs_are_measured_and_not_learnt_from(run: SmallRun) -> None:
    options = {"held_out_pairs": 2, "pretrain_steps": 1, "finetune_steps": 1}
    funnel = trained(run, **options)
    assert funnel.dropped == {"held_out": 2}
    tables = run.tables(train={**training(run.web), **options})
    rows = rows_of(tables, "train", TrainStep)
    assert {row.phase: measures_of(row) for row in rows} == {
        "pretrain": {"text_recall", "image_recall", "cider_d"},
        "captioner": {"cider_d"},
        "filter": {"text_recall", "image_recall"},
    }
    # Two images: the right one is always among the first five.
    assert {row.text_recall_at_5 for row in rows} == {1.0, None}
    captions = rows_of(tables, "train", HeldOutCaption, role="held_out")
    assert Counter(caption.phase for caption in captions) == {"pretrain": 2, "captioner": 2}
    held_out = {pair.text for pair in pairs_of(run, **options).held_out}
    assert {text for caption in captions for text in caption.human_texts} == held_out


def measures_of(row: TrainStep) -> set[str]:
    measures = {
        "text_recall": row.text_recall_at_1,
        "image_recall": row.image_recall_at_10,
        "cider_d": row.cider_d,
    }
    return {name for name, value in measures.items() if value is not None}


def test_what_is_held_out_leaves_something_to_learn_from(run: SmallRun) -> None:
    with pytest.raises(CapfiltError, match=r"held_out_pairs sets all 6 human pairs aside"):
        trained(run, held_out_pairs=6)


def test_no_progress_is_left_of_a_training_that_is_committed(two_rounds: SmallRun) -> None:
    folder = Path(two_rounds.tables(train=training(two_rounds.web)).of("train").store.url)
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "_commits", "blip", "captioner", "filter",
    ]  # fmt: skip
