#!/usr/bin/env bash
# The whole of electra_dist on real English text, in a few minutes on two cores. Run it by `make demo`.
# DEMO_FOLDER (default build/demo) is made anew each time; DEMO_STEPS (default 200) is how long to train.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${DEMO_FOLDER:-build/demo}
steps=${DEMO_STEPS:-200}
half=$((steps / 2))
corpus=$folder/corpus run=$folder/run task=$folder/data/task
rm -rf "$folder"
mkdir -p "$folder"

say() { printf '\n== %s\n' "$*"; }

pretrain=(electra-dist pretrain examples/demo/demo.toml --data.corpus "$corpus" --out "$run"
    --schedule.num_steps "$steps")

say "1. Real text: Wikipedia articles and newsgroup posts (downloaded once, then from a cache)"
python examples/demo/fetch_data.py "$folder/data"

say "2. Text becomes a corpus: tokenized once, then packed into rows of 128"
electra-dist corpus build --input "$folder/data/text" --tokenizer train --vocab-size 8192 --out "$corpus"
electra-dist corpus pack "$corpus" --length 128
electra-dist corpus info "$corpus"

say "3. Pretraining on 2 ranks, DeepSpeed ZeRO-2; asked to stop halfway by a SIGTERM, as a scheduler would"
"${pretrain[@]}" --nproc 2 --engine.zero_stage 2 &
trainer=$!
until [[ -s $run/metrics.jsonl ]] && grep -q "\"step\": $half," "$run/metrics.jsonl"; do
    kill -0 "$trainer" || break
    sleep 0.2
done
kill -TERM "$trainer"
status=0
wait "$trainer" || status=$?
if ((status != 75)); then
    echo "expected exit code 75 (stopped, state saved), got $status" >&2
    exit 1
fi
electra-dist status "$run"

say "4. The same run goes on with another number of ranks and another ZeRO stage"
"${pretrain[@]}" --nproc 1 --engine.zero_stage 1
electra-dist checkpoint list "$run"
electra-dist checkpoint verify "$run"

say "5. Export to Hugging Face format, and fine-tuning on a labelled task: which newsgroup is this post from?"
electra-dist checkpoint export hf "$run" --out "$folder/hf"
for encoder in pretrained untrained; do
    options=()
    [[ $encoder == untrained ]] && options=(--reinitialize)
    electra-dist finetune --model "$folder/hf" --train "$task/train.tsv" --dev "$task/dev.tsv" \
        --text text --label label --epochs 2 --lr 5e-4 --max-length 64 --out "$folder/finetuned_$encoder" "${options[@]}"
done

say "6. Prediction"
head -n 4 "$task/dev.tsv" >"$folder/some.tsv"
electra-dist predict --model "$folder/finetuned_pretrained" --input "$folder/some.tsv"

say "Done"
python examples/demo/summary.py "$folder"
