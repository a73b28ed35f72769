"""One of two processes that choose the record a training goes on from; see test_trainer_agreed.

python tests/workers/agreeing.py RANK FOLDER    writes FOLDER/RANK.txt

The first process sees the records in FOLDER/0, the other those in FOLDER/1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from capfilt.errors import CapfiltError
from capfilt.io.storage import Store
from capfilt.workers.trainer_progress import ProgressFolder, agreed_progress
from capfilt_blip.train.world import World


def outcome(folder: Path, *, world: World) -> str:
    records = ProgressFolder(Store.at_url(str(folder)), num_kept=9)
    try:
        found = agreed_progress(
            records, "pretrain", batch_size=4, world=world, device=torch.device("cpu")
        )
    except CapfiltError as err:
        return str(err)
    return "the beginning" if found is None else f"step {found.notes.num_samples // 4}"


def main(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2
    )
    text = outcome(folder / str(rank), world=World.current())
    (folder / f"{rank}.txt").write_text(text)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
