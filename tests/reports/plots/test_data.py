from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.plots.batch import KINDS, group_kinds
from reports.plots.buffer import bin_names, buffer_counts, graduated_by_chance
from reports.plots.costs import cheapest, draw_cost
from reports.plots.data import cumulative_events, listing, load_metrics, macro_averages, split_label
from reports.plots.dynamics import off_scale, seed_curves, smoothing
from reports.plots.gains import gains_over_base, ordered
from reports.plots.style import looks, shades, wrap
from reports.runs.collect import find_runs
from reports.runs.damage import damage


def scores(*rows, protocol="p"):
    """Rows (label, seed, benchmark, score[, protocol]) of student s, family LLM."""
    return pd.DataFrame(
        [
            {
                "label": label, "method": label.split(",")[0], "student": "s", "teacher": "t", "seed": seed,
                "suite": "mini", "family": "LLM", "benchmark": benchmark, "score": score,
                "protocol": card[0] if card else protocol,
            }
            for label, seed, benchmark, score, *card in rows
        ]
    )  # fmt: skip


def test_macro_average_and_gain():
    table = scores(
        ("base", 0, "a", 10.0), ("base", 0, "b", 30.0), ("base", 1, "a", 20.0), ("base", 1, "b", 40.0),
        ("zppo", 0, "a", 50.0), ("zppo", 0, "b", 70.0),
    )  # fmt: skip
    macros, refused = macro_averages(table)
    # base: 20 and 30; zppo: 60. Base's mean over seeds is 25, so zppo gains 35.
    assert macros["macro"].tolist() == [20.0, 30.0, 60.0] and refused == []
    gains = gains_over_base(macros)
    assert gains[["label", "gain"]].values.tolist() == [["zppo", 35.0]]


def test_holes_and_other_protocols_have_no_macro_average():
    table = scores(
        ("base", 0, "a", 10.0), ("base", 0, "b", 30.0),
        ("hole", 0, "a", 10.0), ("hole", 0, "b", np.nan),
        ("short", 0, "a", 10.0),
        ("other", 0, "a", 10.0), ("other", 0, "b", 10.0, "q"),
    )  # fmt: skip
    macros, refused = macro_averages(table)
    assert macros["label"].tolist() == ["base"]
    assert refused == [
        "other s seed0 LLM (evaluated by another protocol)",
        "hole s seed0 LLM (scores missing)",
        "short s seed0 LLM (scores missing)",
    ]


def test_gain_needs_a_base():
    assert gains_over_base(macro_averages(scores(("zppo", 0, "a", 50.0)))[0]).empty


EVENT = st.tuples(st.integers(1, 6), st.sampled_from(["admit", "graduate", "evict"]), st.sampled_from([0.0, 0.5]))


def events(*rows):
    return pd.DataFrame(rows, columns=["step", "event", "entry_accuracy"]).assign(label="zppo", student="s", seed=0)


def test_counts_of_the_buffer():
    # Step 1: two enter at 0, one at 0.125. Step 3: one of those at 0 graduates, the one at 0.125 is evicted.
    rows = events(
        (1, "admit", 0.0), (1, "admit", 0.0), (1, "admit", 0.125), (3, "graduate", 0.0), (3, "evict", 0.125)
    )  # fmt: skip
    counts = cumulative_events(rows, 4, [0.0, 0.125])
    assert counts["held"][0.0].tolist() == [2, 2, 1, 1]
    assert counts["held"][0.125].tolist() == [1, 1, 0, 0]
    assert counts["graduated"][0.0].tolist() == [0, 0, 1, 1]
    assert counts["evicted"][0.125].tolist() == [0, 0, 1, 1]


def test_counts_reach_the_last_step_of_the_metrics():
    metrics = pd.DataFrame({"label": "zppo", "student": "s", "seed": 0, "step": [1, 2, 3, 4, 5]})
    counts, bins = buffer_counts(events((1, "admit", 0.25)), metrics)
    assert bins == [0.25]
    assert [len(tables["held"]) for tables in counts["zppo", "s"]] == [5]


def test_what_chance_graduates_is_read_by_bin_and_kept_until_the_next_step():
    name = "buffer/graduated_by_chance"
    metrics = pd.DataFrame({"step": [2, 4], f"{name}@0": [0.125, 0.375], f"{name}@0.333333": [np.nan, 0.5]})
    table = graduated_by_chance(metrics, pd.RangeIndex(1, 6, name="step"), [0.0, 1 / 3, 0.5])
    assert table[0.0].tolist() == [0, 0.125, 0.125, 0.375, 0.375]
    assert table[1 / 3].tolist() == [0, 0, 0, 0.5, 0.5]
    assert table[0.5].tolist() == [0] * 5  # of an earlier version


@settings(max_examples=30)
@given(st.lists(EVENT, min_size=1))
def test_buffer_counts_add_up(rows):
    counts = cumulative_events(events(*rows), 6, [0.0, 0.5])
    last = {name: float(table.iloc[-1].sum()) for name, table in counts.items()}
    assert last["admitted"] == sum(event == "admit" for _, event, _ in rows)
    assert last["held"] == last["admitted"] - last["graduated"] - last["evicted"]
    assert (counts["admitted"].diff().dropna() >= 0).all(axis=None)


@pytest.mark.parametrize(
    ("bins", "names"),
    [
        ([0.0, 0.125, 0.25], ["0 of 8 right", "1 of 8 right", "2 of 8 right"]),
        ([0.0, 0.0625], ["0 of 16 right", "1 of 16 right"]),
        ([0.0, 1 / 3], ["0 of 3 right", "1 of 3 right"]),
        ([0.25], ["2 of 8 right"]),
    ],
)
def test_bin_names(bins, names):
    assert bin_names(bins) == names


def test_groups_add_up_to_the_students():
    metrics = pd.DataFrame(
        {
            "label": "zppo", "student": "s", "seed": 0, "step": [1, 2], "group/num_plain": [10.0, 10.0],
            "group/num_student": [13.0, 12.0], "buffer/replayed": [4.0, 0.0], "bcq/prompts": [1.0, np.nan],
        }
    )  # fmt: skip
    groups = group_kinds(metrics)
    # Step 1: 10 plain = 6 new + 4 replayed, 1 BCQ, so 2 of 13 are of a kind without a metric. Step 2: 12 - 10 = 2.
    assert groups.iloc[0][["new, plain", "replayed, plain", "BCQ", "other"]].tolist() == [6.0, 4.0, 1.0, 2.0]
    assert groups[list(KINDS)].sum(axis=1).tolist() == [13.0, 12.0]
    assert group_kinds(metrics.drop(columns="buffer/replayed")).empty


def metric(values, seed=0):
    return pd.DataFrame({"label": "zppo", "student": "s", "seed": seed, "step": range(1, len(values) + 1), "m": values})


def test_each_seed_is_smoothed_on_its_own_and_gaps_stay():
    rows = pd.concat([metric([1.0, 3.0, np.nan, np.nan, np.nan, 5.0]), metric([2.0, 4.0], seed=1)])
    curve = seed_curves(rows, "m", ["zppo", "grpo"], 2)
    assert list(curve) == ["zppo"]
    # Window 2: 1, (1+3)/2, 3 (only step 2 has a value), nothing, nothing, 5; seed 1 ends with its run.
    assert curve["zppo"][0].tolist() == pytest.approx([1, 2, 3, np.nan, np.nan, 5], nan_ok=True)
    assert curve["zppo"][1].tolist() == pytest.approx([2, 3, np.nan, np.nan, np.nan, np.nan], nan_ok=True)


def test_smoothing_starts_above_40_steps():
    assert [smoothing(pd.DataFrame({"step": [n]})) for n in (40, 41, 60, 200)] == [1, 2, 3, 10]


def test_lines_far_from_the_others_are_off_scale():
    curves = {name: pd.DataFrame({0: [value, 0.0]}) for name, value in (("a", 1.0), ("b", -2.0), ("c", 20.1))}
    # Reaches 1, 2 and 20.1; the median is 2, so 20.1 is more than ten times as far and 20 would not be.
    assert off_scale(curves) == ["c"]
    assert off_scale({"a": curves["a"], "c": curves["c"]}) == []


@pytest.mark.parametrize(
    ("label", "name", "options"),
    [
        ("zppo", "zppo", {}),
        ("zppo,updates_per_step=8", "zppo", {"updates_per_step": "8"}),
        ("zppo,levels=[1,2],seeds=3", "zppo", {"levels": "[1,2]", "seeds": "3"}),
    ],
)
def test_labels(label, name, options):
    assert split_label(label) == (name, options)


def test_values_are_ordered_by_their_number():
    assert ordered(["16", "4", "default", "1", "4"]) == ["default", "1", "4", "16"]
    assert ordered(["qwen3_5_27b", "qwen3_5_9b", "qwen3_5_0_8b", "own", "smollm2_135m"]) == [
        "smollm2_135m", "qwen3_5_0_8b", "qwen3_5_9b", "qwen3_5_27b", "own",
    ]  # fmt: skip


def test_looks_differ_and_base_takes_none():
    found = looks(["base", *(f"m{i}" for i in range(20))])
    assert found["base"].colour == "#777777" and found["m0"].colour == "#0072B2"
    assert len({(look.colour, look.style) for look in found.values()}) == 21


def test_shades_are_the_palettes_where_there_are_four():
    assert shades(4) == ["#0072b2", "#56b4e9", "#e69f00", "#d55e00"]
    assert len(set(shades(8))) == 8 and shades(1) == ["#0072b2"]


def test_wrap_and_listing():
    assert wrap("zppo,updates_per_step=8", 14) == "zppo,updates_\nper_step=8"
    assert wrap("a=b c", 2) == "a=\nb\nc"
    assert wrap("abcdefgh", 4) == "abcd\nefgh"
    assert listing(["a", "b"]) == "a, b" and listing(list("abcdef")) == "a, b, c, d and 2 more"


def test_metrics_keep_complete_lines_only_and_a_broken_line_is_named(write_run, tmp_path):
    folder = write_run("grpo", accuracies=[0.1, 0.2])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rollout/acc')  # a run that is writing right now
    assert load_metrics(find_runs(tmp_path / "study"))["step"].tolist() == [1, 2]
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, nonsense}\n{"step": 3}\n')
    (run,) = find_runs(tmp_path / "study")
    assert load_metrics([run])["step"].tolist() == [1, 3]
    assert damage(run.folder, run.info)[0] == "metrics.jsonl has 2 of 3 steps"


def test_the_cheapest_run_sets_the_line():
    rows = pd.DataFrame(
        [("a", 0, 1, 5.0), ("a", 0, 2, 9.0), ("a", 1, 1, 4.0), ("a", 1, 2, 8.0), ("b", 0, 1, 20.0)],
        columns=["label", "seed", "step", "cumulative_flops"],
    )
    assert cheapest(rows, "cumulative_flops") == 8.0


def test_accuracy_against_cost_has_a_panel_a_measure_and_student():
    curves = pd.DataFrame(
        [("s", "a", 0, step, 10.0 * step, np.nan, 0.1 * step) for step in (1, 2, 3)]
        + [("s", "b", 0, step, 20.0 * step, np.nan, np.nan) for step in (1, 2)],
        columns=["student", "label", "seed", "step", "cumulative_flops", "cumulative_tokens", "accuracy"],
    )
    drawing = draw_cost(curves, looks(["a", "b"]))
    assert drawing is not None
    (ax,) = drawing.canvas.axes  # nobody counted tokens, and `b` has no accuracy
    line, budget = ax.lines
    assert line.get_xydata().round(6).tolist() == [[10, 10], [20, 20], [30, 30]]
    assert list(budget.get_xdata()) == [30.0, 30.0]
    assert draw_cost(curves[curves["label"] == "b"], looks(["b"])) is None
