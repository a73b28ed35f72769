"""How fast a policy is decided: millions of scored texts on one core.

python benchmarks/judge.py [--texts 10000000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from capfilt.io.parquet import arrow_schema
from capfilt.records import Score
from capfilt.stages.select import Policy, Thresholds, judge

TEXTS_PER_IMAGE = 3  # one web text, two synthetic ones
WORDS = "a red blue small large cat dog bicycle on under beside the table street of wooden".split()


def hex_keys(random: np.random.Generator, count: int) -> pa.Array:
    """Random keys of 32 hex digits, each repeated for the texts of its image."""
    nibbles = random.integers(0, 16, (-(-count // TEXTS_PER_IMAGE), 32), dtype=np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles]
    repeated = np.repeat(digits, TEXTS_PER_IMAGE, axis=0)[:count]
    offsets = np.arange(count + 1, dtype=np.int32) * 32
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(repeated))


def scored_texts(count: int) -> pa.Table:
    """A table of scores: 1 % of the rows already lost, 0.1 % of the scores not finite."""
    random = np.random.default_rng(0)
    turn = np.arange(count) % TEXTS_PER_IMAGE
    sentences = pa.array([" ".join(random.choice(WORDS, 9)) for _ in range(5_000)])
    itm_prob = random.random(count, dtype=np.float32)
    itm_prob[random.random(count) < 0.001] = np.nan
    lost = random.random(count) < 0.01
    columns = {
        "key": hex_keys(random, count),
        "text_source": pa.array(["web", "synthetic"]).take(pa.array((turn > 0).astype(np.int8))),
        "text_index": pa.array(np.maximum(turn - 1, 0).astype(np.int32)),
        "text": sentences.take(pa.array(random.integers(0, len(sentences), count))),
        "logprob": pa.nulls(count, pa.float32()),
        "itm_prob": pa.array(itm_prob),
        "itc_cos": pa.array(random.random(count, dtype=np.float32)),
        "num_tokens": pa.nulls(count, pa.int32()),
        "reason": pa.array(["worker_error"]).take(pa.array(np.zeros(count, np.int8), mask=~lost)),
        "detail": pa.nulls(count, pa.string()),
        "decided_by": pa.nulls(count, pa.string()),
        "audited": pa.array(np.zeros(count, np.bool_)),
    }
    return pa.table(columns, schema=arrow_schema(Score))


def measure(scores: pa.Table, policy: Policy) -> dict[str, float | str]:
    """Seconds to judge all texts."""
    bounds = Thresholds(min_itm_prob=0.5, min_itc_cos=0.2)
    wall, cpu = time.perf_counter(), time.process_time()
    verdicts = judge(scores, policy=policy, web=bounds, synthetic=bounds, max_text_chars=1000)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    kept: npt.NDArray[np.bool_] = verdicts["kept"].to_numpy()
    return {"policy": policy, "wall_s": wall, "cpu_s": cpu, "kept": float(kept.mean())}


def main() -> None:
    """Measure every policy and print a table."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--texts", type=int, default=10_000_000)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    pa.set_cpu_count(1)
    scores = scored_texts(chosen.texts)
    policies: tuple[Policy, ...] = get_args(Literal["both", "best", "web_first"])
    results = [measure(scores, policy) for policy in policies]
    print(f"{chosen.texts:,} texts, one core, pyarrow {pa.__version__}, {platform.machine()}")
    for row in results:
        print(f"{row['policy']:>10}  {row['wall_s']:6.2f} s wall  {row['cpu_s']:6.2f} s CPU")
    if chosen.json:
        record = {"texts": chosen.texts, "python": platform.python_version(), "results": results}
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
