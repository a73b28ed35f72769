"""The demo's figures, each against a count made another way, and its folder, laid out twice.

The web is written into a tar here instead of being downloaded, and the models are random.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet
import pytest

from capfilt import demo
from capfilt.config import Recipe
from capfilt.demo import DemoFigures, figures_json, measure, run_demo, write_figures
from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.miniature.pages import Behaviour, MiniWeb, PageTruth
from capfilt.miniature.web import build_web, page_url
from capfilt.records import Group, PublishedSample, Score
from capfilt.stages.loop import run_round
from capfilt.stages.shards import Funnel
from capfilt.stages.tables import Tables, open_tables
from tests.small_run import rows_of, small_recipe

BASE_URL = "http://127.0.0.1:48700"
SERVED = (Behaviour.OK, Behaviour.SLOW, Behaviour.REDIRECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A round over a small miniature web, and what the demo says of it."""

    tables: Tables
    truth: dict[str, PageTruth]
    funnels: tuple[Funnel, ...]
    figures: DemoFigures


def web_tar(web: MiniWeb) -> bytes:
    """What a perfect downloader makes of a web."""
    members = []
    for number, page in enumerate(web.pages):
        if page.behaviour in SERVED:
            url = {"url": page_url(page.path, BASE_URL)}
            members.append((f"{number:05d}.jpg", page.body()))
            members.append((f"{number:05d}.json", json.dumps(url).encode()))
            if page.alt_text is not None:
                members.append((f"{number:05d}.txt", page.alt_text.encode()))
    return write_tar(members)


@pytest.fixture(scope="module")
def measured(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    web = build_web(0, num_pages=60)
    folder = tmp_path_factory.mktemp("demo")
    (folder / "0.tar").write_bytes(web_tar(web))
    recipe = small_recipe(
        folder / "run", web=folder, models=models, input={"shards": f"{folder}/0.tar"}
    )
    tables = open_tables(recipe, 0)
    funnels = tuple(run_round(recipe, tables, LocalPool()))
    truth = {page_url(row.path, BASE_URL): row for row in web.truth()}
    figures = measure(tables, truth, funnels=funnels, pages=60, seed=0, seconds=1.5)
    return Measured(tables=tables, truth=truth, funnels=funnels, figures=figures)


def remeasured(measured: Measured, truth: dict[str, PageTruth]) -> DemoFigures:
    return measure(measured.tables, truth, funnels=(), pages=60, seed=0, seconds=0.0)


def test_every_page_is_lost_or_kept_as_it_must_be(measured):
    assert measured.figures.lost_wrongly == 0


def test_a_page_lost_or_kept_against_the_truth_is_counted(measured):
    good = next(url for url, page in measured.truth.items() if not page.expected)
    bad = next(url for url, page in measured.truth.items() if page.expected)
    truth = dict(measured.truth)
    truth[good] = replace(truth[good], expected=("image_unreadable",))
    truth[bad] = replace(truth[bad], expected=())
    assert remeasured(measured, truth).lost_wrongly == 2


def test_true_texts_of_the_web_are_those_the_truth_table_has(measured):
    good = [page for page in measured.truth.values() if not page.expected]
    found = measured.figures.texts_on_the_web
    assert found.num_texts == len(good)
    assert found.num_true == sum(page.alt_is_true for page in good)


def test_the_filter_is_judged_on_web_texts_alone(measured):
    """These thresholds keep every text that can be scored."""
    quality = measured.figures.filter_on_web_texts
    web = [s for s in rows_of(measured.tables, "score", Score) if s.text_source == "web"]
    assert quality.num_chosen == sum(score.reason is None for score in web)
    assert quality.num_true == measured.figures.texts_on_the_web.num_true
    assert quality.num_right == quality.num_true


def test_every_published_text_is_judged(measured):
    published = rows_of(measured.tables, "publish", PublishedSample)
    assert measured.figures.texts_published.num_texts == sum(len(row.texts) for row in published)
    assert (
        0 < measured.figures.texts_published.num_true < measured.figures.texts_published.num_texts
    )


def test_random_captions_are_not_true(measured):
    captions = measured.figures.captions
    assert captions.num_texts == sum(not page.expected for page in measured.truth.values())
    assert captions.num_true == 0


def test_found_duplicates_are_pairs_of_one_group(measured):
    quality = measured.figures.duplicates
    groups = rows_of(measured.tables, "dedup", Group)
    assert quality.num_chosen >= sum(not group.kept for group in groups) > 0
    assert 0 < quality.num_right <= min(quality.num_chosen, quality.num_true)


def test_figures_are_written_as_json_with_what_follows_from_them(measured, tmp_path):
    write_figures(measured.figures, tmp_path / "figures.json")
    plain = json.loads((tmp_path / "figures.json").read_text())
    assert plain == json.loads(json.dumps(figures_json(measured.figures)))
    assert plain["filter_on_web_texts"]["recall"] == 1.0
    assert plain["texts_on_the_web"]["share"] == pytest.approx(
        plain["texts_on_the_web"]["num_true"] / plain["texts_on_the_web"]["num_texts"]
    )
    assert [funnel["remainder"] for funnel in plain["funnels"]] == [0] * 6
    assert plain["dataset"].endswith(measured.tables.plans["publish"].folder)
    assert plain["models"] == ""


@contextmanager
def no_pool(recipe: Recipe) -> Iterator[LocalPool]:
    yield LocalPool()


@pytest.fixture
def laid_out(monkeypatch: pytest.MonkeyPatch, models: Path, tmp_path: Path) -> list[list[str]]:
    """Let a demo do nothing but lay itself out; gives the URLs of each, all asked for."""
    weights = tmp_path / "package"
    weights.mkdir()
    (weights / "weights").symlink_to(models)
    lists: list[list[str]] = []

    def ask(recipe: Recipe, tables: Tables, pool: LocalPool) -> Iterator[Funnel]:
        urls = pyarrow.parquet.read_table(str(recipe.download.urls))["url"].to_pylist()
        served = [url for url in urls if url.endswith(".png") and "127.0.0.1" in url]
        with urllib.request.urlopen(served[0], timeout=5) as response:
            assert response.status == 200
        lists.append(urls)
        yield from ()

    monkeypatch.setattr(demo, "files", lambda package: weights)
    monkeypatch.setattr(demo, "run_round", ask)
    monkeypatch.setattr(demo, "measure", lambda *args, **figures: figures)
    return lists


def lay_out(folder: Path, **changes: int) -> None:
    options = {"pages": 60, "seed": 0, **changes}
    run_demo(folder, **options, pool_kind="local", open_pool=no_pool, on_funnel=print)


def test_a_demo_serves_what_it_lists(laid_out, tmp_path):
    lay_out(tmp_path / "demo")
    assert len(laid_out[0]) == 60


def test_a_demo_that_goes_on_has_the_same_urls_and_recipe(laid_out, tmp_path, monkeypatch):
    lay_out(tmp_path / "demo")
    names = ("urls.parquet", "recipe.yaml", "truth.json", "human/00000.tar")
    before = [(tmp_path / "demo" / name).read_bytes() for name in names]
    monkeypatch.setattr(demo, "PORTS", demo.PORTS[::-1])
    lay_out(tmp_path / "demo")
    assert laid_out[0] == laid_out[1]
    assert [(tmp_path / "demo" / name).read_bytes() for name in names] == before


def test_another_seed_is_another_web(laid_out, tmp_path):
    lay_out(tmp_path / "a")
    lay_out(tmp_path / "b", seed=1)
    assert laid_out[0] != laid_out[1]
