"""What G does if what it reads is centred: an experiment behind docs/results/proof.md.

    python -m benchmarks.proof_centred FOLDER --rows 500 --steps 375 --seeds 0,1     (FOLDER: of `proof.sh`)

G reads x̂, the maxima over an input's word embeddings, of which nearly all is common to all inputs. Here each entry of
x̂ loses its mean over training rows and is divided by its deviation before G reads it. ATTEMPT is trained on the task of
two domains, from QNLI's source, and printed are its score, the largest deviation of a source's weight over test rows,
and the mean weights of reviews and of questions.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

import attempt_cli as attempt
from attempt_cli.backbones.load import load_backbone
from attempt_cli.evaluation.inspection import RowAttention
from attempt_cli.method.attention import PromptAttention
from attempt_cli.session import Session

TASK, START, TEST = "two-domains.yaml", "starter-qnli", 200
LEAST = 0.05  # of an entry's deviation, in embedding RMS: some entries have the same maximum in all inputs


def common_part() -> tuple[Tensor, Tensor]:
    """Returns mean and deviation of x̂ over 400 training rows, [d] each, in embedding RMS."""
    backbone = load_backbone("smollm2-135m", device="cpu", dtype="float32")
    table = backbone.model.get_input_embeddings().weight.detach()
    table = table / table.pow(2).mean().sqrt()
    texts = [json.loads(line)["text"] for line in Path("two-domains-train.jsonl").read_text("utf-8").splitlines()[:400]]
    ids = [backbone.tokenizer(f"{text}\nanswer:")["input_ids"][:256] for text in texts]
    pooled = torch.stack([table[row].amax(0) for row in ids])
    unit = torch.nn.functional.normalize(pooled, dim=1)
    cosine = (float((unit @ unit.T).sum()) - len(ids)) / (len(ids) * (len(ids) - 1))
    print(f"mean cosine of two inputs' x̂: {cosine:.3f}", flush=True)
    return pooled.mean(0), pooled.std(0).clamp_min(LEAST)


def weights_of(rows: Sequence[RowAttention], start: str) -> dict[str, float]:
    """Returns the mean weights of the rows whose input starts with a word."""
    own = [row.attention for row in rows if row.input.startswith(start)]
    return {name.removeprefix("starter-"): round(mean(one[name] for one in own), 2) for name in own[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=375)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--attention-learning-rate", type=float, default=0.01)
    options = parser.parse_args()
    os.chdir(options.folder)
    centre, deviation = common_part()
    plain = PromptAttention.query
    PromptAttention.query = lambda self, pooled: plain(self, (pooled - centre) / deviation)  # type: ignore[method-assign]
    session = Session(registry="centred", backbone="smollm2-135m", dtype="float32")
    if not list(session.store.prompts()):
        raise SystemExit("add the sources first: `attempt --registry centred registry add --starter`")
    for seed in map(int, options.seeds.split(",")):
        name = f"centred-{options.rows}-{seed}"
        attempt.train_target(
            TASK,
            sources="all",
            init_from=START,
            name=name,
            train_limit=options.rows,
            seed=seed,
            steps=options.steps,
            batch_size=4,
            max_length=256,
            eval_every=0,
            learning_rate=0.03,
            attention_learning_rate=options.attention_learning_rate,
            session=session,
        )
        (result,) = attempt.evaluate(name, TASK, limit=TEST, max_length=256, session=session)
        (found,) = attempt.inspect(name, task=TASK, split="test", limit=TEST, rows=TEST, session=session).tasks or ()
        print(f"seed {seed}: {100 * result.metrics[result.metric]:.1f}, deviation {max(found.deviation.values()):.3f}")
        for start in ("review", "question"):
            print(f"  {start}s: {weights_of(found.per_row, start)}", flush=True)


if __name__ == "__main__":
    main()
