"""Where a cascade's thresholds may lie, what they would save, and what they would cost.

python benchmarks/cascade.py [--recipe RECIPE] [--questions 2000] [--min-itm-prob 0.5]

With a recipe: from the scores of a run without a cascade, which hold both numbers of every text.
Without one: pictures and alt texts of the miniature web, held out, and the filter that is shipped.
For each rate of disagreement that is allowed on either side, the widest thresholds are printed. The
operations saved are those of a ViT-B at 384 px with texts of these lengths and two texts an image,
whatever filter gave the scores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import numpy.typing as npt

from capfilt.config import load_recipe
from capfilt.io.parquet import from_bytes
from capfilt.miniature.teach.exam import questions
from capfilt.records import Score
from capfilt.stages.tables import open_tables
from capfilt_blip import Matcher
from capfilt_blip.config import BlipConfig
from capfilt_blip.flops import image_flops, itc_flops, itm_flops, memory_flops

ALLOWED = (0.0, 0.005, 0.01, 0.02, 0.05)
TEXTS_PER_IMAGE = 2
MAX_TEXT_TOKENS = 35

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Texts with both numbers; (N,) each."""

    itm_prob: Floats
    itc_cos: Floats
    num_tokens: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The widest thresholds of a cascade; infinite where no text may be decided."""

    drop: float
    keep: float


def widest_bounds(scored: Scored, *, min_itm_prob: float, most_wrong: float) -> Bounds:
    """Find the thresholds that leave least to ITM.

    Args:
        scored: texts of a run without a cascade.
        min_itm_prob: what a text must reach to be kept.
        most_wrong: largest share of the texts decided on one side of which ITM says otherwise.
    """
    rising = np.argsort(scored.itc_cos, kind="stable")
    cosines, is_match = scored.itc_cos[rising], scored.itm_prob[rising] >= min_itm_prob
    count = np.arange(1, len(cosines) + 1)
    low = np.flatnonzero(np.cumsum(is_match) <= most_wrong * count)
    high = np.flatnonzero(np.cumsum(~is_match[::-1]) <= most_wrong * count)
    return Bounds(
        drop=float(cosines[low[-1]]) if len(low) else -np.inf,
        keep=float(cosines[::-1][high[-1]]) if len(high) else np.inf,
    )


def saved_share(scored: Scored, asked: npt.NDArray[np.bool_]) -> float:
    """Share of the operations of scoring that a cascade saves; an image's texts are independent."""
    config = BlipConfig.base()
    read = np.minimum(scored.num_tokens + 2, MAX_TEXT_TOKENS)
    itm = np.array([itm_flops(config, num_tokens=int(n)) for n in read], float)
    itc = np.array([itc_flops(config, num_tokens=int(n)) for n in read], float)
    texts = TEXTS_PER_IMAGE * (itm.mean() + itc.mean())
    whole = image_flops(config.vision) + memory_flops(config) + texts
    no_text_asked = (1 - asked.mean()) ** TEXTS_PER_IMAGE
    saved = memory_flops(config) * no_text_asked + TEXTS_PER_IMAGE * (itm * ~asked).mean()
    return float(saved / whole)


def of_run(path: str) -> Scored:
    """The scores of round 0 of a run."""
    tables = open_tables(load_recipe(path), 0)
    columns = ["itm_prob", "itc_cos", "num_tokens"]
    shards = [
        from_bytes(tables.of("score").read(shard), Score, columns)
        for shard in sorted(tables.committed("score"))
    ]
    both = [shard.filter(shard["itm_prob"].is_valid()) for shard in shards]
    itm_prob, itc_cos, num_tokens = (
        np.concatenate([shard[name].to_numpy() for shard in both]) for name in columns
    )
    return Scored(
        itm_prob=itm_prob.astype(float), itc_cos=itc_cos.astype(float), num_tokens=num_tokens
    )


def of_miniature(num_questions: int) -> Scored:
    """Held-out pictures of the miniature web, each with one alt text that says something."""
    asked = [q for q in questions("held-out", num_questions) if q.text.strip()]
    with as_file(files("capfilt.miniature") / "weights") as weights:
        matcher = Matcher.from_pretrained(weights / "filter")
    scores = matcher.score([q.image for q in asked], [[q.text] for q in asked], batch_size=16)
    return Scored(
        itm_prob=np.array([score.itm_prob[0] for score in scores], float),
        itc_cos=np.array([score.itc_cos[0] for score in scores], float),
        num_tokens=np.array([score.num_tokens[0] for score in scores]),
    )


def main() -> None:
    """Print a line for each rate of disagreement allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--min-itm-prob", type=float, default=0.5)
    options = parser.parse_args()
    scored = of_run(options.recipe) if options.recipe else of_miniature(options.questions)
    least = options.min_itm_prob
    print(f"{len(scored.itm_prob):,} texts; ITM keeps {(scored.itm_prob >= least).mean():.1%}")
    print("allowed     drop     keep      low     high   wrong  FLOP saved")
    for allowed in ALLOWED:
        bounds = widest_bounds(scored, min_itm_prob=least, most_wrong=allowed)
        low, high = scored.itc_cos <= bounds.drop, scored.itc_cos >= bounds.keep
        high &= ~low
        wrong = (low & (scored.itm_prob >= least)) | (high & (scored.itm_prob < least))
        decided = max(int((low | high).sum()), 1)
        print(
            f"{allowed:7.1%} {bounds.drop:8.3f} {bounds.keep:8.3f} {low.mean():8.1%} "
            f"{high.mean():8.1%} {wrong.sum() / decided:7.2%} "
            f"{saved_share(scored, ~(low | high)):11.1%}"
        )


if __name__ == "__main__":
    main()
