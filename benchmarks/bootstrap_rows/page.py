"""The page: tables and sentences made of findings, so that no figure on it is typed by hand."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import torch

from benchmarks.bootstrap_rows.arms import Arm, TextStep
from benchmarks.bootstrap_rows.charts import dots
from benchmarks.bootstrap_rows.findings import Findings, TextFacts
from benchmarks.bootstrap_rows.photographs_page import PHOTOGRAPHS
from benchmarks.bootstrap_rows.plans import FULL, Plan
from benchmarks.bootstrap_rows.summary import Certainty, Gain, gain, spread

MEASURES = ("text recall@1", "image recall@1", "true captions", "CIDEr")

_ARMS = {
    Arm.NONE: "web texts as they are",
    Arm.FILTER: "web texts that the filter keeps",
    Arm.CAPTIONER: "web texts, and a caption of each picture",
    Arm.BOTH: "web texts and captions that the filter keeps: CapFilt",
    Arm.SHARED: "the same; captioner and filter are one model (table 4 of the paper)",
    Arm.SECOND: 'the same; captioner and filter are made of the BLIP of "both"',
    Arm.TRUE: "web texts known to be true: what a perfect filter would leave",
    Arm.HUMAN: "nothing of the web",
    Arm.RANDOM: "as many web texts as the filter keeps, drawn at random",
}
_TO_NONE = tuple((arm, Arm.NONE) for arm in Arm if arm is not Arm.NONE)
_PARTS = (
    (Arm.FILTER, Arm.RANDOM),
    (Arm.BOTH, Arm.RANDOM),
    (Arm.BOTH, Arm.HUMAN),
    (Arm.BOTH, Arm.FILTER),
    (Arm.BOTH, Arm.CAPTIONER),
    (Arm.BOTH, Arm.SHARED),
    (Arm.SECOND, Arm.BOTH),
    (Arm.TRUE, Arm.BOTH),
)
_TEXT_STEPS = {
    TextStep.FIRST: "first round",
    TextStep.SHARED: "one shared model",
    TextStep.SECOND: "second round",
}
_SHARES = {
    "filter: AUC on web texts": "auc",
    "web texts kept that are true": "precision",
    "true web texts kept": "recall",
    "captions that are true": "captions_true",
    "kept captions that are true": "kept_captions_true",
    "captions thrown away (noise ratio)": "rejected",
}


_HEAD = """# Does bootstrapping help?

BLIP's table 1 (arXiv:2201.12086) in the small: does a BLIP that trains on captioned and filtered
texts beat one that trains on the raw web? Every figure and sentence of a result on this page is
written by `benchmarks/bootstrap.py` from what it measured.

The world is the miniature web, where it is known which text is true of which picture. The marks are
those of the pre-trained BLIP as it is, without finetuning, in one exam for all seeds. Its pictures
show nothing that a picture of the web or of the human pairs shows. It asks for retrieval in both
directions among all of them (ITC finds candidates, ITM ranks them; each text is true of one picture
only), and for captions, written by taking the likeliest word at each step, judged by the grammar's
own parser (are they true?) and by CIDEr-D against five descriptions.

The paper starts from a ViT trained on ImageNet and from BERT. Here the image encoder is that of the
tiny captioner that is shipped, and the text side has learnt to name single things; all arms start
there.
"""


def whole_page(found: Findings, plan: Plan) -> str:
    """The page as Markdown."""
    return f"{_HEAD}\n{sections(found, plan)}\n\n{PHOTOGRAPHS}"


def sections(found: Findings, plan: Plan) -> str:
    """All that was found on the miniature web, as Markdown."""
    seeds = sorted({row.seed for rows in found.rows.values() for row in rows})
    parts = [
        _setting(plan) + "\n\n" + _command(plan, seeds),
        _arms_list(),
        "## What came out\n\n" + _marks_table(found),
        "![Marks of each arm, a dot for each seed](bootstrap.svg)",
        "Differences to `none`, mean and by seed; world, start and batch order are the same.\n\n"
        + _gains_table(found, _TO_NONE),
        "What the parts bring:\n\n" + _gains_table(found, _PARTS),
        "## What was found\n\n"
        + "\n".join(_sentences(found))
        + "\n\n"
        + " ".join(filter(None, (_chance(found), _blind(found), _beside_the_paper(found)))),
        "## The texts\n\n" + _noise_table(found) + "\n\n" + _facts_table(found.facts),
        "![Share of each training set that is not true](bootstrap_noise.svg)",
    ]
    return "\n\n".join(parts)


def marks_chart(found: Findings) -> str:
    """The marks, a panel for each."""
    measures = _measures(found)
    return dots(
        {name: {arm: list(found.values(arm, name).values()) for arm in Arm} for name in measures}
    )


def noise_chart(found: Findings) -> str:
    """The noise of the training sets."""
    noise = {arm: [row.noise for row in found.rows.get(arm, ())] for arm in Arm}
    sizes = {arm: [row.num_texts / 1000 for row in found.rows.get(arm, ())] for arm in Arm}
    return dots({"share of texts that are not true": noise, "texts, in thousands": sizes})


def _setting(plan: Plan) -> str:
    world, training = plan.world, plan.training
    return (
        f"Each seed has its own web of {world.num_web:,} pictures with alt texts of the miniature"
        f" web's kinds, in its shares, and {world.num_human} human pairs; the exam has"
        f" {world.num_exam} pictures. All show one to {world.max_things} things. Every BLIP takes"
        f" {training.num_steps:,} steps of {training.batch_size} pairs. The captioner is finetuned"
        f" for {training.num_captioner_steps} steps and the filter for"
        f" {training.num_filter_steps}, on the human pairs alone; the shared model for"
        f" {training.num_filter_steps}, both tasks in each step, and it captions without a prompt."
        " Captions are drawn from the"
        " nucleus (p = 0.9), one for each picture; a text is kept if its ITM probability is 0.5 or"
        " more. The settings were tried out with seed 99, which is not reported, by a look at"
        " `none`, at true texts only, and at captioner and filter, never at the other arms."
        + (f" {plan.why}" if plan.why else "")
    )


def _command(plan: Plan, seeds: Sequence[int]) -> str:
    numbers = " ".join(map(str, seeds))
    options = f"--plan {plan.name} --seeds {numbers} --page docs/bootstrap.md"
    larger = "" if plan == FULL else " This page does not tell what comes out at those of `full`."
    return (
        f"These are the sizes of `{plan.name}` (written {datetime.date.today()}, torch"
        f" {torch.__version__}, float32 on a CPU).{larger} They were measured with the code of the"
        " commit that brought them (`git log -1 docs/bootstrap.md`): a trainer that draws or rounds"
        " otherwise gives other ones."
        f"\n\n    python -m benchmarks.bootstrap {options}"
    )


def _arms_list() -> str:
    lines = "\n".join(f"- `{arm}`: {what}." for arm, what in _ARMS.items())
    return (
        f"Every arm also trains on the human pairs. The arms:\n\n{lines}\n\n"
        "At equal steps, an arm with fewer web texts meets each human pair more often. The last two"
        " arms tell what that alone does."
    )


def _marks_table(found: Findings) -> str:
    measures = _measures(found)
    rows = [
        [f"`{arm}`", *(_spread_cell(list(found.values(arm, name).values())) for name in measures),
         str(len(found.rows[arm]))]
        for arm in found.rows
    ]  # fmt: skip
    return _table(["arm", *measures, "seeds"], rows) + (
        "\n\nMean, standard deviation over seeds (n - 1), and range. CIDEr is CIDEr-D; papers print"
        " 100 times as much." + _missing(found)
    )


def _missing(found: Findings) -> str:
    """Say which arms were not measured, or with fewer seeds than the others."""
    most = max((len(rows) for rows in found.rows.values()), default=0)
    counts = {arm: len(found.rows.get(arm, ())) for arm in Arm}
    fewer = [f"`{arm}` with {_seeds(count)}" for arm, count in counts.items() if 0 < count < most]
    none = [f"`{arm}`" for arm, count in counts.items() if count == 0]
    said = f" Measured with fewer seeds: {', '.join(fewer)}." if fewer else ""
    return said + (f" Not measured: {', '.join(none)}." if none else "")


def _gains_table(found: Findings, pairs: Sequence[tuple[Arm, Arm]]) -> str:
    measures = _measures(found)
    rows = [
        [f"`{arm}` - `{other}`", *(_gain_cell(gains[name]) for name in measures)]
        for arm, other in pairs
        if (gains := _gains(found, arm, other))
    ]
    return _table(["difference", *measures], rows)


def _gain_cell(one: Gain) -> str:
    by_seed = ", ".join(f"{difference:+.3f}" for difference in one.differences.values())
    return f"{one.mean:+.3f} ({by_seed})"


def _gains(found: Findings, arm: Arm, other: Arm) -> dict[str, Gain]:
    """What an arm gains on another, by measure; nothing if they have no seed in common."""
    sides = {
        name: (found.values(arm, name), found.values(other, name)) for name in _measures(found)
    }
    return {
        name: gain(ours, theirs)
        for name, (ours, theirs) in sides.items()
        if ours.keys() & theirs.keys()
    }


def _measures(found: Findings) -> list[str]:
    return [name for name in MEASURES if name in found.names]


def _sentences(found: Findings) -> Iterator[str]:
    """One line for each comparison, by how sure its gains are."""
    for arm, other in (*_TO_NONE, *_PARTS):
        gains = _gains(found, arm, other)
        said = [
            f"{certainty.value} on {', '.join(names)}"
            for certainty in Certainty
            if (names := [name for name, one in gains.items() if one.certainty is certainty])
        ]
        if gains:
            num_seeds = len(next(iter(gains.values())).differences)
            yield f"- `{arm}` against `{other}` ({_seeds(num_seeds)}): {'; '.join(said)}."


def _chance(found: Findings) -> str:
    """How easily luck alone sets two arms apart: all orders of their seeds are then as likely."""
    num_seeds = max((len(rows) for rows in found.rows.values()), default=0)
    orders = math.comb(2 * num_seeds, num_seeds)
    return (
        f"If two arms were alike, all {num_seeds} seeds of one would still beat all of the other by"
        f" luck once in {orders} comparisons, and all differences would be positive once in"
        f" {2**num_seeds}; {len(_TO_NONE) + len(_PARTS)} pairs of arms are compared here, each on"
        f" {len(_measures(found))} marks. A seed draws its web, its human pairs and the order of"
        " batches, all at once: the spread does not tell them apart."
    )


def _blind(found: Findings) -> str:
    """Name the measures that cannot show a gain, as true texts alone do not show one either."""
    surely = (Certainty.APART, Certainty.ALWAYS)
    gains = _gains(found, Arm.TRUE, Arm.NONE)
    blind = [name for name, one in gains.items() if one.certainty not in surely]
    if not blind:
        return ""
    return (
        f"Of {' and '.join(blind)} it has to be said that not even true texts alone are surely"
        " better than `none` there: at this size the measure cannot tell what cleaning brings."
    )


def _beside_the_paper(found: Findings) -> str:
    """Compare the order of the two single arms with the paper's."""
    by_filter, by_captioner = (
        _gains(found, arm, Arm.NONE).get(MEASURES[0]) for arm in (Arm.FILTER, Arm.CAPTIONER)
    )
    if by_filter is None or by_captioner is None:
        return ""
    points = f"{100 * by_captioner.mean:+.1f} against {100 * by_filter.mean:+.1f} points"
    alike = by_captioner.mean > by_filter.mean
    return (
        "In the paper the captioner alone brings more than the filter alone (+1.3 against +0.7"
        " points of text recall@1 on COCO, table 1); here it is "
        f"{'so too' if alike else 'the other way round'} ({points})."
    ) + _beside_table_4(found)


def _beside_table_4(found: Findings) -> str:
    """Compare what is thrown away with two models and with one."""
    two, one = (found.facts.get(step) for step in (TextStep.FIRST, TextStep.SHARED))
    if not two or not one:
        return ""
    shares = [statistics.fmean(fact.rejected for fact in facts) for facts in (two, one)]
    return (
        " Of the captions, a filter of its own throws away 25 % in the paper, and one that shares"
        f" its weights with the captioner 8 % (table 4); here it is {100 * shares[0]:.0f} % and"
        f" {100 * shares[1]:.0f} %."
    )


def _seeds(number: int) -> str:
    return "1 seed, which tells nothing about spread" if number == 1 else f"{number} seeds"


def _noise_table(found: Findings) -> str:
    rows = [
        [f"`{arm}`", f"{statistics.fmean(row.num_texts for row in rows):,.0f}",
         _range_cell([row.noise for row in rows])]
        for arm, rows in found.rows.items()
    ]  # fmt: skip
    return _table(["arm", "texts to train on", "share not true"], rows)


def _facts_table(facts: Mapping[TextStep, Sequence[TextFacts]]) -> str:
    rows = []
    for name, field in _SHARES.items():
        columns = [[getattr(one, field) for one in facts[step]] for step in facts]
        known = [[value for value in column if value is not None] for column in columns]
        if all(known):
            rows.append([name, *map(_range_cell, known)])
    return _table(["", *(_TEXT_STEPS[step] for step in facts)], rows)


def _spread_cell(values: Sequence[float]) -> str:
    one = spread(values)
    return f"{one.mean:.3f} ± {one.sd:.3f} ({one.low:.3f} to {one.high:.3f})"


def _range_cell(values: Sequence[float]) -> str:
    one = spread(values)
    return f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
