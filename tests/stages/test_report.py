"""Report: what a person sees of a run, and that nothing strangers wrote can act on the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from capfilt.errors import StorageError
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.records import Reason, Sample, Score
from capfilt.stages import index
from capfilt.stages.report import gather, write_report
from capfilt.stages.report_html import REASON_WORDS, said, without_query
from capfilt.stages.report_sections import percent
from tests.small_run import (
    SmallRun,
    finished,
    flip_last_byte,
    planted_shards,
    rows_of,
    training,
)

MARKUP = [
    "<script>alert(1)</script>", "</style><script>alert(2)</script>",
    "<img src=x onerror=alert(3)>", '"><svg onload=alert(4)>', "' onmouseover='alert(5)",
    '" style="background:url(javascript:6)',
    "<a href='javascript:alert(7)'>x</a>", "</title><body onload=alert(8)>", "<!-- --><b>9</b>",
    "<![CDATA[<script>10</script>]]>", "&lt;script&gt;11", "<iframe srcdoc='<script>12'>",
    "{{7*7}} ${jndi:ldap://x}", "<base href=//evil.example>", "\x1b[31mred\x1b]8;;http://x\x07",
    "cod\u202egpj.exe\u2066\u200f", "tag\U000e0041\U000e007f", "\ufeff\u2028\u2029\x00",
    "a" * 100_000,
]  # fmt: skip
HIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
TAGS = set(
    "html head meta title style body header nav section footer h1 h2 h3 p a b br dl dt dd div span "
    "article figure figcaption code ul li table tr th td details summary img svg g rect line text "
    "title polyline circle".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name id class href src alt dir decoding role aria-label "
    "aria-hidden viewbox preserveaspectratio x y x1 x2 y1 y2 cx cy r width height points "
    "text-anchor".split()
)


class Outline(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.sections: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.sections += [value or "" for name, value in attrs if tag == "section" and name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.attributes if found == name]


def page_of(run: SmallRun, folder: Path, **sections: object) -> str:
    write_report(run.recipe(**sections), folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def assert_inert(page: str) -> None:
    found = Outline(page)
    assert set(found.tags) <= TAGS
    assert {name for name, _ in found.attributes} <= ATTRIBUTES  # no handler, no style
    assert all(re.fullmatch(r"#[a-z]+", target) for target in found.values("href"))
    assert all(source.startswith("data:image/jpeg;base64,") for source in found.values("src"))
    assert len(found.values("http-equiv")) == 1


@pytest.fixture(scope="module")
def page(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(small_run, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def hostile_page(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run whose texts, names and addresses all try to get out."""
    folder = tmp_path_factory.mktemp("hostile")
    good = [sample.image for sample in planted_shards()[0] if sample.reason is None]
    members = []
    for i, markup in enumerate(MARKUP):
        extension, payload = good[i % 4] or ("jpg", b"")
        name = f"{i:03d}{markup[:60]}".replace(".", "_").replace("\0", "_").replace("/", "_")
        fields = {"caption": markup, "url": f"http://web.example/{markup[:200]}"}
        if i % 2:  # an unreadable one: the report shows its name
            payload = payload[:40]
        members += [(f"{name}.{extension}", payload), (f"{name}.json", json.dumps(fields).encode())]
    (folder / "00000.tar").write_bytes(write_tar(members))
    run = SmallRun(folder=folder / "run", web=folder, models=small_run.models)
    sections: dict[str, object] = {
        "input": {"shards": f"{folder}/00000.tar", "name": MARKUP[0] + MARKUP[1]},
        "caption": {"prompt": "<script>prompt</script> "},
    }
    finished(run, **sections)
    return page_of(run, folder, **sections)


def test_a_page_holds_nothing_that_acts_or_loads(page: str) -> None:
    assert_inert(page)


def test_hostile_texts_names_and_settings_stay_text(hostile_page: str) -> None:
    assert_inert(hostile_page)
    text = Outline(hostile_page).text
    assert "<script>alert(1)</script>" in text  # shown, as what it is
    assert "<img src=x onerror=alert(3)>" in text
    assert "<script>prompt</script>" in text


def test_nothing_on_the_page_hides_or_reorders_letters(hostile_page: str) -> None:
    assert not HIDDEN.search(hostile_page)


@pytest.mark.parametrize("markup", MARKUP)
def test_any_text_is_shown_as_text_and_nothing_else(markup: str) -> None:
    shown = said(markup)
    found = Outline(shown)
    assert set(found.tags) <= {"span"}
    assert set(found.attributes) <= {("class", "hidden-char"), ("class", "soft")}
    assert not HIDDEN.search(shown)
    assert found.text.startswith(HIDDEN.sub(lambda char: f"U+{ord(char[0]):04X}", markup)[:300])


def test_the_policy_allows_this_style_sheet_and_data_images_alone(page: str) -> None:
    [style] = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for value in Outline(page).values("content") if "default-src" in value)
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert not re.search(r"url\(|@import", style)


def test_the_same_tables_give_the_same_bytes_wherever_they_lie(
    page: str, small_run: SmallRun, tmp_path: Path
) -> None:
    copied = small_run.copied_to(tmp_path / "elsewhere")
    assert page_of(copied, tmp_path) == page
    assert str(small_run.folder) not in page


def test_a_report_changes_nothing_in_the_run(small_run: SmallRun, tmp_path: Path) -> None:
    copied = small_run.copied_to(tmp_path / "run")
    before = sorted((p, p.stat().st_mtime_ns) for p in copied.folder.rglob("*"))
    page_of(copied, tmp_path)
    assert sorted((p, p.stat().st_mtime_ns) for p in copied.folder.rglob("*")) == before


def test_every_reason_of_the_run_is_on_the_page_with_its_count(page: str) -> None:
    unreadable = [s for shard in planted_shards() for s in shard if s.reason == "image_missing"]
    assert re.search(rf"<code>image_missing</code><span[^>]*>index · {len(unreadable)}<", page)
    assert REASON_WORDS[Reason.IMAGE_MISSING] in page
    assert "photo" in page  # such a sample


@pytest.mark.parametrize(
    ("absent", "sections"),
    [
        ([], ["funnel", "rounds", "scores", "sample", "borderline", "duplicates", "dropped",
              "plans"]),
        (["dataset", "groups"],
         ["funnel", "rounds", "scores", "sample", "borderline", "dropped", "plans"]),
        (["dataset", "groups", "verdicts"],
         ["funnel", "scores", "sample", "borderline", "dropped", "plans"]),
        (["dataset", "groups", "verdicts", "scores"], ["funnel", "sample", "dropped", "plans"]),
        (["dataset", "groups", "verdicts", "scores", "captions"],
         ["funnel", "sample", "dropped", "plans"]),
        (["dataset", "groups", "verdicts", "scores", "captions", "samples"], ["funnel", "plans"]),
    ],
)  # fmt: skip
def test_a_run_is_reported_as_far_as_it_has_come(
    absent: list[str], sections: list[str], small_run: SmallRun, tmp_path: Path
) -> None:
    run = small_run.copied_to(tmp_path / "run", without=[*absent, "round.json"])
    page = page_of(run, tmp_path)
    assert_inert(page)
    assert Outline(page).sections == sections
    assert page.count("not done yet") == len(absent)


def test_a_stage_half_done_says_so(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.copied_to(tmp_path / "run")
    [commit] = (run.folder / "round-000" / "scores").glob("*/_commits/00001.json")
    commit.unlink()
    page = page_of(run, tmp_path)
    assert "1 of 2 shards" in page
    assert "stages done so far" in page


def test_a_web_without_samples_has_a_report(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "00000.tar").write_bytes(write_tar([]))
    run = SmallRun(folder=tmp_path / "run", web=tmp_path, models=small_run.models)
    sections = {"input": {"shards": f"{tmp_path}/00000.tar"}}
    finished(run, **sections)
    page = page_of(run, tmp_path, **sections)
    assert_inert(page)
    assert "0 samples" in page


def test_thumbnails_are_few_small_jpegs_of_our_own_making(page: str) -> None:
    sources = Outline(page).values("src")
    assert 0 < len(sources) <= 60
    for source in sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert image.format == "JPEG"
        assert max(image.size) == 128
        assert not image.getexif()


def test_an_image_that_changed_is_not_shown(small_run: SmallRun, tmp_path: Path) -> None:
    run = small_run.with_own_web(tmp_path / "web")
    [shown, *_] = gather(run.recipe()).shown.texts.sample
    samples = {sample.key: sample for sample in rows_of(run.tables(), "index", Sample)}
    flip_last_byte(run, samples[shown.key])
    pictures = gather(run.recipe()).pictures
    assert pictures[shown.key].jpeg is None
    assert pictures[shown.key].trouble == "not the image that was indexed"
    assert sum(picture.jpeg is None for picture in pictures.values()) == 1


def test_the_texts_shown_as_nearest_lie_on_both_sides_of_the_threshold(
    small_run: SmallRun,
) -> None:
    scores = rows_of(small_run.tables(), "score", Score)
    probabilities = sorted(score.itm_prob for score in scores if score.itm_prob is not None)
    middle = probabilities[len(probabilities) // 2]
    bounds = {"min_itm_prob": middle, "min_itm_prob_synthetic": middle}
    report = gather(small_run.recipe(select=bounds))
    texts = report.shown.texts
    found = {f"{s.key} {(s.text_source, s.text_index)}": s.itm_prob for s in scores}
    above = [found[f"{pick.key} {pick.text}"] for pick in texts.above]
    below = [found[f"{pick.key} {pick.text}"] for pick in texts.below]
    assert above == [p for p in probabilities if p >= middle][: len(above)]
    assert below == [p for p in reversed(probabilities) if p < middle][: len(below)]


def test_a_group_of_duplicates_is_shown_with_the_image_that_stays(small_run: SmallRun) -> None:
    report = gather(small_run.recipe())
    names = {key: picture.seen.sample.source_key for key, picture in report.pictures.items()}
    shown = {(names[g.representative], *(names[m.key] for m in g.members)) for g in report.groups}
    assert {("shown-large", "shown-small")} <= shown
    assert {frozenset(group) for group in shown} >= {frozenset({"original", "copy"})}


def test_every_round_has_its_funnel_and_its_losses(two_rounds: SmallRun, tmp_path: Path) -> None:
    sections: dict[str, object] = {"rounds": 2, "train": training(two_rounds.web)}
    page = page_of(two_rounds, tmp_path, **sections)
    assert_inert(page)
    assert page.count("<h3>Round 0</h3>") == 2
    assert page.count("<h3>Round 1</h3>") >= 1
    assert '<th class="number">Round 0</th><th class="number">Round 1</th>' in page
    for phase in ("pretrain", "captioner", "filter"):
        assert f'aria-label="{phase}: losses by step"' in page


def test_a_file_that_cannot_be_written_is_an_answerable_error(
    small_run: SmallRun, tmp_path: Path
) -> None:
    with pytest.raises(
        StorageError, match=r"nowhere/report\.html: cannot be written: No such file"
    ):
        write_report(small_run.recipe(), tmp_path / "nowhere" / "report.html")


def test_a_report_that_fails_leaves_the_one_before(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        write_report(small_run.recipe(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_an_index_alone_is_shown_with_its_web_texts(small_run: SmallRun, tmp_path: Path) -> None:
    run = SmallRun(folder=tmp_path / "run", web=small_run.web, models=small_run.models)
    index.run(run.recipe(), run.tables(), LocalPool())
    assert "a red circle 1" in page_of(run, tmp_path)


def test_every_reason_has_words() -> None:
    assert set(REASON_WORDS) == set(Reason)


def test_a_long_text_is_cut_and_its_length_told() -> None:
    shown = said("<" * 5000)
    assert shown.count("&lt;") == 300
    assert "5,000 characters" in shown


@pytest.mark.parametrize(
    "text",
    [
        "дом моря 猫 🙂",
        "👩\u200d🚀",
        "نجمة",
        "é",
        "\u0645\u06cc\u200c\u062e",
    ],  # the last is Persian
)
def test_the_letters_of_any_language_are_left_alone(text: str) -> None:
    assert said(text) == text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/i.jpg?token=s3cret#x", "https://a.example/i.jpg?…"),
        ("https://user:s3cret@a.example:8/i.jpg", "https://a.example:8/i.jpg"),
        ("http://[broken?s3cret", "http://[broken"),
        ("data:text/html?s3cret", "data:text/html"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert without_query(url) == shown


@pytest.mark.parametrize(
    ("part", "whole", "said_as"),
    [(0, 5, "0%"), (5, 5, "100%"), (1, 10**6, "&lt;0.1%"), (10**6 - 1, 10**6, "&gt;99.9%"),
     (1, 3, "33.3%"), (0, 0, "-")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, said_as: str) -> None:
    assert percent(part, whole) == said_as
