from __future__ import annotations

import pytest
import torch

from capfilt_blip.tasks.recall import Recalls, recall_at, recalls
from capfilt_blip.tasks.reranker import Hits, Retrieved


def _hits(*rows: list[int]) -> Hits:
    indices = torch.tensor(rows)
    return Hits(indices=indices, scores=torch.zeros(indices.shape))


def test_the_best_placed_of_several_answers_counts() -> None:
    ranking = _hits([7, 5, 3], [1, 2, 0], [4, 6, 8])
    # Right answers stand at places 2 (and 3), 3, and nowhere.
    assert recall_at(ranking, [[5, 3], {0}, [9, 7]], ks=(1, 2, 3, 10)) == (0, 1 / 3, 2 / 3, 2 / 3)


def test_a_query_without_an_answer_is_not_counted() -> None:
    assert recall_at(_hits([1, 0], [0, 1]), [[1], []]) == (1, 1, 1)


def test_recalls_of_both_directions_and_their_mean() -> None:
    # Images 0, 1 and 2 have the texts 0 and 3, none, and 1, 2 and 4.
    retrieved = Retrieved(
        texts=_hits([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 3, 2, 1, 4]),
        images=_hits([0, 1, 2], [2, 0, 1], [1, 0, 2], [1, 0, 2], [0, 2, 1]),
    )
    found = recalls(retrieved, image_of_text=[0, 2, 2, 0, 2])
    assert found == Recalls(texts=(1 / 2, 1, 1), images=(2 / 5, 1, 1))
    assert found.mean == pytest.approx((0.5 + 1 + 1 + 0.4 + 1 + 1) / 6)


def test_every_query_needs_its_answers() -> None:
    with pytest.raises(ValueError, match="1 truths were given for 2 queries"):
        recall_at(_hits([0], [0]), [[0]])
    with pytest.raises(ValueError, match="no query has a right answer"):
        recall_at(_hits([0], [0]), [[], []])


@pytest.mark.parametrize("place", [-1, 2])
def test_a_text_belongs_to_an_image(place: int) -> None:
    retrieved = Retrieved(texts=_hits([0], [0]), images=_hits([0, 1]))
    with pytest.raises(ValueError, match=rf"image_of_text\[0\] is {place}; there are 2 images"):
        recalls(retrieved, image_of_text=[place])
