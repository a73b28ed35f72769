from __future__ import annotations

import pytest
import torch

from capfilt_blip.tasks.reranker import nearest

# Cosines with (1, 0): 0, 0.8, 1, 0.8, -1.
OTHERS = torch.tensor([[0.0, 1.0], [0.8, 0.6], [1.0, 0.0], [0.8, -0.6], [-1.0, 0.0]])


@pytest.mark.parametrize(
    ("num_candidates", "expected"),
    [(1, [2]), (2, [1, 2]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])],
)
def test_the_nearest_come_in_rising_order(num_candidates: int, expected: list[int]) -> None:
    found = nearest(torch.tensor([[1.0, 0.0]]), OTHERS, num_candidates=num_candidates)
    assert found.tolist() == [expected]


def test_many_queries_are_those_of_one_at_a_time() -> None:
    queries = torch.nn.functional.normalize(torch.randn(600, 2), dim=1)  # more than two blocks
    together = nearest(queries, OTHERS, num_candidates=2)
    alone = [nearest(query[None], OTHERS, num_candidates=2) for query in queries]
    assert torch.equal(together, torch.cat(alone))


def test_equal_vectors_are_equally_near_wherever_they_stand() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(50, 64), dim=1)
    found = nearest(vectors, vectors[:1].repeat(37, 1), num_candidates=5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 50
