"""Tests of toy/worked.py: demonstrations out of worked solutions."""

import contextlib
import random

from critique import judgement
from details import demonstrations
from details.answers import is_correct
from reward import Problem
from tests.helpers import fails, printed_by, rows_of, write
from toy import worked


def test_arithmetic_of_worked_solutions():
    """It is exact, numbers can be replaced, and nothing but arithmetic is read."""
    assert worked.calculate("10*.7+3*4-6/4", {}) == 17.5
    assert worked.calculate("2.5*(3-1)", {3: 6}) == 12.5
    for expression in ("2**9", "1/0", "", "f(2)", "(", "2;3"):
        fails("no arithmetic", worked.calculate, expression, {}, kind=ValueError)


WORK = """In May she sold 48/2 = $<<48/2=24>>24.
That makes 48+24 = <<48+24=72>>72 and 72*.5 = <<72*.5=36>>36.
#### 36"""

WORK_CHECKED = """48/2 = 24: ok
48+24 = 72: ok
72*.5 = 36: ok
Conclusion: right"""


# With 24 broken to 26, and its consequences.
BROKEN = """In May she sold 48/2 = $26.
That makes 48+26 = 74 and 74*.5 = 37.
The answer is \\boxed{37}."""


BROKEN_CHECKED = """48/2 = 24: no, the solution has 26
48+24 = 72: no, the solution has 74
72*.5 = 36: no, the solution has 37
Conclusion: wrong"""


def demonstrated(work, seeds):
    """(right row, wrong row) of a worked solution for each seed that can break it."""
    rows = []
    for seed in range(seeds):
        with contextlib.suppress(ValueError):
            rows.append(worked.demonstrate(Problem("q", work), random.Random(seed)))
    return rows


def test_two_demonstrations_of_a_worked_solution():
    """A right one with every step called ok, and a wrong one; without the annotations. The broken
    step is carried on and criticised: by hand for one of the slips; any step may be broken, and in
    several ways."""
    rows = demonstrated(WORK, seeds=40)
    assert len(rows) == 40
    seen = {}
    for right, wrong in rows:
        assert right["critique"] == WORK_CHECKED
        assert is_correct(right["response"], WORK)
        assert judgement(wrong["critique"]) is False
        assert not is_correct(wrong["response"], WORK)
        assert "<<" not in right["response"] + wrong["response"]
        seen[wrong["response"]] = wrong["critique"]
    assert seen[BROKEN] == BROKEN_CHECKED
    assert len(seen) > 10


def test_what_stands_before_the_broken_step_is_true():
    """What is called ok is what the solution says. With 240 broken the sum would be 400 all the
    same: of that no demonstration is made."""
    work = """400*3/5 = <<400*3/5=240>>240
400-240 = <<400-240=160>>160
240+160 = <<240+160=400>>400
#### 400"""
    compared = 0
    for _, wrong in demonstrated(work, seeds=20):
        for check, step in zip(wrong["critique"].split("\n"), wrong["response"].split("\n")):
            if ": no" in check:
                break
            assert check == step.strip() + ": ok"
            compared += 1
    assert compared > 5


def test_number_that_comes_out_twice():
    """It is not broken, since the text does not tell the one from the other; nor is what follows
    from it. A broken number has no signs that tell it, such as a lost comma."""
    work = """2*5 = <<2*5=10>>10
5*2 = <<5*2=10>>10
or <<100*(10+10)=2000>>2,000, so
#### 2000"""
    rows = demonstrated(work, seeds=20)
    assert rows
    for _, wrong in rows:
        assert wrong["critique"].startswith("2*5 = 10: ok\n5*2 = 10: ok\n")
        assert ", so" in wrong["response"]
        assert "2,000" not in wrong["response"]


# Solutions of which the second step cannot be carried on where the first is broken: 5 comes out
# twice; 4 is given, too; an equation has no annotation, and another one that says less.
NOT_CARRIED_ON = """
2+3=<<2+3=5>>5, 10-5=<<10-5=5>>5, 2*5=<<2*5=10>>10 #### 10
8*2=<<8*2=16>>16, so 16/4=<<16/4=4>>4 #### 4
8*2=<<8*2=16>>16, 16*3=48, 48-16=<<48-16=32>>32 #### 32
8*2=<<8*2=16>>16, 16*3=<<48=48>>48, 48-16=<<48-16=32>>32 #### 32
"""


def test_no_check_contradicts_the_text():
    """A solution is not broken where an equation would be wrong that no check calls wrong."""
    for [work] in rows_of(NOT_CARRIED_ON):
        for _, wrong in demonstrated(work, seeds=20):
            first, *_ = wrong["critique"].split("\n")
            assert first.endswith(": ok"), wrong


def test_numbers_without_a_leading_zero():
    """In `.4` it is not the 4 that is replaced."""
    work = "4/10=<<4/10=.4>>.4, .4*30=<<.4*30=12>>12 #### 12"
    wrong = [row["response"] for _, row in demonstrated(work, seeds=40)]
    assert any("4/10=1.4, 1.4*30=42\n" in response for response in wrong)


NOT_EXACT = """
none #### 3 -> empty range
5-20 = <<5-20=-15>>-15 #### -15 -> 5-20 is not -15
<<1/3=0.33>>0.33 #### 0.33 -> 1/3 is not 0.33
"""


def test_solutions_that_are_not_exact_make_no_demonstration():
    """No annotation, a negative step, a rounded one."""
    for work, words in rows_of(NOT_EXACT):
        fails(words, worked.demonstrate, Problem("q", work), random.Random(0), kind=ValueError)


def test_demonstrations_on_the_command_line(tmp_path):
    """A right response and two critiques of each worked solution, in the form that is loaded."""
    asked = [Problem(f"{number} clips?", WORK) for number in range(19)]
    asked.append(Problem("no work", "#### 3"))
    made = tmp_path / "made.jsonl"
    made.write_text(printed_by(worked.main, "", write(tmp_path / "data.jsonl", asked)))
    examples = demonstrations.load_demonstrations(made, [])
    assert len(examples) == 19 * 3
    fails("none.jsonl", worked.main, [str(tmp_path / "none.jsonl")])
