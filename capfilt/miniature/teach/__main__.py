"""Train the tiny BLIP of the miniature web, and measure it.

python -m capfilt.miniature.teach OUT_DIR             train into OUT_DIR, then measure
python -m capfilt.miniature.teach --measure OUT_DIR   measure OUT_DIR/{captioner,filter}
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from operator import mul
from pathlib import Path

from capfilt.miniature.teach.exam import Marks, lookalikes, marks, questions
from capfilt.miniature.teach.recipe import log_to_stderr, teach
from capfilt_blip import Captioner, Matcher

logger = logging.getLogger(__name__)

_MIN_ITM_PROB = 0.5


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, or both, as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m capfilt.miniature.teach",
        description="Train the tiny BLIP of the miniature web, and measure it.",
    )
    parser.add_argument("directory", type=Path, help="of captioner/ and filter/")
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    options = parser.parse_args(arguments)
    log_to_stderr()
    if not options.measure:
        teach(options.directory, seed=options.seed)
    _report(measure(options.directory, num_questions=2000))
    for kind, found in cosines(options.directory, num_pairs=200).items():
        low, middle, high = (found[int(share * (len(found) - 1))] for share in (0.05, 0.5, 0.95))
        logger.info("cosine, %s: 5 %% %.3f, median %.3f, 95 %% %.3f", kind, low, middle, high)


def measure(directory: Path, *, num_questions: int) -> Marks:
    """Let the models in `directory` sit the exam: scenes, texts and pictures they never saw.

    Args:
        directory: holds `captioner/` and `filter/`.
        num_questions: each a picture with one alt text; the captioner adds one of its own.
    """
    captioner = Captioner.from_pretrained(directory / "captioner")
    matcher = Matcher.from_pretrained(directory / "filter")
    asked = questions("held-out", num_questions)
    images = [question.image for question in asked]
    captions = [row[0].text for row in captioner.caption(images, top_p=0.9, batch_size=32)]
    both = [[question.text, caption] for question, caption in zip(asked, captions, strict=True)]
    probs = matcher.match(images, both)
    return marks(
        asked,
        kept=[alt >= _MIN_ITM_PROB for alt, _ in probs],
        captions=captions,
        captions_kept=[caption >= _MIN_ITM_PROB for _, caption in probs],
    )


def cosines(directory: Path, *, num_pairs: int) -> dict[str, list[float]]:
    """Compare the filter's image vectors of pictures that look alike.

    Returns:
        The cosine of each pair of `lookalikes`, in ascending order, by kind.
    """
    matcher = Matcher.from_pretrained(directory / "filter")
    found = {}
    for kind, pairs in lookalikes("held-out", num_pairs).items():
        one, other = (
            [scores.image_vector for scores in matcher.score(images, [[] for _ in images])]
            for images in zip(*pairs, strict=True)
        )
        found[kind] = sorted(sum(map(mul, a, b)) for a, b in zip(one, other, strict=True))
    return found


def _report(found: Marks) -> None:
    logger.info("filter at itm_prob >= %.1f: %s", _MIN_ITM_PROB, found.filter)
    logger.info(
        "precision %.3f, recall %.3f", found.filter.precision or 0, found.filter.recall or 0
    )
    for kind, share in found.right_by_kind.items():
        logger.info("judged right, %s: %.3f", kind, share)
    logger.info("true captions: %.3f", found.captions.share or 0)
    kept = found.captions_kept
    logger.info("true captions of the %d kept: %.3f", kept.num_texts, kept.share or 0)


if __name__ == "__main__":
    main()
