"""Tests of toy/make.py, of the files in toy/ that it wrote, of toy/planted.py and toy/sound.py."""

import random
import re
from unittest import mock

from critique import judgement
from details import data
from reward import Pair, is_correct
from rollout import load_policy
from sample import run_flags
from tests.helpers import (
    TOY,
    a_sample,
    base,
    close,
    printed_by,
    problems,
    rows_of,
    saved,
    solved,
)
from toy import make, planted, sound


def test_the_teacher_knows_arithmetic():
    """Python agrees with every answer, and the teacher finds every step of it right."""
    for problem in problems(300):
        expression = problem.question.split()[1]
        assert problem.answer == str(eval(expression) % 10)
        assert is_correct(solved(problem), problem.answer)
        teacher = make.Teacher()
        assert judgement(teacher.criticise(teacher.solve(expression))) is True


def test_the_teachers_critique_by_hand():
    """Each step is held against memory as it stands, also behind a wrong one."""
    steps = [(8, "*", 9, 5), (5, "-", 1, 4)]
    assert make.Teacher().criticise(steps) == "8*9=5:2 no\n5-1=4:4 ok\nConclusion: wrong"


def test_demonstrations_of_the_toy():
    """None is about a held-out problem, as no training problem is one; critiques end in a
    judgement."""
    held_out = {problem.question for problem in problems(512, 2, held_out=True)}
    assert held_out.isdisjoint(problem.question for problem in problems(3000))
    rng = random.Random(0)
    for index in range(500):
        messages, text = make.demonstrate(rng, late=index % 2 == 0)
        assert "Conclusion" not in text or judgement(text) is not None
        for message in messages:
            shown = re.findall(r"Compute \S+ modulo 10\.", message["content"])
            assert held_out.isdisjoint(shown)


def test_committed_problems_are_those_of_make():
    """toy/make.py writes the same problems, and chooses the harder ones among its own."""
    assert data.load_problems(TOY / "train.jsonl") == problems(make.TRAIN, 1)
    assert data.load_problems(TOY / "held_out.jsonl") == problems(make.HELD_OUT, 2, True)
    hard = data.load_problems(TOY / "hard.jsonl")
    assert len(set(problems(8 * make.TRAIN, 4)).intersection(hard)) == make.TRAIN


def test_the_committed_exam():
    """Right and wrong by turns, rightly labelled, on problems that are held out."""
    exam = data.read_jsonl(TOY / "exam.jsonl", data.to_pair)
    assert [pair.right for pair in exam] == [True, False] * (make.EXAM // 2)
    asked = set(problems(2 * make.EXAM, 3, True))
    for pair in exam:
        assert pair.right == is_correct(pair.response, pair.problem.answer)
        assert pair.problem in asked


def test_harder_problems_are_chosen(tmp_path):
    """`--hard` writes three files and says how hard they are."""
    with mock.patch.multiple(make, TRAIN=4, HELD_OUT=4, EXAM=4):
        printed = printed_by(lambda _: make.make_hard(saved(tmp_path)))
    assert "4 problems, 4 held out" in printed
    assert len(data.load_problems(tmp_path / "hard_held_out.jsonl")) == 4


def test_what_is_planted_is_recalled():
    """The toy recalls blind facts every other time in checking, and hardly ever in solving."""
    facts = planted.recalled(*base(), ("solving", "checking"))
    blind = planted.by_kind(facts)["blind"]
    assert blind["checking"] > 0.2 > blind["solving"]


# Critiques of a response whose third step is wrong, and whether their reason is right.
REASONS = """
7-6=1:1 ok|1+4=5:5 ok|5+8=9:3 no -> True
7-6=1:1 ok|1+4=5:5 ok|5+8=9:2 no -> True
7-6=1:1 ok|1+4=5:6 no|5+8=9:3 no -> False
7-6=1:1 ok|1+4=5:6 no|5+8=9:9 ok -> False
1+4=5:5 ok|5+8=9:3 no -> False
7-6=1:1 ok|1+4=5:5 ok|5+8=7:3 no -> False
It is wrong. -> False
"""
ASKED = data.to_problem({"question": "Compute 7-6+4+8 modulo 10.", "answer": "3"})
ANSWERED = Pair(ASKED, "So:\n7-6=1\n1+4=5\n5+8=9\n\\boxed{9}", right=False)


def test_a_reason_is_sound_where_it_names_the_first_wrong_step():
    """Place and step must be right, and nothing that is right may be called wrong. The share is
    that of right judgements of wrong responses; other problems have none."""
    critiques = []
    for row, expected in rows_of(REASONS):
        text = row.replace("|", "\n")
        found = sound.is_sound(ASKED.question, ANSWERED.response, text)
        assert str(found) == expected, row
        critiques.append(a_sample(text, "critique", ASKED, pair=ANSWERED, says_right=False))
    critiques[1].says_right = True
    close(sound.soundness(critiques)["sound"], 1 / 6)
    assert sound.soundness(critiques[1:2]) == {"sound": None}
    assert sound.soundness([a_sample(pair=ANSWERED)]) == {}


def test_the_first_wrong_step():
    """There is none where the teacher does not slip."""
    for problem in problems(50):
        assert planted.mistake(problem.question, solved(problem)) is None
        text = "Look again.\n" + solved(problem)
        assert planted.mistake(problem.question, text) == "format"
        assert sound.first_wrong(problem.question, text) is None


def long_make_writes_a_folder_like_the_committed_one(tmp_path):
    """The same tokenizer, a model of the same size, the same limit."""
    with mock.patch.multiple(make, STEPS=3, LATE_STEPS=2, BATCH=8, HELD_OUT=6, EXAM=4):
        printed_by(lambda _: make.make(tmp_path))
    model, tokenizer = load_policy(tmp_path, "cpu")
    toy, committed = base()
    assert model.num_parameters() == toy.num_parameters()
    assert tokenizer.chat_template == committed.chat_template
    assert tokenizer.get_vocab() == committed.get_vocab()
    assert run_flags(tmp_path) == run_flags(TOY) == {"max_new_tokens": 64}
