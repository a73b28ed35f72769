"""The bootstrapping experiment: its arms, its exam, its arithmetic, and the whole of it, tiny."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.bootstrap_rows.arms import (
    NEEDS,
    Arm,
    Lab,
    Step,
    TextStep,
    is_done,
    training_set,
)
from benchmarks.bootstrap_rows.charts import dots
from benchmarks.bootstrap_rows.learner import Start, Training, batches_of
from benchmarks.bootstrap_rows.miniature import (
    WorldSize,
    exam_scenes,
    miniature_world,
    shown,
    web_scenes,
)
from benchmarks.bootstrap_rows.photographs import Photograph, PhotoPlan, photo_world
from benchmarks.bootstrap_rows.plans import TINY
from benchmarks.bootstrap_rows.runner import Task, home, tasks_of, with_needs
from benchmarks.bootstrap_rows.summary import Certainty, auc, gain, spread
from benchmarks.bootstrap_rows.texts import RoundTexts, synthetic_pairs, web_pairs
from benchmarks.bootstrap_rows.worlds import Album, Exam, World, joined, pairs_of
from capfilt.io.parquet import records_from, table_from
from capfilt.miniature.teach.sight import new_blip
from capfilt.records import Score, TextSource, Verdict
from capfilt.stages.select import Thresholds, judge
from capfilt_blip.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
SIZE = WorldSize(num_web=60, num_human=8, num_exam=20)


def album(*texts: str, is_true: tuple[bool, ...] | None = None) -> Album:
    flags = is_true or (True,) * len(texts)
    pixels = torch.arange(len(texts), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    return Album(pixels=pixels, texts=texts, is_true=flags)


WEB = album("a star", "photo", "", "a cross", is_true=(True, False, False, True))
TEXTS = RoundTexts(
    captions=["a red star", "a circle", "a square", "a blue cross"],
    caption_probs=[0.9, 0.5, 0.4, 0.2],
    web_probs=[0.7, 0.1, 0.0, 0.49],
    captions_true=[True, False, True, True],
)


def lab_at(folder: Path) -> Lab:
    """A lab of the small web above, whose first captioner and filter have done their work."""
    exam = Exam(pixels=WEB.pixels, texts=[], image_of_text=[], references=[])
    world = World(human=pairs_of(album("two stars")), web=WEB, exam=exam)
    path = folder / f"{TextStep.FIRST}.json"
    path.write_text(json.dumps({name: getattr(TEXTS, name) for name in RoundTexts.__slots__}))
    training = Training(num_steps=1)
    tokenizer = Tokenizer.train(WEB.texts, vocab_size=200)
    start = Start(blip=new_blip(tokenizer, seed=0), tokenizer=tokenizer)
    return Lab(folder=folder, seed=0, world=world, start=start, training=training, num_candidates=1)


def test_every_arm_trains_on_the_human_pairs_and_its_own_choice_of_texts(tmp_path: Path) -> None:
    lab = lab_at(tmp_path)
    human, web = ["two stars"], ["a star", "photo", "a cross"]
    assert training_set(Arm.NONE, lab).texts == human + web
    assert training_set(Arm.TRUE, lab).texts == [*human, "a star", "a cross"]
    assert training_set(Arm.FILTER, lab).texts == [*human, "a star"]
    assert training_set(Arm.CAPTIONER, lab).texts == human + web + list(TEXTS.captions)
    assert training_set(Arm.BOTH, lab).texts == [*human, "a star", "a red star", "a circle"]
    assert training_set(Arm.HUMAN, lab).texts == human
    random_web = training_set(Arm.RANDOM, lab).texts
    assert len(random_web) == len(training_set(Arm.FILTER, lab).texts)
    assert set(random_web) <= set(training_set(Arm.NONE, lab).texts)


def test_noise_is_the_known_share_of_false_texts(tmp_path: Path) -> None:
    lab = lab_at(tmp_path)
    assert training_set(Arm.NONE, lab).noise == pytest.approx(1 / 4)
    assert training_set(Arm.BOTH, lab).noise == pytest.approx(1 / 4)  # "a circle"
    assert training_set(Arm.CAPTIONER, lab).noise == pytest.approx(2 / 8)
    assert training_set(Arm.TRUE, lab).noise == 0
    assert TEXTS.rejected == 0.5


def test_a_text_stays_with_its_own_picture_when_sets_are_joined(tmp_path: Path) -> None:
    pairs = training_set(Arm.BOTH, lab_at(tmp_path))
    shown = [int(pairs.pixels[place, 0, 0, 0]) for place in pairs.image_of]
    # The human picture is 0; those of the web are 0 to 3, the text of "photo" was dropped.
    assert list(zip(pairs.texts, shown, strict=True)) == [
        ("two stars", 0), ("a star", 0), ("a red star", 0), ("a circle", 1),
    ]  # fmt: skip


def test_web_text_and_caption_of_one_picture_count_as_the_same_image(tmp_path: Path) -> None:
    lab = lab_at(tmp_path)
    pairs = training_set(Arm.BOTH, lab)
    [batch] = batches_of(pairs, Training(num_steps=1, batch_size=4), num_steps=1, seed="a")
    assert batch.image_ids is not None
    ids = dict(zip(batch.texts, batch.image_ids, strict=True))
    assert ids["a star"] == ids["a red star"] != ids["two stars"]


def score(key: str, source: TextSource, text: str, prob: float) -> Score:
    return Score(
        key=key, text_source=source, text_index=0, text=text, logprob=None, itm_prob=prob,
        itc_cos=0.0, num_tokens=2, reason=None, detail=None,
    )  # fmt: skip


def test_the_arms_keep_what_the_select_stage_keeps() -> None:
    web = zip("abcd", WEB.texts, TEXTS.web_probs, strict=True)
    synthetic = zip("abcd", TEXTS.captions, TEXTS.caption_probs, strict=True)
    rows = [score(key, "web", text, prob) for key, text, prob in web]
    rows += [score(key, "synthetic", text, prob) for key, text, prob in synthetic]
    table = judge(
        table_from(rows, Score),
        policy="both",
        web=Thresholds(),
        synthetic=Thresholds(),
        max_text_chars=100,
    )
    verdicts = records_from(table, Verdict)
    kept = [row.text for row, verdict in zip(rows, verdicts, strict=True) if verdict.kept]
    ours = joined([web_pairs(WEB, TEXTS), synthetic_pairs(WEB, TEXTS, filtered=True)])
    assert ours.texts == kept


def test_every_pair_comes_once_an_epoch_and_all_arms_take_as_many_steps() -> None:
    training = Training(num_steps=0, batch_size=4)
    pairs = pairs_of(album(*"abcdef"))
    batches = list(batches_of(pairs, training, num_steps=6, seed="a"))
    texts = [text for batch in batches for text in batch.texts]
    assert Counter(texts) == dict.fromkeys("abcdef", 4)
    assert set(texts[:6]) == set("abcdef")
    fewer = pairs_of(album(*"abc"))
    assert len(list(batches_of(fewer, training, num_steps=6, seed="a"))) == 6


def test_an_exam_text_is_true_of_one_picture_only() -> None:
    world = miniature_world(5, SIZE)
    assert world.true_in_exam is not None
    for text, place in zip(world.exam.texts, world.exam.image_of_text, strict=True):
        judged = [world.true_in_exam(text, number) for number in range(SIZE.num_exam)]
        assert [number for number, flag in enumerate(judged) if flag] == [place]


def test_all_seeds_sit_the_same_exam_and_nothing_it_shows_was_learnt_from() -> None:
    one, other = miniature_world(5, SIZE), miniature_world(6, SIZE)
    assert one.exam.texts == other.exam.texts
    assert torch.equal(one.exam.pixels, other.exam.pixels)
    assert not torch.equal(one.web.pixels, other.web.pixels)
    assert one.true_in_exam is not None
    # Single things are few, so that web and exam would share some if nothing kept them apart.
    few = WorldSize(num_web=400, num_human=100, num_exam=100, max_things=1)
    asked = {shown(scene) for scene in exam_scenes(few)}
    assert not asked & {shown(scene) for scene in web_scenes(5, few)}


def test_the_web_of_a_world_is_noisy_and_its_human_pairs_are_not() -> None:
    world = miniature_world(5, replace(SIZE, num_web=100))
    assert 0.5 < 1 - sum(world.web.is_true) / len(world.web.is_true) < 0.65
    assert world.human.noise == 0
    assert torch.equal(
        world.web.pixels,
        miniature_world(5, replace(SIZE, num_web=100)).web.pixels,
    )


def test_an_arm_is_apart_only_if_its_worst_seed_beats_the_others_best() -> None:
    none = {0: 0.30, 1: 0.34, 2: 0.28}
    assert gain({0: 0.35, 1: 0.40, 2: 0.36}, none).certainty is Certainty.APART
    overlapping = gain({0: 0.33, 1: 0.40, 2: 0.36}, none)
    assert overlapping.certainty is Certainty.ALWAYS
    assert overlapping.differences == pytest.approx({0: 0.03, 1: 0.06, 2: 0.08})
    assert gain({0: 0.29, 1: 0.40, 2: 0.36}, none).certainty is Certainty.MOSTLY
    assert gain({0: 0.30, 1: 0.34, 2: 0.28}, none).certainty is Certainty.NOT


def test_arms_are_compared_on_the_seeds_that_both_have() -> None:
    assert gain({1: 0.5, 2: 0.9}, {0: 0.9, 1: 0.4}).differences == pytest.approx({1: 0.1})


def test_spread_is_that_of_a_sample() -> None:
    one = spread([1.0, 2.0, 6.0])
    assert (one.mean, one.low, one.high, one.num_seeds) == (3.0, 1.0, 6.0, 3)
    assert one.sd == pytest.approx(7**0.5)  # (4 + 1 + 9) / 2
    assert spread([0.4]).sd == 0


def test_auc_counts_pairs_in_the_right_order_and_half_of_the_ties() -> None:
    assert auc([0.1, 0.9], [False, True]) == 1.0
    assert auc([0.9, 0.1], [False, True]) == 0.0
    # True at 0.5 and 0.8, false at 0.5 and 0.2: of four pairs three are right and one is a tie.
    assert auc([0.5, 0.8, 0.5, 0.2], [True, True, False, False]) == 3.5 / 4


def test_an_arm_brings_along_all_that_it_is_made_of() -> None:
    assert with_needs([Arm.SECOND]) == [
        Arm.NONE, TextStep.FIRST, Arm.BOTH, TextStep.SECOND, Arm.SECOND,
    ]  # fmt: skip
    assert tasks_of([3], with_needs([Arm.TRUE])) == [Task(seed=3, step=Arm.TRUE)]


def test_each_step_comes_after_what_it_needs() -> None:
    done: set[Step] = set()
    for step, need in NEEDS.items():
        assert need is None or need in done
        done.add(step)
    assert set(Arm) <= done


def test_a_chart_shows_a_dot_for_each_seed_and_says_what_is_missing() -> None:
    drawn = dots({"recall": {"none": [0.2, 0.4], "both": []}})
    assert drawn.count("<circle") == 2
    assert "not measured" in drawn


def photograph(number: int) -> Photograph:
    picture = io.BytesIO()
    Image.new("RGB", (20, 10), (10 * (number % 25), 0, 0)).save(picture, "JPEG")
    return Photograph(jpeg=picture.getvalue(), captions=(f"dog {number}", f"hound {number}"))


def test_half_of_the_web_texts_of_photographs_are_wrong_and_known() -> None:
    ones = [photograph(number) for number in range(24)]
    plan = PhotoPlan(num_human=4, num_web=20, training=Training(num_steps=1))
    world = photo_world(ones, ones[:2], plan, seed=0)
    assert sum(world.web.is_true) == 10
    reds = [float(one[..., 0].float().mean()) for one in world.web.pixels]
    for text, known, red in zip(world.web.texts, world.web.is_true, reds, strict=True):
        assert (text in ones[round(red / 10)].captions) is known
    assert len(world.human.texts) == 8
    assert world.exam.image_of_text == [0, 0, 1, 1]


def run_script(*options: str) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bootstrap.py"), *options],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.long
def test_the_experiment_runs_whole_and_a_second_run_only_writes_the_page(tmp_path: Path) -> None:
    options = ["--plan", TINY.name, "--seeds", "0", "--work", str(tmp_path), "--processes", "1"]
    page, figures = tmp_path / "docs" / "bootstrap.md", tmp_path / "rows.json"
    first = run_script(*options, "--page", str(page), "--json", str(figures))
    assert first.count("seed 0: ") == len(NEEDS)
    rows = json.loads(figures.read_text())["rows"]
    assert {row["arm"] for row in rows} == set(Arm)
    for row in rows:
        assert f"{row['figures']['CIDEr']:.3f}" in page.read_text()
    written = page.read_text()
    assert "seed 0: " not in run_script(*options, "--page", str(page))
    assert page.read_text() == written
    assert all(is_done(home(tmp_path / TINY.folder_name, 0), step) for step in NEEDS)


@pytest.mark.long
def test_the_experiment_runs_on_photographs(tmp_path: Path) -> None:
    for split, num in (("train", 72), ("dev", 24)):
        with tarfile.open(tmp_path / f"{split}-00000.tar", "w") as tar:
            for number in range(num):
                one = photograph(number)
                add(tar, f"{number:04}.jpg", one.jpeg)
                add(tar, f"{number:04}.json", json.dumps({"captions": one.captions}).encode())
    printed = run_script("--real", str(tmp_path), "--short", "--work", str(tmp_path / "work"))
    assert "dev photograph 19: 0." in printed
    assert "text recall@10" in printed


def add(tar: tarfile.TarFile, name: str, body: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(body)
    tar.addfile(info, io.BytesIO(body))
