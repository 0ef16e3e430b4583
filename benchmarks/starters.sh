#!/usr/bin/env bash
# Trains and scores the starter sources, and writes the bundle and the card that come with the package.
# Usage: ATTEMPT_DATA=<rows in the hub's layout> benchmarks/starters.sh FOLDER
# FOLDER gets the registry; a training that was stopped continues, and one that is finished is not done again.
set -euo pipefail
: "${ATTEMPT_DATA:?name the folder with rows in the layout of the hub}"
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
export ATTEMPT_REGISTRY=$folder/registry ATTEMPT_BACKBONE=smollm2-135m
ATTEMPT=${ATTEMPT:-attempt}
cd "$folder"

# a folder often lacks MNLI's mismatched rows: rows held out of the training split choose the step
$ATTEMPT tasks show mnli --yaml \
  | sed 's/^split_rule: .*/split_rule: held-out/; s/^splits: .*/splits: {test: validation_matched}/' > mnli.yaml

source_prompt() { # TASK ROWS STEPS VALIDATION_ROWS OPTIONS…
  name=$(basename "$1" .yaml)
  [ -e "$name.done" ] && return
  $ATTEMPT train-source "$1" --name "$name" --train-limit "$2" --steps "$3" --eval-rows "$4" --eval-every 200 \
    --patience 5 --batch-size 8 --prompt-length 10 --no-compile --input-cache-dir cache --resume "${@:5}"
  $ATTEMPT eval --tasks "$1" --prompt none --prompt "$name" --limit 1000
  touch "$name.done"
}

source_prompt sst2 4000 3000 300
source_prompt qqp 4000 2000 300
source_prompt qnli 4000 2000 300
source_prompt mnli.yaml 6000 3000 300
source_prompt cola 4000 1500 300
source_prompt squad 659 1000 100 --max-length 256
cd "$here" && "${PYTHON:-python}" -m benchmarks.starters "$ATTEMPT_REGISTRY"
