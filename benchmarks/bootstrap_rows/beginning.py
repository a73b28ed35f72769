"""Where every training of the miniature experiment starts.

BLIP starts from a ViT that knows ImageNet's labels and a BERT that has read books
(arXiv:2201.12086, sec. 4.1). A few minutes on a CPU are too short to learn as much, so the start
here has an image encoder that sees, the one of the tiny captioner that is shipped, and a text side
that has learnt to name a single thing, from pictures that show just one. Nothing told the text side
of two things, of how they stand to each other, or of how many there are.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from benchmarks.bootstrap_rows.learner import Start, Training, pretrained
from benchmarks.bootstrap_rows.miniature import named_things
from capfilt.miniature.teach.sight import new_blip
from capfilt_blip.checkpoint import load_blip, load_captioner, save_model

_SEED = 7  # of the start; the seeds of the experiment draw everything else


def beginning(folder: Path, naming: Training, *, num_pictures: int) -> Start:
    """Make the start, or read it where it was made before.

    Args:
        folder: of the weights.
        naming: how it learns to name single things.
        num_pictures: of single things.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = _made(naming, num_pictures)
        beside = folder.with_suffix(".part")
        save_model(beside, model=made.blip, tokenizer=made.tokenizer)
        beside.rename(folder)
    blip, tokenizer = load_blip(folder)
    return Start(blip=blip, tokenizer=tokenizer)


def _made(naming: Training, num_pictures: int) -> Start:
    with as_file(files("capfilt.miniature") / "weights" / "captioner") as shipped:
        captioner, tokenizer = load_captioner(shipped)
    blip = new_blip(tokenizer, seed=_SEED)
    blip.vision.load_state_dict(captioner.vision.state_dict())
    seeing = Start(blip=blip, tokenizer=tokenizer)
    pairs = named_things(_SEED, num_pictures)
    return Start(blip=pretrained(seeing, pairs, naming, seed=_SEED), tokenizer=tokenizer)
