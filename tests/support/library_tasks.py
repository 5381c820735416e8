"""Local copies of data sets, with made-up rows in their published schema, and task files of one's own for lm-eval.

`zppo eval data_root=ROOT` and the library's own command in ROOT as working folder find them by the data sets' names.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

TEN = (
    "gsm8k", "arc_challenge", "arc_easy", "wikitext", "lambada_openai", "winogrande", "boolq", "hellaswag", "triviaqa",
    "own_sums",
)  # fmt: skip
"""Generation, multiple choice, perplexity, a group; few-shot examples and filters among them."""
NUM = 8
Rows = list[dict[str, Any]]


def write_copies(root: Path) -> None:
    """The data sets of `TEN`, as `OWNER/NAME` in `root`."""
    draws = random.Random(0)
    sums = [(draws.randint(2, 9), draws.randint(2, 9)) for _ in range(2 * NUM)]
    word = [f"Compute {a}+{b}." for a, b in sums]

    def spread(make: Any) -> dict[str, Rows]:
        rows = [make(i, a, b) for i, (a, b) in enumerate(sums)]
        return {"train": rows[NUM:], "validation": rows[:NUM], "test": rows[:NUM]}

    def arc(i: int, a: int, b: int) -> dict[str, Any]:
        choices = {"text": [str(a + b), f"{a}{b}", "12 or 13", str(a)], "label": ["A", "B", "C", "D"]}
        return {"id": f"q{i}", "question": word[i], "choices": choices, "answerKey": "ABCD"[i % 2]}

    def trivia(i: int, a: int, b: int) -> dict[str, Any]:
        return {"question": word[i], "answer": {"aliases": [str(a + b)], "value": str(a + b)}}

    def hellaswag(i: int, a: int, b: int) -> dict[str, Any]:
        return {
            "ind": i, "activity_label": "Sums", "ctx_a": f"{word[i]}", "ctx_b": "the sum is", "ctx": word[i],
            "endings": [f"{a + b}.", f"{a - b} [title] or so.", "not known.", f"{a}."], "source_id": "own",
            "split": "val", "split_type": "indomain", "label": str(i % 4),
        }  # fmt: skip

    def winogrande(i: int, a: int, b: int) -> dict[str, Any]:
        sentence = f"The sum of {a} and {b} is odd, so _ is even."
        return {"sentence": sentence, "option1": str(a), "option2": str(b), "answer": "12"[i % 2]}

    copy = _Copy(root)
    gsm = lambda i, a, b: {"question": word[i], "answer": f"{a}+{b} = {a + b}\n#### {a + b}"}  # noqa: E731
    copy("openai/gsm8k", "main", spread(gsm))
    for name in ("ARC-Challenge", "ARC-Easy"):
        copy("allenai/ai2_arc", name, spread(arc))
    pages = [f" = Sums = \n \n {word[i]} It is {a + b} @-@ no more . \n" for i, (a, b) in enumerate(sums)]
    documents = [{"page": " ".join(pages[i : i + length])} for i, length in enumerate((1, 3, 16, 6))]
    splits = dict.fromkeys(("train", "validation", "test"), documents)
    copy("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", splits)
    texts = [{"text": f"{word[i]} The sum is {a + b}"} for i, (a, b) in enumerate(sums)]
    copy("EleutherAI/lambada_openai", "default", {"test": texts[:NUM]})
    copy("allenai/winogrande", "winogrande_xl", spread(winogrande))
    boolq = lambda i, a, b: {"passage": f"{a}+{b} = {a + b}", "question": "is it even", "idx": i, "label": (a + b) % 2}  # noqa: E731
    copy("aps/super_glue", "boolq", spread(boolq))
    copy("Rowan/hellaswag", "default", spread(hellaswag))
    copy("mandarjoshi/trivia_qa", "rc.nocontext", spread(trivia))


class _Copy:
    """Writes a data set with its configurations as its repository has them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, config: str, splits: Mapping[str, Rows]) -> None:
        folder = self.root / name
        card = folder / "README.md"
        known = yaml.safe_load(card.read_text().strip("-\n"))["configs"] if card.exists() else []
        files = []
        for split, rows in splits.items():
            write_rows(folder / config / f"{split}.jsonl", rows)
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        known.append({"config_name": config, "data_files": files})
        card.write_text(f"---\n{yaml.safe_dump({'configs': known})}---\n")


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_own_tasks(folder: Path, num: int = NUM) -> None:
    """A group of two tasks and its data: `own_choices`, with examples before each question, and `own_replies`, with
    filters and two replies a question."""
    draws = random.Random(1)
    sums = [(draws.randint(2, 9), draws.randint(2, 9)) for _ in range(num + 4)]
    rows = [{"question": f"Compute {a}+{b}.", "sum": a + b, "other": a * b + 1} for a, b in sums]
    write_rows(folder / "test.jsonl", rows[:num])
    write_rows(folder / "train.jsonl", rows[num:])
    files = {"test": str(folder / "test.jsonl"), "train": str(folder / "train.jsonl")}
    data = {
        "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
        "training_split": "train", "doc_to_text": "{{question}}",
    }  # fmt: skip
    share = {"aggregation": "mean", "higher_is_better": True}
    choices = data | {
        "task": "own_choices", "output_type": "multiple_choice", "num_fewshot": 2, "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"}, "doc_to_target": 0, "target_delimiter": " = ",
        "doc_to_choice": "{{[sum|string, other|string ~ ' or more']}}",
        "metric_list": [{"metric": name, **share} for name in ("acc", "acc_norm", "acc_mutual_info")],
        "metadata": {"version": 1.5},
    }  # fmt: skip
    last_number = {"function": "regex", "regex_pattern": r"(\d+)", "group_select": -1}
    replies = data | {
        "task": "own_replies", "output_type": "generate_until", "doc_to_target": "{{sum}}", "repeats": 2,
        "generation_kwargs": {"until": ["\n\n", "</think>"], "do_sample": False, "max_gen_toks": 24},
        "filter_list": [
            {"name": "last", "filter": [last_number, {"function": "take_first"}]},
            {"name": "most", "filter": [last_number, {"function": "majority_vote"}, {"function": "take_first"}]},
        ],
        "metric_list": [{"metric": "exact_match", **share}],
    }  # fmt: skip
    group = {
        "group": "own_sums", "task": ["own_choices", "own_replies"],
        "aggregate_metric_list": [
            {"metric": "acc", "aggregation": "mean", "weight_by_size": True},
            {"metric": "exact_match", "aggregation": "mean", "filter_list": ["last", "most"]},
        ],
        "metadata": {"version": 1},
    }  # fmt: skip
    for task in (choices, replies, group):
        (folder / f"{task.get('group', task['task'])}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


PICTURED = ("mme", "ai2d", "pope")


def write_pictured_copies(root: Path) -> None:
    """The data sets of `PICTURED`: each question with a picture of bars."""
    import datasets

    from harness.data.synthetic import make_questions

    questions = make_questions(["bar_chart"], [1, 2], NUM, seed=3, split="held_out")
    pictures = [question.images[0].open() for question in questions]
    golds = [question.answer for question in questions]
    yes = ["Yes" if i % 2 else "No" for i in range(NUM)]
    mme = {
        "question_id": [f"count/{i // 2}.png" for i in range(NUM)], "image": pictures, "answer": yes,
        "question": [f"{q.text} Is it {g}? Please answer yes or no." for q, g in zip(questions, golds, strict=True)],
        "category": ["count" if i < 4 else "color" for i in range(NUM)],
    }  # fmt: skip
    pope = {
        "question_id": [str(i) for i in range(NUM)], "question": [f"{q.text} Is it odd?" for q in questions],
        "answer": [word.lower() for word in yes], "image": pictures, "category": ["popular"] * NUM,
        "image_source": [f"{i}.png" for i in range(NUM)], "id": [str(i) for i in range(NUM)],
    }  # fmt: skip
    ai2d = {
        "question": [q.text for q in questions], "options": [[g, str(int(g) + 1), "none"] for g in golds],
        "answer": [str(i % 2) for i in range(NUM)], "image": pictures,
    }  # fmt: skip
    for name, columns in (("MME", mme), ("ai2d", ai2d), ("POPE", pope)):
        folder = root / "lmms-lab-encoder" / name
        folder.mkdir(parents=True)
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.to_parquet(folder / "test-00000-of-00001.parquet")


LMMS_COMMAND = """
import functools, runpy, sys, torch, transformers

class Processor:
    # transformers 5.23 refuses the name `audios`, which lmms-eval 0.7.3 gives to every processor
    def __init__(self, processor): self._processor = processor
    def __getattr__(self, name): return getattr(self._processor, name)
    def __call__(self, *given, audios=None, videos=None, **options):
        return self._processor(*given, videos=videos or None, **options)

def given_name(original, *given, **options):
    return Processor(original(*given, **options))

def in_full(original, *given, **options):
    # its model type is compared with classes, so it takes a model without a head, and always bfloat16
    return transformers.AutoModelForImageTextToText.from_pretrained(*given, **options | {"torch_dtype": torch.float32})

for kind, change in ((transformers.AutoProcessor, given_name), (transformers.AutoModel, in_full)):
    kind.from_pretrained = functools.partial(change, kind.from_pretrained)
sys.argv[0] = "lmms_eval"
runpy.run_module("lmms_eval", run_name="__main__")
"""
"""lmms-eval's own command where its model `huggingface` runs with this transformers, on a CPU: two shims before it."""
