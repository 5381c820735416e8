from __future__ import annotations

import io

from rich.console import Console

from harness.study.progress import Progress, Row, table


def drawn(rows: list[Row], max_rows: int) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(rows, max_rows))
    return [line.split() for line in console.file.getvalue().splitlines()]


ROWS = [
    Row("grpo tiny_s seed0", "done", reward=0.5, seconds=30.0),
    Row("zppo tiny_s seed0", "running", 4, 10, 0.25, 60.0, 90.0, "GPU 1"),
    Row("sft tiny_s seed0", "elsewhere", 1, 10, seconds=150.0, note="process 7 on far"),
    Row("hint tiny_s seed0", "waiting"),
]


def test_the_table_shows_cells_states_steps_rewards_and_times():
    assert drawn(ROWS, 10) == [
        ["run", "state", "step", "reward", "time", "left"],
        ["grpo", "tiny_s", "seed0", "done", "0.50", "30", "s"],
        ["zppo", "tiny_s", "seed0", "running", "4/10", "0.25", "60", "s", "90", "s", "GPU", "1"],
        ["sft", "tiny_s", "seed0", "elsewhere", "1/10", "2.5", "min", "process", "7", "on", "far"],
        ["hint", "tiny_s", "seed0", "waiting"],
        ["1", "running,", "1", "elsewhere,", "1", "waiting,", "1", "done"],
    ]


def test_a_low_terminal_keeps_what_runs():
    lines = drawn(ROWS, 3)
    assert [line[0] for line in lines[1:-1]] == ["zppo", "sft", "hint"]
    assert lines[-1] == ["1", "running,", "1", "elsewhere,", "1", "waiting,", "1", "done"]


def test_a_log_gets_one_line_a_change():
    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=40), total=12)
    with progress.live(lambda: ROWS):
        progress.changed(ROWS[2])
        progress.finished(ROWS[0])
    assert screen.getvalue() == (
        "        elsewhere sft tiny_s seed0  2.5 min  process 7 on far\n"
        "[ 1/12] done    grpo tiny_s seed0  30 s  reward 0.50\n"
    )
