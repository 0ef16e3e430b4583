#!/usr/bin/env bash
# Trains the proof's source prompts on a backbone for which none come with the package; proof.sh calls it.
# Usage, in the folder of the runs: ATTEMPT_DATA=… ATTEMPT_REGISTRY=… ATTEMPT_BACKBONE=… benchmarks/proof_train_sources.sh
# A training that was stopped continues, and one that is finished is not done again.
set -euo pipefail
ATTEMPT=${ATTEMPT:-attempt}

source_prompt() { # TASK ROWS STEPS OPTIONS…
  [ -e "source-$1.done" ] && return
  $ATTEMPT train-source "$1" --name "$1" --train-limit "$2" --steps "$3" --batch-size 16 --prompt-length 10 \
    --placement after --max-length 256 --eval-every 0 --no-compile --resume "${@:4}"
  touch "source-$1.done"
}

source_prompt mnli 1500 500
source_prompt qqp 1000 300
source_prompt qnli 1000 300
source_prompt sst2 600 200
source_prompt cola 600 200
source_prompt squad 400 150
for task in mnli qqp qnli sst2 cola squad; do # what the sources are worth, on rows that chose nothing
  [ -e "scored-$task.done" ] || $ATTEMPT eval --tasks "$task" --prompt none --prompt "$task" --limit 200
  touch "scored-$task.done"
done
