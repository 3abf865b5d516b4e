#!/bin/sh
# A topic out of a pretrained model, with a smaller one of the same vocabulary (docs/real_models.md).
#   sh examples/real_pair.sh MODEL SMALLER questions.jsonl keep.jsonl beside.jsonl [SETTINGS of unlearn.run …]
# MODEL, SMALLER: folders or names on the hub. questions: the topic; keep: what must stay; beside: what lies next to the topic.
set -eu
model=$1 smaller=$2 questions=$3 keep=$4 beside=$5
shift 5

python -m unlearn.generate model="$model" prompts="$questions" out=topic.jsonl   # what it knows of the topic
python -m unlearn.run experiment=pretrained pair.target.source="$model" pair.small.source="$smaller" \
    data.forget=topic.jsonl data.retain="$keep" data.neighbours="$beside" "$@"
for run in runs/pretrained/*-*/; do
    python -m unlearn.calibrate run="$run" tolerance=0.05   # the largest α that costs at most this much
done
