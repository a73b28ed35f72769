"""Source notes: what a round read is known to later commands."""

from __future__ import annotations

from capfilt.io.storage import Store
from capfilt.stages.source_notes import Source, note_sources, noted_sources


def test_what_is_noted_comes_back_round_by_round() -> None:
    store = Store.at_url("memory://source-notes")
    model = Source(name="some/model", digest="ab" * 32, model_type="blip")
    note_sources(store, 1, {"captioner": model})
    assert noted_sources(store, 1) == {"captioner": model}
    assert noted_sources(store, 0) == {}
