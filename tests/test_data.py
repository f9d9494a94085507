"""Tests of details/data.py: files of problems and pairs, held-out problems."""

import gzip

import torch

import train
from details import data
from details.data import from_pair
from reward import Pair, Problem
from tests.helpers import fails, patch, printed_by, problems, rows_of, trained, used, write

GOOD_FILE = """{"question": "1+1?", "answer": "so #### 2", "score": NaN}

{"question": "2+2\u2028?", "answer": 4}
{"question": "1/0?", "answer": Infinity}
"""


# A line of a file, and what the error must name.
BAD_ROWS = r"""
{oops} -> one JSON object a line
question,answer -> one JSON object a line
[1] -> object
{"question": "x"} -> no field 'answer'
{"question": "x", "answer": null} -> answer
{"question": "x", "answer": true} -> answer
{"answer": "x"} -> no field 'question'
{"question": " ", "answer": "x"} -> question
{"question": 5, "answer": "x"} -> question
{"question": "a\ud800", "answer": "x"} -> surrogates
{"solution": "1"} -> no field 'question'|solution
{"prompt": "q", "solution": "1"} -> no field 'answer'|prompt, solution
{"question": NaN, "answer": "1"} -> question
{"question": "q", "answer": "\frac{3}{7}"} -> double the backslash
{"question": "\beta?", "answer": "1"} -> double the backslash
{"question": "a\u001f", "answer": "1"} -> double the backslash
"""


# The bytes of a file, and the same.
BAD_FILES = r"""
\x1f\x8b\x08\x00 -> one JSON object a line|gzip
PAR1\x15 -> one JSON object a line|Parquet
\x28\xb5\x2f\xfd\x24 -> zstd: unpack
\xfd7zXZ\x00 -> xz: unpack
\xff\xfe{\x00"\x00 -> UTF-8 is expected|UTF16: unpack or convert
{\x00"\x00 -> UTF-8 is expected|UTF16: unpack or convert
{"question": "\xcb\xe3"} -> GBK|convert it by iconv
{"question": "\xff", "answer": "1"} -> UTF-8
[{"question": "q", "answer": "1"}] -> one JSON object a line|array
{\n"question": "q",\n"answer": "1"} -> one JSON object a line
"""


def test_bad_lines_are_named(tmp_path):
    """What cannot be read is refused with file, line and field; of other formats one line says what
    is expected and what was found. So is a file of blank lines."""
    good = GOOD_FILE.encode()
    for line, words in rows_of(BAD_ROWS):
        fails("data.jsonl:5:|" + words, read_problems, tmp_path, good + line.encode())
    for text, words in rows_of(BAD_FILES):
        content = text.encode().decode("unicode_escape").encode("latin-1")
        fails("data.jsonl:1:|" + words, read_problems, tmp_path, content)
    fails("data.jsonl:1:", read_problems, tmp_path, b'{"":' * 100_000)
    fails("data.jsonl|empty", read_problems, tmp_path, b"\n \n")


def read_problems(folder, content):
    """(question, answer) of the problems in a file with that content."""
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return [(problem.question, problem.answer) for problem in data.load_problems(path)]


def test_data_files(tmp_path):
    """Blank lines, a byte order mark, other ends of lines and numbers as answers are all right, and
    so is NaN in a field that is not used; a problem whose answer is infinite is left out. A line
    separator of Unicode ends no line. The field `problem`, which is common, is read as
    `question`."""
    found = [("1+1?", "so #### 2"), ("2+2\u2028?", "4")]
    assert read_problems(tmp_path, GOOD_FILE.encode()) == found
    windows = "\ufeff" + GOOD_FILE.replace("\n", "\r\n").replace("question", "problem")
    assert read_problems(tmp_path, windows.encode()) == found


# References that no response can reach, and some that one can; ¶ is a new line.
UNREACHABLE = r"""
proof
notfound
NaN
Infinity
-Infinity
inf
1e400
$
####
\boxed{}
He has 2+3=5. A: 5
Let n be odd. Then it is a square.
Let n = 2k.¶¶we are done
We proceed by induction. The base case is clear.
The first player wins whenever the number is odd
"""
REACHABLE = """
So the first player has won with a lead of #### 42
5 apples
x^2 + 1
B
Alice
2 : 3
12 hours and 30 minutes
"""


def test_problems_without_an_answer_are_left_out(tmp_path):
    """In data sets `proof` and prose stand where an answer is missing. A line counts the problems
    that are left out; a file that has no others is refused."""
    good = [Problem(answer, answer) for [answer] in rows_of(REACHABLE)]
    bad = [Problem("too long", "a" * 2000)]
    bad += [Problem("q", answer) for [answer] in rows_of(UNREACHABLE)]
    path = write(tmp_path / "data.jsonl", bad + good)
    printed = printed_by(lambda argv: print(data.load_problems(*argv) == good), "", path)
    assert printed == f"{path}: 16 lines left out: no response to them can be judged right\nTrue\n"


def test_files_of_pairs(tmp_path):
    """A pair comes back from its JSON object, whatever blanks a response is; its label is true or
    false."""
    pair = Pair(problems(1)[0], "\f", True)
    assert data.to_pair(from_pair(pair)) == pair
    path = write(tmp_path / "data.jsonl", [pair, from_pair(pair) | {"label": "right"}])
    fails("data.jsonl:2|label", data.read_jsonl, path, data.to_pair)


def split(folder, *files):
    """The letters that are trained on, and those held out, of files with a problem for each."""
    paths = []
    for letters in files:
        paths.append(write(folder / letters, [Problem(letter, "1") for letter in letters]))
    return ["".join(p.question for p in part) for part in data.load_split(*paths)]


# A file, or one and another of held-out problems; what is trained on, what is held out.
SPLITS = """
abcdebabcdeb -> abcdbabcdb -> e
abcdefghijklmnopqrstabcdefghijklmnopqrst -> abcdefghijklmnopqrabcdefghijklmnopqr -> st
abcdebabcdeb Bxyzb -> acdeacde -> Bxyz
"""


def test_held_out_questions_are_not_trained_on(tmp_path):
    """Without other data the last tenth of the different questions is held out, once. Of a file of
    held-out problems every question is taken out of the training problems."""
    for names, *parts in rows_of(SPLITS):
        assert split(tmp_path, *names.split()) == parts


# Every second one is written like the one before it, but for the last.
ALIKE = """
Sara 's 7 - 6 cats in the year .
sara's 7-6 cats in the year.
Ａ 5?
a5?
7-6+4+8
7+6-4+8
"""


def test_questions_are_compared_without_blanks_and_case():
    """What data sets write with other blanks, letters of another case or of full width is the same
    question; operators, signs and punctuation count."""
    assert len({data.question_key(question) for [question] in rows_of(ALIKE)}) == 4


def test_data_sets_by_name(tmp_path):
    """They are fetched, unpacked and kept. Of MBPP the tasks from 601 on are trained on; without
    --eval-data the test set is held out. Without a network one line says so, and nothing is
    written."""
    test = "assert f(2) == 4"
    sources = {
        data.GSM8K + "train.jsonl": [Problem("train", "2")],
        data.GSM8K + "test.jsonl": [Problem("test", "2")],
        data.MBPP: [
            {"text": str(n), "test_list": [test], "task_id": n} for n in (10, 11, 511, 601, 975)
        ],
        data.SETS["humaneval"]["test"]: [{"prompt": "q", "test": test, "entry_point": "f"}],
    }
    for source, rows in sources.items():
        file = tmp_path / "hub" / source
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, rows)
        if file.suffix == ".gz":
            file.write_bytes(gzip.compress(file.read_bytes()))
    nowhere = "http://127.0.0.1:9/"
    found = []
    with patch(torch.hub, "get_dir", return_value=tmp_path) as folder:
        for url in (f"file://{tmp_path}/hub/", nowhere):
            with patch(data, "GITHUB", url):
                for names in ("gsm8k", "mbpp", "mbpp humaneval"):
                    parts = data.load_split(*names.split())
                    found += [problem.question.split("\n")[0] for (problem,) in parts]
        folder.return_value = tmp_path / "empty"
        with patch(data, "GITHUB", nowhere):
            flags = f"--data gsm8k --out {tmp_path}/out"
            fails("gsm8k|cannot download", train.main, flags.split())
            fails("humaneval|cannot", used, "--eval --data humaneval")
            fails("humaneval|cannot", trained, tmp_path / "out", "--select-data humaneval")
    assert " ".join(found) == "train test 601 11 601 q train test 601 11 601 q"
    assert not list(tmp_path.rglob("empty/**/*.jsonl"))
    assert not (tmp_path / "out").exists()
