#!/usr/bin/env bash
# The proof: what docs/results/protocol.md says, in parts that continue where they were stopped.
# Usage: ATTEMPT_DATA=<rows in the hub's layout> benchmarks/proof.sh FOLDER [tune|variants|fewshot|each|shared|rows|sources ...]
# SEEDS and TASKS narrow a part; of fewshot, rows and shared FIRST (the lowest seed) does, too, and BANK says how many prompts
# are trained in one pass; K narrows fewshot and rows. What is done already is taken from the registry in FOLDER.
# ATTEMPT_BACKBONE names another backbone, whose runs need a folder of their own: its sources are trained first.
set -euo pipefail
: "${ATTEMPT_DATA:?name the folder with rows in the layout of the hub}"
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
shift
export ATTEMPT_REGISTRY=$folder/registry ATTEMPT_BACKBONE=${ATTEMPT_BACKBONE:-smollm2-135m}
ATTEMPT=${ATTEMPT:-attempt} PYTHON=${PYTHON:-python}
(cd "$here" && $PYTHON -m benchmarks.proof_rows "$folder")
cd "$folder"
if [ ! -e sources.done ]; then # the sources that come with the package are SmolLM2's
  if [ "$ATTEMPT_BACKBONE" = smollm2-135m ]; then
    $ATTEMPT registry add --starter
  else
    ATTEMPT=$ATTEMPT bash "$here/benchmarks/proof_train_sources.sh"
  fi
  touch sources.done
fi

# a folder may lack PAWS's test rows: half of the validation rows are those of the test
$ATTEMPT tasks show paws --yaml | sed 's/^split_rule: .*/split_rule: halved/' > paws.yaml

DEVELOPMENT=sst2,qqp,cola,paws.yaml,winogrande,support-chats,shop-reviews,message-topics
TEST=yelp.yaml,mrpc,rte,cb,boolq,wsc.fixed,stsb,multirc,two-domains.yaml
# the same rows, steps and batches for every method; no rows choose a step, because a user with 16 rows has none
grid=(--steps "${STEPS:-100}" --batch-size 4 --max-length 256 --limit 200 --eval-every 0 --resume)

[ $# -gt 0 ] || set -- tune fewshot
for part in "$@"; do
  case $part in
    tune) # three tries for every method, on development tasks only
      for rate in 0.01 0.03 0.1; do
        $ATTEMPT reproduce table3 -k 16 --tasks "${TASKS:-$DEVELOPMENT}" --seeds "${SEEDS:-3}" --learning-rate $rate \
          --methods "${METHODS:-prompt-tuning,spot,attempt}" "${grid[@]}" --output "tune/prompts-$rate"
      done
      for rate in 0.0001 0.0003 0.001; do
        $ATTEMPT reproduce table3 -k 16 --tasks "${TASKS:-$DEVELOPMENT}" --seeds "${SEEDS:-3}" \
          --weight-learning-rate $rate --methods lora "${grid[@]}" --output "tune/weights-$rate"
      done
      ;;
    fewshot | rows) # looked at once. RATES: methods, with their learning rates as `tune` chose them
      methods='' rates='' # as comma lists
      for one in ${RATES:?names methods with their learning rates: "none attempt=0.03 prompt-tuning=0.1 lora=0.0003"}; do
        methods+=,${one%%=*}
        case $one in *=*) rates+=,$one ;; esac
      done
      of=(--methods "${methods#,}" --bank "${BANK:-16}" --first-seed "${FIRST:-0}" ${rates:+--rates "${rates#,}"})
      # beside no method with sources it would take the default length, not theirs
      case $methods, in *,prompt-tuning,*) of+=(--prompt-length 10) ;; esac
      name=$(cksum <<<"$methods $rates ${FIRST-} ${SEEDS-}") # no report takes the place of another
      if [ "$part" = fewshot ]; then
        ks=${K:-16 4 32} tasks=${TASKS:-$TEST} seeds=${SEEDS:-20}
      else
        ks=${K:-500 2000} tasks=${TASKS:-yelp.yaml,mrpc,rte,stsb,multirc,two-domains.yaml} seeds=${SEEDS:-5}
      fi
      for k in $ks; do
        [ "$part" = fewshot ] || of+=(--steps $((k * 3 / 4))) # three passes
        for task in $(tr , ' ' <<<"$tasks"); do # a report is written when its grid is full: one for each task
          $ATTEMPT reproduce table3 -k "$k" --tasks "$task" --seeds "$seeds" "${grid[@]}" "${of[@]}" \
            --output "$part/$k-$(basename "$task" .yaml)-${name%% *}"
        done
      done
      ;;
    shared) # one G for eight targets (not MultiRC: too long to be trained with others); each brings its own steps
      $ATTEMPT reproduce table3 -k 16 --tasks "${TASKS:-${TEST%,multirc*},two-domains.yaml}" --seeds "${SEEDS:-20}" \
        --methods attempt-m --learning-rate "${RATE:?the learning rate of ATTEMPT}" "${grid[@]}" \
        --first-seed "${FIRST:-0}" --bank "${BANK:-16}" --output "fewshot/attempt-m-16${FIRST:+-from-$FIRST}"
      ;;
    each) # source as it stands, without any training
      mapfile -t names < <($ATTEMPT --format quiet registry list --kind source)
      mkdir -p each
      for task in $(tr , ' ' <<<"${TASKS:-$TEST}"); do
        name=$(basename "$task" .yaml)
        [ -e "each/$name.json" ] && continue
        $ATTEMPT --format json eval --tasks "$task" --prompt none "${names[@]/#/--prompt=}" --limit 200 --max-length 256 \
          >"each/$name.part"
        mv "each/$name.part" "each/$name.json"
      done
      ;;
    variants) # of G, each alone, on development tasks
      $ATTEMPT reproduce table3 -k 16 --tasks "${TASKS:-$DEVELOPMENT}" --seeds "${SEEDS:-3}" \
        --methods "${METHODS:-attempt,attempt-states,attempt-states-mean,attempt-evidence,attempt-top2,attempt-cosine,attempt-one-norm}" \
        --learning-rate "${RATE:?the learning rate of ATTEMPT}" "${grid[@]}" --output variants
      ;;
    sources) # added and dropped after the training
      [ -e changed.done ] || { $ATTEMPT --registry changed registry add --starter && touch changed.done; }
      (cd "$here" && $PYTHON -m benchmarks.proof_sources "$folder" --tasks "${TASKS:-$TEST}" --seeds "${SEEDS:-5}" \
        --learning-rate "${RATE:?the learning rate of ATTEMPT}")
      ;;
    *) echo "no part named '$part': tune, variants, fewshot, each, shared, rows, sources" >&2 && exit 2 ;;
  esac
done
