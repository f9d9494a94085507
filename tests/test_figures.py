"""Tests of figures/, and of toy/arithmetic.py, whose questions figures/real.py asks."""

import functools
import json
import math
import re
from unittest import mock
from xml.etree import ElementTree

from critique import correct_prompt
from details import data, demonstrations
from figures import compare, findings, votes
from reward import is_correct
from tests.helpers import (
    SEVEN,
    TOY,
    a_sample,
    box,
    close,
    fails,
    judged,
    lines,
    patch,
    printed_by,
    used,
    write,
)
from toy import arithmetic, worked


def draw(program, picture, words, *args):
    """What a program of figures/ printed; its picture must be well-formed, and hold the words."""
    printed = printed_by(program.main, "--out", picture, *args)
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg")
    text = "".join(root.itertext())
    for word in words:
        assert word in text
    assert "nan" not in (picture.read_text() + printed).lower()
    return printed


def made_up_run(folder, end):
    """A run's folder with two lines of metrics, and with lines that cannot be used."""
    folder.mkdir()
    write(
        folder / "metrics.jsonl",
        [
            {"step": 0, "eval/generation": 0.25, "eval/t2": None},
            {"step": 1, "t1": 0.5, "eval/generation": end, "eval/t2": math.nan},
            [1],
        ],
    )
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1e999}\n{"step": "2", "t1": 1}\n{"step": 2, "cut in')
    return folder


def test_comparison(tmp_path):
    """A table of last evaluations, one of the seeds of a method, their curves, and JSON. What is no
    number is drawn and printed nowhere."""
    folders = [
        made_up_run(tmp_path / "gc-rl-0", 0.5),
        made_up_run(tmp_path / "gc-rl-1", 0.75),
        made_up_run(tmp_path / "a&b", 1.0),
    ]
    words = ["gc-rl-*, 2 seeds", "a&b", "held out: generation", "in training: t1"]
    printed = draw(compare, tmp_path / "c.svg", words, "--json", *folders)
    table = [re.split("  +", line) for line in printed.splitlines()]
    assert ["last evaluation", "start", "gc-rl-0", "gc-rl-1", "a&b"] in table
    assert ["eval/generation", "0.250", "0.500", "0.750", "1.000"] in table
    assert ["eval/t2", "-", "-", "-", "-"] in table
    assert ["eval/generation", "0.625 (0.500 to 0.750)", "1.000"] in table
    [*_, numbers] = printed.splitlines()
    assert json.loads(numbers)[str(folders[1])]["eval/generation"] == 0.75


def test_pictures_write_over_pictures_only(tmp_path):
    """A file that is no SVG is left alone. Of no run nothing is drawn: one line names the file that
    is not there."""
    picture = tmp_path / "c.svg"
    compared = functools.partial(printed_by, compare.main, "--out", picture)
    fails("no/metrics.jsonl", compared, tmp_path / "no", kind=OSError)
    assert not picture.exists()
    picture.write_text("a text of mine")
    fails("c.svg", compared, made_up_run(tmp_path / "run", 0.5))
    fails("c.svg", votes.main, ["no model", "--out", str(picture)])
    assert picture.read_text() == "a text of mine"


def test_interval_and_verdict_by_hand():
    """1 to 5: t is 2.776 for 4 degrees of freedom, the standard deviation 1.581; the half
    of the interval is 2.776 x 1.581 / sqrt(5)."""
    for freedom, t in ((1, 12.706), (4, 2.776)):
        close(findings.t_quantile(freedom), t, 1e-3)
    close(findings.interval([1, 2, 3, 4, 5]), [3, 1.963], 1e-3)
    for values, words in (
        ([1, 2, 3, 4, 5], "holds here"),
        ([-1, -2, -3, -4, -5], "does not hold here"),
        ([-1, 0, 0.5, 1, 2], "cannot be told; about 22 seeds would tell"),
        ([-1, 0, 0.1, 1], "cannot be told; not even with 100 seeds"),
        ([0, 0], "no difference at any seed"),
    ):
        assert findings.verdict(values) == words


def a_line(run, seed, answers, machine="a"):
    """A line of findings.jsonl, as of a run that ends in so many right answers."""
    evaluations = []
    for step in range(0, 61, 5):
        numbers = dict.fromkeys([*findings.WORDS, "i_to_c", "size"], answers if step else 0.5)
        evaluations.append({"step": step, "samples": 9, "seconds": 1.0, **numbers})
    return {
        "run": run,
        "seed": seed,
        "command": findings.command_of(run, seed),
        "processor": machine,
        "evaluations": evaluations,
    }


def test_findings(tmp_path):
    """From the lines alone: runs of one seed and one machine are compared, what is missing for that
    is run, and both pictures are drawn."""
    made_up = [
        a_line("g-rl", 0, 0.7),
        a_line("g-rl", 1, 0.9),
        a_line("g-rl", 2, 0.7),
        a_line("c-rl", 0, 0.6),
        a_line("c-rl", 1, 0.65),
        a_line("c-rl", 2, 0.6, machine="b"),
    ]
    write(tmp_path / "lines", made_up)
    with mock.patch.multiple(findings, LINES=tmp_path / "lines", FOLDER=tmp_path):
        lines_there = findings.read_lines()
        close(findings.differences(lines_there, findings.CLAIMS[1]), [0.1, 0.25])
        with patch(findings, "processor", return_value="a"):
            missing = findings.missing_runs(lines_there)
        printed = printed_by(findings.main)
    assert ("c-rl", 2) in missing
    assert not {("g-rl", 0), ("c-rl", 1), ("g-rl", 2)} & set(missing)
    assert printed.count("| answers: g-rl at 30 > c-rl at 30 | +0.175 |") == 1
    assert "Delta is +0.500 (95% over problems: 2.400 either way)" in printed
    ElementTree.parse(tmp_path / "findings.svg")


# Answers (None: none can be read), their weights, the index of the one that is elected.
ELECTIONS = [
    ([1, "2/4", 0.5, 3], [1, 1, 1, 1], 1),  # 1/2 and 0.5 are one answer
    (["x+1", "x + 1", "y"], [1, 1, 1], 0),
    ([1, 2, 2, 1], [1, 1, 1, 1], 0),  # a tie goes to the answer that came first
    ([None, None, 3], [1, 1, 1], 2),
    ([None, None], [1, 1], None),
    ([], [], None),
    ([1, 1, 2], [0.2, 0.3, 0.6], 2),
    ([1, 2, 2], [0, 0, 0], 1),  # no critique calls any right: a plain vote
    ([None, 1, 2, 2], [1, 0, 0, 0], 2),  # what cannot be read has no vote to weigh
]


def test_majority_vote():
    """The answer with the most weight is elected, by the first text that gives it."""
    for answered, weights, elected in ELECTIONS:
        texts = ["hm" if answer is None else box(answer) for answer in answered]
        assert votes.majority_vote(texts, weights) == elected, (texts, weights)


def test_truncated_response_elects_nothing():
    """It has no answer, whatever number it stopped at."""
    truncated = a_sample(box(7), stopped=False, right=True)
    assert not votes.elects_right([(truncated, 1.0)])


def test_votes_at_equal_budgets():
    """A budget of 4 is four answers, two and their corrections, or two and a critique of each."""
    wrong = a_sample(box(3), right=False)
    right = a_sample(box(7), right=True)
    drawn = [wrong, right, wrong, right]
    checks = judged((False, False), (True, True))
    sampler = mock.Mock()
    sampler.complete.return_value = [a_sample(box(7)), a_sample(box(3))]
    with (
        patch(votes, "respond", return_value=drawn),
        patch(votes, "criticise", return_value=checks) as criticise,
    ):
        table = votes.vote(sampler, [SEVEN], [2, 4], 1, 0)
    [chats, *_] = sampler.complete.call_args.args
    assert chats == [correct_prompt("q", box(3)), correct_prompt("q", box(7))]
    [_, pairs, *_] = criticise.call_args.args
    assert [pair.response for pair in pairs] == [box(3), box(7)]
    assert table["parallel"] == {2: 0, 4: 0}, "3 and 7 tie, and 3 came first"
    assert table["parallel, corrected"] == {2: 1, 4: 1}, "corrected to 7 and 3: 7 came first"
    assert table["critique-weighted"] == {2: 0, 4: 1}, "called wrong, 3 wins alone only"


def test_a_step_in_slow_motion():
    """--explain shows prompt, responses, the pair, critiques and tokens; the answer is looked up
    in the model's data files or given."""
    question = data.load_problems(TOY / "train.jsonl")[0].question
    printed = used("--explain --n 6", question)
    for words in ("PROMPT, ", "6 RESPONSES", "6 CRITIQUES of", "EVERY TOKEN", "<- a decision"):
        assert words in printed, words
    printed = used("--explain --n 2 --answer nonsense", question)
    assert "drops the question" in printed
    fails("--explain|--answer", used, "--explain", "Compute 1+1 modulo 10.")
    fails("--explain|question", used, "--explain")


def test_arithmetic_for_a_real_model(tmp_path):
    """No question is in two files, all results are exact, and so is what the critiques find; they
    are all that is learned."""
    arithmetic.make(tmp_path)
    asked = lines(tmp_path / "train.jsonl") + lines(tmp_path / "held_out.jsonl")
    critiques = lines(tmp_path / "critiques.jsonl")
    questions = {row["question"] for row in asked}
    assert len(questions) == 700
    examples = demonstrations.load_demonstrations(tmp_path / "critiques.jsonl", questions)
    assert len(examples) == 128
    for row in asked + critiques:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        result = str(worked.calculate(expression, {}))
        if "answer" in row:
            assert row["answer"] == result
        else:
            assert row["critique"].startswith(f"{expression} = {result}:")
            assert (row["label"] == "right") == is_correct(row["response"], result)
