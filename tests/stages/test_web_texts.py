"""Web texts: a wrong `input.text_field` is told in one line, with what to set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from capfilt.io.tar import write_tar
from capfilt.local_pool import LocalPool
from capfilt.stages import index
from capfilt.stages.web_texts import missing_texts, text_paths
from tests.small_run import SmallRun


def warned(
    run: SmallRun, folder: Path, members: Sequence[tuple[str, bytes]], **fields: object
) -> str | None:
    """What is said once these members were indexed as the only shard."""
    run = replace(run, folder=folder / "run", web=folder)
    (folder / "00000.tar").write_bytes(write_tar(members))
    sections = {"input": {"shards": f"{folder}/00000.tar", **fields}}
    index.run(run.recipe(**sections), run.tables(**sections), LocalPool())
    return missing_texts(run.recipe(**sections), run.tables(**sections))


WITH_ALT = json.dumps({"id": 7, "alt": "a cat", "more": {"titles": ["x"], "a.b": "y"}}).encode()


def test_a_wrong_field_is_told_with_what_the_json_has(small_run: SmallRun, tmp_path: Path) -> None:
    members = [(f"{i}.json", WITH_ALT) for i in range(3)]
    assert warned(small_run, tmp_path, members, text_field="captoin") == (
        "3 of the 3 samples of the first shards have no web text at 'captoin' in their json "
        "(input.text_field); the json of sample '0' has texts at alt, more.titles.0; "
        "set input.text_field to one (and on_changed_settings: recompute, to index again)"
    )


def test_a_json_that_needs_a_field_is_told_too(small_run: SmallRun, tmp_path: Path) -> None:
    line = warned(small_run, tmp_path, [("a.json", WITH_ALT)])
    assert line is not None
    assert "no web text in a .txt, nor at `caption` in their json (input.text_field is" in line
    assert "has texts at alt, more.titles.0" in line


def test_texts_in_txt_members_need_no_field(small_run: SmallRun, tmp_path: Path) -> None:
    line = warned(small_run, tmp_path, [("a.txt", b"a cat")], text_field="caption")
    assert line is not None
    assert "sample 'a' has a .txt; set input.text_field: null" in line


def test_samples_with_neither_are_told_what_they_have(small_run: SmallRun, tmp_path: Path) -> None:
    line = warned(small_run, tmp_path, [("a.jpg", b"no image"), ("a.cls", b"7")])
    assert line is not None
    assert "sample 'a' has .jpg, .cls, and no text in a json" in line


@pytest.mark.parametrize(("num_texts", "said"), [(1, True), (2, False)])
def test_a_web_that_lacks_less_than_99_in_100_is_not_warned_of(
    small_run: SmallRun, tmp_path: Path, num_texts: int, said: bool
) -> None:
    texts = [(f"{i}.txt", b"a cat") for i in range(num_texts)]
    bare = [(f"{i}.json", b"{}") for i in range(num_texts, 100)]
    assert (warned(small_run, tmp_path, [*texts, *bare]) is not None) == said


def test_a_web_with_its_texts_is_passed_over(small_run: SmallRun) -> None:
    assert missing_texts(small_run.recipe(), small_run.tables()) is None


def test_a_shard_out_of_reach_is_still_warned_of(small_run: SmallRun, tmp_path: Path) -> None:
    assert warned(small_run, tmp_path, [("a.json", b"{}")]) is not None
    (tmp_path / "00000.tar").unlink()
    run = replace(small_run, folder=tmp_path / "run")
    sections = {"input": {"shards": f"{tmp_path}/00000.tar"}}
    line = missing_texts(run.recipe(**sections), run.tables(**sections))
    assert line is not None
    assert line.endswith("see where their texts are, and set input.text_field")


def test_paths_end_where_the_json_is_too_deep() -> None:
    deep: object = "text"
    for _ in range(7):
        deep = [deep]
    assert list(text_paths(deep)) == []
    assert list(text_paths({"a": [[["text"]]]})) == ["a.0.0.0"]
