"""Tests of details/demonstrations.py: reading demonstrations for a cold start."""

import json

from critique import critique_prompt, solve_prompt
from details import demonstrations
from reward import Problem
from tests.helpers import fails, rows_of, write

SOLVED = {"question": "q", "response": "r"}

# What a row has besides, and what is learned of it.
LEARNED = r"""
{} -> response
{"label": "right"} -> response
{"label": true} -> response
{"critique": "Conclusion: right"} -> critique, response
{"critique": "Conclusion: right", "critique_only": false} -> critique, response
{"critique": "Conclusion: right", "critique_only": true} -> critique
{"critique": "no\nConclusion: wrong"} -> critique
{"critique": "no\nConclusion: wrong", "label": false} -> critique
"""

# The same, and what the error must name.
REFUSED = r"""
{"critique": "no\nConclusion: wrong", "label": "right"} -> contradicts
{"critique": "hm"} -> Conclusion
{"response": null} -> response
{"critique_only": "yes"} -> critique_only
{"critique_only": true} -> nothing to learn
{"label": "wrong"} -> nothing to learn
{"label": "maybe"} -> label|maybe
{"label": 0} -> label|0
{"label": 1} -> label|1
{"label": []} -> label|[]
"""


def load_shown(folder, *rows, held_out=()):
    """`load_demonstrations` from a file of these rows."""
    path = write(folder / "shown.jsonl", rows)
    return demonstrations.load_demonstrations(path, held_out)


def test_demonstrations_of_solving_and_of_criticising(tmp_path):
    """A right response is learned, labelled or not, and its critique; a wrong one is shown to the
    critic only, and one of a row that says so. Held-out questions are left out."""
    for more, names in rows_of(LEARNED):
        row = SOLVED | json.loads(more)
        examples = {
            "response": (solve_prompt("q"), "r"),
            "critique": (critique_prompt("q", "r"), row.get("critique")),
        }
        assert load_shown(tmp_path, row) == [examples[name] for name in names.split(", ")]
    other = SOLVED | {"question": "p"}
    found = load_shown(tmp_path, SOLVED, other, SOLVED, held_out=[Problem(" Q")])
    assert found == [(solve_prompt("p"), "r")]
    test = "assert f(2) == 5"
    [(asked, _)] = load_shown(tmp_path, SOLVED | {"test_list": [test]})
    assert asked == solve_prompt("q\nIt must pass these tests:\n" + test, True), "as RL asks it"


def test_bad_demonstrations_are_refused(tmp_path):
    """With the line they stand on."""
    for more, words in rows_of(REFUSED):
        fails("jsonl:2|" + words, load_shown, tmp_path, SOLVED, SOLVED | json.loads(more))
