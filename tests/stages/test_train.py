"""Train: which pairs it learns from, and what it leaves."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from capfilt.errors import CapfiltError, DeterminismError, ShardError
from capfilt.io.commits import Table
from capfilt.io.storage import Store
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.pool import Fetched
from capfilt.records import PublishedSample, TrainStep
from capfilt.stages import train
from capfilt.stages.shards import Funnel
from capfilt.stages.train import (
    MAX_OPEN_SHARDS,
    human_texts,
    list_pairs,
    published_texts,
    read_pairs,
)
from capfilt.workers.train import Trained, TrainingSet
from tests.small_run import SmallRun, files_of, rows_of, small_recipe, training


@pytest.mark.parametrize(
    ("texts", "field", "found"),
    [
        ({"txt": b"a cat"}, None, ["a cat"]),
        ({"txt": b" \n"}, None, []),
        ({"json": b'{"caption": "a cat"}'}, None, ["a cat"]),
        ({"json": b'{"caption": ["a cat", "", "a pet"]}'}, None, ["a cat", "a pet"]),
        ({"json": b'{"meta": {"texts": ["a", "b"]}}'}, "meta.texts", ["a", "b"]),
        ({"json": b'{"meta": {"texts": ["a", "b"]}}'}, "meta.texts.1", ["b"]),
        ({}, None, []),
    ],
)
def test_all_texts_people_wrote_are_found(
    texts: Mapping[str, bytes], field: str | None, found: list[str]
) -> None:
    assert human_texts(texts, text_field=field) == found


def test_all_published_texts_are_found() -> None:
    fields = {"texts": [{"text": "a"}, {"text": "b"}], "url": None}
    assert published_texts({"txt": b"a", "json": json.dumps(fields).encode()}) == ["a", "b"]


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
    assert Counter((p.image.sha256, p.text) for p in pairs.web) == Counter(
        (row.image_sha256, text.text) for row in rows for text in row.texts
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


@pytest.fixture
def many_shards(tmp_path: Path) -> list[str]:
    """300 shards of a pair each."""
    urls = [str(tmp_path / f"{number:05d}.tar") for number in range(300)]
    for number, url in enumerate(urls):
        Path(url).write_bytes(write_tar([("a.jpg", b"%d" % number), ("a.txt", b"a")]))
    return urls


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_do_not_grow_with_the_shards(many_shards: list[str]) -> None:
    before = num_open_files()
    pairs = read_pairs(list_pairs(many_shards, texts_of_anything, max_text_bytes=10))
    assert num_open_files() <= before + 1
    assert [pair.image.payload for pair in pairs] == [b"%d" % i for i in range(300)]
    assert num_open_files() <= before + MAX_OPEN_SHARDS


def texts_of_anything(texts: Mapping[str, bytes]) -> list[str]:
    return [text.decode() for text in texts.values()]


def test_a_text_too_long_for_any_caption_is_cut(tmp_path: Path) -> None:
    tar = tmp_path / "long.tar"
    tar.write_bytes(write_tar([("a.jpg", b"1"), ("a.txt", b"x" * 100)]))
    [pair] = read_pairs(list_pairs([str(tar)], texts_of_anything, max_text_bytes=10))
    assert pair.text == "x" * 10


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


def test_training_needs_the_published_tars(run: SmallRun) -> None:
    sections = {"publish": {"webdataset": False}, "train": training(run.web)}
    with pytest.raises(CapfiltError, match=r"set publish\.webdataset: true"):
        train.job(run.recipe(**sections), run.tables(**sections))
