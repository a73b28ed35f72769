"""What faster decoding changes in the filter's decisions.

    python benchmarks/decode_decisions.py [--filter DIRECTORY] [--pictures 100]

Pictures of the miniature world, drawn four and two times as large as the filter's square, so that
`scaled` and `fast_scaled` decode the first at half their size. Each is scored with its true text
and with the texts of pictures that differ in one attribute, the hardest false ones. Compared with
exact decoding: the share of texts on the same side of 0.5, and the largest change of `itm_prob`.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np

from capfilt.config import Decoding
from capfilt.io.images import ImageDecoder, ImageLimits, Refused
from capfilt.miniature.pairs import HumanPair, sibling_groups
from capfilt.miniature.render import render
from capfilt.workers.blip import BlipScorer

WEIGHTS = Path(__file__).parents[1] / "capfilt" / "miniature" / "weights"
ENLARGEMENTS = (2, 4)
MIN_ITM_PROB = 0.5  # select's own default
TEXTS_PER_PICTURE = 5


def main() -> None:
    """Print a row for every size of picture and way of decoding."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--filter", type=Path, default=WEIGHTS / "filter", help="a BLIP filter")
    parser.add_argument("--pictures", type=int, default=100)
    arguments = parser.parse_args()
    scorer = BlipScorer.from_directory(arguments.filter, device="cpu", dtype="float32")
    groups = list(islice(sibling_groups("decoding", arguments.pictures), arguments.pictures))
    texts = [[pair.text for pair in group][:TEXTS_PER_PICTURE] for group in groups]
    print(f"{'picture':<12}{'decode':<14}{'texts':>7}{'agree':>10}{'largest':>10}{'mean':>10}")
    for times in ENLARGEMENTS:
        side_px = times * scorer.image_size_px
        images = [drawn(group[0], side_px=side_px) for group in groups]
        expected = itm_probs(scorer, images, texts, decoding="exact")
        for name in get_args(Decoding)[1:]:  # exact is the first
            found = itm_probs(scorer, images, texts, decoding=name)
            same = (found >= MIN_ITM_PROB) == (expected >= MIN_ITM_PROB)
            change = np.abs(found - expected)
            print(f"{side_px:>5} px    {name:<14}{len(found):>7}{same.mean():>10.4%}", end="")
            print(f"{change.max():>10.4f}{change.mean():>10.6f}")


def drawn(pair: HumanPair, *, side_px: int) -> bytes:
    """A picture as a JPEG."""
    file = io.BytesIO()
    render(pair.scene, side_px=side_px).save(file, "JPEG", quality=92)
    return file.getvalue()


def itm_probs(
    scorer: BlipScorer,
    images: Sequence[bytes],
    texts: Sequence[Sequence[str]],
    *,
    decoding: Decoding,
) -> np.ndarray:
    """The probability of every text, in order."""
    with ImageDecoder(ImageLimits(), decoding=decoding) as decoder:
        decoded = decoder.pixels(images, side_px=scorer.image_size_px, fit=scorer.fit)
    pixels = [each for each in decoded if not isinstance(each, Refused)]
    assert len(pixels) == len(images), "a drawn picture was refused"
    scores = scorer.score(np.stack(pixels), texts, batch_size=16)
    return np.array([probability for score in scores for probability in score.itm_prob])


if __name__ == "__main__":
    main()
