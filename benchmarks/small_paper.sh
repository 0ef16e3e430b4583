#!/usr/bin/env bash
# The paper's experiments at the size of two cores: SmolLM2-135M, six sources, few-shot, ablations, many targets at once.
# Usage: ATTEMPT_DATA=<rows in the hub's layout> benchmarks/small_paper.sh FOLDER [sources|table3|table4|fig6|sweep ...]
# FOLDER gets the registry, Yelp's rows and the reports; what is there already is not done again.
set -euo pipefail
: "${ATTEMPT_DATA:?name the folder with rows in the layout of the hub}"
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
export ATTEMPT_REGISTRY=$folder/registry ATTEMPT_BACKBONE=smollm2-135m
ATTEMPT=${ATTEMPT:-attempt}
PYTHON=${PYTHON:-python}
cd "$folder"
WORKERS=${WORKERS:-2}
STEPS=${STEPS:-60}

# Yelp: its official test rows are a download of their own, so 400 of the training rows are test rows here
if [ ! -f "$folder/yelp.yaml" ]; then
  $PYTHON - "$ATTEMPT_DATA/fancyzhx/yelp_polarity/plain_text/train.parquet" "$folder" <<'PY'
import json, pathlib, random, sys
import pyarrow.parquet as pq

folder = pathlib.Path(sys.argv[2])
rows = pq.read_table(sys.argv[1]).to_pylist()
random.Random(0).shuffle(rows)
for name, part in (("test", rows[:400]), ("validation", rows[400:500]), ("train", rows[500:])):
    lines = [json.dumps({"text": row["text"], "label": row["label"]}) for row in part]
    (folder / f"yelp-{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
(folder / "yelp.yaml").write_text("""\
name: yelp
version: 1
description: Is a review negative or positive? (Yelp polarity; training rows only, parted by a fixed seed)
files: {train: yelp-train.jsonl, validation: yelp-validation.jsonl, test: yelp-test.jsonl}
input: |-
  review: {text}
  sentiment:
labels: {0: "negative", 1: "positive"}
metrics: [accuracy]
max_length: 256
""", "utf-8")
PY
fi

# MNLI: two validation splits are one too many for a small folder of rows; 1,000 of the training rows choose the step
[ -f mnli.yaml ] || $ATTEMPT tasks show mnli --yaml \
  | sed 's/^split_rule: .*/split_rule: held-out/; s/^splits: .*/splits: {test: validation_matched}/' > mnli.yaml

# source TASK [options]: up to 2,000 steps (MNLI, QNLI and SST-2, which learn longest, 4,000); it ends when four
# evaluations in a row were no better than the best
source_prompt() {
  local task=$1 rows=$1 steps=2000
  shift
  case $task in mnli | qnli | sst2) steps=4000 ;; esac
  [ "$task" = mnli ] && rows=mnli.yaml
  $ATTEMPT registry show "$task" > /dev/null 2>&1 && return
  $ATTEMPT train-source "$rows" --prompt-length 10 --batch-size 8 --steps "$steps" --patience 4 --eval-every 200 \
    --train-limit 2000 --max-length 128 --resume "$@"
}

# what all grids share: the same rows, steps and batches for every method
grid=(--batch-size 4 --max-length 96 --limit 200 --eval-every 0 --workers "$WORKERS" --resume)

[ $# -gt 0 ] || set -- sources table3 table4 fig6
for part in "$@"; do
  case $part in
    sources) for task in mnli multirc qqp qnli sst2 cola; do source_prompt "$task"; done ;;
    source:*) source_prompt "${part#source:}" ;;
    table3)
      $ATTEMPT reproduce table3 --tasks yelp.yaml,mrpc,boolq,cb --sources mnli,multirc,qqp,qnli,sst2,cola \
        --methods "${METHODS:-none,source,prompt-tuning,spot,attempt,attempt-prior,lora}" --seeds "${SEEDS:-3}" \
        --steps "$STEPS" --source-steps "$STEPS" --train-limit 500 "${grid[@]}" --output results
      ;;
    table4)
      $ATTEMPT reproduce table4 --tasks yelp.yaml,mrpc,cola --sources mnli,multirc,qqp,qnli,sst2,cola \
        --methods prompt-tuning,spot,attempt,attempt-no-target,attempt-constant,attempt-single,attempt-token \
        --seeds "${SEEDS:-3}" --steps "$STEPS" --train-limit 500 "${grid[@]}" --output results
      ;;
    fig6)
      $ATTEMPT reproduce fig6 --tasks yelp.yaml,mrpc,rte,cb,wsc.fixed \
        --sources mnli,multirc,qqp,qnli,sst2,cola --methods prompt-tuning,attempt,attempt-m \
        --seeds "${SEEDS:-3}" --steps "$STEPS" --train-limit 500 "${grid[@]}" --output results
      ;;
    sweep) # learning rates of prompts and of G, the temperature around its default of e·√576 = 65.2, and five times the steps
      sweep() {
        local name=$1
        shift
        $ATTEMPT reproduce table3 -k 16 --tasks yelp.yaml,mrpc --sources mnli,multirc,qqp,qnli,sst2,cola \
          --seeds "${SEEDS:-3}" --steps "$STEPS" --train-limit 500 "${grid[@]}" --output "sweep/$name" "$@"
      }
      for temperature in 6.5 200; do
        sweep "temperature-$temperature" --methods attempt --temperature $temperature
      done
      for rate in 0.01 0.1; do
        sweep "prompts-$rate" --methods spot,attempt --learning-rate $rate
      done
      for rate in 0.001 0.1; do sweep "attention-$rate" --methods attempt --attention-learning-rate $rate; done
      sweep "steps-$((5 * STEPS))" --methods prompt-tuning,spot,attempt --steps $((5 * STEPS))
      ;;
    *) echo "no part named '$part': sources, source:TASK, table3, table4, fig6, sweep" >&2 && exit 2 ;;
  esac
done
