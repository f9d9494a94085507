"""Tests of toy/programs.py."""

import ast
import re

from details.demonstrations import load_demonstrations
from tests.helpers import lines
from toy import programs


def passes(response, tests):
    """Do the tests hold for code that toy/programs.py wrote itself?"""
    names = {}
    exec(response.strip("`").removeprefix("python"), names)
    held = [eval(test.removeprefix("assert "), names) for test in tests]
    return all(held)


def test_functions_to_write(tmp_path):
    """No function is in two files, and half of the held-out ones are of kinds that are not trained;
    tests compare with literals; right solutions pass, and those with a slip do not."""
    programs.make(tmp_path)
    rows = []
    for name in ("train", "held_out"):
        rows += lines(tmp_path / f"{name}.jsonl")
    assert len({row["question"] for row in rows}) == 400
    kinds = []
    for row in rows:
        kinds.append(re.sub(r"\d+|\w+\(", "", row["question"]))  # without numbers and names
    trained = kinds[:200]
    unseen = [kind for kind in kinds[200:] if kind not in trained]
    assert len(unseen) == 100
    for row in rows:
        for test in row["tests"]:
            ast.literal_eval(test.rpartition(" == ")[2])
    assert len(load_demonstrations(tmp_path / "critiques.jsonl", [])) == 128 + 64
    for row in programs.rows(programs.ALONE):
        function = programs.draw([row], programs.random.Random(1))
        tests = programs.problem(function)["tests"]
        for expression in (function.right, *function.wrong):
            shown = programs.criticised(function, function.name, expression)
            assert passes(shown["response"], tests) == (shown["label"] == "right")
