"""Tests of figures/, and of toy/arithmetic.py, whose questions figures/real.py asks."""

import functools
import json
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
    rows_of,
    used,
    write,
)
from toy import arithmetic, worked

# Two lines of metrics, and lines that cannot be used.
METRICS = """{"step": 0, "eval/generation": 0.25, "eval/t2": null}
{"step": 1, "t1": 0.5, "eval/generation": END, "eval/t2": NaN}
[1]
{"step": 1e999}
{"step": "2", "t1": 1}
{"step": 2, "cut in"""


def made_up_run(folder, end):
    """A run's folder."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(METRICS.replace("END", end))
    return folder


# What is printed of three such runs.
TABLES = """
last evaluation | start | gc-rl-0 | gc-rl-1 | a&b
eval/generation | 0.250 | 0.500 | 0.750 | 1.000
eval/t2 | - | - | - | -
eval/generation | 0.625 (0.500 to 0.750) | 1.000
"""


def test_comparison(tmp_path):
    """A table of last evaluations, one of the seeds of a method, their curves, and JSON. What is no
    number is drawn and printed nowhere."""
    ends = {"gc-rl-0": "0.5", "gc-rl-1": "0.75", "a&b": "1.0"}
    folders = [made_up_run(tmp_path / name, end) for name, end in ends.items()]
    picture = tmp_path / "c.svg"
    printed = printed_by(compare.main, "--json --out", picture, *folders)
    text = "".join(ElementTree.parse(picture).getroot().itertext())
    for word in ("gc-rl-*, 2 seeds", "a&b", "held out: generation", "in training: t1"):
        assert word in text
    assert "nan" not in (picture.read_text() + printed).lower()
    table = re.sub("  +", " | ", printed).splitlines()
    for [row] in rows_of(TABLES):
        assert row in table
    assert json.loads(printed.splitlines()[-1])[str(folders[1])]["eval/generation"] == 0.75


def test_pictures_write_over_pictures_only(tmp_path):
    """A file that is no SVG is left alone. Of no run nothing is drawn: one line names the file that
    is not there."""
    picture = tmp_path / "c.svg"
    compared = functools.partial(printed_by, compare.main, "--out", picture)
    fails("no/metrics.jsonl", compared, tmp_path / "no", kind=OSError)
    assert not picture.exists()
    picture.write_text("a text of mine")
    fails("c.svg", compared, made_up_run(tmp_path / "run", "0.5"))
    fails("c.svg", votes.main, ["no model", "--out", str(picture)])
    assert picture.read_text() == "a text of mine"


VERDICTS = """
1 2 3 4 5 -> holds here
-1 -2 -3 -4 -5 -> does not hold here
-1 0 0.5 1 2 -> cannot be told; about 22 seeds would tell
1 0 -0.5 -1 -2 -> cannot be told; about 22 seeds would tell
-1 0 0.1 1 -> cannot be told; not even with 100 seeds
0 0 -> no difference at any seed
"""


def test_interval_and_verdict_by_hand():
    """1 to 5: t is 2.776 for 4 degrees of freedom, the standard deviation 1.581; the half
    of the interval is 2.776 x 1.581 / sqrt(5)."""
    close([findings.t_quantile(1), findings.t_quantile(4)], [12.706, 2.776], 1e-3)
    close(findings.interval([1, 2, 3, 4, 5]), [3, 1.963], 1e-3)
    for values, words in rows_of(VERDICTS):
        assert findings.verdict([float(value) for value in values.split()]) == words


# Run, seed, the share of right answers in the end, machine.
MADE_UP = """
g-rl 0 0.7 a
g-rl 1 0.9 a
g-rl 2 0.7 a
c-rl 0 0.6 a
c-rl 1 0.65 a
c-rl 2 0.6 b
"""


def a_line(run, seed, answers, machine):
    """A line of findings.jsonl."""
    evaluations = []
    for step in range(0, 61, 5):
        share = float(answers) if step else 0.5
        numbers = dict.fromkeys([*findings.WORDS, "i_to_c", "size"], share)
        evaluations.append({"step": step, "samples": 9, "seconds": 1.0, **numbers})
    return {
        "run": run,
        "seed": int(seed),
        "command": findings.command_of(run, seed),
        "processor": machine,
        "evaluations": evaluations,
    }


def test_findings(tmp_path):
    """From the lines alone: runs of one seed and one machine are compared, what is missing for that
    is run, and both pictures are drawn."""
    write(tmp_path / "lines", [a_line(*row.split()) for [row] in rows_of(MADE_UP)])
    with mock.patch.multiple(findings, LINES=tmp_path / "lines", FOLDER=tmp_path):
        lines_there = findings.read_lines()
        close(findings.differences(lines_there, findings.CLAIMS[1]), [0.1, 0.25])
        with patch(findings, "processor", return_value="a"):
            missing = findings.missing_runs(lines_there)
        printed = printed_by(findings.main)
    assert ("c-rl", 2) in missing
    assert not {("g-rl", 0), ("c-rl", 1), ("g-rl", 2)} & set(missing)
    assert "| answers: g-rl at 30 > c-rl at 30 | +0.175 |" in printed
    assert "Delta is +0.500 (95% over problems: 2.400 either way)" in printed
    ElementTree.parse(tmp_path / "findings.svg")


# Answers (?: none can be read), their weights, the index of the one that is elected.
ELECTIONS = """
1 2/4 0.5 3 -> 1 1 1 1 -> 1
2x 2*x y -> 1 1 1 -> 0
1,2 3 2,1 -> 1 1 1 -> 0
X+1 y X+1 -> 1 1 1 -> 0
1 2 2 1 -> 1 1 1 1 -> 0
? ? 3 -> 1 1 1 -> 2
? ? -> 1 1 -> None
 ->  -> None
1 1 2 -> 0.2 0.3 0.6 -> 2
1 2 2 -> 0 0 0 -> 1
? 1 2 2 -> 1 0 0 0 -> 2
"""


def test_majority_vote():
    """The answer with the most weight is elected, by the first text that gives it: 2/4 and 0.5 are
    one answer. A tie goes to the answer that came first. Where no critique calls any right it is a
    plain vote; what cannot be read has no vote to weigh. Sets may stand in any order."""
    for answers, weights, elected in rows_of(ELECTIONS):
        texts = [box(answer).replace(box("?"), "hm") for answer in answers.split()]
        found = votes.majority_vote(texts, [float(weight) for weight in weights.split()])
        assert str(found) == elected, (answers, weights)


def test_truncated_response_elects_nothing():
    """It has no answer, whatever number it stopped at."""
    truncated = a_sample(box(7), stopped=False, right=True)
    assert not votes.elects_right([(truncated, 1.0)])


def test_votes_at_equal_budgets():
    """A budget of 4 is four answers, two and their corrections, or two and a critique of each."""
    wrong = a_sample(box(3), right=False)
    right = a_sample(box(7), right=True)
    drawn = patch(votes, "respond", return_value=[wrong, right] * 2)
    checks = judged((False, False), (True, True))
    sampler = mock.Mock()
    sampler.complete.return_value = [a_sample(box(7)), a_sample(box(3))]
    with drawn, patch(votes, "criticise", return_value=checks) as criticise:
        table = votes.vote(sampler, [SEVEN], [2, 4], 1, 0)
    chats = sampler.complete.call_args.args[0]
    assert chats == [correct_prompt("q", box(3)), correct_prompt("q", box(7))]
    assert [pair.response for pair in criticise.call_args.args[1]] == [box(3), box(7)]
    assert table == {
        "parallel": {2: 0, 4: 0},  # 3 and 7 tie, and 3 came first
        "parallel, corrected": {2: 1, 4: 1},  # corrected to 7 and 3: 7 came first
        "critique-weighted": {2: 0, 4: 1},  # called wrong, 3 wins alone only
    }


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
    fails("--explain|'answer'", used, "--explain q --answer", " ")
    fails("not UTF-8", used, "\udcff")


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
