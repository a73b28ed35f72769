"""The round report: counted by hand on a few texts, and of a real run read again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from capfilt.io.parquet import table_from
from capfilt.records import Score, TextSource, TrainStep, Verdict
from capfilt.stages import round_report as module
from capfilt.stages.diversity import share_of
from capfilt.stages.round_report import (
    SCORE_COLUMNS,
    VERDICT_COLUMNS,
    TextsSeen,
    max_key_of,
    phase_figures,
    round_report,
    texts_seen,
)
from tests.small_run import SmallRun, rows_of, training

Shard = tuple[pa.Table, pa.Table]


def text(
    key: str, source: TextSource, said: str | None, itm: float | None, reason: str | None = None
) -> tuple[Score, Verdict]:
    score = Score(
        key=key, text_source=source, text_index=0, text=said, logprob=None, itm_prob=itm,
        itc_cos=None if itm is None else itm / 2, num_tokens=None, reason=None, detail=None,
    )  # fmt: skip
    verdict = Verdict(key=key, text_source=source, text_index=0, kept=reason is None, reason=reason)
    return score, verdict


def shard(*texts: tuple[Score, Verdict]) -> Shard:
    scores, verdicts = zip(*texts, strict=True)
    return (
        table_from(scores, Score).select(SCORE_COLUMNS),
        table_from(verdicts, Verdict).select(VERDICT_COLUMNS),
    )


@pytest.fixture
def shards() -> list[Shard]:
    """Five images' texts: three of the web's and five captions, in two shards."""
    return [
        shard(
            text("a1", "web", "x", 0.875),
            text("a1", "synthetic", "a dog", 0.75),
            text("a2", "web", None, None, "text_missing"),
            text("a2", "synthetic", "a cat", 0.25, "itm_below_min"),
        ),
        shard(
            text("b1", "web", "y", 0.625),
            text("b1", "synthetic", "a dog", 0.5, "web_preferred"),
            text("b2", "synthetic", "a dog and so on", 0.5, "text_too_long"),
            text("b3", "synthetic", None, None, "worker_error"),
        ),
    ]


@pytest.fixture
def seen(shards: list[Shard]) -> TextsSeen:
    return texts_seen(shards, max_key="g")


def test_noise_is_what_the_filter_rejects_of_the_captions_it_judges(seen: TextsSeen) -> None:
    # Judged: `a dog` kept, `a cat` rejected, `a dog` good but not needed. Too long and lost: not.
    assert (seen.rejected, seen.judged) == (1, 3)


def test_kept_shares_are_of_all_texts_of_a_source(seen: TextsSeen) -> None:
    assert seen.web.kept == share_of(2, 3)
    assert seen.synthetic.kept == share_of(1, 5)


def test_means_are_of_the_texts_that_have_a_score(seen: TextsSeen) -> None:
    assert (seen.web.mean_itm_prob, seen.web.mean_itc_cos) == (0.75, 0.375)
    assert (seen.synthetic.mean_itm_prob, seen.synthetic.mean_itc_cos) == (0.5, 0.25)


def test_an_image_with_two_kept_texts_is_one_image(seen: TextsSeen) -> None:
    assert seen.images_kept == 2  # a1 with both, b1


def test_captions_count_as_they_were_written_kept_or_not(seen: TextsSeen) -> None:
    assert seen.captions.to_pylist() == ["a dog", "a cat", "a dog", "a dog and so on"]


def test_of_many_captions_those_of_the_lowest_keys_are_taken(shards: list[Shard]) -> None:
    assert texts_seen(shards, max_key="b").captions.to_pylist() == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("num_captions", "max_key"),
    [(0, "g"), (1_000_000, "g"), (2_000_000, "8" + "0" * 15), (16_000_000, "1" + "0" * 15)],
)
def test_the_key_bound_leaves_a_million_captions(num_captions: int, max_key: str) -> None:
    assert max_key_of(num_captions) == max_key


def test_no_text_has_no_figures() -> None:
    seen = texts_seen([], max_key="g")
    assert (seen.images_kept, len(seen.captions), seen.web.mean_itm_prob) == (0, 0, None)
    assert seen.web.kept.share is None


def step(phase: str, number: int, loss: float, itm_accuracy: float | None) -> dict[str, object]:
    return {"phase": phase, "step": number, "loss": loss, "itm_accuracy": itm_accuracy}


STEP_SCHEMA = pa.schema(
    [("phase", pa.string()), ("step", pa.int32()), ("loss", pa.float32()),
     ("itm_accuracy", pa.float32()), ("recall_at_1", pa.float32()), ("warning", pa.string())]
)  # fmt: skip


def test_a_phase_ends_with_the_last_of_every_number_it_logged() -> None:
    steps = pa.Table.from_pylist(
        [
            {**step("pretrain", 10, 3.0, 0.5), "recall_at_1": 0.25},
            step("pretrain", 20, 2.0, None),
            step("captioner", 5, 1.5, None),
        ],
        schema=STEP_SCHEMA,
    )
    pretrain, captioner = phase_figures(steps)
    assert pretrain.phase == "pretrain"
    assert pretrain.values == {"step": 20, "loss": 2.0, "itm_accuracy": 0.5, "recall_at_1": 0.25}
    assert captioner.values == {"step": 5, "loss": 1.5}


def test_a_loss_that_is_no_number_is_left_out() -> None:
    steps = pa.Table.from_pylist([{"phase": "filter", "loss": float("nan")}], schema=STEP_SCHEMA)
    [phase] = phase_figures(steps)
    assert phase.values == {}


def test_what_looked_wrong_in_a_phase_is_told_with_its_step() -> None:
    warned = {**step("pretrain", 499, 3.0, 0.67), "warning": "ITM is stuck"}
    rows = [step("pretrain", 0, 3.0, 0.6), warned, step("filter", 0, 2.0, None)]
    pretrain, matching = phase_figures(pa.Table.from_pylist(rows, schema=STEP_SCHEMA))
    assert (pretrain.warnings, matching.warnings) == (("step 500: ITM is stuck",), ())


def test_the_file_of_a_run_agrees_with_its_tables(small_run: SmallRun) -> None:
    written = json.loads((small_run.folder / "round-000" / "round.json").read_bytes())
    verdicts = rows_of(small_run.tables(), "select", Verdict)
    for source in ("web", "synthetic"):
        of_source = [v.kept for v in verdicts if v.text_source == source]
        kept = written[source]["kept"]
        assert (kept["count"], kept["total"]) == (sum(of_source), len(of_source))
    texts = [s.text for s in rows_of(small_run.tables(), "score", Score)
             if s.text_source == "synthetic" and s.text is not None]  # fmt: skip
    assert written["captions"]["captions"] == len(texts) > 0
    assert written["captions"]["distinct_captions"]["count"] == len(set(texts))
    assert written["images_published"] == 17
    assert written["training"] == []


def test_a_published_round_is_not_counted_again(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["scores", "verdicts"])
    whole = round_report(small_run.recipe(), small_run.tables())
    assert whole is not None
    assert round_report(run.recipe(), run.tables()) == whole


def test_a_report_of_other_settings_is_none_of_these(small_run: SmallRun) -> None:
    other = {"select": {"min_itm_prob_synthetic": 0.9}}
    assert round_report(small_run.recipe(**other), small_run.tables(**other)) is None


def test_a_round_without_its_file_or_with_a_damaged_one_is_counted(
    small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run")
    file = run.folder / "round-000" / "round.json"
    whole = round_report(run.recipe(), run.tables())
    file.write_bytes(file.read_bytes()[:100])
    assert round_report(run.recipe(), run.tables()) == whole
    file.unlink()
    assert round_report(run.recipe(), run.tables()) == whole


def test_counting_a_sample_of_the_captions_changes_no_other_figure(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=["round.json"])
    whole = round_report(run.recipe(), run.tables())
    monkeypatch.setattr(module, "MAX_CAPTIONS", 9)  # of 18
    sampled = round_report(run.recipe(), run.tables())
    assert whole is not None
    assert sampled is not None
    assert 0 < sampled.captions.captions < whole.captions.captions
    assert sampled.noise_ratio == whole.noise_ratio
    assert sampled.synthetic == whole.synthetic


def test_training_is_in_the_report_once_it_is_done(two_rounds: SmallRun) -> None:
    sections: dict[str, object] = {"rounds": 2, "train": training(two_rounds.web)}
    for number in range(2):
        report = json.loads((two_rounds.folder / f"round-00{number}" / "round.json").read_bytes())
        assert [phase["phase"] for phase in report["training"]] == [
            "pretrain",
            "captioner",
            "filter",
        ]
        steps = rows_of(two_rounds.tables(number, **sections), "train", TrainStep)
        last = [s.loss for s in steps if s.phase == "pretrain"][-1]
        assert report["training"][0]["values"]["loss"] == pytest.approx(last, abs=1e-6)
