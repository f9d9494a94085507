"""Tests of figures/, and of toy/arithmetic.py, whose questions figures/real.py asks."""

import functools
import json
import re
from unittest import mock
from xml.etree import ElementTree

from critique import correct_prompt
from details import data, demonstrations
from figures import chart, compare, findings, votes
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
last evaluation | (start) | gc-rl-0 | gc-rl-1 | a&b
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
    drawn = picture.read_text()
    assert '<circle cx="56.0" cy="208.1"' in drawn, "of step 0, 0.25 between 0.2 and 1"
    assert "nan" not in (drawn + printed).lower()
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


# The ends of an interval, the smallest difference that would matter.
VERDICTS = """
0.01 0.09 0.03 -> holds here
0.001 0.02 0.03 -> does not hold here: smaller than 0.03
-0.02 0.02 0.03 -> does not hold here: smaller than 0.03
-0.09 -0.01 0.03 -> does not hold here: below 0
-0.09 0.02 0.03 -> not decided
0.01 0.09 0 -> holds here
-0.01 0.01 0 -> not decided
-0.09 -0.01 0 -> does not hold here: past the threshold
"""


def test_verdicts_by_hand():
    """A finding holds if all of its claims do, and says why if it does not."""
    for values, words in rows_of(VERDICTS):
        low, high, least = map(float, values.split())
        assert findings.verdict(findings.Estimate(0, low, high, ""), least) == words
        assert findings.decide(["holds here", words]) == words
    assert findings.decide(["not decided", words]) == words
    assert findings.decide([words, "not run yet"]) == "not run yet"


# Run, seed, the share of right answers in the end, samples in a step, machine.
MADE_UP = """
g-rl 0 0.7 1 a
g-rl 1 0.9 1 a
g-rl 2 0.7 1 a
c-rl 0 0.6 2 a
c-rl 1 0.65 2.2 a
c-rl 2 0.6 9 b
score 0 0.6 1 a
g-rl 0 0.8 1 b
"""
# Second attempts at the start, of 512 problems.
AT_START = {"size": 512, "i_to_c": 0.03, "c_to_i": 0.01, "delta": 0.02}


def a_line(run, seed, answers, samples, machine):
    """A line of findings.jsonl."""
    answers = float(answers)
    evaluations = []
    for step in range(0, 61, 15):
        numbers = dict.fromkeys(findings.WORDS, answers if step else 0.5)
        costs = {"samples": step * float(samples), "seconds": 1.0}
        evaluations.append({"step": step, **costs, **numbers})
    evaluations[0] |= AT_START
    recalled = {kind: dict.fromkeys(("solving", "checking"), [0, 1]) for kind in findings.KINDS}
    recalled["apart"] = [0.5, 1 - answers]
    recalled["learned"] = dict.fromkeys(findings.WHO, [0, answers])
    return {
        "run": run,
        "seed": int(seed),
        "command": findings.command_of(run, seed),
        "commit": "c0ffee",
        "processor": machine,
        "minutes": 1,
        "evaluations": evaluations,
        "recalled": recalled,
    }


def made_up_lines(path):
    """The file of them as it is read: with a line of a command that has since been changed."""
    made_up = [a_line(*row.split()) for [row] in rows_of(MADE_UP)]
    outdated = a_line("g-rl", 3, 0.1, 1, "a")
    outdated["command"] += " --lr 1"
    write(path, [*made_up, outdated])
    with patch(findings, "LINES", path):
        return findings.read_lines()


# Metric, run, other run, its step, step -> what is said of the claim, in part.
CLAIMS = """
generation g-rl c-rl 30 30 -> answers: g-rl above c-rl: +0.150 (-0.065 to +0.365), 3 of 32
generation g-rl g-rl 30 0 -> g-rl at the start above g-rl: -0.267 (-0.554 to +0.020), 3 of 32
generation g-rl g-rl 0 15 -> g-rl at step 15 above g-rl at the start: +0.267 (-0.020
generation g-rl c-rl samples 30 -> above c-rl after 1.05 times as many samples (step 15): +
generation g-rl g-rl samples 30 -> 1.00 times as many samples (step 30): +0.000
generation c-rl g-rl samples 30 -> above g-rl after 0.95 times as many samples (step 60): -
delta score below 30 0 -> delta: score at the start below 0.05: 0.020 (0.003 to 0.037), 512 problems
kept g-rl above 30 30 -> given again: g-rl above 0.05: 0.767 (0.480 to 1.054), 3 of 32
kept g-rl gc-rl samples 30 -> g-rl above gc-rl after as many samples: -, 0
"""


def test_claims_of_findings_by_hand(tmp_path):
    """Runs of one seed are compared: differences 0.1, 0.25 and 0.1, and t is 4.303 for two degrees
    of freedom. At equal cost the median ratio of pairs of one processor counts: of 30 / 30 and 33 /
    30, or of 60 / 60 and 60 / 66 where there is no later step. At the start of a policy the sum of
    both kinds of change has the variance 0.03 + 0.01 - 0.02^2: 1.96 sqrt(0.0396 / 512) = 0.017."""
    lines_there = made_up_lines(tmp_path / "lines")
    for asked, said in rows_of(CLAIMS):
        metric, run, other, other_step, step = asked.split()
        if other_step != "samples":
            other_step = int(other_step)
        threshold = 0.05 if other in ("above", "below") else None
        claim = findings.Claim(
            metric, run, other, findings.ALL, int(step), other_step, threshold=threshold
        )
        words, shown, of, _ = findings.row_of(lines_there, claim)
        assert said in f"{words}: {shown}, {of}"
    [line, *_] = lines_there.values()
    line["evaluations"][2]["generation"] = None
    close(findings.differences(lines_there, findings.FINDINGS["F1"][2]), [0.25, 0.1])


def test_findings(tmp_path):
    """From the lines alone: what is missing is run, tables are made and pictures drawn; lines of
    another command count for nothing."""
    lines_there = made_up_lines(tmp_path / "lines")
    missing = findings.missing_runs(lines_there)
    assert {("c-rl", 3), ("g-rl", 3)} < set(missing)
    assert not {("g-rl", 0), ("c-rl", 1), ("c-rl", 2)} & set(missing)
    why = {"F1": "since so", "At equal cost": "and so"}
    with mock.patch.multiple(findings, LINES=tmp_path / "lines", FOLDER=tmp_path, WHY=why):
        printed = printed_by(findings.main)
    rows = re.findall(r"\n\| [FS]\d \|.*", printed)
    assert len(rows) == 13
    assert "answers: g-rl above c-rl: +0.150 (" in rows[0] and rows[0].endswith("| since so |")
    assert "## At equal cost\n\nand so\n\n|" in printed
    assert "0.100 apart (0.100 at most)" in printed and "g-rl end 0.133 apart" in printed
    assert "| g-rl: 3 seeds | 0.767 |" in printed and "| 0.23 | -1.00, +1.00 (1.00) |" in printed
    assert "| g-rl: seed 1 | 0.900 |" in printed and "| c-rl: seed 1 |" in printed
    ElementTree.parse(tmp_path / "findings.svg")
    ends = (tmp_path / "runs.md").read_text()
    assert "| g-rl | 3 | 0.767 (0.700 to 0.900) |" in ends and "| 30 | 1 | c0ffee |" in ends


def test_forest_of_verdicts(tmp_path):
    """Blue holds, orange does not, grey is not decided: also where it is too small to matter."""
    rows = [("F1. A finding",)]
    for verdict in ("holds here", "smaller than 0.03", "below 0", "not decided", "not run yet"):
        rows.append(("a claim", verdict, (0.01, 0.005, 0.02), 0.03))
    chart.forest(tmp_path / "f.svg", rows, "title")
    drawn = (tmp_path / "f.svg").read_text()
    assert '<path d="M198.5,84H404.0"/>' in drawn, "0 is at 130, 0.02 at 404"
    colours = re.findall('<g class="(c.)">', drawn)
    assert colours == ["c0", "c1", "c1", "c6", "c6"]


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


def test_arithmetic_for_a_real_model(tmp_path):
    """No question is in two files, all results are exact, and so is what the critiques find; they
    are all that is learned."""
    arithmetic.make(tmp_path)
    asked = lines(tmp_path / "train.jsonl") + lines(tmp_path / "held_out.jsonl")
    critiques = lines(tmp_path / "critiques.jsonl")
    problems = {data.to_problem(row) for row in asked}
    assert len(problems) == 700
    examples = demonstrations.load_demonstrations(tmp_path / "critiques.jsonl", problems)
    assert len(examples) == 128
    for row in asked + critiques:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        result = str(worked.calculate(expression, {}))
        if "answer" in row:
            assert row["answer"] == result
        else:
            assert row["critique"].startswith(f"{expression} = {result}:")
            assert (row["label"] == "right") == is_correct(row["response"], result)
