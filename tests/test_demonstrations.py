"""Tests of details/demonstrations.py: reading demonstrations for a cold start."""

from critique import critique_prompt, solve_prompt
from details import demonstrations
from tests.helpers import fails, write

SOLVED = {"question": "q", "response": "r"}
CALLED_WRONG = SOLVED | {"critique": "no\nConclusion: wrong"}

# What is learned of them.
SOLVING = (solve_prompt("q"), "r")
CALLING_IT_WRONG = (critique_prompt("q", "r"), "no\nConclusion: wrong")


def load_shown(folder, *rows, held_out=()):
    """`load_demonstrations` from a file of these rows."""
    path = write(folder / "shown.jsonl", rows)
    return demonstrations.load_demonstrations(path, held_out)


def test_demonstrations_of_solving_and_of_criticising(tmp_path):
    """A right response is learned, labelled or not, and its critique; a wrong one is shown to the
    critic only, and one of a row that says so. Held-out questions are left out."""
    assert load_shown(tmp_path, SOLVED) == [SOLVING]
    for label in ("right", True):
        row = SOLVED | {"label": label}
        assert load_shown(tmp_path, row) == [SOLVING]
    assert load_shown(tmp_path, CALLED_WRONG) == [CALLING_IT_WRONG]
    row = CALLED_WRONG | {"label": False}
    assert load_shown(tmp_path, row) == [CALLING_IT_WRONG]
    other = {
        "question": "p",
        "response": "s",
        "critique": "Conclusion: right",
    }
    for only, count in ((False, 2), (True, 1)):
        row = other | {"critique_only": only}
        assert len(load_shown(tmp_path, row)) == count
    examples = load_shown(tmp_path, other, SOLVED, CALLED_WRONG, held_out={" Q"})
    assert len(examples) == 2
    assert (solve_prompt("p"), "s") in examples
    assert (critique_prompt("p", "s"), "Conclusion: right") in examples


def test_bad_demonstrations_are_refused(tmp_path):
    """With the line they stand on; so is a file of which nothing is left to learn."""
    for words, row in (
        ("contradicts", CALLED_WRONG | {"label": "right"}),
        ("Conclusion", SOLVED | {"critique": "hm"}),
        ("response", {"question": "q"}),
        ("object", [1]),
        ("critique_only", SOLVED | {"critique_only": "yes"}),
        ("nothing to learn", SOLVED | {"critique_only": True}),
        ("nothing to learn", SOLVED | {"label": "wrong"}),
    ):
        fails("jsonl:2|" + words, load_shown, tmp_path, SOLVED, row)
    for label in ("maybe", 0, 1, []):
        row = SOLVED | {"label": label}
        fails(f"jsonl:2|label|{label}", load_shown, tmp_path, SOLVED, row)
    fails("no demonstration|held out", load_shown, tmp_path, SOLVED, held_out={"q"})
