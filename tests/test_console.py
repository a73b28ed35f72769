"""What is shown: whole on a narrow screen, and nothing of the web as a terminal would obey it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pytest
from rich.console import Console

from capfilt.console import (
    ReportingPool,
    counted,
    printable,
    reasons_text,
    show_demo,
    show_funnel,
    show_lost,
    show_passport,
    show_rounds,
    show_status,
    status_json,
)
from capfilt.demo import DemoFigures
from capfilt.miniature.measure import Quality, TruthShare
from capfilt.pool import AnyJob, ShardReport
from capfilt.records import Caption, Download, Group, Sample, Score, Verdict
from capfilt.stages.diversity import diversity_of
from capfilt.stages.explain import Passport
from capfilt.stages.shards import Funnel
from capfilt.stages.status import StageStatus
from tests.stages.test_collapse import report as report_of_round

KEY = "0123456789abcdef" * 2


def funnel(stage: str = "index", dropped: Mapping[str, int] | None = None, kept: int = 7) -> Funnel:
    dropped = dropped or {}
    return Funnel(
        stage=stage, round=0, unit="image", shards=1, rows_in=kept + sum(dropped.values()),
        kept=kept, dropped=dropped,
    )  # fmt: skip


def sample(**changes: object) -> Sample:
    fields: dict[str, object] = {
        "key": KEY, "source_key": "00000-000007", "shard": 0, "web_text": "a cat", "url": None,
        "image_member": "a.jpg", "image_offset": 512, "num_bytes": 1234, "image_sha256": "ab" * 32,
        "image_format": "JPEG", "width_px": 64, "height_px": 48, "phash": 1, "reason": None,
        "detail": None,
    }  # fmt: skip
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


def score(text: str | None, **changes: object) -> Score:
    fields: dict[str, object] = {
        "key": KEY, "text_source": "web", "text_index": 0, "text": text, "logprob": None,
        "itm_prob": 0.98765, "itc_cos": -0.1234, "num_tokens": 3, "reason": None, "detail": None,
    }  # fmt: skip
    return Score(**{**fields, **changes})  # type: ignore[arg-type]


def passport(found: Sample, scores: Sequence[Score] = (), **changes: object) -> Passport:
    fields: dict[str, object] = {
        "captions": (), "verdicts": (), "group": None, "represents": (), "published_in": None,
        "plans": {"index": "1234567890abcdef"},
    }  # fmt: skip
    return Passport(sample=found, scores=tuple(scores), **{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(params=[20, 60, 120])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    width: int = request.param
    return width


def words(text: str) -> str:
    """Text without line breaks and the space of table cells."""
    return " ".join(text.split())


def test_reasons_stand_with_the_most_frequent_first():
    dropped = {"fetch_failed": 20, "http_error": 1_500, "fetch_timeout": 20}
    assert reasons_text(dropped) == "http_error 1,500, fetch_failed 20, fetch_timeout 20"
    assert reasons_text({}) == ""


def test_one_thing_is_not_things():
    assert [counted(n, "image") for n in (0, 1, 2_000)] == ["0 images", "1 image", "2,000 images"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("дом 猫 🙂 👩‍👧 می‌خواهم", "дом 猫 🙂 👩‍👧 می‌خواهم"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("two\nlines\r\t", "two\\nlines\\r\\t"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202ecba", "abc\\u202ecba"),
        ("line\u2028end\ud800", "line\\u2028end\\ud800"),
    ],
)
def test_controls_are_spelled_out(text, shown):
    assert printable(text) == shown


def test_a_funnel_is_one_line_however_long(capsys, width):
    show_funnel(funnel(dropped={"image_missing": 2, "image_unreadable": 1}, kept=1))
    show_funnel(funnel("publish"))
    assert capsys.readouterr().out.splitlines() == [
        "index     4 images, 1 kept; image_missing 2, image_unreadable 1",
        "publish   7 images, 7 kept",
    ]


def test_an_empty_dataset_is_not_a_silent_success(capsys):
    show_funnel(funnel("publish", dropped={"no_text_kept": 7}, kept=0))
    assert "nothing is published; `capfilt status` shows" in capsys.readouterr().out


def test_status_shows_every_digit_and_reason_on_any_screen(capsys, width):
    dropped = {"duplicate_perceptual": 1_234_567, "no_text_kept": 89}
    done = funnel("dedup", dropped=dropped, kept=9_876_543)
    waiting = Funnel(stage="train", round=1, unit="pair", shards=0, rows_in=0, kept=0, dropped={})
    show_status(
        [
            StageStatus(funnel=done, shards_total=12_000, folder="f"),
            StageStatus(funnel=waiting, shards_total=1, folder="f"),
        ]
    )
    out = words(capsys.readouterr().out)
    for part in ("1/12,000", "11,111,199 images", "9,876,543", "duplicate_perceptual 1,234,567",
                 "no_text_kept 89", "1 train 0/1"):  # fmt: skip
        assert part in out


def test_status_as_data_accounts_for_every_row():
    [plain] = status_json([StageStatus(funnel=funnel(), shards_total=2, folder="f")])
    assert plain == {
        "stage": "index", "round": 0, "unit": "image", "shards": 1, "rows_in": 7, "kept": 7,
        "dropped": {}, "remainder": 0, "shards_total": 2, "done": False, "folder": "f",
        "speed": None,
    }  # fmt: skip


def test_a_passport_shows_texts_scores_and_verdicts_on_any_screen(capsys, width):
    scores = [
        score("a cat"),
        score("a dog", text_source="synthetic", logprob=-12.345),
        score(None, text_index=1, itm_prob=None, itc_cos=None, reason="text_missing"),
    ]
    verdicts = (
        Verdict(key=KEY, text_source="web", text_index=0, kept=True, reason=None),
        Verdict(key=KEY, text_source="synthetic", text_index=0, kept=False, reason="itm_below_min"),
    )
    show_passport(passport(sample(), scores, verdicts=verdicts))
    out = words(capsys.readouterr().out)
    assert '"a cat" web - 0.9877 -0.123 kept' in out
    assert '"a dog" synthetic -12.35 0.9877 -0.123 itm_below_min' in out
    assert "none web - - - text_missing" in out
    assert KEY in out
    assert "JPEG, 64 x 48 px, 1,234 bytes" in out
    assert "index 1234567890ab" in out


def test_nothing_from_the_web_reaches_the_terminal_raw(capsys):
    evil = "\x1b]0;owned\x07[bold]x[/bold] [/]"
    found = sample(url=f"http://a/{evil}", source_key=evil, reason="image_unreadable", detail=evil)
    row = Download(
        source_key="00000-000001", url=evil, web_text=evil, image_sha256=None, num_bytes=None,
        reason="http_error", detail=evil,
    )  # fmt: skip
    show_passport(passport(found, [score(evil)]))
    show_lost(row)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.count("[bold]x[/bold] [/]") >= 6


def test_a_sample_that_cannot_be_used_says_why(capsys):
    show_passport(passport(sample(reason="image_unreadable", detail="no JPEG")))
    assert "not usable   image_unreadable: no JPEG" in capsys.readouterr().out


def test_an_image_without_a_caption_says_why(capsys):
    caption = Caption(
        key=KEY, text_index=0, text=None, logprob=None, num_tokens=None, reason="bytes_changed",
        detail=None,
    )  # fmt: skip
    show_passport(passport(sample(), captions=(caption,)))
    assert "no caption   bytes_changed: -" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kept", "representative", "reason", "represents", "line"),
    [
        (True, KEY, None, (), "none; it stays"),
        (True, KEY, None, ("a",), "it stays, and stands for 1 other image"),
        (True, KEY, None, ("a", "b"), "it stays, and stands for 2 other images"),
        (False, "k", "duplicate_embedding", (), "duplicate_embedding (0.990) of k, which stays"),
        (False, None, "no_text_kept", (), "not looked for: no_text_kept"),
    ],
)
def test_duplicates_are_told(kept, representative, reason, represents, line, capsys):
    group = Group(
        key=KEY, shard=0, representative=representative, similarity=0.99, kept=kept, reason=reason,
        texts=(),
    )  # fmt: skip
    show_passport(passport(sample(), group=group, represents=represents))
    assert f"duplicates   {line}\n" in capsys.readouterr().out


def test_a_long_text_is_cut_and_says_so(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    show_passport(passport(sample(), [score("x" * 5_300)]))
    out = capsys.readouterr().out
    assert out.count("x" * 300) == 1
    assert "and 5,000 more characters" in out


def test_a_url_that_gave_no_image_is_told_with_its_text(capsys):
    show_lost(Download(
        source_key="00000-000001", url="http://a/b.jpg", web_text="a cat", image_sha256=None,
        num_bytes=None, reason="http_error", detail="HTTP Error 404: Not Found",
    ))  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "http://a/b.jpg",
        "  source       00000-000001",
        "  not fetched  http_error: HTTP Error 404: Not Found",
        '  web text     "a cat"',
    ]


class OneReportPool:
    """Runs nothing and gives these reports."""

    def __init__(self, *reports: ShardReport) -> None:
        self.reports = reports
        self.closed = False

    def run(self, chain: Sequence[AnyJob], shards: Sequence[int]) -> Iterator[ShardReport]:
        yield from self.reports

    def close(self) -> None:
        self.closed = True


class NamedJob:
    stage = "index"


def report(**changes: object) -> ShardReport:
    fields: dict[str, object] = {
        "stage": "index", "shard": 3, "rows_in": 5, "kept": 3, "dropped": {"image_missing": 2},
        "seconds": 1.24,
    }  # fmt: skip
    return ShardReport(**{**fields, **changes})  # type: ignore[arg-type]


def run_through(
    *reports: ShardReport, terminal: bool
) -> tuple[list[ShardReport], str, OneReportPool]:
    inner, drawn = OneReportPool(*reports), io.StringIO()
    console = Console(file=drawn, force_terminal=terminal, width=100)
    with ReportingPool(inner, console) as pool:
        passed = list(pool.run([NamedJob()], range(2)))  # type: ignore[list-item]
    return passed, drawn.getvalue(), inner


def test_in_a_log_a_shard_is_a_line(caplog):
    caplog.set_level(logging.INFO)
    passed, drawn, inner = run_through(report(), report(already=True), terminal=False)
    assert passed == [report(), report(already=True)]
    assert caplog.messages == ["index shard 3: 5 rows, 3 kept, image_missing 2, 1.2 s"]
    assert drawn == ""
    assert inner.closed


def test_on_a_terminal_a_stage_is_a_bar(caplog):
    caplog.set_level(logging.INFO)
    _, drawn, _ = run_through(report(), report(), terminal=True)
    assert caplog.messages == []
    assert "2/2" in drawn
    assert "6 kept" in drawn


@pytest.mark.parametrize("terminal", [True, False])
def test_a_shard_that_fails_is_told_everywhere(terminal, caplog):
    run_through(report(error="x.tar: cannot be read"), terminal=terminal)
    assert caplog.messages == ["index shard 3: x.tar: cannot be read"]


def test_the_demos_figures_are_shown_whole(capsys, width, tmp_path):
    quality = Quality(num_right=1_234, num_chosen=2_468, num_true=1_300)
    share = TruthShare(num_true=1, num_texts=3)
    show_demo(
        DemoFigures(
            pages=400, seed=0, seconds=61.4, funnels=(funnel(dropped={"image_missing": 2}),),
            filter_on_web_texts=quality, texts_on_the_web=share, captions=share,
            texts_published=TruthShare(num_true=0, num_texts=0), duplicates=quality,
            lost_wrongly=0, dataset="/d", models="/m",
        ),
        tmp_path,
    )  # fmt: skip
    out = words(capsys.readouterr().out)
    for part in ("index 9 images 7 image_missing 2 0", "50.0%", "94.9%", "33.3%", "1 of 3",
                 "Dataset /d", f"capfilt explain {tmp_path}/recipe.yaml 00000-000007",
                 f"capfilt report {tmp_path}/recipe.yaml"):  # fmt: skip
        assert part in out


def test_rounds_stand_side_by_side_and_a_caption_cannot_act(capsys):
    hostile = diversity_of(pa.array(["\x1b[31mred [bold]dog[/bold]"]))
    show_rounds([report_of_round(rejected=50), report_of_round(hostile, rejected=16, round_=1)])
    out = capsys.readouterr().out
    shown = words(out)
    assert "round 0 round 1" in shown
    assert "captions rejected (noise) 25.0% (50 of 200) 8.0% (16 of 200)" in shown
    assert "\\x1b[31mred [bold]dog[/bold]" in shown
    assert "\x1b[31m" not in out
