"""Tests of details/log.py, details/cost.py and figures/samples.py, and of what programs print."""

import contextlib
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from unittest import mock

import sample
import train
from details import cost, data, log
from details.errors import printable
from figures import samples as samples_jsonl
from reward import Pair
from rollout import generate
from tests.helpers import (
    ON_TOY,
    SEVEN,
    TOY,
    a_sample,
    base,
    close,
    fails,
    lines,
    model_of,
    patch,
    printed_by,
    rows_of,
    trained,
)
from tests.test_runs import timeless


def test_what_is_shown_belongs_together(tmp_path):
    """A response and a critique of that response, from a group that something is learned from."""
    pair = Pair(SEVEN, "b", False)
    samples = [
        a_sample("a", "response", group=1, advantage=1.0, right=True),
        a_sample("b", "response", group=1, advantage=-1.0),
        a_sample(
            "c", "critique", group=2, advantage=1.0, pair=Pair(SEVEN, "an earlier one", False)
        ),
        a_sample("d", "critique", group=3, pair=pair),
        a_sample("e", "critique", group=4, advantage=-1.0, pair=pair, says_right=True),
    ]
    settings = tmp_path, {"samples": 0}, base()[1], 3, samples
    printed = printed_by(lambda _: samples_jsonl.log_samples(*settings, show=True))
    assert "[response is wrong, reward 0, advantage -1.00]\nb\n" in printed
    assert "[critique says right, reward 0, advantage -1.00]\ne\n" in printed
    first, *rows = lines(tmp_path / "samples.jsonl")
    assert first["questions"] == [["q", "rw"]]
    assert [row["parent"] for row in rows] == [None, None, None, "3.1", "3.1"]
    assert rows[2]["response"] == "an earlier one"


def samples_of(out):
    """{name: row} of a run's samples."""
    return {row["id"]: row for row in lines(out / "samples.jsonl") if "id" in row}


def test_samples_of_a_run(tmp_path):
    """Whole questions, token by token; a critique names its response. Where there is no room, a
    step that evaluates keeps one. Each evaluation asks the same eight questions, and training is
    what it is without them."""
    flags = "--steps 1 --questions 4 --n 4 --eval-size 10 --lr 1e-3"
    trained(tmp_path / "run", flags)
    with patch(train, "log_probes"), patch(samples_jsonl, "ROOM", 0):
        trained(tmp_path / "less", flags)
    assert timeless(tmp_path / "run") == timeless(tmp_path / "less")
    named = samples_of(tmp_path / "run")
    groups = Counter()
    for row in named.values():
        assert "".join(row["tokens"]) == row["completion"] + "<|end|>"
        assert len(row["tokens"]) == len(row["logprobs"])
        before = named.get(row["parent"], row)
        assert before["question"] == row["question"]
        if row["role"] == "critique":
            assert row["response_right"] == before["right"]
        if "probe" not in row:
            groups[row["role"], row["question"], row["parent"]] += 1
            assert (row["log_ratios"] is None) == (row["advantage"] == 0)
    assert len(named) - sum(groups.values()) == 2 * 3 * 8
    assert {count % 4 for count in groups.values()} == {0}
    kept = samples_of(tmp_path / "less").values()
    [question] = {row["question"] for row in kept}
    assert len(kept) == sum(groups[key] for key in groups if key[1] == question)


def test_the_text_of_each_token():
    """Where several tokens are one character, the last has it."""
    _, tokenizer = base()
    text = "7 \u6f22\u00e9 x"
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    texts = samples_jsonl.token_texts(tokenizer, tokens)
    assert texts == ["7", " ", "", "", "\u6f22", "", "\u00e9", " ", "x"]


def test_printed_text_is_safe_for_a_terminal(tmp_path):
    """Control characters are spelled out, new lines are not; in errors too."""
    assert printable("a\x1b[2J\n") == "a\\x1b[2J\n"
    (tmp_path / "data").write_text(r'{"\u001b[2J": 1}')
    fails(r"\x1b[2J", data.run_command, data.load_problems, tmp_path / "data")


# A row of metrics, and what is printed of it.
ROW = """{"step": 3, "t1": 0.25, "critique/accuracy": 0.5, "t2": 1.0, "seconds/step": 2.0,
"eval/generation": 0.75, "eval/critique": 0.625, "eval/t2": null, "eval/truncated": 0.125}"""
PRINTED = """step answers critiques attempt 2 no spread truncated seconds
3 0.250 0.500 1.000 - - 2.000
3 held out 0.750 0.625 - - 0.125 -"""


def test_lines_of_a_step():
    """A line of numbers of the step, and one of the evaluation in the same columns."""
    printed = printed_by(lambda _: log.show_step(json.loads(ROW)))
    assert printed.split() == PRINTED.split()


CANNOT_LEARN = """
{"truncated": 1.0} -> all completions were truncated; raise --max-new-tokens
{"truncated": 0.5, "unclosed": 0.5} -> no thinking ends; a --model whose chat template
{"critique/pairs": 0, "groups/no_spread": 0.5} -> no question has right and wrong
{"critique/unreadable": 1.0} -> no critique ends in a judgement
{"critique/truncated": 1.0, "critique/unreadable": 1.0} -> all critiques were truncated
{"response/truncated": 1.0, "critique/pairs": 0} -> all responses were truncated
{"traces": 0} -> no second attempt is right
{"groups/no_spread": 1.0, "response/accuracy": 1.0} -> all completions are right
{"groups/no_spread": 1.0, "t1": 0.0} -> all completions are wrong
{"groups/no_spread": 1.0, "response/accuracy": 0.5} -> inside each group
"""


def test_a_run_that_cannot_learn_says_why():
    """Cause and remedy in one line; nothing where something can be learned."""
    for metrics, words in rows_of(CANNOT_LEARN):
        line = log.why_nothing_is_learned(json.loads(metrics))
        assert "cannot learn: " in line
        assert words in line
    assert log.why_nothing_is_learned({"groups/no_spread": 0.9, "truncated": 0.9995}) is None


def test_cost_of_a_step():
    """The clock ticks whenever it is read: seven times while two samples are drawn, of which two
    seconds are the prefill's. The next step begins at 0."""
    model = model_of("Llama")
    cost.start_step()
    clock = mock.Mock()
    clock.perf_counter.side_effect = itertools.count()
    with patch(cost, "time", clock), cost.timed("sample"):
        generate(model, [[5, 6], [7, 8, 9]], max_new_tokens=3, stop=())
    metrics = cost.step_cost(tokens=14)
    expected = {"seconds/step": 7, "seconds/prefill": 2, "tokens/s": 2, "samples": 2}
    assert metrics | expected == metrics
    cost.start_step()
    assert not cost.COST


def test_the_end_of_a_run(tmp_path):
    """It says what came of it and where its page is, and returns its numbers without taking signals
    away from whoever called it. sample.py --eval gives the last numbers again: of the run's
    held-out problems, exam and limit, by which some of the completions are truncated."""
    run = tmp_path / "my run"
    before = signal.getsignal(signal.SIGINT)
    flags = f"{ON_TOY} --steps 1 --questions 4 --eval-size 16 --max-new-tokens 24 --lr 1e-2 --out"
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        last = train.main([*flags.split(), str(run)])
        numbers = sample.main(["--eval", "--model", str(run)])
    printed = stream.getvalue()
    assert signal.getsignal(signal.SIGINT) == before
    first, end = lines(run / "metrics.jsonl")
    assert end == last
    answers = f"{100 * first['eval/generation']:.0f}% -> {100 * last['eval/generation']:.0f}%"
    assert re.search(
        rf"\nanswers {answers}, critiques \d+% -> \d+% \(16 held-out problems", printed
    )
    assert f"in a browser: {run}/run.html\n" in printed
    assert (run / "run.html").exists()
    assert f"try: python sample.py --model '{run}' " in printed
    assert numbers == {name: last[name] for name in last if name.startswith("eval/")}
    assert numbers["eval/critique_truncated"] > 0 != numbers["eval/generation"]


def test_a_pipe_that_closes_ends_quietly():
    """`python sample.py ... | head -1`: no traceback."""
    command = f"{sys.executable} sample.py --n 1 'Compute 1+1 modulo 10.' | head -1"
    done = subprocess.run(command, shell=True, cwd=TOY.parent, capture_output=True, text=True)
    assert done.stdout == "QUESTION\n"
    assert done.stderr == ""


def test_the_readmes_notebook_runs():
    """The lines of Python in details/README.md run as they stand."""
    text = (TOY.parent / "details/README.md").read_text(encoding="utf-8")
    code = text.partition("one by one:\n\n")[2].partition("\n\n")[0]
    names = {}
    with contextlib.chdir(TOY.parent):
        exec(textwrap.dedent(code), names)
    close(names["loss"].detach(), -1.0, 1e-4)  # on policy the ratio is 1, and so is the advantage
