"""Writes the second half of the teacher's cold start: sums with boxed answers, and summaries of boxed responses.

After a cold start on answers alone a model of this size boxes a number whatever it is asked, so it cannot compress a
trace. Usage: python examples/smollm/demonstrations.py OUT.jsonl NUM_ROWS
"""

import json
import random
import sys

import reasoning_gym

from methods.prompts import compress_text

SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


def main(path: str, num_rows: int) -> None:
    rng = random.Random(0)
    sums = reasoning_gym.create_dataset("chain_sum", seed=77, size=num_rows, **SUMS)
    with open(path, "w", encoding="utf-8") as file:
        for i, entry in enumerate(sums):
            question, reply = entry["question"], f"\\boxed{{{entry['answer']}}}"
            if i % 2:
                response = f"\\boxed{{{rng.randint(1, 300)}}}"  # right or wrong is not the summary's business
                question = compress_text(response, max_lines=5)
                reply = f"<summary>\n{response}\n</summary>"
            file.write(json.dumps({"question": question, "answer": reply}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
