"""Tests of details/data.py: files of problems and pairs, held-out problems."""

import torch

import train
from details import data
from details.data import from_pair
from reward import Pair, Problem, is_correct
from tests.helpers import fails, patch, write

GOOD_FILE = (
    '{"question": "1+1?", "answer": "so #### 2"}\n\n{"question": "2+2\u2028?", "answer": 4}\n'
)


# A line of a file, and what the error must name.
BAD_ROWS = r"""
{oops} -> one JSON object a line
question,answer -> one JSON object a line
{"question": "x", "answer": "$"} -> no value
[1] -> object
{"question": "x"} -> no field 'answer'
{"question": "x", "answer": null} -> answer
{"question": "x", "answer": true} -> answer
{"answer": "x"} -> no field 'question'
{"question": " ", "answer": "x"} -> question
{"question": 5, "answer": "x"} -> question
{"question": "a\ud800", "answer": "x"} -> surrogates
{"prompt": "q", "solution": "1"} -> no field 'question'|prompt, solution
{"question": "q", "solution": "1"} -> no field 'answer'|question, solution
{"question": "q", "answer": NaN} -> NaN
{"question": "q", "answer": -Infinity} -> Infinity
{"question": "q", "answer": 1e400} -> not finite
{"question": "q", "answer": "NaN"} -> no value
{"question": "q", "answer": "\frac{3}{7}"} -> double the backslash
{"question": "\beta?", "answer": "1"} -> double the backslash
"""


BAD_FILES = [
    (b"\x1f\x8b\x08\x00", "one JSON object a line|gzip"),
    (b"PAR1\x15", "one JSON object a line|Parquet"),
    (b'[{"question": "q", "answer": "1"}]', "one JSON object a line|array"),
    (b'{\n"question": "q",\n"answer": "1"}', "one JSON object a line"),
    (b"\xff\xfe\x00", ""),
]


def test_bad_lines_are_named(tmp_path):
    """What cannot be read is refused with file, line and field."""
    good = GOOD_FILE.encode()
    for row in BAD_ROWS.strip().split("\n"):
        line, words = row.split(" -> ")
        fails("data.jsonl:4:|" + words, read_problems, tmp_path, good + line.encode())
    fails("data.jsonl:4:", read_problems, tmp_path, good + b"[" * 10**5)
    not_utf8 = b'{"question": "\xff", "answer": "1"}\n'
    fails("data.jsonl:4:|utf-8", read_problems, tmp_path, good + not_utf8)


def test_files_in_other_formats_are_named(tmp_path):
    """One line says what is expected and what was found."""
    for content, words in BAD_FILES:
        fails(f"data.jsonl:1:|{words}", read_problems, tmp_path, content)


def read_problems(folder, content):
    """(question, answer) of the problems in a file with that content."""
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return [(problem.question, problem.answer) for problem in data.load_problems(path)]


def test_data_files(tmp_path):
    """Blank lines, a byte order mark, other ends of lines and numbers as answers are all right; a
    line separator of Unicode ends no line. The field `problem`, which is common, is read as
    `question`."""
    found = [("1+1?", "so #### 2"), ("2+2\u2028?", "4")]
    assert read_problems(tmp_path, GOOD_FILE.encode()) == found
    windows = "\ufeff" + GOOD_FILE.replace("\n", "\r\n").replace("question", "problem")
    assert read_problems(tmp_path, windows.encode()) == found


def test_files_without_a_line_are_refused(tmp_path):
    """An empty file, no file, a folder."""
    fails("data.jsonl|empty", read_problems, tmp_path, b"\n \n")
    fails("none.jsonl|No such file", data.load_problems, tmp_path / "none.jsonl", kind=OSError)
    fails(str(tmp_path), data.load_problems, tmp_path, kind=OSError)


def test_files_of_pairs(tmp_path):
    """A pair comes back from its JSON object, also with an empty response; its label is true or
    false."""
    pair = Pair(Problem("q", "1"), "", True)
    assert data.to_pair(from_pair(pair)) == pair
    path = write(tmp_path / "data.jsonl", [pair, from_pair(pair) | {"label": "right"}])
    fails("data.jsonl:2|label", data.read_jsonl, path, data.to_pair)


def letters(path, questions):
    """A data file with a problem for each letter."""
    return write(path, [Problem(letter, "1") for letter in questions])


def split(folder, questions, other=None, size=None):
    """The letters that are trained on, and those held out."""
    path = letters(folder / "data", questions)
    if other:
        other = letters(folder / "other", other)
    trained_on, held_out = data.load_split(path, other, size)
    return "".join(p.question for p in trained_on), "".join(p.question for p in held_out)


def test_the_last_tenth_is_held_out(tmp_path):
    """Without other data the last tenth of the different questions is held out, once, and they are
    nowhere trained on, nor is what --eval-size leaves out."""
    assert split(tmp_path, "abcdeb" * 5) == ("abcdb" * 5, "e")
    assert split(tmp_path, "abcdefghijklmnopqrst" * 3, None, 1) == ("abcdefghijklmnopqr" * 3, "s")


def test_held_out_questions_are_not_trained_on(tmp_path):
    """Of a file of held-out problems every question is taken out of the training problems."""
    assert split(tmp_path, "abcdeb" * 5, "bxyz") == ("acde" * 5, "bxyz")
    fails("no problem is left", split, tmp_path, "abcdeb" * 5, "abcde")


def test_what_is_beyond_the_size_is_not_held_out(tmp_path):
    """--eval-size takes the first; the others may be trained on."""
    assert split(tmp_path, "bxyz", "abcdeb" * 5, 1) == ("bxyz", "a")


def test_gsm8k_without_a_network_fails_clearly(tmp_path):
    """One line; nothing is written."""
    hub = patch(torch.hub, "get_dir", return_value=str(tmp_path))
    with hub, patch(data, "GSM8K", "http://127.0.0.1:9/"):
        fails("gsm8k|cannot download", train.main, ["--data", "gsm8k", "--out", f"{tmp_path}/out"])
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not (tmp_path / "out").exists()


def test_gsm8k_comes_from_the_cache(tmp_path):
    """Its training file is trained on, its test file held out; answers are in its form."""
    (tmp_path / "gsm8k").mkdir()
    for name in ("train", "test"):
        write(tmp_path / f"gsm8k/{name}.jsonl", [Problem(name, "<<1+1=2>>\n#### 2")])
    with patch(torch.hub, "get_dir", return_value=str(tmp_path)):
        (trained_on,), (held_out,) = data.load_split("gsm8k")
    assert trained_on.question == "train"
    assert held_out.question == "test"
    assert is_correct("2", held_out.answer)
