"""A run with models that are not BLIP: the same promises, and tables without probabilities."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.console import show_passport
from capfilt.errors import CapfiltError, CheckpointError, Stopped
from capfilt.records import Caption, PublishedSample, Sample, Score, TrainStep, Verdict
from capfilt.stages.explain import find_samples, passport
from capfilt.stages.report import gather, write_report
from capfilt.stages.status import run_status
from tests.hub_models import write_clip, write_git, write_siglip
from tests.small_run import (
    BackwardsPool,
    IdlePool,
    SmallRun,
    StoppingPool,
    files_of,
    finished,
    rows_of,
    training,
)

NO_PROBABILITY = {"min_itm_prob": None, "min_itm_prob_synthetic": None}


def foreign(run: SmallRun, **sections: dict[str, object]) -> dict[str, object]:
    """The sections that make GIT the captioner and CLIP the filter."""
    chosen: dict[str, dict[str, object]] = {
        "caption": {"model": str(run.models / "git"), "num_captions": 2},
        "score": {"model": str(run.models / "clip")},
        "select": {**NO_PROBABILITY, "min_itc_cos": -1.0, "min_itc_cos_synthetic": 0.0},
    }
    return {
        name: {**chosen.get(name, {}), **sections.get(name, {})} for name in {**chosen, **sections}
    }


@pytest.fixture(scope="module")
def fresh(web: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A folder where no run has been, and models of other kinds beside the BLIPs."""
    folder = tmp_path_factory.mktemp("foreign")
    write_git(folder / "models" / "git")
    write_clip(folder / "models" / "clip", scaled_px=40)
    write_siglip(folder / "models" / "siglip")
    for name in ("captioner", "filter"):
        shutil.copytree(models / name, folder / "models" / name)
    return SmallRun(folder=folder / "run", web=web, models=folder / "models")


@pytest.fixture(scope="module")
def run(fresh: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """Round 0, done."""
    done = replace(fresh, folder=tmp_path_factory.mktemp("done") / "run")
    finished(done, **foreign(done))
    return done


def test_every_text_has_a_cosine_and_no_probability(run: SmallRun) -> None:
    tables = run.tables(**foreign(run))
    scored = [row for row in rows_of(tables, "score", Score) if row.reason is None]
    captions = rows_of(tables, "caption", Caption)
    assert len(captions) == 38
    assert len(scored) == 38 + 17  # two web texts are missing
    assert {row.itm_prob for row in scored} == {None}
    assert all(row.itc_cos is not None and -1 <= row.itc_cos <= 1 for row in scored)
    assert len({row.itc_cos for row in scored}) > 30


def test_the_cosine_decides_and_goes_out_with_the_text(run: SmallRun) -> None:
    tables = run.tables(**foreign(run))
    scores = rows_of(tables, "score", Score)
    verdicts = rows_of(tables, "select", Verdict)
    synthetic = [
        (score.itc_cos, verdict.reason)
        for score, verdict in zip(scores, verdicts, strict=True)
        if score.text_source == "synthetic" and score.itc_cos is not None
    ]
    assert {reason for cosine, reason in synthetic if cosine >= 0} == {None}
    assert {reason for cosine, reason in synthetic if cosine < 0} == {"itc_below_min"}
    published = rows_of(tables, "publish", PublishedSample)
    texts = [text for row in published for text in row.texts]
    assert {text.itm_prob for text in texts} == {None}
    assert len(texts) > 20


def test_the_plans_name_the_kinds_of_model(run: SmallRun) -> None:
    plans = run.tables(**foreign(run)).plans
    assert plans["caption"].options["model_type"] == "git"
    assert plans["score"].options["model_type"] == "clip"


def test_a_stopped_run_ends_with_the_same_bytes_in_another_order(
    run: SmallRun, tmp_path: Path
) -> None:
    again = replace(run, folder=tmp_path / "run")
    for after in (1, 3):
        with pytest.raises(Stopped):
            finished(again, StoppingPool(after=after), **foreign(again))
    finished(again, BackwardsPool(), **foreign(again))
    assert files_of(again.folder / "round-000") == files_of(run.folder / "round-000")


def test_other_batches_decide_alike(run: SmallRun, tmp_path: Path) -> None:
    other = replace(run, folder=tmp_path / "run")
    sections = foreign(other, caption={"batch_images": 3}, score={"batch_images": 7})
    finished(other, **sections)
    one, two = (
        [(c.key, c.text) for c in rows_of(tables, "caption", Caption)]
        for tables in (run.tables(**foreign(run)), other.tables(**sections))
    )
    assert one == two


def test_a_laptop_without_the_models_decides_again(run: SmallRun, tmp_path: Path) -> None:
    moved = replace(run.copied_to(tmp_path / "run"), models=tmp_path / "models")
    shutil.copytree(run.models, moved.models)
    kinds = foreign(moved)
    finished(moved, IdlePool(), **kinds)  # so that the run knows these names
    shutil.rmtree(moved.models)
    assert moved.tables(**kinds).sources["filter"].model_type == "clip"
    best = foreign(moved, select={"policy": "best"})
    rows = best_of_each(finished_tables(moved, best))
    assert rows


def finished_tables(run: SmallRun, sections: dict[str, object]) -> list[tuple[Score, Verdict]]:
    finished(run, **sections)
    tables = run.tables(**sections)
    scores, verdicts = rows_of(tables, "score", Score), rows_of(tables, "select", Verdict)
    return list(zip(scores, verdicts, strict=True))


def best_of_each(rows: list[tuple[Score, Verdict]]) -> bool:
    """Whether the text kept of each image is the one with the highest cosine that passed."""
    kept = {score.key: score.itc_cos or 0.0 for score, verdict in rows if verdict.kept}
    others = [(score.key, score.itc_cos or 0.0) for score, v in rows if v.reason == "not_best"]
    return bool(others) and all(cosine <= kept[key] for key, cosine in others)


def test_a_passport_shows_the_cosine(run: SmallRun, capsys: pytest.CaptureFixture[str]) -> None:
    tables = run.tables(**foreign(run))
    [sample] = find_samples(tables, "good-0")
    show_passport(passport(tables, sample))
    shown = capsys.readouterr().out
    cosine = passport(tables, sample).scores[0].itc_cos
    assert f"{cosine:.3f}" in shown


def test_the_report_shows_cosines(run: SmallRun, tmp_path: Path) -> None:
    recipe = run.recipe(**foreign(run))
    write_report(recipe, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "cosine of image and text (ITC)" in page
    assert "kept from -1" in page
    assert "<span>ITC " in page
    assert "<span>ITM " not in page
    assert gather(recipe).shown.texts.histogram.sum() == 55
    assert all(status.done for status in run_status(recipe))


def test_a_siglip_s_probability_is_stored_and_decides(fresh: SmallRun, tmp_path: Path) -> None:
    run = replace(fresh, folder=tmp_path / "run")
    sections = foreign(
        run,
        score={"model": str(run.models / "siglip")},
        select={"min_itm_prob": 0.5, "min_itm_prob_synthetic": 0.5, "min_itc_cos": None,
                "min_itc_cos_synthetic": None},
    )  # fmt: skip
    rows = finished_tables(run, sections)
    kept = [score.itm_prob or 0.0 for score, verdict in rows if verdict.kept]
    dropped = [score.itm_prob or 0.0 for score, v in rows if v.reason == "itm_below_min"]
    assert min(kept) >= 0.5 > max(dropped) > 0


def test_a_policy_that_asks_for_probabilities_stops_before_anything_is_done(
    fresh: SmallRun, tmp_path: Path
) -> None:
    run = replace(fresh, folder=tmp_path / "run")
    with pytest.raises(CapfiltError, match=r"set select\.min_itm_prob: null and select\.min_itm_p"):
        finished(run, **foreign(run, select={"min_itm_prob": 0.5, "min_itm_prob_synthetic": 0.5}))
    assert not run.tables(**foreign(run)).committed("index")


@pytest.mark.parametrize(
    ("section", "model", "told"),
    [
        ("caption", "clip", "/clip: a model of type 'clip' cannot be the captioner; types that"),
        ("score", "git", "/git: a model of type 'git' cannot be the filter; types that can: blip,"),
    ],
)
def test_a_model_for_something_else_stops_before_anything_is_done(
    fresh: SmallRun, tmp_path: Path, section: str, model: str, told: str
) -> None:
    run = replace(fresh, folder=tmp_path / "run")
    wrong = foreign(run, **{section: {"model": str(run.models / model)}})
    with pytest.raises(CheckpointError, match=told):
        finished(run, **wrong)
    assert not run.tables(**foreign(run)).committed("index")


def test_a_blip_is_not_trained_with_another_model_s_tokenizer(
    fresh: SmallRun, tmp_path: Path
) -> None:
    run = replace(fresh, folder=tmp_path / "run")
    sections = foreign(run, train=training(run.web))
    with pytest.raises(CapfiltError, match=r"/git is a git; what is trained is a BLIP: set train"):
        finished(run, **sections)
    assert not run.tables(**foreign(run)).committed("index")


@pytest.mark.slow
def test_the_round_after_is_blip_s_own(run: SmallRun, tmp_path: Path) -> None:
    copy = run.copied_to(tmp_path / "run")
    tokenizer = {"tokenizer": str(run.models / "captioner")}
    sections = foreign(copy, train={**training(run.web), **tokenizer})
    finished(copy, rounds=2, **sections)
    tables = copy.tables(1, rounds=2, **sections)
    assert len(rows_of(copy.tables(0, **sections), "train", TrainStep)) > 0
    assert tables.plans["caption"].options["model_type"] == "blip"
    scored = [row for row in rows_of(tables, "score", Score) if row.reason is None]
    assert all(row.itm_prob is not None for row in scored)
    assert len(rows_of(tables, "index", Sample)) > 0
