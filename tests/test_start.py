"""Tests of details/start.py."""

import train
from details import data, start
from tests.helpers import (
    TOY,
    arguments,
    files,
    lines,
    printed_by,
    problems,
    shown_rows,
    static_pairs,
    toy_sampler,
    trained,
)


def test_no_question_is_both_learned_and_examined(tmp_path):
    """Of six pairs of questions the two that are trained on are left out, and the one that chooses
    OUT/best; of the problems the four that are held out, as of those that choose; of twenty
    demonstrations eight of all these, most of which --eval-size does not take. The exam has both
    labels though its file is sorted by them."""
    asked = problems(20, 3)
    pairs = static_pairs(asked[10:16])
    argv = files(
        tmp_path,
        data=asked[:12] + asked[16:],
        eval_data=asked[16:],
        select_data=asked[11:12] + asked[15:17],
        exam=pairs[::2] + pairs[1::2],
        cold_start=shown_rows(asked),
    )
    _, printed = trained(tmp_path / "run", "--steps 0 --eval-size 2", *argv)
    assert "data.jsonl: 4 lines left out" in printed
    assert "exam.jsonl: 6 lines left out" in printed
    assert "select_data.jsonl: 2 lines" in printed
    assert "cold_start.jsonl: 8 lines left out: the run needs" in printed
    assert data.read_jsonl(tmp_path / "run/exam.jsonl", data.to_pair) == pairs[4:6]


def test_stage_1_is_half_of_the_first_steps_that_are_trained(tmp_path):
    """Not of --steps 0, by which a run only shows its start; a run that is extended keeps it."""
    flags = "--method score --questions 2 --n 2 --eval-size 2 --steps"
    for steps, stages in (("0", []), ("2 --resume", [1, 2]), ("6 --resume", [1] + [2] * 5)):
        rows, _ = trained(tmp_path / "out", f"{flags} {steps}")
        assert [row["stage"] for row in rows[1:]] == stages
    rows, _ = trained(tmp_path / "other", flags + " 2 --stage1-steps 0")
    assert rows[1]["stage"] == 2


def test_the_exam_is_of_the_starting_policy(tmp_path):
    """Without --exam it is sampled on held-out problems, the same whatever the method; half of its
    pairs are right."""
    held_out = problems(30, 9)
    argv = files(tmp_path, data=problems(12, 3), eval_data=held_out, select_data=problems(4, 1))
    flags = f"--device cpu --model {TOY} --steps 0 --max-new-tokens 64 --eval-size 16"
    exams = []
    chosen_by = []
    for method in ("g-rl", "c-rl"):
        out = tmp_path / method
        printed_by(train.main, flags, "--method", method, "--out", out, *argv)
        exams.append(data.read_jsonl(out / "exam.jsonl", data.to_pair))
        [row] = lines(out / "metrics.jsonl")
        chosen_by.append(row["select"])
    assert 0 < chosen_by[1] != chosen_by[0], "by critiques, not by answers"
    exam, other = exams
    assert exam == other
    questions = {pair.problem for pair in exam}
    assert questions <= set(held_out[:16])
    assert not questions <= set(held_out[:8])


def test_static_pairs_follow_balance(tmp_path):
    """Static pairs come by the filter, or, with --balance none, two of each question. Only methods
    that learn from them have any."""
    asked = problems(10, seed=8)
    found = []
    for flags in (
        "c-rl",
        "gc-rl --critique-data static --balance none",
        "pair-sft --balance none",
        "g-rl",
    ):
        args = arguments(f"--out {tmp_path} --method {flags}")
        sets = {"problems": asked, "held_out": asked, "selecting": [], "exam": static_pairs(asked)}
        state = start.first_state(args, sets)
        start.first_pairs(args, toy_sampler(), state)
        found.append(state["static"])
    filtered, unbalanced, of_pair_sft, nothing = found
    assert 0 < len(filtered) < 20
    # Of all problems, in the order of the seed.
    assert [pair.problem for pair in unbalanced[::2]] == data.batch_of(asked, 1, 0, 10)
    assert of_pair_sft == filtered, "it learns a right response after a wrong one"
    assert nothing == []
