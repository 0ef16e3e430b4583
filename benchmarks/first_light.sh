#!/usr/bin/env bash
# Sources SST-2, QQP, QNLI; targets Yelp (200 rows of one's own), MRPC, RTE; five ways at equal steps, three seeds.
# Usage: ATTEMPT_DATA=<rows in the hub's layout> benchmarks/first_light.sh FOLDER
# FOLDER gets the registry, the Yelp files and one JSON file an evaluation; what is there already is not done again.
set -euo pipefail
: "${ATTEMPT_DATA:?name the folder with rows in the layout of the hub}"
folder=$(mkdir -p "$1" && cd "$1" && pwd)
export ATTEMPT_REGISTRY=$folder/registry ATTEMPT_BACKBONE=smollm2-135m
ATTEMPT=${ATTEMPT:-attempt}
PYTHON=${PYTHON:-python}
SEEDS=${SEEDS:-0 1 2}

# 200 rows to train on and 400 others to test on, drawn once by a fixed seed
if [ ! -f "$folder/yelp-test.jsonl" ]; then
  $PYTHON - "$ATTEMPT_DATA/fancyzhx/yelp_polarity/plain_text/train.parquet" "$folder" <<'PY'
import json, random, sys
import pyarrow.parquet as pq

rows = pq.read_table(sys.argv[1]).to_pylist()
chosen = random.Random(0).sample(range(len(rows)), 600)
for name, part in (("train", chosen[:200]), ("test", chosen[200:])):
    with open(f"{sys.argv[2]}/yelp-{name}.jsonl", "w", encoding="utf-8") as file:
        for i in part:
            file.write(json.dumps({"text": rows[i]["text"], "label": ["negative", "positive"][rows[i]["label"]]}) + "\n")
PY
fi

has() { $ATTEMPT registry show "$1" > /dev/null 2>&1; }

has sst2 || $ATTEMPT train-source sst2 --steps 300 --eval-every 100
has qqp || $ATTEMPT train-source qqp --steps 400 --eval-every 100
has qnli || $ATTEMPT train-source qnli --steps 300 --eval-every 100

yelp=(--input "review: {text}
sentiment:" --label label --max-length 96)

# train TASK METHOD SEED [options]: the target's options, then the method's
train() {
  local task=$1 method=$2 seed=$3 rows=("$1") steps
  shift 3
  [ "$task" = yelp ] && rows=(yelp --train-file "$folder/yelp-train.jsonl" "${yelp[@]}")
  steps=$([ "$task" = rte ] && echo 25 || echo 50) # RTE's rows are long, and this model hardly learns entailment
  $ATTEMPT train-target "${rows[@]}" --method "$method" --name "$task-$method-s$seed" --seed "$seed" \
    --steps "$steps" --batch-size 8 --eval-every "$([ "$task" = yelp ] && echo 0 || echo 25)" --eval-rows 64 --resume "$@"
}

# score TASK NAME [options]: one evaluation on all test rows, as JSON
score() {
  local task=$1 name=$2 rows=(--tasks "$1")
  shift 2
  [ -f "$folder/$task.$name.json" ] && return
  [ "$task" = yelp ] && rows=(--test-file "$folder/yelp-test.jsonl" "${yelp[@]}")
  $ATTEMPT --format json eval "${rows[@]}" "$@" > "$folder/$task.$name.json.partial"
  mv "$folder/$task.$name.json.partial" "$folder/$task.$name.json"
}

for task in ${TASKS:-yelp mrpc rte}; do
  score "$task" none --prompt none
  for source in sst2 qqp qnli; do score "$task" "source-$source" --prompt "$source"; done
  start=$([ "$task" = yelp ] && echo sst2 || echo qqp)
  for seed in $SEEDS; do
    for method in prompt-tuning spot attempt; do
      name=$task-$method-s$seed
      [ -f "$folder/$task.$method-s$seed.json" ] && continue
      case $method in
        prompt-tuning) train "$task" $method "$seed" ;;
        spot) train "$task" $method "$seed" --init-from "$start" ;;
        attempt) train "$task" $method "$seed" --init-from "$start" --sources sst2,qqp,qnli ;;
      esac
      if [ $method = attempt ]; then
        score "$task" "$method-s$seed" --composition "$name"
      else
        score "$task" "$method-s$seed" --prompt "$name"
      fi
    done
  done
done
