"""Tests of details/flags.py, and of the command lines of train.py, sample.py, figures.votes."""

import functools
import json

import rollout
import sample
from critique import correct_prompt, critique_prompt, solve_prompt
from details import flags
from figures import votes
from rollout import load_policy
from tests.helpers import (
    arguments,
    fails,
    greedy_text,
    patch,
    printed_by,
    problems,
    rows_of,
    saved,
    static_pairs,
    trained,
    used,
    write,
)

# A command line, and some of its flags.
DEFAULTS = """
 -> {"steps": 30, "lr": 2e-4, "kl": 0.0, "n": 8, "pairs": 32, "cache": 64, "no_std": false}
--data mine.jsonl -> {"data": "mine.jsonl", "eval_data": null, "exam": null, "steps": 30}
--model x -> {"steps": 200, "lr": 1e-6, "kl": 1e-3, "beta2": 0.1, "data": "gsm8k"}
--method c-rl -> {"critique_data": "static"}
--method gc-rl -> {"critique_data": "dynamic"}
--method star --n 1 -> {"n": 1}
--pairs 8 --cache 1 -> {"cache": 8}
--stage1-steps 0 --beta1 0 --clip 0 -> {"stage1_steps": 0}
--lora 4 -> {"lr": 0.002, "cold_start_lr": 0.0002}
 -> {"alpha": 2.0, "beta2": 0.25, "max_new_tokens": 64, "eval_size": 512}
--model x -> {"alpha": 10.0, "beta1": 0.01, "max_new_tokens": 512, "updates": 4, "clip": 0.2}
"""


def test_defaults():
    """A tiny model on tiny problems learns faster. The files of the toy go together: with other
    problems its held-out problems and its exam are not used, its settings are. Other models have
    the defaults of the papers, where two cores do not forbid it. C-RL criticises static pairs
    unless it is told otherwise, GC-RL its own responses."""
    for text, expected in rows_of(DEFAULTS):
        args = vars(arguments(text))
        assert args | json.loads(expected) == args


# A command line, the largest weight (that of SCoRe is beta1 + beta2), and what chooses OUT/best.
LARGEST_KL = """
 -> 0.0 -> eval/generation
--method g-rl --kl 0.5 -> 0.5 -> eval/generation
--method c-rl --kl 0.5 -> 0.5 -> eval/critique
--method score --kl 0.5 -> 0.26 -> eval/t2
--method multi-turn --kl 0.5 -> 0.01 -> eval/t2
--method star --kl 0.5 -> 0.0 -> eval/t2
--method pair-sft --kl 0.5 -> 0.0 -> eval/t2
"""


def test_largest_weight_of_a_kl():
    """0: no reference is needed, as on the toy, and where texts are learned as they stand."""
    for text, weight, metric in rows_of(LARGEST_KL):
        args = arguments(text)
        assert flags.largest_kl(args) == float(weight), text
        assert flags.selected_by(args.method) == metric, text


# A command line, and what is noted, if anything is.
NOTES = """
--beta1 0.01 -> None
--reward-right 0.6 -> cancel
--reward-right 0.6 --no-std -> None
--balance reweight -> cancel
--method star --clip 0.1 -> --clip is for g-rl c-rl gc-rl score multi-turn, not star
--method pair-sft --n 4 -> --n is for g-rl c-rl gc-rl score multi-turn star, not pair-sft
--method score --balance reweight -> --balance is for c-rl gc-rl, not score
--method g-rl --kl 0.1 --pairs 8 -> --pairs is for c-rl gc-rl pair-sft, not g-rl
--method score --no-std --beta1 0 --beta2 1 -> --no-std is for g-rl c-rl gc-rl, not score
--method multi-turn --stage1-steps 1 --beta1 0 -> --stage1-steps is for score, not multi-turn
"""


def test_what_makes_no_difference_is_noted():
    """Flags of another method; and constants of rewards, if advantages are divided by the standard
    deviation of one prompt's group."""
    for text, words in rows_of(NOTES):
        printed = printed_by(lambda argv: arguments(" ".join(argv)), text)
        assert printed.count("note") == (words != "None"), text
        assert words in printed or not printed, text


# Flags of train.py and what the error must name; a word with @ is a file, see `refuses`.
REFUSED = """
--method grpo -> --method|grpo
--frobnicate -> --frobnicate
--n 1 -> --n 1
--data @long --eval-data @long --model @no -> no line is left
--data @long --eval-data @empty -> empty.jsonl
--data @long --eval-data @good --model @no -> cannot load model|no.jsonl
--data @long --eval-data @good -> context|9+9+9
--data @no -> no.jsonl|No such file
--data @folder -> Is a directory: '/
--data humaneval -> humaneval: it has no train set
--data @bad -> bad.jsonl:2|answer
--cold-start @bad -> bad.jsonl:1|response
--cold-start @long -> --cold-start|context
--exam @bad -> bad.jsonl:1
--data @good --exam @good -> --exam|no line
--steps -1 -> --steps -1
--lr 0 -> --lr
--temperature 0 -> --temperature
--max-new-tokens 500 -> context|500
--method score --steps 3 --stage1-steps 5 -> --stage1-steps 5|3
--device nonsense -> cannot load model|nonsense
--steps many -> --steps|many
--kl nan -> --kl
--kl inf -> --kl
--pairs 2147483648 -> --pairs|below
--device meta -> cannot load model|meta
--balance any -> --balance
--critique-data any -> --critique-data
--group any -> --group
--precision any -> --precision
--pairs 0 -> --pairs 0
"""


# The same of sample.py.
UNUSED = """
--device cpu -> --help
--model @no 1+1? -> cannot load model
--model @no --eval -> held_out|--data
--eval --data @bad -> bad.jsonl:2
--eval --size 0 -> --size 0
--n 0 q -> --n 0
--eval --exam @long -> long.jsonl:1|label
@words -> context
--explain 1+1? -> --explain|--answer
--explain --eval -> give a question
Q --data x -> --data|for --eval
Q --exam x -> --exam|for --eval
Q --size 3 -> --size|for --eval
--explain Q --answer 3 --json -> --json|for --eval
Q --answer 3 -> --answer is for --explain
--explain 1+1? --answer proof -> --explain|no response can reach
\udcff -> not UTF-8
"""


# And of figures.votes.
UNVOTED = """
--device cpu -> MODEL
@no -> held_out|--data
toy --data @bad -> bad.jsonl:2
toy --data @long -> context|9+9+9
toy --n 4 --critiques 4 -> --critiques 4|--n 4
toy --n 1 -> --critiques 1|--n 1
toy --size 0 -> --size 0
"""


def refuses(folder, table, call):
    """Each command line is refused with one line before anything is written to folder/out."""
    long = {"question": "9+" * 220 + "9", "answer": "9", "response": "9" * 600}
    short = {"question": "q", "response": "1"}
    bad = [{"question": "x", "answer": "1"}, {"question": "x"}]
    named = {
        "@no": folder / "no.jsonl",
        "@folder": folder,
        "@empty": write(folder / "empty.jsonl", []),
        "@bad": write(folder / "bad.jsonl", bad),
        "@long": write(folder / "long.jsonl", [long | short] * 50 + [long]),
        "@good": write(folder / "good.jsonl", static_pairs(problems(3))),
        "@words": "x" * 5000,
    }
    for text, words in rows_of(table):
        fails(words, call, *[named.get(word, word) for word in text.split()])
        assert not (folder / "out").exists(), text


def test_bad_input_of_train(tmp_path):
    """It is refused in one line before anything is written."""
    refuses(tmp_path, REFUSED, functools.partial(trained, tmp_path / "out", ""))


def test_bad_input_of_sample(tmp_path):
    """It is refused in one line."""
    refuses(tmp_path, UNUSED, functools.partial(used, ""))


def test_bad_input_of_votes(tmp_path):
    """It is refused in one line, before anything is sampled and drawn."""
    voted = functools.partial(printed_by, votes.main, "--out", tmp_path / "out")
    with patch(votes, "respond", side_effect=AssertionError("sampled")):
        refuses(tmp_path, UNVOTED, voted)


def test_a_question_on_the_command_line():
    """Corrected after the first critique that finds fault (of these three the second), after none,
    and after the greedy one: each as greedy decoding has it. On this question they differ."""
    question = "Compute 7-4*8*8 modulo 10."
    parts = used("--n 3", question).strip().split("\n\n")
    texts = [part.partition("\n")[2] for part in parts]
    first = greedy_text(solve_prompt(question))
    expected = [question, first, *texts[2:5]]
    for help in (texts[3], None, greedy_text(critique_prompt(question, first))):
        expected.append(greedy_text(correct_prompt(question, first, help)))
    assert texts == expected
    with patch(rollout, "judgement", return_value=True):
        assert used("--n 1", question).endswith(f"critique says right\n{first}\n")


def test_sample_py_evaluates_in_the_precision_of_the_run(tmp_path):
    """The run's folder knows its --precision; that of sample.py overrides it."""
    trained(tmp_path, "--precision bf16 --steps 0 --eval-size 2")
    with patch(sample, "load_policy", wraps=load_policy) as load:
        used("--eval --model", tmp_path)
        used("--eval --precision fp32 --model", tmp_path)
    assert [call.args[2] for call in load.call_args_list] == ["bf16", "fp32"]


def test_evaluations_without_an_exam(tmp_path):
    """An exam without a pair, as a policy leaves that is always right, is sampled; of the problems
    --size takes the first. The last line is JSON."""
    write(saved(tmp_path) / "held_out.jsonl", problems(8, 2, held_out=True))
    (tmp_path / "exam.jsonl").write_text("")
    printed = used("--eval --json --size 4 --max-new-tokens 64 --model", tmp_path)
    numbers = json.loads(printed.splitlines()[-1])
    assert numbers["eval/size"] == 4
    assert numbers["eval/pairs"] > 0
