"""Tests of sample.py: its tables and its evaluation."""

from collections import Counter

import sample
from critique import correct_prompt, critique_prompt, judgement, solve_prompt
from details import start
from details.answers import is_correct
from tests.helpers import (
    a_sample,
    attempts,
    box,
    greedy_text,
    judged,
    patch,
    problems,
    static_pairs,
    toy_sampler,
    write,
)


def test_judgement_table_by_hand():
    """Four right and two wrong responses, judged by six critiques."""
    critiques = judged(
        (True, True),
        (True, True),
        (False, True),
        (None, True),
        (True, False),
        (False, False),
    )
    assert sample.judgement_table(critiques) == {
        "accuracy": 3 / 6,
        "p1": 2 / 4,
        "p2": 1 / 2,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "unreadable": 1 / 6,
        "truncated": 0,
    }


def test_a_text_that_was_cut_says_so():
    assert sample.shown(a_sample("7-6", stopped=False)).startswith("7-6\n(unfinished")


def test_pass_at_n_of_a_question_that_comes_twice():
    """It is asked n times each time."""
    responses, _ = attempts(*FIVE_ATTEMPTS[:4])  # right, right, wrong, wrong
    assert sample.pass_at_n(responses, 1) == sample.pass_at_n(responses, 2) == 1 / 2
    assert sample.pass_at_n(responses, 4) == 1


# First and second answers to a problem whose answer is 1.
ANSWERS = [("1", "1"), ("1", "2"), ("2", "1"), ("0.5", "1"), ("0.5", "1/2")]
FIVE_ATTEMPTS = [(box(a), a == "1", box(b), b == "1") for a, b in ANSWERS]


def test_attempts_table_by_hand():
    """The first attempts are right in two of five cases, the second in three."""
    assert sample.attempts_table(*attempts(*FIVE_ATTEMPTS)) == {
        "t1": 2 / 5,
        "t2": 3 / 5,
        "delta": 3 / 5 - 2 / 5,
        "i_to_c": 2 / 5,
        "c_to_i": 1 / 5,
        "unchanged": 1 / 5,
        "kept": 1 / 3,  # of the three wrong answers one: 1/2 for 0.5
        "truncated": 0,
    }


def test_answer_is_kept_where_it_is_given_twice():
    """A truncated attempt has no answer that could be kept, nor has a text that names none; and
    without a wrong first answer there is nothing to keep."""
    unnamed = ("no answer", False, "no answer", False)
    for rows, stopped, kept in (
        (FIVE_ATTEMPTS, False, 0),
        ([unnamed], True, 0),
        (FIVE_ATTEMPTS[:2], True, None),
    ):
        both = attempts(*rows, second_stopped=stopped)
        assert sample.attempts_table(*both)["kept"] == kept


def test_only_what_is_judged_wrong_is_revised():
    """A critique without a judgement that can be read leaves the answer as it is."""
    criticise = patch(sample, "criticise", return_value=judged((None, True)))
    with criticise, patch(sample, "refine", return_value=[]) as refine:
        numbers, _ = sample.evaluate(toy_sampler(), problems(2, seed=6), [])
    assert refine.call_args.args[1] == []
    assert numbers["eval/revised"] == 1


def test_an_exam_of_its_own_is_for_a_runs_own_problems(tmp_path):
    """Pairs of other problems are sampled."""
    write(tmp_path / "exam.jsonl", static_pairs(problems(2)))
    write(tmp_path / "held_out.jsonl", problems(4))
    data = write(tmp_path / "data.jsonl", problems(5))
    for flags, *sizes in (("", 4, 4), (f"--data {data}", 5, 0)):
        args = sample.parse_args(["--eval", *flags.split()])
        found = sample.held_out_and_exam(args, tmp_path)
        assert [len(part) for part in found] == sizes


def test_evaluation_by_an_independent_path():
    """Greedy first answers; second ones that were shown the first; judgements of the own answers,
    and what is right once those that they call wrong are corrected; judgements of an exam, in which
    an odd count leaves no half of a pair."""
    asked = problems(12, seed=6)
    exam = start.sample_pairs(toy_sampler(), problems(40, seed=7), n=8, count=13, seed=0)
    found = Counter()
    for problem in asked:
        question = problem.question
        first = greedy_text(solve_prompt(question))
        check = greedy_text(critique_prompt(question, first))
        final = first
        if judgement(check) is False:
            final = greedy_text(correct_prompt(question, first, check))
        second = greedy_text(correct_prompt(question, first))
        right = is_correct(first, problem.answer)
        found["generation"] += right
        found["t2"] += is_correct(second, problem.answer)
        found["revised"] += is_correct(final, problem.answer)
        found["self_critique"] += judgement(check) is right
    for pair in exam:
        text = greedy_text(critique_prompt(pair.problem.question, pair.response))
        found["critique"] += judgement(text) is pair.right
    numbers, _ = sample.evaluate(toy_sampler(), asked, exam)
    for name, count in found.items():
        assert 0 < count < 12
        assert numbers[f"eval/{name}"] == count / 12
