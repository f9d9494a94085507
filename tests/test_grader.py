"""Tests of details/grader.py: a grader of the user's own; and of files of programs."""

import contextlib
from unittest import mock

import rollout
import sample
from critique import solve_prompt
from details import data, grader, programs, start
from figures import votes
from reward import Problem, outcomes
from rollout import Sampler
from tests.helpers import arguments, fails, lines, patch, printed_by, rows_of, used, write
from tests.test_programs import holds
from train import main

GRADER = """
def short(row, response):
    return len(response) <= row["most"]

def half(row, response):
    return 0.5

def picky(row, response):
    if not response: return False
    return {}["nothing"]

def raises(row, response):
    return row["none"]

def leaves(row, response):
    raise SystemExit

no_function = 7
"""
ROWS = [{"question": f"Say {word}.", "most": 30} for word in ("a", "b", "c", "d")]


@contextlib.contextmanager
def loaded(folder, function):
    """A process with that function of GRADER as its grader."""
    file = folder / "grader.py"
    file.write_text(GRADER)
    with mock.patch.dict(grader.GRADER, clear=True):
        grader.load(f"{file}:{function}")
        yield


def test_a_grader_judges_responses(tmp_path):
    """It gets the line of the data, which needs no answer, and whose question is asked as it
    stands: in training, in a run that goes on, in evaluation. A run's folder brings no grader."""
    complete = patch(Sampler, "complete", autospec=True, side_effect=Sampler.complete)
    judged_wrong = patch(rollout, "judgement", return_value=False)
    with loaded(tmp_path, "short"), judged_wrong, complete as asked:
        rows = write(tmp_path / "rows", ROWS)
        [problem, *_] = data.load_problems(rows)
        assert solve_prompt("Say a.", problem.program)[0]["content"] == "Say a."
        assert outcomes([problem] * 2, ["x" * 30, "x" * 31]) == [True, False]
        out = tmp_path / "out"
        flags = f"--grader {tmp_path}/grader.py:short --data {rows} --n 2 --eval-size 4"
        flags += f" --max-new-tokens 64 --device cpu --questions 4 --out {out}"
        for more in ("--steps 1", "--steps 2 --resume"):
            printed_by(main, flags, *more.split())
        assert lines(out / "train.jsonl") == ROWS[:3]
        for row in lines(out / "samples.jsonl"):
            fine = row["role"] == "outcomes" or row["stopped"] and len(row["completion"]) <= 30
            assert row.get("right") in (None, fine)
        numbers = used(f"--model {out} --eval --grader {tmp_path}/grader.py:short")
        assert "eval/generation" in numbers
        used(f"--model {out}", "Say a.")
        assert "Put the" not in str(asked.call_args_list)
    fails("give --grader", used, f"--model {out} --eval")
    fails("no votes", votes.main, [str(out)])


# What is named as a grader, and what the error must say.
BAD_GRADERS = """
none.py:short -> No such file
grader.py -> FILE.py:function
grader.py:none -> has no 'none'
grader.py:no_function -> has no 'no_function'
grader.py:half -> 0.5 is returned
grader.py:raises -> grader.py:13|KeyError: 'none'
grader.py:leaves -> grader.py:16|SystemExit
broken.py:short -> SyntaxError
"""


def test_a_call_has_its_own_judges(tmp_path):
    """In a notebook, too: neither a grader nor --unsafe-code of the call before."""
    with loaded(tmp_path, "short"), patch(programs, "layer", "none"):
        start.set_judges(arguments(""))
        assert not grader.GRADER
        assert programs.layer is None


def test_bad_graders_are_refused(tmp_path):
    """Before any work is done: what cannot be loaded, or cannot judge the first problem."""
    rows = write(tmp_path / "rows", ROWS)
    (tmp_path / "grader.py").write_text(GRADER)
    (tmp_path / "broken.py").write_text("def short(")
    for name, words in rows_of(BAD_GRADERS):
        with mock.patch.dict(grader.GRADER, clear=True):
            flags = f"--data {rows} --grader {tmp_path}/{name} --out {tmp_path}/out"
            fails("--grader|" + words, main, flags.split())
    assert not (tmp_path / "out").exists()


def test_a_grader_that_fails_later_says_so_once(tmp_path):
    """The response counts as wrong, and the run goes on."""
    problem = Problem("Say a.", program=None, row="{}")
    with loaded(tmp_path, "picky"):
        printed = printed_by(lambda _: print(outcomes([problem] * 2, ["a", "b"])))
    assert printed.count("grader.py:10: KeyError") == 1
    assert printed.endswith("[False, False]\n")


# Rows of programs, and what the error must name.
BAD_PROGRAMS = r"""
{"question": "q", "tests": null} -> must be texts
{"question": "q"} -> no field 'answer'
{"question": "q", "tests": 5} -> must be texts
{"question": "q", "tests": ["assert f(1) == 1"], "test_imports": 5} -> must be texts
{"question": "q", "test": "assert f(1) == 1", "entry_point": 5} -> must be texts
{"question": "q", "tests": [5]} -> must be texts
{"question": "q", "tests": ["assert f(2) == "]} -> a test is not Python
{"question": "q", "tests": ["assert f(1) == 1"], "setup": "1 / 0"} -> setup fails|ZeroDivisionError
{"question": "q", "tests": ["assert f(1) == 1"], "setup": "a b"} -> setup fails|SyntaxError
{"tests": ["assert f(1) == 1"]} -> no field 'question'
"""
PUBLISHED = [
    {
        "text": "Write a function to double.",
        "test_list": "assert f(2) == 4\nassert f(N) == 6",
        "test_setup_code": "N = 3",
        "test_imports": ["import math"],
        "task_id": 11,
    },
    {
        "prompt": "def f(n):\n",
        "test": "def check(candidate):\n assert candidate(2) == 4\n assert candidate(3) == 6",
        "entry_point": "f",
        "test_imports": None,
    },
    {"question": "Write f(n), 2 n.", "tests": ["assert f(2) == 4", "assert f(3) == 6"]}
    | {"test_imports": "import math", "setup": "math.pi"},
]


def test_files_of_programs(tmp_path):
    """As MBPP and HumanEval are published, and in the form of this project. Tests that cannot be
    taken apart are left out; bad ones are named with their line."""
    unclear = {"question": "q", "tests": ["assert f(2) == ..."]}
    path = write(tmp_path / "data.jsonl", [*PUBLISHED, unclear])
    found = data.load_problems(path)
    right = "```python\nimport math\ndef f(n):\n    return n + n\n```"
    wrong = "```\ndef f(n):\n    return 4\n```"
    assert outcomes(found + found, [right] * 3 + [wrong] * 3) == [True] * 3 + [False] * 3
    assert "assert f(2) == 4" in found[0].question
    assert [data.from_problem(problem) for problem in found] == PUBLISHED
    for row, words in rows_of(BAD_PROGRAMS):
        path.write_text(row)
        fails("data.jsonl:1|" + words, data.load_problems, path)


def test_a_run_on_programs(tmp_path):
    """It goes on as it began. Answers are compared where they are kept, programs are not; sample.py
    asks a run's question for what the run asks for; votes need answers."""
    rows = write(
        tmp_path / "rows", [PUBLISHED[2] | {"question": f"Write f{i}(n)."} for i in range(4)]
    )
    out = tmp_path / "out"
    flags = f"--data {rows} --n 2 --eval-size 4 --max-new-tokens 9 --questions 4 --out {out}"
    if holds():
        for more in ("--steps 1", "--steps 2 --resume"):
            printed_by(main, flags, "--device", "cpu", *more.split())
        first, *_, last = lines(out / "metrics.jsonl")
        assert first["eval/kept"] is None
        assert last["seconds/outcomes"] > 0
        samples = lines(out / "samples.jsonl")
        [asked, *_] = [row["prompt"] for row in samples if "prompt" in row]
        assert "begins with ```python." in asked
        args = sample.parse_args(["Write g(n).", "--model", str(out)])
        assert sample.asked_problem(args, out, {}).program
        fails("programs have no answers", votes.main, [str(out)])
