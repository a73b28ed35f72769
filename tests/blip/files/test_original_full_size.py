"""Original checkpoints of full size, with random values: the loaded models compute what they say.

Without what a load leaves out: momentum copies and queues would double files and time.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.blip.files.test_layouts import (
    CHECKS,
    ORIGINALS,
    Build,
    bert_sized_tokenizer,
    load,
    written,
)
from tests.blip.original_files import BASE, LARGE, Size, filled

pytestmark = pytest.mark.long


@torch.no_grad()
@pytest.mark.parametrize("size", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("of", ORIGINALS, ids=lambda of: of.__name__)
def test_a_loaded_original_computes_what_the_original_does(
    tmp_path: Path, of: Build, size: Size
) -> None:
    shapes = {
        name: shape for name, shape in of(size).items() if not ("_m." in name or "queue" in name)
    }
    words = bert_sized_tokenizer()
    path = written(tmp_path, filled(shapes), words)
    model = load(path, of)
    # The reference reads the file again, mapped into memory: two copies would be too many.
    weights = torch.load(path, weights_only=True, mmap=True)["model"]
    CHECKS[of](model, weights, words, side_px=384)
    path.unlink()
