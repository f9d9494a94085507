"""The tests: `python test_all.py [NAME ...]` runs all of them, or those whose names contain a NAME;
pytest finds them too. `--long` runs the long ones instead: kills, fuzz, memory; half an hour.

They may be read as documentation: equations, advantages, loss, filter and cache, recipes, update,
sampler come first. Values are worked out by hand or come from an independent path: `model.generate`
and plain forward passes against the sampler, autograd against closed forms, an undisturbed run
against one that was killed. No network and no file outside the repository is needed.
"""

import contextlib
import copy
import functools
import io
import itertools
import json
import math
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from fractions import Fraction
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import critique
import reward
import rollout
import sample
import train
from critique import correct, judgement, solve
from details import data, demonstrations, fast, policy, runs
from details.answers import answer_key, reference_key, to_number
from details.data import InputError, Pair, Problem, from_pair, from_problem
from figures import chart, compare, findings, real, report, svamp, votes
from reward import PairCache, advantages, is_correct, leave_one_out
from rollout import Episode, Policy, Sample, encode_chat, generate, load_policy, logprobs
from toy import arithmetic, make

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much on a busy machine
patch = mock.patch.object
TOY = policy.TOY

# ---------------------------------------------------------------------------------------- helpers


def box(answer):
    """A response that consists of its final answer."""
    return f"\\boxed{{{answer}}}"


def close(a, b, tolerance=1e-6):
    """Equal in shape, and in value up to the tolerance."""
    a = torch.as_tensor(a, dtype=torch.float64)
    b = torch.as_tensor(b, dtype=torch.float64)
    assert a.shape == b.shape, f"{a.shape} is not {b.shape}"
    assert torch.allclose(a, b, rtol=0, atol=tolerance), f"{a} is not {b}"


def fails(words, call, *args, kind=InputError, **options):
    """The call must raise an error or exit with one: one line that has all of `words`, cut at |."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call(*args, **options)
    except (kind, SystemExit) as error:
        message = str(error)
        assert message not in ("", "0", "None"), repr(message)
        assert "\n" not in message
        for word in words.split("|"):
            assert word in message, f"{word!r}: {message!r}"
        return error
    raise AssertionError(f"no error that names {words!r}")


def tiny(kind):
    """A random decoder with 97 tokens; small windows, so that they matter."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if kind == "Granite":
        shape["logits_scaling"] = 2.0
    if kind in ("Gemma2", "Gemma3", "Mistral"):
        shape["sliding_window"] = 8
    if kind in ("Qwen3", "Gemma3"):
        shape["head_dim"] = 8
    if kind == "Gemma3":
        shape["num_hidden_layers"] = 4
        shape["layer_types"] = ["sliding_attention", "full_attention"] * 2
    name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{name}Config")(**shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        std = 0.3 if p.dim() > 1 else 0.1
        torch.nn.init.normal_(p, mean=p.mean().item(), std=std)
    model.get_input_embeddings().weight.data[0] = 0.0  # as that of a padding token may be
    return model


def sharing(kind):
    """A `tiny` model whose rows share their prompts, as `load_policy` sets it up."""
    model = tiny(kind)
    error, _ = rollout.sampling_error(model)
    rollout.share_prompts(model, kind, error)
    return model


def ragged(count=7, longest=30):
    """Prompts of different lengths, two of them equal."""
    rng = random.Random(1)
    prompts = []
    for length in [rng.randrange(1, longest) for _ in range(count)]:
        prompts.append([rng.randrange(3, 97) for _ in range(length)])
    return [*prompts, prompts[0]]


@functools.lru_cache
def base():
    """The toy as (model, tokenizer), loaded once."""
    return load_policy("toy", "cpu")


def toy_policy(limit=64, temperature=1.0):
    model, tokenizer = base()
    return Policy(model, tokenizer, limit, temperature)


def a_sample(stopped=True):
    """A sample of which nothing matters but whether it ended by itself."""
    return Sample([1], [1], [0.0], stopped)


def problems(count, seed=0, held_out=False):
    return make.problems(count, random.Random(seed), held_out)


def solved(problem):
    """The right solution to a toy problem, written out."""
    expression = problem.question.split()[1]
    return make.written(make.Teacher().solve(expression))


def static_pairs(asked):
    """Of each problem a right and a wrong response."""
    pairs = []
    for problem in asked:
        pairs.append(Pair(problem, solved(problem), True))
        pairs.append(Pair(problem, box("x"), False))
    return pairs


def write(path, rows):
    """A JSONL file of dicts, problems or pairs; its path."""
    to_row = {Problem: from_problem, Pair: from_pair}
    data.write_jsonl(path, [to_row.get(type(row), lambda row: row)(row) for row in rows])
    return path


def lines(path):
    """The JSON objects of a file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def printed_by(main, text="", *more):
    """Call a command line in this process; what it printed."""
    printed = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            main([*text.split(), *map(str, more)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return printed.getvalue()


ON_TOY = f"--device cpu --eval-data {TOY}/held_out.jsonl --exam {TOY}/exam.jsonl"


def trained(out, text, *more):
    """Run train.py; the rows of metrics.jsonl, and what was printed."""
    printed = printed_by(train.main, ON_TOY + " --out", out, *text.split(), *more)
    return lines(out / "metrics.jsonl"), printed


def used(text, *more):
    """Run sample.py; what it printed."""
    return printed_by(sample.main, "--device cpu " + text, *more)


def arguments(text):
    """The flags of train.py."""
    return train.parse_args(text.split())


# ----------------------------------------------------------- equations 1 to 6, and SCoRe's shaping


def test_equation_1_pays_a_right_answer():
    """R(r) is 1 for a response that ends in the right answer, and 0 for any other."""
    assert reward.response_reward(box(7), "7") == 1
    assert reward.response_reward(box(8), "7") == 0


def test_equations_2_3_5_and_6_pay_a_judgement_that_agrees_with_the_outcome():
    """Eq. 2 pays 0.7 for judging a right response right or a wrong one wrong, eq. 5 pays 0.6 and
    0.8, eq. 6 the reverse. With an accuracy E of the responses eq. 3 pays 0.35 / E and
    0.35 / (1 - E), here with E = 1/4. Anything else earns 0, a critique without a judgement that
    can be read included."""
    for says_right, is_right, equation_2, equation_3, equation_5, equation_6 in (
        (True, True, 0.7, 0.35 / 0.25, 0.6, 0.8),
        (False, False, 0.7, 0.35 / 0.75, 0.8, 0.6),
        (True, False, 0, 0, 0, 0),
        (False, True, 0, 0, 0, 0),
        (None, True, 0, 0, 0, 0),
        (None, False, 0, 0, 0, 0),
    ):
        assert reward.critique_reward(says_right, is_right) == equation_2
        assert reward.reweighted_reward(says_right, is_right, 0.25) == equation_3
        assert reward.critique_reward(says_right, is_right, 0.6, 0.8) == equation_5
        assert reward.critique_reward(says_right, is_right, 0.8, 0.6) == equation_6


def test_equation_4_pays_a_critique_that_helps_to_mend_the_response():
    """With k of m refined responses right: 0.1 k/m if it says right, 0.7 k/m if it says wrong."""
    refined = [True, False, True, True]  # k/m = 3/4
    close(reward.denoising_reward(True, refined), 0.075)  # 0.1 * 3/4
    close(reward.denoising_reward(False, refined), 0.525)  # 0.7 * 3/4
    assert reward.denoising_reward(None, refined) == 0


def test_shaped_reward_pays_what_the_second_attempt_changes():
    """SCoRe: r(y2) + alpha (r(y2) - r(y1)), here with alpha = 10."""
    for first, second, paid in (
        (0, 0, 0),
        (0, 1, 11),
        (1, 0, -10),
        (1, 1, 1),
    ):
        assert reward.shaped_reward(first, second, alpha=10) == paid


# -------------------------------------------------------------------------------------- advantages


def test_advantages_by_hand():
    """A reward minus the mean of its group, by the population's deviation of the group; or, as in
    Dr. GRPO, without the division."""
    away = torch.tensor([0.75, -0.25, -0.25, -0.25])
    close(advantages([1, 0, 0, 0], "gggg", std=False), away)
    close(advantages([1, 0, 0, 0], "gggg"), away / (math.sqrt(3) / 4), 1e-5)


def test_leave_one_out_by_hand():
    """R - mean of the others in the group. Who is alone is compared with all whose key begins the
    same, here with 1, 0 and 5. Who is alone there too has nothing to learn from."""
    groups = [("a", 1), ("a", 1), ("a", 2), ("a", 2), ("a", 2), ("b", 1)]
    close(leave_one_out([3, 0, 1, 0, 5, 9], groups), [3, -3, -1.5, -3, 4.5, 0])
    close(leave_one_out([4, 1, 0, 5], groups[1:5]), [2, -1.5, -3, 4.5])
    assert leave_one_out([1.1] * 7, ["g"] * 7).tolist() == [0] * 7, "exactly"


def test_leave_one_out_is_without_bias_in_groups_of_any_size():
    """On average over what is drawn, right with probability p, the gradient of the probability is
    that of p: E[A d log p(outcome)] = 1 for each sample, in a group of 2 as in one of 7. With a
    mean that holds the sample itself it would be 1 - 1/m."""
    p = 0.3
    for m in (2, 3, 7):
        total = 0.0
        for rewards in itertools.product((0, 1), repeat=m):
            likelihood = math.prod(p if r else 1 - p for r in rewards)
            score = 1 / p if rewards[0] else -1 / (1 - p)
            total += likelihood * score * leave_one_out(rewards, [("q",)] * m)[0].item()
        close(total, 1, 1e-6)


def test_groups_without_spread_have_no_advantage():
    """Exact zeros, though the mean of seven times 0.7 is not 0.7 in floating point."""
    assert advantages([0.7] * 7 + [1.1], [0] * 7 + [1]).tolist() == [0.0] * 8
    assert advantages([], []).shape == (0,)


def test_where_the_constants_of_equation_5_cancel():
    """The open point of the paper: divided by the deviation, the critiques of one response have the
    same advantages under eqs. 2 and 5; over a batch, or without the division, they differ."""
    # Of a right response the critiques "a", of a wrong one the critiques "b".
    equation_2 = [0.7, 0, 0.7, 0.7, 0, 0.7, 0.7, 0]
    equation_5 = [0.6, 0, 0.6, 0.6, 0, 0.8, 0.8, 0]
    for groups, std, cancel in (
        ("aaaabbbb", True, True),
        ("gggggggg", True, False),
        ("aaaabbbb", False, False),
    ):
        away = advantages(equation_2, groups, std) - advantages(equation_5, groups, std)
        assert (away.abs().max() < 1e-4) == cancel


# ---------------------------------------------------------------------------------------- the loss

# Two completions, of two tokens and of one, sampled with log-probs of 0: so the logarithms of these
# ratios are the log-probs of now. Where the mask has a 0 may stand anything.
RATIOS = torch.tensor([[1.5, 0.9], [0.7, math.nan]])
MASK = torch.tensor([[1, 1], [1, 0]])
ADVANTAGES = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])


def loss_by_hand(mask=MASK, **options):
    return train.grpo_loss(RATIOS.log(), torch.zeros(2, 2), ADVANTAGES, mask, **options)


def test_loss_is_clipped():
    """-min(ratio A, clipped ratio A), as a mean over all tokens that are not masked; nothing is
    clipped inside a wide clip."""
    loss, clipped, k3 = loss_by_hand(clip=0.2)
    # min(1.5, 1.2) = 1.2; min(0.9, 0.9) = 0.9; min(0.7 * -2, 0.8 * -2) = -1.6; three tokens
    close(loss, -(1.2 + 0.9 - 1.6) / 3)
    assert clipped.tolist() == [[True, False], [True, False]]
    assert not k3.any(), "no reference, no KL"
    loss, clipped, _ = loss_by_hand(clip=0.6)
    close(loss, -(1.5 + 0.9 - 1.4) / 3)  # 0.7 * -2 = -1.4
    assert not clipped.any()


def test_loss_has_a_weighted_kl():
    """kl k3 is added on each token: with one weight for all, or with a weight for each row."""
    # ref/new = 1, 2 and 2; k3 = ref/new - log(ref/new) - 1
    ref_logprobs = torch.tensor([[1.5, 1.8], [1.4, 9.0]]).log()
    k3_of_2 = 2 - math.log(2) - 1
    first_row_only = torch.tensor([[0.5], [0.0]])
    for kl, tokens in ((0.5, 2), (first_row_only, 1)):
        loss, _, k3 = loss_by_hand(ref_logprobs=ref_logprobs, kl=kl)
        close(k3, [[0, k3_of_2], [k3_of_2, 0]])
        close(loss, (-(1.2 + 0.9 - 1.6) + 0.5 * tokens * k3_of_2) / 3)


def test_loss_of_nothing_is_0():
    """Where all is masked there is nothing to take a mean of."""
    loss, _, _ = loss_by_hand(mask=torch.zeros(2, 2))
    assert loss == 0


def test_gradient_of_the_loss_in_closed_form():
    """-A ratio where nothing is clipped, 0 beyond the clip; and kl (1 - ref/new) from the KL."""
    torch.manual_seed(0)
    old = torch.randn(3, 4)
    ref = torch.randn(3, 4)
    mask = torch.ones(3, 4).triu()  # completions of four, three and two tokens
    values = torch.tensor([[1.0], [-0.5], [2.0]])
    moved = torch.tensor([0.5, -0.5, 0.1, 0.0])  # ratios of about 1.65, 0.61, 1.11 and 1
    new = (old + moved).requires_grad_()
    loss, _, _ = train.grpo_loss(new, old, values, mask, 0.2, ref, kl=0.3)
    loss.backward()
    ratio = moved.exp()
    inside = torch.where(values > 0, ratio < 1.2, ratio > 0.8)
    of_kl = 0.3 * (1 - (ref - old - moved).exp())
    close(new.grad, (of_kl - values * ratio * inside) * mask / 9)


# ------------------------------------------------------------------- the data filter and the cache


def answers_to(question, outcomes):
    """Pairs of a question with responses, right where `outcomes` has a 1."""
    problem = Problem(question, "1")
    return [Pair(problem, str(place), it == "1") for place, it in enumerate(outcomes)]


def test_filter_keeps_a_right_and_a_wrong_response():
    """One of each, drawn at random, from every question that has both, right before wrong; nothing
    of the others."""
    groups = [[], answers_to("a", "11"), answers_to("b", "0101"), answers_to("c", "0")]
    groups.append(answers_to("d", "10"))
    draws = set()
    for seed in range(40):
        right, wrong, *others = reward.filter_pairs(groups, random.Random(seed))
        assert right.right
        assert not wrong.right
        assert {right, wrong} < set(groups[2])
        assert others == groups[4]
        draws.add((right, wrong))
    assert len(draws) == 4, "each of two right ones with each of two wrong ones"


def test_cache_draws_without_replacement():
    """Of 25 pairs in a cache for 20, the oldest five are gone. What is drawn leaves the cache, what
    is not stays; a draw of more than there is takes all."""
    rng = random.Random(0)
    pairs = answers_to("q", "1" * 25)
    cache = PairCache(maxlen=20)
    cache.extend(pairs)
    assert list(cache) == pairs[5:]
    drawn = cache.draw(5, rng)
    assert len(set(drawn)) == 5
    assert len(cache) == 15
    rest = cache.draw(100, rng)
    assert set(drawn + rest) == set(pairs[5:])
    assert len(cache) == 0
    assert cache.draw(3, rng) == []


# --------------------------------------------------------------------------- prompts and judgement


def test_prompt_to_solve():
    """It shows the question as it is, braces included, and asks for a box."""
    (message,) = solve("How many {x}?")
    assert "How many {x}?" in message["content"]
    assert "\\boxed{}." in message["content"]


def test_prompt_to_criticise():
    """One user message, since the response is somebody's text: question, response, and the two
    conclusions to choose from."""
    parts = ["How many {x}?", "It is \\boxed{5} {", "Conclusion: right", "Conclusion: wrong"]
    (message,) = critique.critique(*parts[:2])
    assert message["role"] == "user"
    for part in parts:
        assert part in message["content"]


def test_prompt_to_correct():
    """It goes on with the conversation in which the response was given; a critique, where there is
    one, stands in the request."""
    question = "How many {x}?"
    response = "It is \\boxed{5} {"
    check = "No. {\nConclusion: wrong"
    unaided = correct(question, response)
    helped = correct(question, response, check)
    for chat in (unaided, helped):
        assert [message["role"] for message in chat] == ["user", "assistant", "user"]
        assert chat[:1] == solve(question)
        assert chat[1]["content"] == response
        assert "\\boxed{}." in chat[2]["content"]
    assert check not in unaided[2]["content"]
    assert check in helped[2]["content"]


# A judgement, or none, and a critique that has it; ¶ is a new line.
JUDGEMENTS = r"""
right: Conclusion: right
right: **Conclusion:** right
right: **Conclusion: right**
right: Conclusion: \boxed{right}
right: Conclusion: `right`!
right: Conclusion: _right_
right: - Conclusion: RIGHT
right: **Conclusion:** Right. [END]
right: Conclusion: right <end>
right: hm¶  ## Conclusion¶¶right¶
right: Conclusion: wrong ... so¶Conclusion:  right   ¶¶Thanks
right: Conclusion: maybe¶Conclusion: right
right: Conclusion: right¶Conclusion: maybe
wrong: Conclusion: wrong
wrong: conclusion:WRONG.
wrong: Conclusion - \boxed{\text{Wrong}}
wrong: # Conclusion:¶wrong
wrong: Conclusion: wrong. [/end]
wrong: 8*9=5:2¶Conclusion: wrong
wrong: Conclusion: right¶Conclusion: wrong
wrong: Conclusion: wrong¶¶Right answer: 5
wrong: Conclusion: wrong¶> Conclusion: right
wrong: Conclusion: wrong¶"Conclusion:right"
none:
none: right
none: Conclusion:
none: Conclusion: unclear
none: Conclusion: not right
none: Conclusion: rightly so
none: Conclusion: right|wrong
none: Conclusion: right or wrong
none: Conclusion: right / wrong
none: Conclusion: **right** or **wrong**
none: Conclusion: right, or wrong
none: Conclusion: right-or-wrong
none: Conclusion: the solution is right.
none: Conclusion: wrong (right answer: 5)
none: ## Conclusion¶wrong, since 3*4 is 12
none: In conclusion, it went right
none: So, conclusion: right
none: The conclusion is: wrong
none: > Conclusion: right
none: "Conclusion: right"
"""


def test_judgement_is_the_last_conclusion():
    """A line of its own, in whatever markup; prose and quotations are not read. The same with the
    line ends of Windows."""
    for row in JUDGEMENTS.split("\n")[1:-1]:
        name, text = row.split(":", 1)
        expected = {"right": True, "wrong": False, "none": None}[name]
        text = text.strip()
        assert judgement(text.replace("¶", "\n")) is expected, row
        assert judgement(text.replace("¶", "\r\n") + "\r\n") is expected, row


def test_judgement_takes_linear_time():
    """Half a million characters, or millions, that nearly match are read at once."""
    start = time.process_time()
    for hostile in (
        "conclusion",
        "conclusion ",
        "conclusion:" + "*" * 99,
        "conclusion: right [ ",
    ):
        judgement(hostile * 50_000)
    assert time.process_time() - start < 2


# ---------------------------------------------------------------------------------------- rollouts

# Of this problem nothing matters but the answer.
SEVEN = Problem("q", "7")


def test_response_that_was_cut_is_not_right():
    """Whatever number it stopped at: it has no final answer, and earns nothing."""
    ended = rollout.answered(SEVEN, a_sample(), "7", "response")
    cut = rollout.answered(SEVEN, a_sample(stopped=False), "7", "response")
    assert ended.right is True
    assert cut.right is False
    assert train.outcome_reward(ended) == 1
    assert train.outcome_reward(cut) == 0


def test_critique_that_was_cut_has_no_judgement():
    """Whatever it says so far."""
    pair = Pair(SEVEN, "7", True)
    completions = [
        (pair, a_sample(), "Conclusion: right"),
        (pair, a_sample(stopped=False), "Conclusion: right"),
    ]
    with patch(rollout, "complete", return_value=completions):
        ended, cut = rollout.criticise(None, [pair], 2, seed=0)
    assert ended.says_right is True
    assert cut.says_right is None


def test_second_attempt_goes_on_with_the_conversation():
    """Each first attempt is followed by one second attempt, whose prompt holds it."""
    one, other = problems(2, seed=6)
    first, second = rollout.two_attempts(toy_policy(), [one, other], 2, seed=5)
    assert len(first) == len(second) == 4
    for problem, a, b in zip([one, one, other, other], first, second):
        assert a.problem == b.problem == problem
        assert a.role == "attempt 1"
        assert b.role == "attempt 2"
        chat = correct(problem.question, a.text)
        assert b.sample.prompt == encode_chat(base()[1], chat)
        assert b.right == is_correct(b.text, problem.answer)


# ---------------------------------------------------------------------------- the recipes of GC-RL


def a_step(flags, cache=None, static=(), limit=64, step=1):
    """(episodes, metrics) of a recipe on the toy: eight problems, four samples per prompt, at most
    six pairs for the critic."""
    args = arguments(flags + " --n 4 --pairs 6")
    recipe = train.METHODS[args.method]
    return recipe(args, toy_policy(limit), step, problems(8, seed=8), cache, list(static))


def rewards_of(episodes):
    return [e.reward for e in episodes]


def test_g_rl_samples_responses():
    """Four to each problem, compared with each other; no critiques, and nothing for the cache."""
    cache = PairCache(maxlen=100)
    episodes, metrics = a_step("--method g-rl", cache)
    assert len(episodes) == 32
    assert len(cache) == 0
    for place, e in enumerate(episodes):
        problem = problems(8, seed=8)[place // 4]
        assert e.role == "response"
        assert e.problem == problem
        assert e.reward == is_correct(e.text, problem.answer)
    assert len({e.group for e in episodes}) == 8
    rewards = rewards_of(episodes)
    assert metrics["response/accuracy"] == sum(rewards) / 32
    solved = [any(rewards[start : start + 4]) for start in range(0, 32, 4)]
    assert metrics["pass@n"] == sum(solved) / 8


def test_gc_rl_samples_responses_and_critiques_of_them():
    """Four responses to each problem, then four critiques of each pair, for one update. Two pairs
    of each problem with right and wrong responses: six at most are criticised, the rest waits."""
    cache = PairCache(maxlen=100)
    episodes, metrics = a_step("--method gc-rl --kl 0.5", cache)
    responses = episodes[:32]
    critiques = episodes[32:]
    pairs = metrics["critique/pairs"]
    assert {e.role for e in responses} == {"response"}
    assert {e.role for e in critiques} == {"critique"}
    assert {e.kl for e in episodes} == {0.5}
    assert {e.reward for e in critiques} == {0.0, 0.7}
    assert len(critiques) == 4 * pairs
    assert len({e.group for e in responses}) == 8
    assert len({e.group for e in critiques}) == pairs
    assert metrics["critique/reward"] == sum(rewards_of(critiques)) / len(critiques)
    mixed = 0
    for start in range(0, 32, 4):
        mixed += len(set(rewards_of(responses[start : start + 4]))) == 2
    assert 2 < pairs <= 6
    assert pairs + len(cache) == 2 * mixed


def test_c_rl_passes_over_static_pairs():
    """Six of eight pairs are drawn, each once; where fewer are left, another pass is added."""
    cache = PairCache(maxlen=100)
    static = static_pairs(problems(4, seed=8))
    for left in (2, 4, 6, 0):
        episodes, metrics = a_step("--method c-rl", cache, static)
        assert [e.role for e in episodes] == ["critique"] * 24
        assert len(cache) == left
        assert "response/accuracy" not in metrics, "no response is sampled"


def test_c_rl_with_dynamic_pairs():
    """Responses are sampled, for the critic to look at; the critiques alone are learned."""
    cache = PairCache(maxlen=100)
    episodes, metrics = a_step("--method c-rl --critique-data dynamic", cache)
    assert {e.role for e in episodes} == {"critique"}
    assert 0 < metrics["response/accuracy"] < 1


def test_pairs_with_and_without_the_filter():
    """Without it any two responses to a question go to the critic; a response that was cut never
    does, and does not count in the accuracy."""
    right, wrong, cut = problems(3)
    responses = []
    for problem in (right, wrong, cut):
        for text in "abcd":
            drawn = a_sample(stopped=problem != cut)
            outcome = problem == right
            responses.append(Episode(drawn, text, "response", problem, right=outcome))
    for balance, count in (("filter", 0), ("none", 4), ("reweight", 4)):
        args = arguments(f"--balance {balance} --n 4")
        pairs = train.pairs_to_criticise(args, 1, responses, PairCache(), [])
        assert len(pairs) == len(set(pairs)) == count
        for pair in pairs:
            assert pair.problem != cut
            assert pair.right == (pair.problem == right)
            assert pair.accuracy == 0.5, "four of the eight that ended"


def test_with_whom_a_reward_is_compared():
    """By --group: with the samples of the prompt, of the question, or of the batch."""
    for group, count in (("prompt", 4), ("question", 2), ("batch", 1)):
        keys = {
            train.group_key(group, "q", "response"),
            train.group_key(group, "q", "critique", "a"),
            train.group_key(group, "q", "critique", "b"),
            train.group_key(group, "p", "response"),
        }
        assert len(keys) == count


# A right and a wrong response; one of five was right where they were drawn.
SEVEN_PAIRS = [
    Pair(SEVEN, box(7), right=True, accuracy=0.2),
    Pair(SEVEN, box(8), right=False, accuracy=0.2),
]


def rewarded_critiques(flags):
    """(episodes, metrics): each pair is judged right, wrong and not readably, and rewarded under
    the flags."""
    critiques = []
    for pair in SEVEN_PAIRS:
        for text, says_right in (("says right", True), ("says wrong", False), ("hm", None)):
            e = Episode(a_sample(), text, "critique", SEVEN, pair=pair, says_right=says_right)
            critiques.append(e)
    with patch(train, "criticise", return_value=critiques):
        return train.rewarded_critiques(arguments(flags), None, 1, SEVEN_PAIRS)


def test_critiques_are_rewarded_by_equations_2_3_and_5():
    """By eq. 2, whose constants are --reward-right and --reward-wrong; or by eq. 3, with the
    accuracy that the pairs have with them. Each pair's critiques are a group, and a judgement in
    three is right."""
    for flags, on_right, on_wrong in (
        ("", 0.7, 0.7),
        ("--reward-right 0.6 --reward-wrong 0.8", 0.6, 0.8),
        ("--balance reweight", 0.35 / 0.2, 0.35 / 0.8),
    ):
        critiques, metrics = rewarded_critiques(flags)
        close(rewards_of(critiques), [on_right, 0, 0, 0, on_wrong, 0])
        assert len({e.group for e in critiques}) == 2
        assert metrics["critique/accuracy"] == 1 / 3
        assert "refined/accuracy" not in metrics


def test_critiques_are_rewarded_by_equation_4():
    """--denoise 2: two refined responses with each critique in view that has a judgement; what they
    earn is added to equation 2."""
    refined_answers = [7, 7, 7, 9, 9, 9, 7, 9]  # k/m = 1, 1/2, 0, 1/2

    def complete(policy, items, chats, n, seed):
        assert n == 2
        expected = []
        for pair in SEVEN_PAIRS:
            expected.append(correct("q", pair.response, "says right"))
            expected.append(correct("q", pair.response, "says wrong"))
        assert chats == expected
        completions = []
        for place, answer in enumerate(refined_answers):
            completions.append((items[place // 2], a_sample(), box(answer)))
        return completions

    with patch(rollout, "complete", complete):
        critiques, metrics = rewarded_critiques("--denoise 2")
    of_right = [0.7 + 0.1 * 1, 0 + 0.7 / 2, 0]
    of_wrong = [0 + 0.1 * 0, 0.7 + 0.7 / 2, 0]
    close(rewards_of(critiques), of_right + of_wrong)
    assert metrics["refined/accuracy"] == 0.5


# ------------------------------------------------------------------ the recipes of self-correction


def attempts(*rows, second_stopped=True):
    """First and second attempts of (first text, is it right, second text, is it right)."""
    first = []
    second = []
    for first_text, first_right, second_text, second_right in rows:
        a = Episode(a_sample(), first_text, "attempt 1", SEVEN, right=first_right)
        b = Episode(a_sample(second_stopped), second_text, "attempt 2", SEVEN, right=second_right)
        b.first = a
        first.append(a)
        second.append(b)
    return first, second


# Four first attempts and the second attempts after them.
FIRST_RIGHT = [False, False, True, True]
SECOND_RIGHT = [False, True, False, True]

SCORE = "--method score --stage1-steps 1 --steps 2 --updates 1 --beta1 0.01 --beta2 0.1 --alpha 10"
MULTI_TURN = "--method multi-turn --updates 1 --beta1 0.01"


def score_step(flags, step=1):
    """(first attempts, second attempts, metrics) of a step with those outcomes. The attempts'
    tokens are real, so that they can be learned; their texts are made up."""
    (problem,) = problems(1, seed=4)
    first, second = rollout.two_attempts(toy_policy(), [problem], 4, seed=1)
    for e, right in zip(first + second, FIRST_RIGHT + SECOND_RIGHT):
        e.text = box(problem.answer) if right else box("x")
        e.right = right
        e.sample.stopped = True
    with patch(train, "two_attempts", return_value=(first, second)):
        episodes, metrics = a_step(flags, step=step)
    assert episodes == first + second
    return first, second, metrics


def test_score_and_multi_turn_reward_attempts():
    """Stage I rewards the second attempt and holds the first to the base by beta2 on top of beta1.
    Stage II rewards both, and the second is paid alpha times what it changes. Multi-turn is SCoRe
    without stages and shaping, from the first step on. Metrics have the table of the attempts."""
    for flags, step, stage, of_first, of_second, kl_of_first in (
        (SCORE, 1, {"stage": 1}, [0, 0, 0, 0], SECOND_RIGHT, 0.11),
        (SCORE, 2, {"stage": 2}, FIRST_RIGHT, [0, 11, -10, 1], 0.01),
        (SCORE + " --alpha 0", 2, {"stage": 2}, FIRST_RIGHT, SECOND_RIGHT, 0.01),
        (MULTI_TURN, 1, {}, FIRST_RIGHT, SECOND_RIGHT, 0.01),
    ):
        first, second, metrics = score_step(flags, step)
        assert rewards_of(first) == of_first
        assert rewards_of(second) == of_second
        close([e.kl for e in first], [kl_of_first] * 4)
        close([e.kl for e in second], [0.01] * 4)
        assert metrics.pop("groups/alone") == 0
        assert metrics.pop("pass@n") == 1
        assert metrics == sample.attempts_table(first, second) | stage


def test_star_keeps_right_traces():
    """A right first attempt whose second is wrong is no trace; a wrong first one is not learned.
    What is kept is learned as it stands, without a KL."""
    first, second = attempts(
        ("a", True, "A", False),
        ("b", False, "B", True),
        ("c", True, "C", True),
        ("d", False, "D", False),
    )
    with patch(train, "two_attempts", return_value=(first, second)):
        kept, metrics = a_step("--method star")
    assert [e.text for e in kept] == ["B", "c", "C"]
    assert metrics["traces"] == 2
    for e in kept:
        assert e.sample.given
        assert e.kl == 0


def test_pair_sft_learns_the_right_response_after_the_wrong_one():
    """As the second attempt in a conversation; --pairs different problems a step."""
    args = arguments("--method pair-sft --pairs 3")
    static = static_pairs(problems(6, seed=8))
    kept, metrics = train.pair_sft(args, toy_policy(), 1, [], None, static)
    assert metrics["traces"] == 3
    assert len(kept) == len({e.problem for e in kept}) == 3
    for e in kept:
        chat = correct(e.problem.question, box("x"))
        assert e.sample == rollout.demonstration(base()[1], chat, solved(e.problem))


# -------------------------------------------------------------------------------------- the update


def take_gradient():
    """What the toy's parameters hold as their gradient, as one vector; then they hold none."""
    model, _ = base()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return gradient


def gradient_of(loss):
    """The gradient of a loss for the toy's parameters."""
    base()[0].zero_grad()
    loss.backward()
    return take_gradient()


def same_gradient(seen, expected):
    """Equal up to the rounding of fp32."""
    distance = (seen - expected).norm() / expected.norm()
    assert distance < 1e-4


def plain_distributions(drawn, temperature=1.0, model=None):
    """Log-probs [tokens, vocabulary] at the place of each of a sample's tokens, by a plain pass of
    the toy or another model: an independent path."""
    model = model or base()[0]
    ids = torch.tensor([drawn.prompt + drawn.tokens])
    logits = model(ids).logits[0, len(drawn.prompt) - 1 : -1]
    return (logits / (temperature or 1.0)).log_softmax(-1)


def plain_logprobs(drawn, temperature=1.0, model=None):
    """Those of the sample's tokens [tokens]."""
    places = range(len(drawn.tokens))
    return plain_distributions(drawn, temperature, model)[places, drawn.tokens]


def plain_gradient(episodes, temperature=1.0):
    """The gradient of GRPO's loss, unclipped, of episodes that have their advantages."""
    total = 0.0
    tokens = 0
    for e in episodes:
        new = plain_logprobs(e.sample, temperature)
        ratio = (new - torch.tensor(e.sample.logprobs)).exp()
        total = total - (e.advantage * ratio).sum()
        tokens += len(e.sample.tokens)
    return gradient_of(total / tokens)


def toy_rollout(n=6, count=4, temperature=1.0):
    """Episodes of a real rollout of the toy with made-up rewards, some of them 0."""
    policy = toy_policy(temperature=temperature)
    episodes = rollout.respond(policy, problems(count, seed=3), n, seed=1)
    for place, e in enumerate(episodes):
        e.reward = [1.0, -0.5, 0.0, 2.0][place % 4]
    return episodes


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the toy's gradients and moves nothing."""

    def __init__(self):
        model, _ = base()
        model.zero_grad()
        super().__init__(model.parameters(), lr=1.0)
        self.gradients = []

    def step(self):
        self.gradients.append(take_gradient())


def updated(episodes, updates=1, grad_clip=1e9, **options):
    """(metrics, the gradients of all optimizer steps) of an update of the toy. Rewards are taken
    for advantages as they are, so that any advantage can be tried."""
    for e in episodes:
        if not e.sample.given:
            e.advantage = e.reward
    recorder = Recorder()
    with patch(train, "GRAD_CLIP", grad_clip):
        metrics = train.update(base()[0], recorder, episodes, random.Random(0), updates, **options)
    return metrics, recorder.gradients


def micro_batches_of(tokens):
    """Memory for micro-batches of the toy of so many tokens. In each of two layers the inputs and
    outputs of q, k, v and o are 128 and 128 wide, those of the other three matrices 128 and 384."""
    numbers = 2 * (4 * (128 + 128) + 3 * (128 + 384))
    return patch(fast, "memory", return_value=tokens * numbers * 4)


def test_update_has_the_gradient_of_the_loss():
    """In micro-batches, with logits in slices and without what has no advantage, it is the gradient
    that plain passes over everything find."""
    for temperature in (1.0, 0.7):
        episodes = toy_rollout(temperature=temperature)
        samples = [e.sample for e in episodes]
        # 388 tokens are in the vocabulary.
        with micro_batches_of(200), patch(rollout, "LOGITS", 30 * 388):
            assert len(fast.micro_batches(base()[0], samples)) > 3
            _, (seen,) = updated(episodes, temperature=temperature)
        same_gradient(seen, plain_gradient(episodes, temperature))


def test_update_does_not_compute_what_has_no_gradient():
    """Episodes without advantage and KL are left out; those with either are not."""
    episodes = toy_rollout(n=8, count=1)  # the third and the seventh have no advantage
    episodes[2].kl = 0.1
    with patch(train, "accumulate", wraps=train.accumulate) as accumulate:
        updated(episodes)
    computed = accumulate.call_args.args[1]
    assert computed == episodes[:6] + episodes[7:]


def test_gradient_is_clipped_to_its_largest_norm():
    """The same direction, of length GRAD_CLIP; the metric is the norm before."""
    episodes = toy_rollout()
    metrics, (seen,) = updated(episodes, grad_clip=0.01)
    expected = plain_gradient(episodes)
    same_gradient(seen, 0.01 * expected / expected.norm())
    close(metrics["grad_norm"], expected.norm(), 1e-4)


def test_mini_batches_share_out_the_prompts():
    """Two optimizer steps: each has the gradient of its own episodes, and all have their turn. The
    completions of a prompt stay together."""
    episodes = [e for e in toy_rollout() if e.reward != 0]
    with patch(train, "accumulate", wraps=train.accumulate) as accumulate:
        _, gradients = updated(episodes, updates=2)
    batches = [call.args[1] for call in accumulate.call_args_list]
    assert len(gradients) == len(batches) == 2
    prompts = []
    for seen, batch in zip(gradients, batches):
        same_gradient(seen, plain_gradient(batch))
        prompts.append({e.problem for e in batch})
    assert prompts[0].isdisjoint(prompts[1])
    assert len(batches[0] + batches[1]) == len(episodes)
    for e in episodes:
        assert e in batches[0] + batches[1]


def test_minibatch_bounds_the_prompts_of_an_optimizer_step():
    """Five prompts, at most two to a step: three steps, whatever --updates says. More updates than
    prompts are as many."""
    for flags, count in (("--minibatch 2 --updates 1", 3), ("--updates 8", 5)):
        _, recorder = learned(flags, toy_rollout(n=4, count=5))
        assert len(recorder.gradients) == count


def test_metrics_of_a_policy_that_has_moved():
    """Each log-prob is half a nat above that of sampling: a ratio of 1.65, clipped at 1.2."""
    e = toy_rollout()[0]
    e.sample.logprobs = [logprob - 0.5 for logprob in e.sample.logprobs]
    metrics, _ = updated([e])
    close(metrics["ratio/max_log"], 0.5, 1e-3)
    close(metrics["ratio/mean_log"], 0.5, 1e-3)
    assert metrics["ratio/clipped"] == 1
    metrics, _ = updated([e], clip=0.9)
    assert metrics["ratio/clipped"] == 0, "1.65 is inside 1.9"


def learned(flags, episodes, step=1, load_reference=None):
    """(metrics, optimizer) of a step's `learn` on the toy."""
    args = arguments(flags)
    policy = toy_policy()
    recorder = Recorder()
    meter = runs.Meter()
    with patch(train, "GRAD_CLIP", 1e9):
        metrics = train.learn(args, policy, recorder, load_reference, episodes, step, meter)
    return metrics, recorder


def test_rewards_are_compared_inside_groups():
    """From the rewards of each group advantages are computed, divided or not."""
    episodes = toy_rollout(n=2, count=2)
    for e, earned in zip(episodes, [1, 0, 1, 1]):
        e.reward = earned
        e.group = e.problem
    learned("", episodes)
    close([e.advantage for e in episodes], [1, -1, 0, 0], 1e-5)
    learned("--no-std", episodes)
    close([e.advantage for e in episodes], [0.5, -0.5, 0, 0])


def test_metrics_of_a_rollout_by_hand():
    """Groups without spread, cut completions, entropy, mean length of each role."""
    episodes = toy_rollout(n=4, count=2)
    nats = 0.0
    for place, e in enumerate(episodes):
        e.group = place // 3
        e.reward = 1 if place == 0 else 0  # of groups of 3, 3 and 2 the first has spread
        e.role = "a" if place < 6 else "b"
        e.sample.stopped = place != 1
        nats -= sum(e.sample.logprobs)
    metrics, _ = learned("", episodes)
    lengths = [len(e.sample.tokens) for e in episodes]
    close(metrics["groups/no_spread"], 2 / 3)
    close(metrics["truncated"], 1 / 8)
    close(metrics["entropy"], nats / sum(lengths))
    close(metrics["length/a"], sum(lengths[:6]) / 6)
    close(metrics["length/b"], sum(lengths[6:]) / 2)


def other_policy():
    """The toy with its weights moved a little."""
    torch.manual_seed(0)
    model = copy.deepcopy(base()[0])
    for p in model.parameters():
        p.data += 0.005 * torch.randn_like(p)
    return model


def episodes_with_kl(weight):
    """A rollout with a KL and no advantages; the first of it has a role of its own."""
    episodes = toy_rollout()
    for e in episodes:
        e.reward = 0.0
        e.kl = weight
    episodes[0].role = "attempt 1"
    return episodes


def test_kl_to_the_reference():
    """The gradient of k3, by plain passes, times its weight; its mean for each role as a metric."""
    reference = other_policy()
    k3 = []
    for e in episodes_with_kl(1.0):
        now = plain_logprobs(e.sample)
        away = plain_logprobs(e.sample, model=reference).detach() - now
        k3.append(away.exp() - away - 1)
    expected = gradient_of(torch.cat(k3).mean())
    for weight in (1.0, 2.0):
        metrics, (seen,) = updated(episodes_with_kl(weight), reference=reference)
        same_gradient(seen, weight * expected)
        close(metrics["kl/attempt 1"], k3[0].mean().item(), 1e-4)
        close(metrics["kl/response"], torch.cat(k3[1:]).mean().item(), 1e-4)


def test_demonstration_is_a_given_sample():
    """The chat's tokens as the prompt, the text's and EOS as the completion, and no log-probs."""
    _, tokenizer = base()
    chat = solve("Compute 1+1 modulo 10.")
    given = rollout.demonstration(tokenizer, chat, "1+1=2")
    assert given.prompt == encode_chat(tokenizer, chat)
    assert tokenizer.decode(given.tokens[:-1]) == "1+1=2"
    assert given.tokens[-1] == tokenizer.eos_token_id
    assert given.logprobs == []
    assert given.given


def test_supervised_learning_is_the_same_update():
    """Of given texts it has the gradient of their plain mean negative log-prob."""
    _, tokenizer = base()
    texts = ["1+2=3", "3*4=2\n" + box(2), "5", "1"]
    episodes = []
    total = 0.0
    tokens = 0
    for place, text in enumerate(texts):
        chat = solve(f"Compute 1+{place // 2} modulo 10.")  # two texts for each prompt
        given = rollout.demonstration(tokenizer, chat, text)
        episodes.append(Episode(given, text, "given", None))
        total = total - plain_logprobs(given).sum()
        tokens += len(given.tokens)
    loss = total / tokens
    with micro_batches_of(60):
        metrics, (seen,) = updated(episodes)
    same_gradient(seen, gradient_of(loss))
    close(metrics["loss"], loss.item(), 1e-5)
    assert metrics["ratio/max_log"] == 0
    assert {e.advantage for e in episodes} == {1.0}


def device_for(rows):
    """A device that runs out of memory when it scores more rows than that."""
    logprobs_part = train.logprobs_part

    def small(model, samples, temperature, meter):
        if len(samples) > rows:
            raise torch.OutOfMemoryError("a small device")
        return logprobs_part(model, samples, temperature, meter)

    return patch(train, "logprobs_part", small)


def test_out_of_memory_means_smaller_micro_batches():
    """They are halved until they fit, down to single rows; the gradient stays the same. What
    micro-batches before have added to it is not counted twice."""
    episodes = toy_rollout()
    _, (expected,) = updated(episodes)
    # The second call fails; the others do what they should.
    once = mock.Mock(wraps=train.logprobs_part)
    error = torch.OutOfMemoryError("once")
    once.side_effect = [mock.DEFAULT, error] + [mock.DEFAULT] * 99
    in_the_middle = patch(train, "logprobs_part", once)
    for room, device in ((10**6, device_for(5)), (10**6, device_for(1)), (200, in_the_middle)):
        with micro_batches_of(room), device:
            _, (seen,) = updated(episodes)
        same_gradient(seen, expected)


def test_out_of_memory_for_a_single_row_is_an_error():
    """Then there is nothing left to halve."""
    with device_for(0):
        fails("a small device", updated, toy_rollout()[:4], kind=torch.OutOfMemoryError)


def test_learning_rate_rises_in_three_steps():
    """A third of --lr in the first step, two thirds in the second, and then all of it."""
    episodes = toy_rollout(n=4, count=2)
    for step, rate in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.3)):
        _, recorder = learned("--lr 0.3", episodes, step)
        close(recorder.param_groups[0]["lr"], rate)


def test_reference_is_loaded_where_it_is_needed():
    """Not without a KL, and not in the first step, in which the policy is the reference: then there
    is neither a distance nor a gradient."""
    load_reference = mock.Mock(return_value=other_policy())
    learned("", toy_rollout(), 2, load_reference)
    metrics, recorder = learned("", episodes_with_kl(1.0), 1, load_reference)
    assert not load_reference.called
    assert metrics["kl/response"] < 1e-9
    assert recorder.gradients[0].abs().max() < 1e-5
    metrics, _ = learned("", episodes_with_kl(1.0), 2, load_reference)
    assert load_reference.called
    assert metrics["kl/response"] > 1e-6


def test_attempts_are_compared_with_those_of_the_same_past():
    """First attempts with the others at the question, second attempts with those that follow the
    same outcome: 11 and not 0 after a wrong first, 1 and not -10 after a right one. And that is
    learned."""
    two_thirds = [-2 / 3, -2 / 3, 2 / 3, 2 / 3]
    for flags, step, of_first, of_second, no_spread in (
        (SCORE, 1, [0, 0, 0, 0], [-1, 1, -1, 1], 1 / 3),
        (SCORE, 2, two_thirds, [-11, 11, -11, 11], 0),
        (MULTI_TURN, 1, two_thirds, [-1, 1, -1, 1], 0),
    ):
        first, second, _ = score_step(flags, step)
        metrics, recorder = learned(flags, first + second, step, lambda: base()[0])
        close([e.advantage for e in first], of_first)
        close([e.advantage for e in second], of_second)
        same_gradient(recorder.gradients[0], plain_gradient(first + second))
        close(metrics["groups/no_spread"], no_spread)
    with patch(sys.modules[__name__], "FIRST_RIGHT", [False, False, False, True]):
        _, _, metrics = score_step(SCORE)
    assert metrics["groups/alone"] == 1 / 4
    # In the batch, too, nothing is compared with what follows another outcome.
    first, second, _ = score_step(SCORE + " --group batch")
    assert {e.group[:-1] for e in second} == {("attempt 2", False), ("attempt 2", True)}


# --------------------------------------------------------------------- the tables of an evaluation


def judged(*judgements):
    """Critiques with (judgement, outcome of the response)."""
    critiques = []
    for says_right, is_right in judgements:
        pair = Pair(SEVEN, "", is_right)
        e = Episode(a_sample(), "", "critique", SEVEN, pair=pair, says_right=says_right)
        critiques.append(e)
    return critiques


def test_judgement_table_by_hand():
    """Four right and two wrong responses, judged by six critiques."""
    critiques = judged(
        (True, True),
        (True, True),
        (False, True),
        (None, True),
        (True, False),
        (False, False),
    )
    assert sample.judgement_table(critiques) == {
        "accuracy": 3 / 6,
        "p1": 2 / 4,
        "p2": 1 / 2,
        "precision": 2 / 3,
        "recall": 2 / 4,
        "unreadable": 1 / 6,
    }


FIVE_ATTEMPTS = [
    (box(1), True, box(1), True),
    (box(1), True, box(2), False),
    (box(2), False, box(1), True),
    (box(0.5), False, box(1), True),
    (box(0.5), False, "so " + box("1/2"), False),
]


def test_attempts_table_by_hand():
    """The first attempts are right in two of five cases, the second in three."""
    assert sample.attempts_table(*attempts(*FIVE_ATTEMPTS)) == {
        "t1": 2 / 5,
        "t2": 3 / 5,
        "delta": 3 / 5 - 2 / 5,
        "i_to_c": 2 / 5,
        "c_to_i": 1 / 5,
        "unchanged": 1 / 5,
        "kept": 1 / 3,  # of the three wrong answers one: 1/2 for 0.5
        "truncated": 0,
    }


def test_answer_is_kept_where_it_is_given_twice():
    """What was cut has no answer that could be kept, nor has a text that names none; and without a
    wrong first answer there is nothing to keep."""
    cut = attempts(*FIVE_ATTEMPTS, second_stopped=False)
    table = sample.attempts_table(*cut)
    assert table["kept"] == 0
    assert table["truncated"] == 0.5
    unnamed = attempts(("no answer", False, "no answer", False))
    assert sample.attempts_table(*unnamed)["kept"] == 0
    all_right = attempts((box(1), True, box(2), False))
    assert sample.attempts_table(*all_right)["kept"] is None


def greedy_text(chat):
    """What the toy makes of a chat, by the sampler alone."""
    model, tokenizer = base()
    prompt = encode_chat(tokenizer, chat)
    (drawn,) = generate(model, [prompt], max_new_tokens=64, temperature=0)
    return tokenizer.decode(drawn.tokens[:-1])


def test_evaluation_by_an_independent_path():
    """Greedy first answers; second ones that were shown the first; judgements of the own answers,
    and what is right once those that they call wrong are corrected; judgements of an exam."""
    asked = problems(12, seed=6)
    exam = sample.sample_pairs(toy_policy(), problems(40, seed=7), n=8, count=12, seed=0)
    assert [pair.right for pair in exam] == [True, False] * 6
    found = Counter()
    for problem in asked:
        question = problem.question
        first = greedy_text(solve(question))
        check = greedy_text(critique.critique(question, first))
        final = first
        if judgement(check) is False:
            final = greedy_text(correct(question, first, check))
        second = greedy_text(correct(question, first))
        found["generation"] += is_correct(first, problem.answer)
        found["t2"] += is_correct(second, problem.answer)
        found["revised"] += is_correct(final, problem.answer)
        found["self_critique"] += judgement(check) is is_correct(first, problem.answer)
    for pair in exam:
        assert pair.right == is_correct(pair.response, pair.problem.answer)
        text = greedy_text(critique.critique(pair.problem.question, pair.response))
        found["critique"] += judgement(text) is pair.right
    numbers, _ = sample.evaluate(toy_policy(), asked, exam)
    for name, count in found.items():
        assert 0 < count < 12
        assert numbers[f"eval/{name}"] == count / 12


# ---------------------------------------------------------------------------------- demonstrations

SOLVED = {"question": "q", "response": "r"}
CALLED_WRONG = SOLVED | {"critique": "no\nConclusion: wrong"}
# What is learned of them.
SOLVING = (solve("q"), "r")
CALLING_IT_WRONG = (critique.critique("q", "r"), "no\nConclusion: wrong")


def load_shown(folder, *rows, held_out=()):
    """`load_demonstrations` from a file of these rows."""
    path = write(folder / "shown.jsonl", rows)
    return demonstrations.load_demonstrations(path, held_out)


def test_demonstrations_of_solving_and_of_criticising(tmp_path):
    """A right response is learned, labelled or not, and its critique; a wrong one is shown to the
    critic only, and one of a row that says so. Held-out questions are left out, and counted."""
    for label in ({}, {"label": "right"}, {"label": True}):
        assert load_shown(tmp_path, SOLVED | label) == ([SOLVING], 0)
    for label in ({}, {"label": False}):
        assert load_shown(tmp_path, CALLED_WRONG | label) == ([CALLING_IT_WRONG], 0)
    other = {"question": "p", "response": "s", "critique": "Conclusion: right"}
    for only, count in ((False, 2), (True, 1)):
        examples, _ = load_shown(tmp_path, other | {"critique_only": only})
        assert len(examples) == count
    examples, left_out = load_shown(tmp_path, other, SOLVED, CALLED_WRONG, held_out={"q"})
    assert left_out == 2
    assert len(examples) == 2
    assert (solve("p"), "s") in examples
    assert (critique.critique("p", "s"), "Conclusion: right") in examples


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


def test_arithmetic_of_worked_solutions():
    """It is exact, numbers can be replaced, and nothing but arithmetic is read."""
    assert demonstrations.calculate("10*.7+3*4-6/4", {}) == 17.5
    assert demonstrations.calculate("2.5*(3-1)", {3: 6}) == 12.5
    for expression in ("2**9", "1/0", "", "f(2)", "(", "2;3"):
        fails("no arithmetic", demonstrations.calculate, expression, {}, kind=ValueError)


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
            rows.append(demonstrations.demonstrate(Problem("q", work), random.Random(seed)))
    return rows


def test_two_demonstrations_of_a_worked_solution():
    """A right one with every step called ok, and a wrong one; without the annotations. The broken
    step is carried on and criticised: by hand for one of the slips; any step may be broken, and in
    several ways."""
    rows = demonstrated(WORK, seeds=40)
    assert len(rows) == 40
    seen = {}
    for right, wrong in rows:
        assert right["label"] == "right"
        assert right["critique"] == WORK_CHECKED
        assert is_correct(right["response"], WORK)
        assert wrong["label"] == "wrong"
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
    """Where the first 10 is broken, the second is not called ok; and a broken number has no signs
    that tell it, such as a lost comma."""
    work = """2*5 = <<2*5=10>>10
5*2 = <<5*2=10>>10
or <<100*(10+10)=2000>>2,000, so
#### 2000"""
    rows = demonstrated(work, seeds=20)
    assert rows
    for _, wrong in rows:
        if "\n5*2 = 10: ok" in wrong["critique"]:
            assert "2*5 = 10: ok\n" in wrong["critique"]
        assert ", so" in wrong["response"]
        assert "2,000" not in wrong["response"]


def test_solutions_that_are_not_exact_make_no_demonstration():
    """No annotation, a negative step, a rounded one."""
    for words, work in (
        ("empty range", "none #### 3"),
        ("5-20 is not -15", "5-20 = <<5-20=-15>>-15\n#### -15"),
        ("1/3 is not 0.33", "<<1/3=0.33>>0.33 #### 0.33"),
    ):
        problem = Problem("q", work)
        rng = random.Random(0)
        fails(words, demonstrations.demonstrate, problem, rng, kind=ValueError)


def run_critique(path):
    """`python critique.py FILE` on the command line; what it printed."""

    def script(_):
        runpy.run_path(critique.__file__, run_name="__main__")

    with patch(sys, "argv", ["critique.py", str(path)]):
        return printed_by(script)


def test_demonstrations_on_the_command_line(tmp_path):
    """A right response and two critiques of each worked solution, in the form that is loaded."""
    asked = [Problem("no work", "#### 3")]
    for number in range(19):
        asked.append(Problem(f"{number} clips?", WORK))
    made = tmp_path / "made.jsonl"
    made.write_text(run_critique(write(tmp_path / "data.jsonl", asked)))
    examples, _ = demonstrations.load_demonstrations(made)
    assert len(examples) == 19 * 3
    fails("none.jsonl", run_critique, tmp_path / "none.jsonl")


# ---------------------------------------------------------------------------------------- sampler

KINDS = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral",
    "Gemma3",
    "GPT2",
    "Phi",
    "Gemma2",  # has a soft cap behind its head
    "Granite",  # scales its logits behind its head
    "Bloom",  # has an attention of its own
    "DiffLlama",  # does more with its attention's result
]

fast.MANY = 1  # weights are packed for a single row, too, so that the tests see them

# Temperatures, and from how many numbers on a weight is packed: with 32 nearly all of them are,
# with 65536 none.
WAYS = [(1.0, 32), (0.7, 1 << 16), (0.0, 32)]


@functools.lru_cache
def model_of(kind):
    """A `sharing` model, made once."""
    with contextlib.redirect_stdout(io.StringIO()):
        return sharing(kind)


@functools.lru_cache
def samples_of(kind, temperature, large):
    """Samples that end at different lengths."""
    with patch(fast, "LARGE", large):
        samples = generate(
            model_of(kind),
            ragged(),
            n=3,
            max_new_tokens=25,
            temperature=temperature,
            stop=range(20),
            seed=3,
        )
    assert len({len(s.tokens) for s in samples}) > 1
    return samples


def agree(model, samples, temperature=1.0, tolerance=2e-4):
    """What the sampler recorded is what the learner finds: one log-prob for each token."""
    for s, found in zip(samples, logprobs(model, samples, temperature)):
        assert len(s.tokens) == len(s.logprobs)
        close(found.detach(), s.logprobs, tolerance)


def is_packed(model):
    """Has any layer a forward of its own?"""
    return any("forward" in vars(layer) for layer in model.modules())


def test_greedy_tokens_equal_model_generate():
    """At temperature 0 the sampler gives the tokens that the library's own generation gives."""
    prompts = ragged()
    ids, mask = fast.left_pad(prompts, "cpu")
    for kind in KINDS:
        model = model_of(kind)
        rows = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=[2, 5],
            pad_token_id=0,
        )
        samples = generate(model, prompts, max_new_tokens=40, temperature=0, stop=(2, 5))
        for s, row in zip(samples, rows[:, ids.shape[1] :].tolist()):
            size = len(s.tokens)
            assert s.tokens == row[:size], kind
            assert s.stopped == (row[size - 1] in (2, 5))
            assert s.stopped or size == 40


def test_sampled_logprobs_equal_teacher_forcing():
    """The sampler records what the learner finds, and what the model says of the same tokens in one
    pass without any cache; of greedy tokens the log-probs at temperature 1."""
    for kind in KINDS:
        for temperature, large in WAYS:
            samples = samples_of(kind, temperature, large)
            agree(model_of(kind), samples, temperature)
            for s in samples[:3]:
                close(plain_logprobs(s, temperature, model_of(kind)), s.logprobs, 2e-4)


def test_large_weights_are_packed_while_sampling():
    """A CPU multiplies with the packed copies of large weights where there are many rows;
    afterwards there are none."""
    for kind in KINDS:
        model = model_of(kind)
        for many in (1, 2):
            product = mock.Mock(wraps=fast.times_packed)
            with mock.patch.multiple(fast, LARGE=32, MANY=many, times_packed=product):
                generate(model, [[5, 6]], max_new_tokens=2)
            expected = many == 1 and torch.backends.mkldnn.is_available()
            assert product.called == expected, kind
            assert not is_packed(model)


def test_any_model_can_be_sampled_and_scored():
    """A model that `load_policy` did not make works at once: without its dropout, or in bf16."""
    for kind in ("Llama", "GPT2", "Granite"):
        samples = generate(tiny(kind).train(), ragged(), max_new_tokens=12, stop=(2, 5), seed=1)
        agree(tiny(kind).train(), samples)
    model = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.bfloat16)
    agree(model, generate(model, [[5, 6, 7], [8]], 2, 10), tolerance=0.2)


def chosen(probs, noise, temperature):
    """Rows of the same distribution, each with its own random number: the tokens and their
    probabilities."""
    logits = torch.tensor([probs] * len(noise)).log()
    noise = torch.tensor(noise, dtype=torch.float64)
    space = torch.empty_like(logits, dtype=torch.float64)
    token, logprob = rollout.choose(logits, noise, temperature, space)
    return token.tolist(), logprob.exp()


def test_choosing_by_hand():
    """The cumulative distribution is inverted at the random number; at temperature 0.5 it is that
    of the squares."""
    tokens, probs = chosen([0.5, 0.25, 0.15, 0.1], [0.5, 0.8, 0.95, 0.99], 0.5)
    assert tokens == [0, 1, 2, 3]
    squares = torch.tensor([0.25, 0.0625, 0.0225, 0.01])
    close(probs, squares / 0.345)


def test_greedy_choosing_by_hand():
    """The likeliest token is chosen, and its probability is that at temperature 1."""
    tokens, probs = chosen([0.15, 0.5, 0.25, 0.1], [0.99], 0.0)
    assert tokens == [1]
    close(probs, [0.5])


def test_choosing_at_the_edges():
    """The smallest and the largest random number, too, choose a token that is possible."""
    tokens, probs = chosen([0.0, 0.3, 0.7, 0.0], [0.0, 0.29, 0.31, 1 - 2**-24], 1.0)
    assert tokens == [1, 1, 2, 2]
    close(probs, [0.3, 0.3, 0.7, 0.7])


def test_pad_token_is_of_no_account():
    """A pad token that equals EOS, or that is sampled, changes nothing: masks go by length."""
    model = sharing("Llama")
    prompts = [[0, 0, 5], [2, 9], [0], [7, 8, 9, 10]]  # token 0 is what rows are padded with
    for pad in (2, 0):
        model.config.pad_token_id = pad
        model.generation_config.pad_token_id = pad
        samples = generate(model, prompts, n=200, max_new_tokens=12, stop=(2,), seed=4)
        agree(model, samples)
        assert any(0 in s.tokens for s in samples)
        assert any(s.stopped for s in samples)
        for s in samples:
            assert s.stopped == (s.tokens[-1] == 2)
            assert 2 not in s.tokens[:-1]
            assert s.stopped or len(s.tokens) == 12


def tokens_of(seed, bar=None):
    """The tokens that a seed gives, 32 rows in all."""
    samples = generate(
        model_of("Mistral"),
        ragged(),
        n=4,
        max_new_tokens=20,
        stop=(2, 5),
        seed=seed,
        bar=bar,
    )
    return [s.tokens for s in samples]


def test_each_row_has_its_own_random_numbers():
    """Row i's j-th token is where the j-th number of row i falls in the cumulative distribution
    that the model gives after all tokens before, at temperature 1 and below."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(24, 25, generator=generator, dtype=torch.float64)
    for temperature, large in WAYS[:2]:
        for row, s in enumerate(samples_of("Llama", temperature, large)):
            probs = plain_distributions(s, temperature, model_of("Llama")).exp()
            for place, token in enumerate(s.tokens):
                now = probs[place]
                assert now[:token].sum() - 1e-4 < noise[row, place]
                assert noise[row, place] < now[: token + 1].sum() + 1e-4


PEAK = """
import re, sys, train
train.main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""


def test_a_run_says_what_memory_it_needs(tmp_path):
    """Within a quarter of the peak of a model of 8M parameters, measured where Linux tells it.
    What cannot fit is refused."""
    config = copy.deepcopy(base()[0].config)
    config.update({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3})
    torch.manual_seed(0)
    saved(tmp_path, AutoModelForCausalLM.from_config(config))
    flags = f"--model {tmp_path} --data {TOY}/train.jsonl --out {tmp_path}/out --method g-rl"
    flags += (
        f" {ON_TOY} --steps 2 --questions 8 --updates 1 --kl 0.01 --eval-size 2 --max-new-tokens 48"
    )
    with patch(os, "sysconf", return_value=1 << 14):
        fails("would need|smaller", train.main, flags.split(), kind=SystemExit)
    if sys.platform == "linux":
        command = [sys.executable, "-c", PEAK, *flags.split()]
        printed = subprocess.run(command, cwd=TOY.parent, stdout=subprocess.PIPE, text=True).stdout
        needed = float(re.search(r"needs ([\d.]+)", printed)[1]) * 1e9
        peak = int(printed.split()[-1]) * 1024
        assert 0.75 < needed / peak < 1.25, (needed, peak)


def test_parts_that_fit_the_memory_give_the_same_tokens():
    """Rows are sampled in as many parts as memory asks for; the bar counts them."""
    sizes = []
    bar = mock.Mock(update=sizes.append)
    whole = tokens_of(9)
    with patch(rollout, "rows_that_fit", return_value=7):
        assert tokens_of(9, bar) == whole
    assert sizes == [7, 7, 7, 7, 4]


def small_device(room, tried):
    """Sampling runs out of memory with more than `room` rows; `tried` gets each number of rows."""
    real = rollout.sample_part

    def sample_part(model, prompts, *rest):
        tried.append(len(prompts))
        if len(prompts) > room:
            raise torch.OutOfMemoryError("a small device")
        return real(model, prompts, *rest)

    return patch(rollout, "sample_part", sample_part)


def test_halves_after_running_out_of_memory_give_the_same_tokens():
    """Where the device runs out, the rows are halved until they fit."""
    tried = []
    whole = tokens_of(9)
    with small_device(5, tried):
        assert tokens_of(9) == whole
    assert tried[:4] == [32, 16, 8, 4]


def test_a_device_too_small_for_one_row_is_an_error():
    """The device's own error ends the program in one line, and no weight stays packed."""
    with patch(fast, "LARGE", 0), small_device(0, []):
        fails("a small device", data.run_command, tokens_of, 9)
    assert not is_packed(model_of("Mistral"))


def test_rows_that_fit_by_hand():
    """3 layers of keys and values of 2 heads of 8 fp32 are 384 bytes a token; 8 times a hidden
    state of 32 are 1024, shared by 2 rows; 97 tokens of vocabulary have 16 bytes each."""
    row = 100 * (384 + 512) + 16 * 97
    for memory, rows in [(5 * row, 5), (5 * row - 1, 4), (10, 1)]:
        with patch(fast, "memory", return_value=memory):
            assert fast.rows_that_fit(model_of("Llama"), 100, 2) == rows


def test_micro_batches_by_hand():
    """Every sample is in one micro-batch, none of which is too large, in few of them. What a token
    needs is what goes into and comes out of 7 matrices a layer, in fp32: q, o 32 + 32, k, v 32 +
    16, and 32 + 48 three times."""
    token = 3 * (2 * 64 + 2 * 48 + 3 * 80) * 4
    samples = []
    for prompt, completion in [(9, 3), (2, 8), (4, 4), (2, 1)] * 5:
        samples.append(Sample([1] * prompt, [1] * completion, [], True))
    # Tokens that the memory holds, parts that it is cut into, how many micro-batches at most.
    for room, parts, count in [(40, 1, 4), (80, 2, 4), (10**6, 1, 1), (5, 1, 17)]:
        with patch(fast, "memory", return_value=room * token):
            cuts = fast.micro_batches(model_of("Llama"), samples, parts)
        assert sorted(sum(cuts, [])) == list(range(20))
        assert len(cuts) <= count
        for cut in cuts:
            batch = [samples[place] for place in cut]
            prompts = {tuple(s.prompt) for s in batch}
            longest = max(map(len, prompts))
            widest = max(len(s.tokens) for s in batch)
            computed = longest * len(prompts) + widest * len(batch)
            assert computed <= room // parts or len(batch) == 1


def shapes_shown(model, *args, **options):
    """The shapes of ids that `generate` shows to a model, and what it returns."""
    forward = mock.Mock(wraps=model.base_model.forward)
    with patch(model.base_model, "forward", forward):
        samples = generate(model, *args, **options)
    return [tuple(call.args[0].shape) for call in forward.call_args_list], samples


def test_each_prompt_is_computed_once():
    """Three prompts, two of them equal, are two rows in the prefill, then each sample is a row."""
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7]]
    shapes, _ = shapes_shown(model_of("Llama"), prompts, n=4, max_new_tokens=6, stop=())
    assert shapes == [(2, 3)] + [(12, 1)] * 5


def test_rows_that_have_ended_leave():
    """They leave a few at a time: of the rows that are computed, at most a tenth has ended."""
    shapes, samples = shapes_shown(
        model_of("Llama"),
        [[5, 6]],
        n=60,
        max_new_tokens=30,
        stop=range(2, 20),
    )
    rows = [shape[0] for shape in shapes]
    assert rows[0] == 1
    assert rows[1] > 2 * rows[-1]
    for t in range(1, len(rows)):
        alive = sum(len(s.tokens) > t for s in samples)
        assert alive <= rows[t] <= alive / 0.9 + 1


def test_prompts_without_room_are_refused():
    """A prompt that is empty, or as long as the context, is named by its place."""
    for kind in ("Llama", "GPT2"):
        model = model_of(kind)
        fails("prompt 1|128", generate, model, [[5], [5] * 128])
        fails("prompt 0|0 tokens", generate, model, [[]])


def test_bad_settings_are_refused():
    """A count of no samples and a temperature below 0 mean nothing."""
    model = model_of("Llama")
    fails("n, max_new_tokens >= 1", generate, model, [[5]], n=0)
    fails("temperature", generate, model, [[5]], temperature=-1)


def test_completions_are_cut_at_the_end_of_the_context():
    """A long prompt leaves room for 8 tokens, beside others that have room for all."""
    for kind in ("Llama", "GPT2"):
        model = model_of(kind)
        prompts = [[5] * 3] * 30 + [[5] * 120]
        samples = generate(model, prompts, max_new_tokens=20, temperature=0, stop=())
        assert len(samples[0].tokens) == 20
        assert len(samples[-1].tokens) == 8
        assert not samples[-1].stopped
        agree(model, samples)


def test_a_chat_without_room_gives_samples_without_tokens():
    """Where text is sampled, a prompt that is too long stops nothing: the others are sampled as if
    it were not there."""
    toy = toy_policy()
    chats = [solve("9+" * 300 + "9"), solve("Compute 1+2 modulo 10.")]
    completions = rollout.complete(toy, "ab", chats, 2, seed=0)
    empty = Sample(encode_chat(toy.tokenizer, chats[0]), [], [], stopped=False)
    assert completions[:2] == [("a", empty, "")] * 2
    assert completions[2:] == rollout.complete(toy, "b", chats[1:], 2, seed=0)
    assert completions[2][1].tokens


# ------------------------------------------------------------------------- prompts that rows share


def set_up(kind):
    """The attention that `share_prompts` leaves a model with, and what it prints."""
    models = []
    printed = printed_by(lambda _: models.append(sharing(kind)))
    return models[0].config._attn_implementation, printed


def test_models_that_agree_share_prompts():
    """Where the log-probs are those of the library's attention, prompts are shared, and nothing is
    said about it. Where the library's is not `sdpa` there is nothing to compare with (of Gemma2
    that depends on its version). Where they disagree, one line names the model and by how much it
    would be wrong."""
    others = {"Bloom": "eager", "DiffLlama": "sdpa"}
    note = r"note: DiffLlama: .* \(mean \|log ratio\| .*\)\n"
    for kind in KINDS:
        attention, printed = set_up(kind)
        if kind != "Gemma2":
            assert attention == others.get(kind, "shared_prompts")
        assert re.fullmatch(note if attention == "sdpa" else "", printed)


def test_models_whose_attention_raises_keep_the_librarys():
    """One line names the model and the error."""
    with patch(fast, "times_prompts", side_effect=RuntimeError("no such\nshape")):
        attention, printed = set_up("Llama")
    assert attention == "sdpa"
    assert re.fullmatch(r"note: Llama: .* \(no such shape\)\n", printed)


# ------------------------------------------------------------------------------- bf16 arithmetic


def test_bf16_sampler_and_learner_compute_alike():
    """The weights are fp32, and both compute in bf16; what is sampled and what is scored differ by
    rounding only, with packed weights too."""
    model, tokenizer = load_policy("toy", "cpu", "bf16")
    assert fast.shares_prompts(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    computed = []
    layer = model.model.layers[1].mlp.down_proj
    layer.register_forward_hook(lambda layer, args, result: computed.append(result.dtype))
    prompts = [encode_chat(tokenizer, solve(problem.question)) for problem in problems(8)]
    samples = generate(model, prompts, 2, 40)
    with patch(fast, "LARGE", 32):
        samples += generate(model, prompts, 2, 40)
    drawn = torch.cat([torch.tensor(s.logprobs) for s in samples])
    away = torch.cat(logprobs(model, samples)) - drawn
    assert 0 < away.abs().mean() < 0.02
    assert set(computed) == {torch.bfloat16}


# ---------------------------------------------------------------------------------------- loading


def toy_copy():
    """A copy of the toy that may be changed: model, tokenizer."""
    return copy.deepcopy(base())


def test_stop_set_is_the_union(tmp_path):
    """EOS of config, generation config and tokenizer, and a template's own end of turn: each of
    them ends a completion, and nothing else does. Other settings of generation are dropped: with a
    repetition penalty model.generate would sample another policy than the one trained."""
    model, tokenizer = toy_copy()
    model.config.eos_token_id = 7
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[11, 12],
        repetition_penalty=2.0,
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %} ok<|assistant|><|user|>{% endif %}{% endfor %}"
    )
    loaded, _ = load_policy(saved(tmp_path, model, tokenizer), "cpu")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|assistant|>")
    stops = {7, 11, 12, tokenizer.eos_token_id, end_of_turn}
    assert len(stops) == 5
    assert loaded.generation_config.eos_token_id == sorted(stops)
    assert loaded.generation_config.repetition_penalty in (None, 1.0)
    samples = generate(loaded, [[20, 21]], n=50, max_new_tokens=60)
    assert any(s.stopped for s in samples)
    for s in samples:
        assert s.stopped == (s.tokens[-1] in stops)
        assert not stops & set(s.tokens[:-1])


def saved(folder, model=None, tokenizer=None):
    """The toy's folder with parts of it replaced."""
    policy.save_policy(model or base()[0], tokenizer or base()[1], folder)
    return folder


def refused(words, folder, model, tokenizer, **options):
    """A saved model that must not load."""
    model.save_pretrained(saved(folder, model, tokenizer), **options)
    fails(words, load_policy, folder, "cpu")


def test_missing_and_unknown_weights_are_refused(tmp_path):
    """The library would fill the ones at random and drop the others."""
    weights = dict(base()[0].state_dict())
    more = weights | {"model.extra.weight": torch.ones(3)}
    refused("unexpected keys|model.extra.weight", tmp_path, *base(), state_dict=more)
    del weights["model.norm.weight"]
    refused("missing keys|model.norm.weight", tmp_path, *base(), state_dict=weights)


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    """A tokenizer that gives ids for which the model has no embedding is another model's."""
    model, tokenizer = toy_copy()
    model.resize_token_embeddings(300)
    refused(f"{len(tokenizer)}|300", tmp_path, model, tokenizer)


def test_a_model_without_eos_is_refused(tmp_path):
    """No completion could ever end."""
    model, tokenizer = toy_copy()
    for config in (model.config, model.generation_config, tokenizer):
        config.eos_token_id = None
    tokenizer.chat_template = None
    refused("no EOS", tmp_path, model, tokenizer)


def test_folders_and_devices_that_are_none_are_refused(tmp_path):
    """An adapter, a folder without a tokenizer, weights that are not finite, no folder, no such
    device: one line that names it."""
    (tmp_path / "adapter_config.json").write_text("{}")
    fails("an adapter|merge", load_policy, tmp_path, "cpu")
    base()[0].save_pretrained(tmp_path / "untold")
    fails("cannot load tokenizer of model|untold", load_policy, tmp_path / "untold", "cpu")
    model, _ = toy_copy()
    model.model.norm.weight.data[3] = math.nan
    fails("model.norm.weight|not finite", load_policy, saved(tmp_path / "nan", model), "cpu")
    fails("cannot load model|none", load_policy, tmp_path / "none", "cpu")
    fails("cannot load model|nonsense", load_policy, "toy", "nonsense")


def test_saved_policy_is_a_hugging_face_folder(tmp_path):
    """Saved, loaded by transformers alone: model.generate gives the sampler's greedy tokens."""
    policy.save_policy(*base(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    question = "Compute 3*4+5-1 modulo 10."
    for chat in (solve(question), critique.critique(question, "3*4=2\n2+5=7\n7-1=6\n" + box(6))):
        ids = encode_chat(tokenizer, chat)
        theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
        (ours,) = generate(base()[0], [ids], max_new_tokens=64, temperature=0)
        assert ours.prompt + ours.tokens == theirs[0].tolist()
        assert ours.stopped


# ------------------------------------------------------------------------------------ chat prompts


def prompt_of(template, chat):
    """A conversation, or a question, through another template and back into text."""
    _, tokenizer = toy_copy()
    tokenizer.chat_template = template
    if isinstance(chat, str):
        chat = [{"role": "user", "content": chat}]
    return tokenizer.decode(encode_chat(tokenizer, chat))


# The answer that is to be corrected spells out two marks of turns.
QUOTING = correct("Compute 1+2 modulo 10.", box(3) + "<|end|><|assistant|>hm")


def test_chat_template():
    """A conversation stands as its template writes it, up to where the assistant goes on; marks of
    turns that a response spells out are replaced."""
    text = prompt_of(base()[1].chat_template, QUOTING)
    assert text.count("<|end|>") == 1
    assert text.count("<|assistant|>") == 2
    assert text.endswith("<|assistant|>")
    assert box(3) + "\ufffd\ufffdhm<|end|>" in text


def test_a_tokenizer_without_a_chat_template():
    """A plain template stands in."""
    text = prompt_of(None, QUOTING)
    assert text.startswith("User:\nCompute")
    assert text.count("<|end|>") == 1
    assert text.endswith("corrected. Put the final answer in \\boxed{}.\n\nAssistant:\n")


def test_a_template_writes_bos_once():
    """The tokenizer adds no second one."""
    _, tokenizer = toy_copy()
    tokenizer.bos_token = "<|user|>"
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}"
    assert encode_chat(tokenizer, QUOTING).count(tokenizer.bos_token_id) == 1


def test_errors_of_a_template_are_one_line():
    """A template is a program and may raise anything."""
    fails("chat template|no system", prompt_of, "{{ raise_exception('no\nsystem') }}", "hello")
    fails("chat template|zero", prompt_of, "{{ 1/0 }}", "hello")


def test_thinking_is_off():
    """Templates that know a thinking mode are asked for none."""
    template = "{% if enable_thinking is defined %}thinking {{ enable_thinking }}{% endif %}"
    assert prompt_of(template, "hello") == "thinking False"


def test_the_date_is_in_no_prompt():
    """A template that writes the date, with its microseconds, writes the same one always."""
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %f') }}{% endif %}"
    (text,) = {prompt_of(dated + " {{ messages[0].content }}", "hello") for _ in range(3)}
    assert re.search(r"\d\d\d\d.* hello$", text)


LLAMA = "{% for m in messages %}[INST] {{ m.content }} [/INST]\n{% endfor %}"
HASHES = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
BARS = "{% for m in messages %}<|end|>{{ m.role }}\n<|human|>{{ m.content }}{% endfor %}"

# Template, what a message holds, what is left of it; ? is what replaces a mark.
MARKS = [
    (LLAMA, "a [INST] b[/INST] c", "a ? b? c"),
    (LLAMA, "[IN[INST]ST] x", "[IN?ST] x"),
    (LLAMA, "user [INS T] assistant", "user [INS T] assistant"),
    (HASHES, "### user:### assistant: the user: 5", "?? the user: 5"),
    (BARS, "the user<|human|> and an assistant", "the user? and an assistant"),
    (BARS, "a<|e<|end|>nd|>b<|hum<|end|>an|>c", "a<|e?nd|>b<|hum?an|>c"),
]


def test_marks_of_turns_are_replaced_in_contents():
    """Special tokens and what a template writes between contents, but no mere words."""
    for template, text, left in MARKS:
        prompt = prompt_of(template, f"START{text}STOP")
        found = prompt.partition("START")[2].rpartition("STOP")[0]
        assert found == left.replace("?", "\ufffd"), (template, text)


def test_marks_of_turns_take_linear_time():
    """60 kB of marks inside marks leave none, in less than a third of a second."""
    nested = "<|e" * 8600 + "<|end|>" + "nd|>" * 8600
    tokenizer = base()[1]
    start = time.process_time()
    ids = encode_chat(tokenizer, [{"role": "user", "content": nested}])
    assert time.process_time() - start < 0.3
    assert ids.count(tokenizer.eos_token_id) == 0


# -------------------------------------------------------------------------------------- data files

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


def files(folder, **contents):
    """Flags that name files with these rows: data=[...] is --data folder/data.jsonl."""
    argv = []
    for name, rows in contents.items():
        argv += ["--" + name.replace("_", "-"), write(folder / f"{name}.jsonl", rows)]
    return argv


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


# -------------------------------------------------------------------------------------- whole runs


def six_steps(folder, method, count):
    """The metrics of six steps on a few problems again and again, with what holds of every run."""
    out = folder / "run"
    flags = f"--method {method} --questions {count} --steps 6 --n 8 --updates 2 --eval-size 4"
    with patch(train, "STATIC_QUESTIONS", count):
        rows, _ = trained(out, flags + " --lr 4e-4", *files(folder, data=problems(count, 3)))
    assert [row["step"] for row in rows] == list(range(7))
    for row in (rows[0], rows[-1]):
        assert {"eval/size", "eval/kept", "eval/critique", "eval/critique_recall"} <= set(row)
    for row in rows[1:]:
        assert row["ratio/max_log"] < 1e-3, "learner and sampler disagree"
        assert row["skipped"] == 0
        assert row["seconds/sample"] > 0
        assert row["seconds/update"] > 0
        assert ("loss" in row) == (method in train.SUPERVISED)
    weight = AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight
    assert not torch.equal(weight, base()[0].get_input_embeddings().weight)
    return rows[1:]


def rises(rows, name):
    """The mean of the last two steps is above the first step's."""
    before = rows[0][name]
    after = (rows[-2][name] + rows[-1][name]) / 2
    assert after > before + 0.05, f"{name} went from {before:.2f} to {after:.2f}"


def test_g_rl_learns_to_answer(tmp_path):
    """Plain RL: more and more responses are right."""
    rows = six_steps(tmp_path, "g-rl", 16)
    rises(rows, "response/accuracy")
    assert rows[0]["samples"] == 16 * 8


def test_c_rl_learns_to_criticise(tmp_path):
    """The critic alone: more and more judgements are right."""
    rises(six_steps(tmp_path, "c-rl", 16), "critique/accuracy")


def test_gc_rl_learns_to_answer(tmp_path):
    """Both together: more and more responses are right."""
    rises(six_steps(tmp_path, "gc-rl", 16), "response/accuracy")


def test_score_learns_to_correct(tmp_path):
    """Second attempts get better; Stage I is half of the steps, with a KL on first attempts."""
    rows = six_steps(tmp_path, "score", 8)
    rises(rows, "t2")
    assert [row["stage"] for row in rows] == [1, 1, 1, 2, 2, 2]
    assert max(row["kl/attempt 1"] for row in rows) > 0


def test_multi_turn_learns_both_attempts(tmp_path):
    """Both attempts get better, without stages."""
    rows = six_steps(tmp_path, "multi-turn", 8)
    rises(rows, "t1")
    rises(rows, "t2")


def test_star_learns_from_its_own_traces(tmp_path):
    """First attempts get better."""
    rises(six_steps(tmp_path, "star", 8), "t1")


def test_pair_sft_learns_its_pairs(tmp_path):
    """The loss on right responses after wrong ones falls."""
    rows = six_steps(tmp_path, "pair-sft", 8)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


SHORT = "--steps 5 --eval-every 3 --questions 3 --n 4 --updates 1 --eval-size 2 --pairs 1 --kl 0.01"


def timeless(row):
    """A line of metrics without times and speeds."""
    timed = re.compile("second|tokens/s|memory")
    return {name: value for name, value in row.items() if not timed.search(name)}


def same_runs(out, expected):
    """Two runs in five steps gave the same metrics, and to the byte the same weights and texts."""
    ours = [timeless(row) for row in lines(out / "metrics.jsonl")]
    theirs = [timeless(row) for row in lines(expected / "metrics.jsonl")]
    assert [row["step"] for row in ours] == [0, 1, 2, 3, 4, 5]
    for a, b in zip(ours, theirs):
        assert a == b, {name for name in a | b if a.get(name) != b.get(name)}
    assert ours == theirs
    texts = ["samples.jsonl", "train.jsonl", "held_out.jsonl", "exam.jsonl"]
    for name in ["model.safetensors", *texts]:
        written = (out / name).read_bytes()
        assert written
        assert written == (expected / name).read_bytes(), name


@functools.lru_cache
def undisturbed():
    """A SHORT run that nothing happens to, made once: its temporary folder."""
    folder = tempfile.TemporaryDirectory()
    trained(Path(folder.name) / "whole", SHORT)
    return folder


def goes_on(run):
    """A run that was disturbed goes on and ends as if nothing had been."""
    trained(run, SHORT + " --resume")
    same_runs(run, Path(undisturbed().name) / "whole")


def in_recipe(at, action):
    """The action is taken in the recipe of step `at`."""
    real = train.rewarded_critiques

    def rewarded_critiques(args, policy, step, pairs):
        if step == at:
            action()
        return real(args, policy, step, pairs)

    return patch(train, "rewarded_critiques", rewarded_critiques)


def disturbed(run, disturbance, words, step):
    """A run ends with an error that has these words; its checkpoint is of before `step`."""
    with disturbance:
        fails(words, trained, run, SHORT + " --resume", kind=ArithmeticError)
    assert torch.load(run / "resume.pt", weights_only=True)["step"] == step
    assert not (run / "model.safetensors").exists()


def signals(at, *numbers):
    """The process gets signals in the recipe of step `at`."""

    def send():
        for number in numbers:
            os.kill(os.getpid(), number)

    return in_recipe(at, send)


def test_signals(tmp_path):
    """After the first signal the step is finished and saved; the second ends the run at once."""
    run = tmp_path / "run"
    disturbed(run, signals(1, signal.SIGINT, signal.SIGTERM), "143", step=1)
    disturbed(run, signals(1, signal.SIGTERM), "143", step=2)
    disturbed(run, signals(2, signal.SIGINT), "130", step=3)
    goes_on(run)


def test_errors_leave_the_checkpoint_whole(tmp_path):
    """After an error in an evaluation, in a recipe, in the input the run goes on."""
    run = tmp_path / "run"
    unlucky = mock.Mock(side_effect=ZeroDivisionError("out of luck"))
    wrong = mock.Mock(side_effect=InputError("prompt 7"))
    with_error = patch(train, "evaluate", side_effect=OverflowError("too good"))
    disturbed(run, with_error, "too good", step=0)
    disturbed(run, in_recipe(5, unlucky), "out of luck", step=4)
    disturbed(run, in_recipe(4, wrong), "error: prompt 7", step=4)
    goes_on(run)


def test_a_gradient_that_is_not_finite(tmp_path):
    """It stops the run before the step; the mini-batch is written down, and the run goes on."""
    run = tmp_path / "run"
    real = train.learn
    texts = []

    def learn(args, policy, optimizer, load_reference, episodes, step, meter):
        if step == 4:
            episodes[3].sample.logprobs[0] = math.nan
            texts.extend(e.text for e in episodes)
        return real(args, policy, optimizer, load_reference, episodes, step, meter)

    disturbed(run, patch(train, "learn", learn), "step 4|gradient norm|not_finite.jsonl", step=4)
    rows = lines(run / "not_finite.jsonl")
    assert {row["step"] for row in rows} == {4}
    assert sorted(row["completion"] for row in rows) == sorted(texts)
    goes_on(run)


def dying(module, name, die, spared):
    """module.name does its work `spared` times more, then `die` is called in its place. Calls that
    rename a JSONL file do not count."""
    real = getattr(module, name)
    calls = []

    def work(*args):
        if str(args[-1]).endswith("jsonl"):
            return real(*args)
        calls.append(args)
        return real(*args) if len(calls) <= spared else die(*args)

    return patch(module, name, work)


def killed_while_saving(folder, method, *more):
    """Killed at each of four checkpoints, half-way through the file and before its renaming, a run
    goes on as if nothing had been; what it printed when nothing happened to it."""
    flags = f"--method {method} {SHORT}"
    whole = folder / "whole"
    rows, printed = trained(whole, flags, *more)
    assert rows[1].get("kl/response", 0) < 1e-6, "the reference is the policy of step 0"

    def half_written(state, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    def interrupted(*args):
        raise KeyboardInterrupt

    run = folder / "killed"
    for number in range(4):  # at the start, after steps 0, 3, 5
        before = min(1, number)  # the checkpoint before is written, as it was not the last time
        in_saving = dying(torch, "save", half_written, spared=before)
        in_renaming = dying(os, "replace", interrupted, spared=0)
        for death in (in_saving, in_renaming):
            with death:
                fails("130", trained, run, flags + " --resume", *more)
            assert (run / "resume.pt.partial").exists()
            assert (run / "resume.pt").exists() == (number > 0)
    trained(run, flags + " --resume", *more)
    same_runs(run, whole)
    return printed


def shown_rows(asked):
    """A demonstration of each problem, with a critique."""
    rows = []
    for problem in asked:
        row = {"question": problem.question, "response": solved(problem)}
        rows.append(row | {"critique": "Conclusion: right"})
    return rows


def cold(folder):
    """Flags for a cold start."""
    return *files(folder, cold_start=shown_rows(problems(8, 2))), "--cold-start-lr", 1e-4


def test_killed_while_saving(tmp_path):
    """SCoRe, without a cold start."""
    assert "cold start" not in killed_while_saving(tmp_path, "score")


def test_killed_while_saving_after_a_cold_start(tmp_path):
    """GC-RL after a cold start, which makes the policy that the KL refers to."""
    assert "cold start" in killed_while_saving(tmp_path, "gc-rl", *cold(tmp_path))


# A run that gets SIGKILL in place of its so many-th write, flush or renaming.
COUNTED = """
import os, sys, torch, train
torch.set_num_threads(1)
left = int(sys.argv.pop(1))

def counted(real):
    def work(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return real(*args)
    return work

torch.save = counted(torch.save)
os.fsync = counted(os.fsync)
os.replace = counted(os.replace)
train.main()
"""


def process(out, flags, count=0, limit=None):
    """A run in a process of its own, killed at its `count`-th write or after `limit` seconds; its
    exit status."""
    command = [sys.executable, "-c", COUNTED, str(count), *flags, "--out", str(out), "--resume"]
    with contextlib.suppress(subprocess.TimeoutExpired):  # it then sends SIGKILL
        done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=TOY.parent, timeout=limit)
        return done.returncode
    return -9


def kills(folder, method, moments, writes, *more):
    """SIGKILL to real runs: at `moments` spread over the run, then at each write and rename, the
    first `writes` of them. Each then goes on, and gives what the whole run gave."""
    flags = [*ON_TOY.split(), "--method", method, *SHORT.split(), *map(str, more)]
    begin = time.time()
    assert process(folder / "whole", flags) == 0
    part = (time.time() - begin) / (moments + 1)
    cases = [(0, part * (moment + 1)) for moment in range(moments)]
    cases += [(count, None) for count in range(1, writes + 1)]
    killed = 0
    for number, (count, limit) in enumerate(cases):
        out = folder / str(number)
        status = process(out, flags, count, limit)
        if status == 0 and count:
            break  # it has fewer writes
        killed += status != 0
        assert process(out, flags) == 0
        same_runs(out, folder / "whole")
    assert killed


def test_killed_for_real(tmp_path):
    """A run that gets SIGKILL half-way goes on as if nothing had been."""
    kills(tmp_path, "gc-rl", 1, 0)


def long_kills(tmp_path):
    """The same at 20 moments and at every write."""
    kills(tmp_path / "plain", "gc-rl", 20, 99)
    kills(tmp_path / "score", "score", 20, 99)
    kills(tmp_path / "cold", "gc-rl", 20, 99, *cold(tmp_path))


def long_memory(tmp_path):
    """200 steps of GC-RL need no more memory than 20."""
    pages = []
    real = train.show_step

    def look(row):
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        real(row)

    with patch(train, "show_step", look):
        trained(tmp_path / "out", "--steps 200 --eval-every 100 --eval-size 16")
    assert pages[200] < 1.05 * pages[20], pages[::20]


def go(out, text, seed=3):
    """A run of SCoRe for which a second or two are enough, on a file beside its folder."""
    flags = "--method score --questions 2 --n 2 --eval-size 4 --steps "
    return trained(out, flags + text, *files(out.parent, data=problems(12, seed)))


def test_folders_in_use_are_left_alone(tmp_path):
    """A folder with other files, or a file, is no place for a run, to begin or to go on."""
    (tmp_path / "file").touch()
    for name in ("start", "resume.pt.partial", "notes.txt"):
        (tmp_path / "other" / name).mkdir(parents=True)
    for text in ("1", "1 --resume"):
        fails("other|name another folder", go, tmp_path / "other", text)
        fails("file|Not a directory", go, tmp_path / "file", text)
    assert len(list(tmp_path.glob("other/*"))) == 3


def test_what_a_kill_left_before_the_first_checkpoint_is_written_over(tmp_path):
    """The run begins as if the folder were empty."""
    run = tmp_path / "run"
    (run / "start").mkdir(parents=True)
    (run / "start/model.safetensors").write_bytes(b"half")
    (run / "resume.pt.partial").write_bytes(b"half")
    rows, _ = go(run, "1")
    assert [row["step"] for row in rows] == [0, 1]


def test_a_run_goes_on_by_resume_only(tmp_path):
    """Without --resume nothing is written over; with it, the flags must be the same."""
    run = tmp_path / "run"
    go(run, "1")
    fails("holds a run|--resume", go, run, "2")
    fails("--seed 0, not 5", go, run, "2 --resume --seed 5")
    fails("--steps 1, not 0", go, run, "0 --resume")


def test_a_run_can_be_extended(tmp_path):
    """It goes on with the problems that it began with, and drops what lies behind its checkpoint.
    Stage I is half of the one step that was asked for first."""
    run = tmp_path / "run"
    go(run, "1")
    data.write_jsonl(run / "metrics.jsonl", [{"step": 2, "left": "over"}], "a")
    rows, _ = go(run, "4 --resume --eval-every 7", seed=4)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert "left" not in rows[2]
    assert "eval/t1" in rows[4]
    assert {row["stage"] for row in rows[1:]} == {2}
    assert data.load_problems(run / "train.jsonl") == problems(12, 3)
    fails("--steps 4, not 3", go, run, "3 --resume --eval-every 7")


def test_a_run_that_has_ended_writes_its_model_again(tmp_path):
    """--resume of a finished run changes no number and shows the table. While a run goes on, no
    model is there."""
    run = tmp_path / "run"
    go(run, "1")
    with patch(train, "save_policy"):
        rows, _ = go(run, "2 --resume")
    assert not (run / "model.safetensors").exists()
    again, printed = go(run, "2 --resume")
    assert again == rows
    assert re.search(r"held out, greedy +start +end\n", printed)
    assert AutoModelForCausalLM.from_pretrained(run)


def test_what_a_run_leaves(tmp_path):
    """Held-out problems and exam of --eval-size, and the flags, beside the model."""
    run = tmp_path / "run"
    go(run, "1 --max-new-tokens 40")
    assert len(lines(run / "held_out.jsonl")) == 4
    assert len(lines(run / "exam.jsonl")) == 4
    assert policy.run_flags(run)["max_new_tokens"] == 40
    assert policy.run_flags(tmp_path) == {}


def test_a_checkpoint_that_cannot_be_read(tmp_path):
    """Half a file, or one of another version: one line."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "resume.pt").write_bytes(b"half")
    fails("resume.pt cannot be read", go, run, "2 --resume")
    torch.save({"format": 0}, run / "resume.pt")
    fails("resume.pt cannot be read|of another version", go, run, "2 --resume")


def test_a_full_disk(tmp_path):
    """One line says so, and where a model cannot be written, which."""
    full = OSError(28, "No space left on device")
    with patch(os, "replace", side_effect=full):
        fails("No space left", go, tmp_path / "full", "1")
    with patch(type(base()[0]), "save_pretrained", side_effect=full):
        fails("start|cannot be written|No space left", trained, tmp_path / "run", "--steps 0")


def three_tokens(out):
    """Two steps on two problems and one that is too long, with a limit of three tokens."""
    asked = files(out.parent, data=[*problems(2), Problem("9+" * 300, "9")])
    flags = "--method g-rl --questions 3 --n 3 --steps 2 --eval-size 2 --max-new-tokens 3"
    return trained(out, flags, *asked)


def test_problems_without_room_are_refused(tmp_path):
    """Before anything is written, with the length that is needed and the problem."""
    fails("context|9+9+9", three_tokens, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_texts_of_a_run(tmp_path):
    """Texts of the first and the last step for a person to read; a warning where most are cut. Only
    problems are checked at the start: a prompt of a later turn may be too long, which is counted
    and stops nothing."""
    with patch(train, "check_lengths"):
        rows, printed = three_tokens(tmp_path / "run")
    assert [row["skipped"] for row in rows[1:]] == [3, 3]
    assert rows[1]["tokens"] == 18
    assert rows[1]["truncated"] == 1
    assert printed.count("cannot learn: all completions were cut; raise --max-new-tokens") == 2
    assert "[response is wrong, reward 0, advantage +0.00]" in printed
    texts = lines(tmp_path / "run" / "samples.jsonl")
    assert [row["step"] for row in texts] == [1, 1, 1, 2, 2, 2]
    for row in texts:
        assert row["reward"] == 0
        assert row["prompt"]
        assert not row["stopped"]


def test_order_of_the_problems():
    """Pass after pass over all of them, each in an order of its own, whatever a step takes."""
    asked = ""
    for step in range(1, 11):
        batch = data.batch_of("abcde", step, 0, 3)
        assert len(batch) == 3
        asked += "".join(batch)
    orders = {asked[start : start + 5] for start in range(0, 30, 5)}
    assert len(orders) > 2
    for order in orders:
        assert sorted(order) == list("abcde")
    assert len(data.batch_of("ab", 1, 0, 7)) == 7


# ------------------------------------------------------------------------------- the command lines


def has_flags(text, **expected):
    """The flags of a command line are these, among others."""
    args = vars(arguments(text))
    assert args | expected == args


def test_defaults_of_the_toy():
    """A tiny model on tiny problems learns faster."""
    has_flags("", steps=30, lr=2e-4, kl=0.0, n=8, pairs=32, no_std=False)


def test_files_of_the_toy_go_together():
    """With other problems its held-out problems and its exam are not used, its settings are."""
    has_flags("--data mine.jsonl", data="mine.jsonl", eval_data=None, exam=None, steps=30)


def test_defaults_of_other_models():
    """Those of the papers, where two cores do not forbid it."""
    has_flags("--model x", steps=200, lr=1e-6, kl=1e-3, beta2=0.1, data="gsm8k")


def test_where_pairs_come_from():
    """C-RL criticises static pairs unless it is told otherwise, GC-RL its own responses."""
    has_flags("--method c-rl", critique_data="static")
    has_flags("--method gc-rl", critique_data="dynamic")


def test_constants_that_cancel_are_noted():
    """Divided by the deviation of one prompt's group, constants of rewards make no difference."""
    for flags, noted in [
        ("", False),
        ("--reward-right 0.6", True),
        ("--balance reweight", True),
    ]:
        assert ("cancel" in printed_by(train.parse_args, flags)) == noted, flags


# Flags of train.py and what the error must name; a word with @ is a file, see `input_files`.
REFUSED = """
--method grpo -> --method|grpo
--frobnicate -> --frobnicate
--n 1 -> --n 1
--data @long --eval-data @long --model @no -> no problem is left
--data @long --eval-data @empty -> empty.jsonl
--data @long --eval-data @good --model @no -> cannot load model|no.jsonl
--data @no -> no.jsonl
--data @bad -> bad.jsonl:2|answer
--cold-start @bad -> bad.jsonl:1|response
--cold-start @long -> --cold-start|context
--exam @bad -> bad.jsonl:1
--data @good --exam @good -> --exam|no pair
--steps -1 -> --steps -1
--lr 0 -> --lr
--temperature 0 -> --temperature
--max-new-tokens 500 -> context|500
--method score --steps 3 --stage1-steps 5 -> --stage1-steps 5|3
--device nonsense -> nonsense
--steps many -> --steps|many
--kl nan -> --kl
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
    bad = [{"question": "x", "answer": "1"}, {"question": "x"}]
    named = {
        "@no": folder / "no.jsonl",
        "@empty": write(folder / "empty.jsonl", []),
        "@bad": write(folder / "bad.jsonl", bad),
        "@long": write(folder / "long.jsonl", [long]),
        "@good": write(folder / "good.jsonl", static_pairs(problems(3))),
        "@words": "x" * 5000,
    }
    for row in table.strip().split("\n"):
        flags, words = row.split(" -> ")
        fails(words, call, *[named.get(word, word) for word in flags.split()])
        assert not (folder / "out").exists(), flags


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


def test_no_question_is_both_learned_and_examined(tmp_path):
    """Of six pairs of questions the two that are trained on are left out; of twenty demonstrations
    four of held-out problems and four of the exam. The loss on the others falls."""
    asked = problems(20, 3)
    argv = files(
        tmp_path,
        data=asked[:12],
        eval_data=asked[16:],
        exam=static_pairs(asked[10:16]),
        cold_start=shown_rows(asked),
    )
    flags = "--steps 0 --eval-size 8 --cold-start-lr 3e-4"
    with mock.patch.multiple(train, COLD_START_PASSES=12, COLD_START_BATCH=8):
        rows, printed = trained(tmp_path / "run", flags, *argv)
    assert "exam.jsonl: 4 pairs left out" in printed
    examined = {row["question"] for row in lines(tmp_path / "run" / "exam.jsonl")}
    assert examined == {problem.question for problem in asked[12:16]}
    assert rows[0]["eval/pairs"] == 8
    assert "cold_start.jsonl: 8 demonstrations left out: held out" in printed
    losses = [float(loss) for loss in re.findall(r"cold start .*loss ([\d.]+)", printed)]
    assert losses[-1] < losses[0]


def test_the_exam_is_of_the_starting_policy(tmp_path):
    """Without --exam it is sampled on held-out problems, the same whatever the method; half of its
    pairs are right."""
    held_out = problems(30, 9)
    argv = files(tmp_path, data=problems(12, 3), eval_data=held_out)
    flags = f"--device cpu --model {TOY} --steps 0 --max-new-tokens 64 --eval-size 16"
    exams = []
    for method in ("g-rl", "c-rl"):
        out = tmp_path / method
        printed_by(train.main, flags, "--method", method, "--out", out, *argv)
        exams.append(data.read_jsonl(out / "exam.jsonl", data.to_pair))
    exam, other = exams
    assert exam == other
    assert [pair.right for pair in exam] == [True, False] * (len(exam) // 2)
    assert {pair.problem for pair in exam} <= set(held_out[:16])


def test_a_question_on_the_command_line():
    """Corrected after the first critique that finds fault (of these three the second), after none,
    and after the greedy one: each as greedy decoding has it. On this question they differ."""
    question = "Compute 7-4*8*8 modulo 10."
    parts = used("--n 3", question).strip().split("\n\n")
    texts = [part.partition("\n")[2] for part in parts]
    first = greedy_text(solve(question))
    expected = [question, first, *texts[2:5]]
    for help in (texts[3], None, greedy_text(critique.critique(question, first))):
        expected.append(greedy_text(correct(question, first, help)))
    assert texts == expected


def test_printed_text_is_safe_for_a_terminal():
    """Control characters are spelled out, new lines are not."""
    assert report.printable("a\x1b[2J\n") == "a\\x1b[2J\n"


def test_a_runs_own_evaluation_again(tmp_path):
    """sample.py --eval gives the last numbers of the run: its held-out problems, exam and limit,
    which here cuts some of the completions."""
    flags = "--steps 1 --questions 4 --n 4 --eval-size 16 --max-new-tokens 21"
    rows, _ = trained(tmp_path / "run", flags)
    last = {name: value for name, value in rows[-1].items() if name.startswith("eval/")}
    [*_, numbers] = used("--eval --json --model", tmp_path / "run").splitlines()
    assert json.loads(numbers) == last
    assert last["eval/truncated"] > 0


def test_evaluations_of_other_problems(tmp_path):
    """--data names other problems, of which --size takes the first."""
    flags = files(tmp_path, data=problems(5, 8))
    assert '"eval/size": 4' in used("--eval --json --size 4", *flags)


def test_evaluations_without_an_exam(tmp_path):
    """An exam without a pair, as a policy leaves that is always right, is sampled."""
    policy.save_policy(*base(), tmp_path)
    write(tmp_path / "held_out.jsonl", problems(8, 2, held_out=True))
    (tmp_path / "exam.jsonl").write_text("")
    assert "critique_p1" in used("--eval --size 4 --max-new-tokens 64 --model", tmp_path)


# ---------------------------------------------------------------------------------------- figures


def draw(program, picture, words, *args):
    """What a program of figures/ printed; its picture must be well-formed, and hold the words."""
    printed = printed_by(program.main, "--out", picture, *args)
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg")
    text = "".join(root.itertext())
    for word in words:
        assert word in text
    assert "nan" not in (picture.read_text() + printed).lower()
    return printed


def test_ticks_by_hand():
    """Round numbers that hold the least and the greatest value; an axis of shares ends at 1."""
    for low, high, count, whole, expected in [
        (0.43, 0.98, 5, False, [0.4, 0.6, 0.8, 1]),
        (0, 20, 7, True, [0, 5, 10, 15, 20]),
        (1, 1, 5, False, [0.98, 1]),  # a flat line: never beyond 1
    ]:
        close(chart.ticks(low, high, count, whole), expected)


def made_up_run(folder, end):
    """A run's folder with two lines of metrics, and with lines that cannot be used."""
    folder.mkdir()
    write(
        folder / "metrics.jsonl",
        [
            {"step": 0, "eval/generation": 0.25, "eval/t2": None},
            {"step": 1, "t1": 0.5, "eval/generation": end, "eval/t2": math.nan},
            [1],
        ],
    )
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1e999}\n{"step": "2", "t1": 1}\n{"step": 2, "cut in')
    return folder


def test_comparison(tmp_path):
    """A table of last evaluations, one of the seeds of a method, their curves, and JSON. What is no
    number is drawn and printed nowhere."""
    folders = [
        made_up_run(tmp_path / "gc-rl-0", 0.5),
        made_up_run(tmp_path / "gc-rl-1", 0.75),
        made_up_run(tmp_path / "a&b", 1.0),
    ]
    words = ["gc-rl-*, 2 seeds", "a&b", "held out: generation", "in training: t1"]
    printed = draw(compare, tmp_path / "c.svg", words, "--json", *folders)
    table = [re.split("  +", line) for line in printed.splitlines()]
    assert ["last evaluation", "start", "gc-rl-0", "gc-rl-1", "a&b"] in table
    assert ["eval/generation", "0.250", "0.500", "0.750", "1.000"] in table
    assert ["eval/t2", "-", "-", "-", "-"] in table
    assert ["eval/generation", "0.625 (0.500 to 0.750)", "1.000"] in table
    [*_, numbers] = printed.splitlines()
    assert json.loads(numbers)[str(folders[1])]["eval/generation"] == 0.75


def test_pictures_write_over_pictures_only(tmp_path):
    """A file that is no SVG is left alone. Of no run nothing is drawn: one line names the file that
    is not there."""
    picture = tmp_path / "c.svg"
    compared = functools.partial(printed_by, compare.main, "--out", picture)
    fails("no/metrics.jsonl", compared, tmp_path / "no", kind=OSError)
    assert not picture.exists()
    picture.write_text("a text of mine")
    fails("c.svg", compared, made_up_run(tmp_path / "run", 0.5))
    fails("c.svg", votes.main, ["no model", "--out", str(picture)])
    assert picture.read_text() == "a text of mine"


def test_interval_and_verdict_by_hand():
    """1 to 5: t is 2.776 for 4 degrees of freedom, the deviation 1.581; 2.776 x 1.581 / sqrt(5)."""
    for freedom, t in ((1, 12.706), (4, 2.776)):
        close(findings.t_quantile(freedom), t, 1e-3)
    close(findings.interval([1, 2, 3, 4, 5]), [3, 1.963], 1e-3)
    for values, words in (
        ([1, 2, 3, 4, 5], "holds here"),
        ([-1, -2, -3, -4, -5], "does not hold here"),
        ([-1, 0, 0.5, 1, 2], "cannot be told; about 22 seeds would tell"),
        ([-1, 0, 0.1, 1], "cannot be told; not even with 100 seeds"),
        ([0, 0], "no difference at any seed"),
    ):
        assert findings.verdict(values) == words


def a_line(run, seed, answers, machine="a"):
    """A line of findings.jsonl, as of a run that ends in so many right answers."""
    evaluations = []
    for step in range(0, 61, 5):
        numbers = dict.fromkeys([*findings.WORDS, "i_to_c", "size"], answers if step else 0.5)
        evaluations.append({"step": step, "samples": 9, "seconds": 1.0, **numbers})
    return {
        "run": run,
        "seed": seed,
        "command": findings.command_of(run, seed),
        "processor": machine,
        "evaluations": evaluations,
    }


def test_findings(tmp_path):
    """From the lines alone: runs of one seed and one machine are compared, what is missing for that
    is run, and both pictures are drawn."""
    made_up = [a_line("g-rl", 0, 0.7), a_line("c-rl", 0, 0.6), a_line("g-rl", 1, 0.9)]
    made_up += [a_line("c-rl", 1, 0.65), a_line("c-rl", 2, 0.6, "b"), a_line("g-rl", 2, 0.7)]
    write(tmp_path / "lines", made_up)
    with mock.patch.multiple(findings, LINES=tmp_path / "lines", FOLDER=tmp_path):
        lines_there = findings.read_lines()
        close(findings.differences(lines_there, findings.CLAIMS[1]), [0.1, 0.25])
        with patch(findings, "processor", return_value="a"):
            missing = findings.missing_runs(lines_there)
        printed = printed_by(findings.main)
    assert ("c-rl", 2) in missing
    assert not {("g-rl", 0), ("c-rl", 1), ("g-rl", 2)} & set(missing)
    assert printed.count("| answers: g-rl at 30 > c-rl at 30 | +0.175 |") == 1
    assert "Delta is +0.500 (95% over problems: 2.400 either way)" in printed
    ElementTree.parse(tmp_path / "findings.svg")


# Answers (None: none can be read), their weights, the place of the one that is elected.
ELECTIONS = [
    ([1, "2/4", 0.5, 3], [1, 1, 1, 1], 1),  # 1/2 and 0.5 are one answer
    (["x+1", "x + 1", "y"], [1, 1, 1], 0),
    ([1, 2, 2, 1], [1, 1, 1, 1], 0),  # a tie goes to the answer that came first
    ([None, None, 3], [1, 1, 1], 2),
    ([None, None], [1, 1], None),
    ([], [], None),
    ([1, 1, 2], [0.2, 0.3, 0.6], 2),
    ([1, 2, 2], [0, 0, 0], 1),  # no critique calls any right: a plain vote
    ([None, 1, 2, 2], [1, 0, 0, 0], 2),  # what cannot be read has no vote to weigh
]


def test_majority_vote():
    """The answer with the most weight is elected, by the first text that gives it."""
    for answered, weights, elected in ELECTIONS:
        texts = ["hm" if answer is None else box(answer) for answer in answered]
        assert votes.majority_vote(texts, weights) == elected, (texts, weights)


def test_what_was_cut_elects_nothing():
    """A response that was cut has no answer, whatever number it stopped at."""
    cut = Episode(a_sample(stopped=False), box(7), "response", SEVEN, right=True)
    assert not votes.elects_right([(cut, 1.0)])


def test_votes_at_equal_budgets():
    """A budget of 4 is four answers, two and their corrections, or two and a critique of each."""
    texts = [box(3), box(7), box(3), box(7)]
    drawn = [Episode(a_sample(), text, "", SEVEN, text == box(7)) for text in texts]
    wrong, right, *_ = drawn
    corrected = [(wrong, a_sample(), box(7)), (right, a_sample(), box(3))]
    checks = judged((False, False), (True, True))
    with (
        patch(votes, "respond", return_value=drawn),
        patch(votes, "complete", return_value=corrected) as complete,
        patch(votes, "criticise", return_value=checks) as criticise,
    ):
        table = votes.vote(None, [SEVEN], [2, 4], 1, 0)
    assert complete.call_args.args[1] == [wrong, right]
    assert [pair.response for pair in criticise.call_args.args[1]] == texts[:2]
    assert table["parallel"] == {2: 0, 4: 0}, "3 and 7 tie, and 3 came first"
    assert table["parallel, corrected"] == {2: 1, 4: 1}, "corrected to 7 and 3: 7 came first"
    assert table["critique-weighted"] == {2: 0, 4: 1}, "called wrong, 3 wins alone only"


def test_budgets_of_votes(tmp_path):
    """2, 4, 8 and so on, and --n itself. An answer and three critiques cost 4 samples: a budget of
    2 has none."""
    words = ["accuracy by vote", "critique-weighted"]
    flags = "toy --device cpu --json --size 8 --n 6 --critiques 3"
    printed = draw(votes, tmp_path / "votes.svg", words, *flags.split())
    [*_, numbers] = printed.splitlines()
    assert list(json.loads(numbers)["vote/critique-weighted"]) == ["4", "6"]


def test_runs_of_a_real_model(tmp_path):
    """From the lines alone, in whatever order they came. Ends are 0.1 and 0.3 apart: t is 12.706
    for one degree of freedom, the deviation 0.141; 12.706 x 0.141 / sqrt(2) = 1.271."""
    rows = []
    ended = {"g-rl": [0.5, 0.4], "gc-rl": [0.6, 0.7], real.AS_IT_IS: [1, 1]}
    for run, ends in ended.items():
        for seed, end in enumerate(ends):
            evaluations = [
                {"step": step, "seconds": 90, **dict.fromkeys(real.NAMES, value)}
                for step, value in ((0, 0.2), (20, end))
            ]
            line = {"accuracy": 0.1, "pass@n": 0.4, "samples": 9, "evaluations": evaluations}
            rows.append({"run": run, "flags": real.flags_of(run, "cpu"), "seed": seed, **line})
    write(tmp_path / "lines", rows[::-1])
    with mock.patch.multiple(real, LINES=tmp_path / "lines", FOLDER=tmp_path):
        printed = printed_by(real.main)
    assert (
        "| answers of gc-rl above answers of g-rl | cpu | 2 | +0.200 (-1.071 to +1.471" in printed
    )
    assert "| +0.300 +0.200 | 9 | 2 |" in printed
    assert "| g-rl | cpu | 2 | 0.10, 0.40 | 0.200 to 0.450; +0.250 (-0.385 to +0.885) |" in printed
    ElementTree.parse(tmp_path / "real.svg")


def test_going_on_from_the_first_words(tmp_path):
    """With the first problem's answer twice, one of two is right."""
    asked = problems(2)
    write(tmp_path / "f", asked)
    sample = rollout.demonstration(base()[1], solve("q"), asked[0].answer)
    with patch(real, "generate", return_value=[sample] * 2):
        assert real.continued("toy", tmp_path / "f", "cpu") == 0.5


def test_one_operation_of_two_numbers():
    """It is shown where no other gives the answer: 2 + 2 and 2 * 2 are 4, but 3 + 42 is 42 + 3."""
    birds = Problem("3 birds sat there and 42 came: how many?", "45")
    assert svamp.solution(birds) == "42 + 3 = 45\n\\boxed{45}"
    assert svamp.solution(Problem("2 cats and 2 dogs", "4")) is None


def test_operation_and_sum_of_a_response():
    """That 20 - 8 is 12 can be seen, but written is 11."""
    assert svamp.operation_and_sum("20 - 8 = 11\n", "12") == (True, False)
    assert svamp.operation_and_sum("20 / 8 = 2.5\n", "12") == (False, True)


def test_arithmetic_for_a_real_model(tmp_path):
    """No question is in two files, all results are exact, and so is what the critiques find; they
    are all that is learned."""
    arithmetic.make(tmp_path)
    asked = lines(tmp_path / "train.jsonl") + lines(tmp_path / "held_out.jsonl")
    critiques = lines(tmp_path / "critiques.jsonl")
    questions = {row["question"] for row in asked}
    assert len(questions) == 700
    examples, left_out = demonstrations.load_demonstrations(tmp_path / "critiques.jsonl", questions)
    assert (len(examples), left_out) == (128, 0)
    for row in asked + critiques:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        result = str(demonstrations.calculate(expression, {}))
        if "answer" in row:
            assert row["answer"] == result
        else:
            assert row["critique"].startswith(f"{expression} = {result}:")
            assert (row["label"] == "right") == is_correct(row["response"], result)


# -------------------------------------------------------------------------------------------- toy


def test_the_teacher_knows_arithmetic():
    """Python agrees with every answer, and the teacher finds every step of it right."""
    for problem in problems(300):
        expression = problem.question.split()[1]
        steps = make.Teacher().solve(expression)
        assert problem.answer == str(eval(expression) % 10)
        assert is_correct(solved(problem), problem.answer)
        check = make.Teacher().criticise(steps)
        assert judgement(check) is True
        assert check.count("ok") == 3


def test_the_teachers_critique_by_hand():
    """Each step is held against memory as it stands, also behind a wrong one."""
    steps = [(8, "*", 9, 5), (5, "-", 1, 4)]
    assert make.Teacher().criticise(steps) == "8*9=5:2 no\n5-1=4:4 ok\nConclusion: wrong"


def test_demonstrations_of_the_toy():
    """None is about a held-out problem, as no training problem is one; critiques end in a
    judgement, and prompts are short."""
    held_out = {problem.question for problem in problems(512, 2, held_out=True)}
    assert len(held_out) == 512
    assert not held_out & {problem.question for problem in problems(3000)}
    rng = random.Random(0)
    for place in range(500):
        messages, text = make.demonstrate(rng, late=place % 2 == 0)
        assert "Conclusion" not in text or judgement(text) is not None
        assert len(encode_chat(base()[1], messages)) < 256
        shown = "\n".join(message["content"] for message in messages)
        assert held_out.isdisjoint(re.findall(r"Compute \S+ modulo 10\.", shown))


def test_committed_problems_are_those_of_make():
    """toy/make.py writes the same training and held-out problems."""
    assert data.load_problems(TOY / "train.jsonl") == problems(make.TRAIN, 1)
    assert data.load_problems(TOY / "held_out.jsonl") == problems(make.HELD_OUT, 2, True)


def test_the_committed_exam():
    """Right and wrong by turns, rightly labelled, on problems that are held out."""
    exam = data.read_jsonl(TOY / "exam.jsonl", data.to_pair)
    assert [pair.right for pair in exam] == [True, False] * (make.EXAM // 2)
    asked = set(problems(2 * make.EXAM, 3, True))
    for pair in exam:
        assert pair.right == is_correct(pair.response, pair.problem.answer)
        assert pair.problem in asked


def test_make_writes_a_folder_like_the_committed_one(tmp_path):
    """The same tokenizer, a model of the same size, the same limit."""
    with mock.patch.multiple(make, STEPS=3, LATE_STEPS=2, BATCH=8, HELD_OUT=6, EXAM=4):
        assert "wrote" in printed_by(lambda argv: make.make(*argv), "", tmp_path)
    model, tokenizer = load_policy(tmp_path, "cpu")
    toy, committed = base()
    assert model.num_parameters() == toy.num_parameters()
    assert tokenizer.chat_template == committed.chat_template
    assert tokenizer.get_vocab() == committed.get_vocab()
    assert policy.run_flags(tmp_path) == policy.run_flags(TOY) == {"max_new_tokens": 64}


# ---------------------------------------------------------------------------------------- answers

# reference == responses that are right, reference != responses that are not; ¶ is a new line
ANSWERS = r"""
# Where the answer is: the last box, or a mark behind it.
42 == \boxed{42} | \boxed{41} no, \boxed{42} | \boxed {42} | \boxed¶{42} | \Boxed{42} | \fbox{42}
42 == \boxed{\boxed{42}} | \boxed{a=\boxed{42}} | \boxed{{42}} | \boxed{42}} | $\boxed 42$
42 == \boxed{42 | \boxed{42} and \boxed{6 | $$\boxed{42}$$ | \boxed{42}^{\text{th}} | \boxed{42}\%
42 != \boxed{42} no, \boxed{41} | \boxed{x}, 42 | | no number | 42: 41 | \boxed{42}. Answer: 41
42 == #### 42 | #### 42 apples | #### x = 42 | #### **42** | ####¶42 | It is #### 42 | #### $42
42 == #### The answer is 42 of 50 | #### Answer: 42 (of 50) | #### 42, 50 - 8 | #### 42¶¶Q: 7+7?
42 == the answer is 42. | The answer is **42** | Answer: 42 | **Answer:** 42 | ANSWER: 42 | A: 42
42 == The answer is:¶42 | Answer: \[ 42 \] | The answer is¶\[ \boxed{42} \] | <answer>42</answer>
42 == The answer is 42. I checked it in 3 ways. | The answer is 42¶Confidence: 95% | it is 42.
42 == \boxed{42}¶¶This answer is correct. | \boxed{42} The answer is **right**: I checked it.
42 == It is 42. The previous answer is correct | \boxed{42} So the answer is indeed valid, as 7*6.
42 == The answer is 42. My answer is not wrong because 7*6 is 42. | \boxed{41} The answer is 42
right angle == The answer is right angle.
D == energy \boxed{\langle H\rangle}. **Answer: D** | Answer: (D) | Answer: $D$ | D | (D)
So. #### yes == \boxed{yes} | the answer is Yes.
So. #### yes != \boxed{no} | yes
blah <<6*7=42>> #### 42 == #### 42 | \boxed{42}
p - q == The final answer is $p - q$. I hope it is correct.
No. 7 == The final answer is $No. 7$. I hope it is correct.

# References: box, mark and sentence are read in them as well.
so \boxed{5} == \boxed{5} | 5
Then 30 - 12 = 18.¶¶The answer is: 18 == \boxed{18} | The answer is 18.
\fbox{12} == \boxed{12} | 12
\boxed 12 == \boxed{12} | 12
#### 1200 == #### 1,200 miles | \boxed{1200}
It falls from 2 by 6.¶#### -4 == The temperature is now #### -4
\forall x>0, f(x)=0 == \boxed{f(x)=0}

# An `=` is dropped behind a name or a calculation only, relations never.
5 == \boxed{x = 5} | \boxed{x_1=5} | \boxed{f(3)=5} | \boxed{\angle ABC = 5^\circ} | x=5 | = 5
5 == \boxed{a+b=5} | \boxed{\text{Total} = 5} | \boxed{2 + 3 = 5} | \boxed{10 \div 2 = 5}
5 == The answer is 5 = x | The answer is x where x = 5. | \boxed{P(X=2) = a = 5} | \boxed{n==5}
5 != \boxed{x <= 5} | \boxed{x\neq 5} | \boxed{x=\pm 5} | \boxed{x \to 5} | \boxed{x => 5}
5 != \boxed{2x=5} | \boxed{x^2+y^2=5} | \boxed{-x=5} | \boxed{n/2=5} | x >= 5 | \boxed{x \ge= 5}
5 != \boxed{x = 5, y = 3} | \boxed{x = 3, y = 5} | \boxed{x=1 \text{ or } x=5} | #### x=2, y=5
5 != \boxed{(x,y)=(1,5)} | \boxed{\text{Tom}=2, \text{Ann}=5} | \boxed{x=-5,5} | The answer is 5<x<7
3x+4y+14=0 != \boxed{3x-y+13=0} | \boxed{0}
x <= 3 != \boxed{x >= 3} | \boxed{3} | \boxed{x < 3}
x=2, y=3 == \boxed{x = 2, y = 3} | The answer is x = 2 and y = 3.
x=2, y=3 != \boxed{x=7, y=3} | \boxed{3} | \boxed{y=3}
x^2+y^2=9 != \boxed{9} | 9
a+b=12 == \boxed{a + b = 12} ;; a+b=12 != \boxed{12}
x=5 == \boxed{5} | \boxed{x = 5}
\pm 3 == \boxed{x = \pm 3}
y = 2x + 3 == \boxed{y=2x+3} | \boxed{2x+3}
y = 2x + 3 != \boxed{y=3x+3} | \boxed{3}
x \geq 5 == \boxed{x \ge 5} | \boxed{x ≥ 5} | \boxed{x >= 5}
x \leq 5 == \boxed{x \le 5} | The answer is x\le5.

# Thousands: a comma before three digits, in a number but not in a pair, an interval or a set.
1000 == \boxed{1{,}000} | 1,000 | \boxed{1\,000} | \boxed{\text{1,000}} | \boxed{1,\!000} | 1000.00
11,\!222,\!333 == \boxed{11222333} | \boxed{11,222,333} | \boxed{11\,222\,333}
-1234.5 == \boxed{-1,234.5} | \boxed{- \$1,234.50} | It is -$1,234.5.
100 != \boxed{(0,100)} | \boxed{[0,100)} | \boxed{0,100} | The pair is (0,100). | It is (0, 100)
360 != \boxed{[0,360)} | [0,360)
(0,100) == \boxed{(0, 100)} | The answer is $(0,100)$.
(0,100) != \boxed{100} | \boxed{(0,101)} | \boxed{[0,100)}
1200 != \boxed{(1,200)} | \boxed{\{1,200\}} | \boxed{1.200} | \boxed{12,00} | \boxed{1200,0}
(1,200) != \boxed{1200} | \boxed{1,200} | \boxed{(1200)}
(12, 345, 678) == \boxed{(12,345,678)} ;; 5, 100 == \boxed{5,100} ;; 5, 100 != \boxed{5100}
\left[2,5\right) == \boxed{[2, 5)} ;; [2,5) != \boxed{(2,5]}
\{1,2\} == \boxed{\{1, 2\}} | \boxed{\left\{1, 2\right\}}
(0^\circ,180^\circ) == \boxed{(0,180)} ;; (1,2) != \boxed{(2,1)} | \boxed{12}
(x,y)=(1,3) == \boxed{(1,3)} ;; D=(0,1) != \boxed{D=(0,1.5)}

# Matrices keep the ends of their rows.
\begin{pmatrix} 1 \\ 2 \end{pmatrix} == \boxed{\begin{pmatrix}1\\2\end{pmatrix}}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} != \boxed{\begin{pmatrix}12\end{pmatrix}}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} != \boxed{\begin{pmatrix}1 2\end{pmatrix}}

# Sentences, marked or not, that do not say which number they mean.
5 != The answer is 5 or 6 | The answer is 5x | The answer is 5*2 | The answer is 5^2 | #### 5 or 6
5 != The answer is between 5 and 9. | The answer is not 5. | The answer is either 5 or 6
5 != The answer is at least 5. | The answer is 5 dollars and 20 cents. | Answer: 5 + 6
5 != Answer: 5, 6 | Answer: 5, 6, 7
5 != It is 6 or 5 | It is not 5 | It is between 3 and 5 | It has 5x | It is 5 to 6 | 10-5 | 3 + 5
5 != The answer is 2^5. | So 2^5 | The answer is July 5. | The answer is sqrt 5. | It is (3, 5)
5 != \boxed{5 or 6} | \boxed{5-6} | \boxed{5~6} | \boxed{5 6} | \boxed{5 or more} | \boxed{5:6}
2 != The answer is 2^10. | 2^10 ;; 6 == The answer isn't 5, it is 6 ;; 9 != \boxed{9**9**9} | 9**9
#### 2 != #### 2. Add the apples¶7 + 8 = 15¶¶The answer is 15.
15 == #### 2. Add the apples¶7 + 8 = 15 | ##### 1. Add¶7+8=15 | #### Step 1: Add¶7+8=15

# A clause behind the number, words before it.
24 == **Answer**: 24 apples, 6 of them red | **Answer**¶24¶¶(6 are red) | Answer: 24, not 30
24 == ### Final Answer¶24 apples of the 30. | the answer is: $24$ (30 minus 6). | Answer: $24
24 == The answer is that she has 24 apples | The answer is twenty-four (24). | The answer is "24".
24 == The answer is 24, in total, so the shop earns that much. | Final answer is 24, i.e. 30 - 6.
24 == The answer is 24 since 4*6 = 24. | Answer: 24 because she ate 6.
24 != The answer is 24 men, 6 women | The answer is 24, 6, 3 | The answer is $24$ or $25$

# Units and currencies.
15 == \boxed{15 cm^2} | It is 15 m^2. | The area is $15\text{ cm}^2$. | \boxed{15\text{ m/s}^2}
15 == The answer is 15 square meters (m^2). | \boxed{15 sq. ft.} | \boxed{15\ cm^{2}} | It is 15 m².
15 == \boxed{15 s} | \boxed{15kg} | \boxed{15^\circ} | \boxed{15°C} | \boxed{15 percent} | 15\%
15 == \boxed{15 apples (total)} | \boxed{15'} | \boxed{15th} | \boxed{15 руб.} | \boxed{15.} | 15!
15 == \boxed{€15} | \boxed{HK$15} | \boxed{Rs. 15} | \boxed{US\$ 15.00} | \boxed{15 USD} | £15
15 != \boxed{15 x} | \boxed{15n} | \boxed{15!} | \boxed{15\pi} | \boxed{15 squared} | \boxed{15 pi}
0.5 != \boxed{50\%} ;; 50 == \boxed{50\%} | 50% ;; 12.5 != \boxed{12 hours 30 minutes}

# Words for numbers.
2000000 == \boxed{2 million} | It earned $2 million in total.
2 != \boxed{2 million} | So 2 million.
1500000000 == \boxed{1.5 \text{ billion}} ;; 500 == \boxed{5 hundred} ;; 30000 == \boxed{3万}
-5 == The answer is minus 5. | \boxed{negative 5} ;; 5 != \boxed{minus 5} | \boxed{-{5}} | —5

# Signs.
-5 == \boxed{-{5}} | \boxed{- \, 5} | −5 | -$5 | $-5 | \boxed{(-5)} | \boxed{-5°C} | It is −5.
-5 != 10-5 | 5 | \boxed{+5}
-7/2 == \boxed{-\frac72} | \boxed{\dfrac{7}{-2}} | \boxed{-7/2} | \boxed{7/(-2)} | \boxed{- 3.5}
0.75 == x=\frac{-3}{-4} | \boxed{-3/-4} ;; 0 == -0 | 0.0 ;; 0 != | \boxed{} | \boxed{1/0} | 1/0

# Powers of ten.
100000 == \boxed{10^5} | \boxed{10^{5}} | \boxed{1e5} | \boxed{1\times 10^5} | \boxed{1 x 10^5}
10^{5} == \boxed{100000} ;; 0.001 == \boxed{10^{-3}} | \boxed{1e-3} ;; 3 != \boxed{3 \times 10^5}
10 != \boxed{10^5} | 10^5 ;; 1 != answer: 1e9 | \boxed{10} ;; 6.02e23 == \boxed{6.02\cdot10^{23}}

# Fractions and mixed numbers, divisions, an answer said twice.
3/4 == \boxed{\dfrac{3}{4}} | \boxed{\frac34} | \boxed{\frac3{4}} | \boxed{\nicefrac{3}{4}} | 75/100
3/4 == \boxed{\frac{3}{4} \text{ or } 0.75} | \boxed{0.75=\frac34} | \boxed{3\div4} | \boxed{3/4ths}
3/4 == \boxed{\left( \frac { 3 } { 4 } \right)} | about $\frac{3}{4}$ of it | \boxed{¾} | .75
1.5 == \boxed{1\frac{1}{2}} | 1 1/2 | \boxed{6\div4} | \boxed{1½} ;; 5/6 != \boxed{5/6/7}
11/2 != \boxed{1\frac12} ;; (\frac{11}{2},3) != \boxed{(1\frac12,3)}
1/3 != 0.3333333333 | \boxed{0.333...}
7/4 == \boxed{07/04} ;; 7 == 007 | +7 | 3 + 4 = 7 ;; 24 != \boxed{\frac{24}{x}} | \boxed{24/n}

# LaTeX's ways to write one thing, and things that only look alike.
\frac{\sqrt{2}}{2} == \boxed{\dfrac{\sqrt 2}2} | \boxed{\frac{\sqrt2}{2}} | \boxed{\tfrac{√2}{2}}
\frac{\pi}{4} == \boxed{\frac\pi4} | \boxed{\dfrac{π}{4}} ;; 4 != \boxed{\frac{\pi}{4}}
24 == \boxed{\textit{24}} | \boxed{\textbf{24}} | \boxed{\underline{24}} | \boxed{\mathbf{24}}
24 == \boxed{\approx 24} | \boxed{x \approx 24} | \boxed{approximately 24} | \boxed{~24} | #### ~24
24 == \boxed{[24]} | \boxed{\{24\}} | \boxed{\text{about }\{24\}} | [[24]] | \boxed{**24**}
24 == \boxed{_24_} | \boxed{\,24\,} | \boxed{\text{\$}24} | \boxed{24\text{.}} | \boxed{$24$}
x^2 == \boxed{x^{2}} ;; x^{23} != \boxed{x^{2}3} ;; 3120_5 == \boxed{3120_{5}} ;; 2x == \boxed{2*x}
\frac{1}{2x} != \boxed{\frac{12}{x}} ;; \sqrt{2} != \boxed{2} | \boxed{\sqrt[3]{2}} | \sqrt2 is it

# An empty or a worded box behind the answer's.
24 == \boxed{24} as in \boxed{} | Put it in \boxed{...}: \boxed{24}
24 == \boxed{24} and not \boxed | \boxed{24}, \boxed{your answer}
24 == \boxed{24}. (I put the final answer in \boxed{}.)
5 != I computed 5. Therefore \boxed{}

# Chinese.
24 == 答案是24 | 答案是 24 个 | 所以，答案是：24。 | **答案**：２４ | 最终答案为 \boxed{24}
24 == 小明有24个苹果。 | 共 ２４ 个
24 == The answer is：24，not 30 | \boxed{24 个苹果} | 答案是24。因为 6*4 = 24
24 != 答案是24或25 | 答案是不是24 | \boxed{24千}
3 != \boxed{3万} | 答案是3万

# Words.
Blue == The answer is blue. | \boxed{\text{blue}} | \boxed{\textbf{ Blue }}
B == \boxed{(B)} | \boxed{B.} | The answer is (B). | \boxed{\text{(B)}} ;; (B) == \boxed{b}
A != Answer: A or B ;; A, C == \boxed{A and C} ;; A, B != \boxed{AB} ;; red != blue | \boxed{blue}
July 4 == \boxed{July 4} ;; 1:00 == \boxed{1:00} ;; 4 != \boxed{3:4} ;; 3:4 == \boxed{3 : 4}
x + 1 == \boxed{x+1} ;; x+2 != \boxed{x+1} ;; - == \boxed{-} ;; ? == Answer: ? ;; $ != Answer: $
"""


def test_answers_table():
    """is_correct and answer_key: every kind of right and wrong answer has a row above."""
    rows = [row for row in ANSWERS.splitlines() if row and not row.startswith("# ")]
    for row in re.split("\n| ;; ", "\n".join(rows)):
        answer, responses = re.split(" [=!]=(?: |$)", row)
        answer = answer.replace("¶", "\n")
        for response in re.split(r" \|(?: |$)", responses):
            response = response.strip().replace("¶", "\n")
            given = (answer, response, answer_key(response), reference_key(answer))
            assert is_correct(response, answer) is (" == " in row), given


def test_answer_keys_by_hand():
    """Votes are counted by exact numbers or plain texts; what cannot be read has no vote."""
    assert answer_key(r"\boxed{2/4}") == answer_key("So it is 0.5.") == Fraction(1, 2)
    assert answer_key(r"\boxed{X + 1}") == answer_key("The answer is x+1.") == "x+1"
    for unreadable in ("", "hm", "no idea", r"\boxed{}", "10-5", "It is 5 or 6"):
        assert answer_key(unreadable) is None, unreadable


def test_references_that_no_response_can_reach():
    """A reference without a finite value or an answer is None, so that it is refused at load."""
    for answer in ("", "$", "####", r"\boxed{}", "NaN", "Infinity", "-Infinity", "inf", "1e400"):
        assert reference_key(answer) is None, answer
    proof = "We proceed by induction. The base case is clear."
    assert reference_key(proof) is None
    assert reference_key("Let n = 2k.\n\nwe are done") is None
    assert reference_key(proof + r" So \boxed{7}.") == 7
    assert reference_key("a" * 2000) is None
    assert reference_key("No solution") == "nosolution"


def test_to_number_by_hand():
    """to_number reads a text that is wholly one number, unit and currency allowed."""
    numbers = "24=24|1,200=1200|.5=1/2|-3=-3|$2.50=5/2| 24 =24|24 apples=24|1/2=1/2|10%=10|1e3=1000"
    for row in numbers.split("|"):
        text, value = row.split("=")
        assert to_number(text) == Fraction(value), text
    others = "|a|5 6|1/0|5x|about 5|12 hours 30 minutes|2+3|(1,200)"
    for text in others.split("|"):
        assert to_number(text) is None, text


# Texts that are repeated, ¶ is a new line.
HOSTILE = (
    r"9|{|\boxed{|\frac{|#|1,111|1/|-|####1|\text{|^|=| |1 |answer is |\frac{1} |1 1/|9e9"
    r"|5 \times 10^|答案是|中|¶|(|[[|a=|x_{1}|f(|, aa| or 1|aa |1 million |\boxed{}|\frac{{}"
    r"|\boxed{9{9}|**|~|{}|#### |answer¶|\forall,|(x,"
)


def test_hostile_text_takes_linear_time():
    """A million characters of anything are graded in less than two seconds."""
    texts = HOSTILE.replace("¶", "\n").split("|")
    texts = [text * (10**6 // len(text)) for text in texts]
    texts += ["\\boxed{" + "9" * 10**6 + "}", "the answer is " + "9" * 10**6, "9**9**9"]
    texts += ["\\boxed{" + "{" * 10**6, "\\frac" + " " * 10**6, "5" + " " * 10**6 + "/"]
    # as much as is read of an answer, so that no pattern takes its square
    texts += [f"\\boxed{{{text[:990]}x}}" for text in texts]
    for text in texts:
        start = time.process_time()
        assert not is_correct(text, "8")
        is_correct("8", text)
        to_number(text)
        assert time.process_time() - start < 2, f"{text[:20]!r}..."


# What random texts are made of, between ~.
PIECES = (
    "Conclusion: right~\\boxed{~}~{~\\frac~####~answer is ~**~1,234~-~.5~/~\n~\r\n~\ufeff~\x1b[2J"
    "~\x00~\u2028~'~[~]~(~)~$~%~^~_~\\text{~e9~1e999~\U0001f600~\u0663~\ud800~nan~\\~null~:~,~{}~|"
    '~"~{"question": "1+1", "answer": "2"}~{"answer": []}'
)


def random_text(rng):
    """Up to 10 kB of PIECES."""
    pieces = PIECES.split("~")
    limit = rng.choice((30, 300, 3000, 10000))
    text = ""
    while len(text) < limit:
        text += rng.choice(pieces) * rng.choice((1, 1, 1, 3, 300))
    return text[:limit]


def fuzz(folder, count):
    """Random texts: no exception but InputError, none over 50 ms of processor time (best of 3)."""
    path = folder / "fuzz.jsonl"

    def read(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(InputError):
            data.read_jsonl(path, data.to_problem)

    as_response = functools.partial(is_correct, answer="7")
    as_reference = functools.partial(is_correct, "7")
    rng = random.Random(0)
    for _ in range(count):
        text = random_text(rng)
        for work in (judgement, read, as_response, as_reference):
            spent = []
            while not spent or (spent[-1] > 0.05 and len(spent) < 3):
                start = time.process_time()
                work(text)
                spent.append(time.process_time() - start)
            assert min(spent) < 0.05, (work, min(spent), text[:99])


def test_fuzz(tmp_path):
    """A thousand random texts."""
    fuzz(tmp_path, 1000)


def long_fuzz(tmp_path):
    """A hundred thousand."""
    fuzz(tmp_path, 100_000)


# ---------------------------------------------------- every flag, against a run that is written out


ODD_FLAGS = """--steps 3 --questions 6 --n 8 --updates 2 --lr 2e-4 --kl 1.5 --clip 0.005 --seed 5
--temperature 0.8 --max-new-tokens 40 --pairs 3 --cache 4 --cold-start-lr 3e-4 --eval-size 4"""


def plain_step(model, start, optimizer, step, asked, cache):
    """One step of GC-RL under ODD_FLAGS, in ordinary code but for the recipe, which has tests of
    its own."""
    policy = Policy(model, base()[1], 40, 0.8)
    episodes, _ = train.gc_rl(arguments(ODD_FLAGS), policy, step, asked, cache, [])
    # Advantages inside the samples of each prompt.
    rewards = torch.tensor(rewards_of(episodes)).view(-1, 8)
    away = rewards - rewards.mean(1, keepdim=True)
    values = (away / (rewards.std(1, correction=0, keepdim=True) + 1e-6)).flatten()

    # Two optimizer steps, each on half of the prompts.
    prompts = list(dict.fromkeys(tuple(e.sample.prompt) for e in episodes))
    rng = random.Random(data.seed_of(5, step, "mini-batches"))
    prompts = rng.sample(prompts, len(prompts))
    for group in optimizer.param_groups:
        group["lr"] = 2e-4 * step / 3
    for half in (prompts[0::2], prompts[1::2]):
        loss = 0.0
        tokens = 0
        for e, value in zip(episodes, values):
            if tuple(e.sample.prompt) not in half:
                continue
            new = plain_logprobs(e.sample, 0.8, model)
            ratio = (new - torch.tensor(e.sample.logprobs)).exp()
            gain = torch.minimum(ratio * value, ratio.clamp(0.995, 1.005) * value)
            away = plain_logprobs(e.sample, 0.8, start).detach() - new
            loss = loss - gain.sum() + 1.5 * (away.exp() - away - 1).sum()
            tokens += len(e.sample.tokens)
        optimizer.zero_grad()
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def test_a_run_with_odd_flags_is_the_plain_one(tmp_path):
    """Three steps of GC-RL after a cold start end in the weights of the same steps written out."""
    asked = problems(20, seed=5)
    argv = files(tmp_path, data=asked, cold_start=shown_rows(problems(8, seed=11)))
    trained(tmp_path / "run", ODD_FLAGS, *argv)
    model, _ = load_policy(tmp_path / "run" / "start", "cpu")
    start = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0)
    cache = PairCache(maxlen=4)
    for step in (1, 2, 3):
        plain_step(model, start, optimizer, step, data.batch_of(asked, step, 5, 6), cache)
    ended, _ = load_policy(tmp_path / "run", "cpu")
    moved = 0.0
    apart = 0.0
    for plain, ours, before in zip(model.parameters(), ended.parameters(), start.parameters()):
        moved += (plain - before).norm() ** 2
        apart += (plain - ours).norm() ** 2
    assert apart < 5e-3 * moved, (apart, moved)
    same_start = zip(start.parameters(), base()[0].parameters())
    assert any(not torch.equal(a, b) for a, b in same_start), "the cold start has moved it"


def seeds_of(folder, flags):
    """The seeds of all rollouts at a temperature in a run, in their order."""
    seeds = []
    real = rollout.generate

    def generate(*args, **options):
        if options.get("temperature"):
            seeds.append(options["seed"])
        return real(*args, **options)

    with patch(rollout, "generate", generate):
        trained(folder, flags)
    return seeds


def test_no_two_rollouts_share_their_random_numbers(tmp_path):
    """Steps, responses and critiques, first and second attempts, each part of an exam: the seed of
    each is its own, and all of them change with --seed."""
    short = "--steps 2 --questions 2 --n 2 --eval-size 2 --denoise 1 --method "
    for method in ("gc-rl", "score"):
        one = seeds_of(tmp_path / method, short + method)
        other = seeds_of(tmp_path / f"{method} 1", f"{short}{method} --seed 1")
        assert len(one) >= 4
        assert len(set(one + other)) == len(one + other)
    with patch(sample, "respond", return_value=[]) as respond:
        sample.sample_pairs(toy_policy(), problems(32), 2, 32, seed=0)
    seeds = {call.args[3] for call in respond.call_args_list}
    assert len(seeds) == respond.call_count == 4


def test_sample_py_evaluates_in_the_arithmetic_of_the_run(tmp_path):
    """The run's folder knows its precision; --precision overrides it."""
    trained(tmp_path, "--precision bf16 --steps 0 --eval-size 2")
    with patch(sample, "load_policy", wraps=load_policy) as load:
        used("--eval --model", tmp_path)
        used("--eval --precision fp32 --model", tmp_path)
    assert [call.args[2] for call in load.call_args_list] == ["bf16", "fp32"]


def test_the_reference_is_loaded_once(tmp_path):
    """From OUT/start; with --beta1 0 too, where the first attempts of Stage I are still held to the
    start. The policy of a run that goes on is loaded from there as well."""
    flags = "--method score --beta1 0 --beta2 0.5 --stage1-steps 3 --lr 1e-3"
    flags += " --questions 4 --n 4 --eval-size 2 --steps"
    loading = mock.Mock(wraps=load_policy)
    with patch(train, "load_policy", loading):
        rows, _ = trained(tmp_path / "out", flags + " 3")
        trained(tmp_path / "out", flags + " 3 --resume")
    assert rows[2]["kl/attempt 1"] > 1e-6
    start = tmp_path / "out/start"
    assert [call.args[0] for call in loading.call_args_list] == ["toy", start, start]


def test_cold_start_warms_up_and_decays():
    """The learning rate rises over a tenth of the steps, then falls to 0 in a straight line."""
    given = [rollout.demonstration(base()[1], solve("Compute 1+1 modulo 10."), box(2))] * 640
    rates = []

    def note(model, optimizer, episodes, rng):
        rates.append(optimizer.param_groups[0]["lr"])
        return {"loss": 1.0}

    args = arguments("--cold-start-lr 0.1")
    with patch(train, "update", note):
        printed_by(lambda _: train.cold_start(args, base()[0], given))
    assert len(rates) == 60  # 3 passes of 20 batches of 32
    close(rates[0], 0.1 / 6)
    close(rates[5:], [0.1 * (1 - step / 60) for step in range(5, 60)])


def test_static_pairs_follow_balance():
    """Static pairs come by the filter, or, with --balance none, two of each question."""
    state = {"exam": [1], "problems": problems(6, seed=8)}
    found = {}
    for balance in ("filter", "none"):
        args = arguments(f"--method c-rl --balance {balance}")
        _, found[balance] = train.first_pairs(args, toy_policy(), state)
    assert [pair.right for pair in found["filter"]] == [True, False] * (len(found["filter"]) // 2)
    assert len(found["none"]) == 12
    assert len(found["filter"]) < 12


# ------------------------------------------------------------------------ what the update must do


def test_no_optimizer_step_without_a_gradient():
    """Where no episode has an advantage or a KL, Adam's momentum must not move the weights."""
    episodes = toy_rollout(n=2, count=4)
    for e in episodes:
        e.reward = 0.0
    episodes[0].reward = 1.0
    metrics, gradients = updated(episodes, updates=4)
    assert len(gradients) == 1 == metrics["updates"], "one of the four prompts has a gradient"
    episodes[0].reward = 0.0
    metrics, gradients = updated(episodes, updates=4)
    assert gradients == []
    assert metrics["updates"] == 0
    assert "grad_norm" not in metrics


def test_tokens_far_from_the_reference_are_pulled_back():
    """A reference that thinks e^5 times better of a token counts as e^MAX_AWAY times better. Beyond
    that bound the pull of the KL stays what it is at the bound, exp(3) - 1, and does not vanish:
    the tokens that drifted furthest need it most."""
    episodes = toy_rollout(n=1, count=1)
    episodes[0].reward = 0.0
    episodes[0].kl = 1.0
    new = plain_logprobs(episodes[0].sample)
    # d k3 / d new = 1 - exp(ref - new), and the loss is a mean over the tokens.
    pull = (1 - math.exp(train.MAX_AWAY)) * new.mean()
    expected = gradient_of(pull)
    real = train.logprobs_part

    def logprobs_part(model, samples, temperature, meter):
        rows = real(model, samples, temperature, meter)
        if model is base()[0]:
            return rows
        return [row + 5.0 for row in rows]

    with patch(train, "logprobs_part", logprobs_part):
        metrics, gradients = updated(episodes, reference=copy.deepcopy(base()[0]))
    same_gradient(gradients[0], expected)
    close(metrics["kl/response"], math.exp(train.MAX_AWAY) - train.MAX_AWAY - 1, 1e-3)


def test_pairs_are_young():
    """By default a pair waits for its critiques for two steps at most, on average."""
    args = arguments("--questions 16 --pairs 4")
    cache = PairCache(maxlen=args.cache)
    ages = []
    for step in range(1, 9):
        asked = problems(16, seed=step)
        _, metrics = train.gc_rl(args, toy_policy(), step, asked, cache, [])
        ages.append(metrics["critique/age"])
    assert max(ages) > 0, "more pairs come in than are drawn"
    assert sum(ages) / len(ages) <= 2


# --------------------------------------------------------------------------- draws and arithmetic


def test_every_token_of_a_large_vocabulary_can_be_drawn():
    """A top token of 0.9 before 151,935 others: the random number in the middle of a token's share
    draws that token."""
    vocabulary = 151_936
    probs = torch.full((vocabulary,), 0.1 / (vocabulary - 1), dtype=torch.float64)
    probs[0] = 0.9
    tokens = torch.arange(1, vocabulary, 997)
    noise = 0.9 + (tokens.double() - 0.5) * probs[1]
    for token, number in zip(tokens, noise):
        drawn, _ = rollout.choose(probs.log().float()[None], number[None], 1.0)
        assert drawn.item() == token


def test_bf16_sampling_where_keys_are_large():
    """Some entries of Qwen2.5's keys are. With attention's scores in bf16 the log-probs of sampler
    and learner were 0.1 nats apart."""
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.05)
    for layer in model.model.layers:
        entries = layer.self_attn.k_proj.bias.data[::32]
        entries[:] = 60 * torch.randn(len(entries)).sign()
    policy.setup_of(model).arithmetic = torch.bfloat16
    model.set_attn_implementation("shared_prompts")
    samples = generate(model, ragged(8, 60), 4, 32, stop=(), seed=1)
    drawn = torch.cat([torch.tensor(s.logprobs) for s in samples])
    with torch.no_grad():
        scored = torch.cat(logprobs(model, samples))
    assert (scored - drawn).abs().mean() < 0.013


# ---------------------------------------------------------------------- other models, other files


def test_end_of_turn_among_the_added_tokens_only(tmp_path):
    """A special token that the tokenizer does not list as one of its own still ends a turn."""
    tokenizer = copy.deepcopy(base()[1])
    tokenizer.add_tokens([transformers.AddedToken("<|eot_id|>", special=True)])
    model = copy.deepcopy(base()[0])
    model.resize_token_embeddings(len(tokenizer))
    turn = "{% for m in messages %}<|user|>{{ m.content }}<|eot_id|>{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    loaded, _ = load_policy(saved(tmp_path, model, tokenizer), "cpu")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end_of_turn in loaded.generation_config.eos_token_id


def test_named_templates():
    """Of several chat templates the one that is named `default` is used."""
    tokenizer = copy.deepcopy(base()[1])
    tokenizer.chat_template = {"default": "plain: {{ messages[0].content }}", "tools": "{{ 1/0 }}"}
    ids = encode_chat(tokenizer, [{"role": "user", "content": "hello"}])
    assert tokenizer.decode(ids) == "plain: hello"


def test_an_answer_stands_behind_the_thinking():
    """Of thinking that is never closed nothing is read, and it counts as cut, even where it was the
    prompt that opened it."""
    _, tokenizer = base()
    for opening, text, read, ended in (
        ("", "<think>1+1</think>\n2", "2", True),
        ("<think>\n", "1+1</think>2", "2", True),
        ("<think></think>", "2", "2", True),
        ("", "<think>1+1", "<think>1+1", False),
        ("<think>", "1+1", "1+1", False),
    ):
        prompt = tokenizer("hm" + opening).input_ids
        drawn = Sample(prompt, tokenizer(text).input_ids, [], stopped=True)
        with patch(rollout, "generate", return_value=[drawn]):
            (episode,) = rollout.respond(toy_policy(), [SEVEN], 1, seed=0)
        assert (episode.text, drawn.stopped) == (read, ended)


def test_models_without_a_key_value_cache_are_refused(tmp_path):
    """Mamba keeps another state: one line at load, before the run's folder is touched."""
    config = transformers.MambaConfig(
        vocab_size=400, hidden_size=32, state_size=8, num_hidden_layers=2
    )
    model = AutoModelForCausalLM.from_config(config)
    folder = saved(tmp_path / "mamba", model)
    out = tmp_path / "out"
    data_file = write(tmp_path / "data", problems(4))
    fails("mamba|key-value cache", trained, out, "--model", folder, "--data", data_file)
    assert not out.exists()


def test_eos_in_a_part_of_the_config():
    """Multimodal models keep the EOS in the configuration of their text."""
    model = copy.deepcopy(base()[0])
    text = model.config
    model.config = mock.Mock(spec=["get_text_config"], get_text_config=lambda: text)
    model.config.get_text_config().eos_token_id = 7
    assert 7 in policy.stop_set(model, base()[1])


# ------------------------------------------------------------------------ folders, streams, disks


def test_two_processes_in_one_folder(tmp_path):
    """The second is refused with one line, also with --resume, while the first holds the lock."""
    flags = "--steps 0 --eval-size 2"
    trained(tmp_path / "run", flags)
    other = """
import sys
from details.runs import lock_folder
from pathlib import Path
lock = lock_folder(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", other, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=Path(train.__file__).parent, **pipes) as process:
        assert process.stdout.readline() == b"locked\n"
        fails("run|another process", trained, tmp_path / "run", flags + " --resume")
        process.kill()
    trained(tmp_path / "run", flags + " --resume")


def test_terminals_that_cannot_show_a_character():
    """What the stream cannot encode is printed as a question mark."""
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with patch(sys, "stdout", ascii_stream):
        data.run_command(print, "1 \u2212 1")
        ascii_stream.flush()
        assert ascii_stream.buffer.getvalue() == b"1 ? 1\n"


# --------------------------------------------------------------------------- what a run tells


def test_a_bonus_for_format_is_no_outcome():
    """Whoever adds 0.1 for responses that end by themselves still gets pairs, a trained critic and
    true accuracies: those go by the outcome."""
    real = train.outcome_reward

    def with_a_bonus(episode):
        return real(episode) + 0.1 * episode.sample.stopped

    args = arguments("--questions 8 --n 4 --pairs 4")
    cache = PairCache(maxlen=8)
    with patch(train, "outcome_reward", with_a_bonus):
        episodes, metrics = train.gc_rl(args, toy_policy(), 1, problems(8, seed=8), cache, [])
    responses = [e for e in episodes if e.role == "response"]
    assert {e.reward for e in responses} == {0.1, 1.1}
    right = [is_correct(e.text, e.problem.answer) for e in responses]
    assert metrics["response/accuracy"] == sum(right) / len(right)
    assert metrics["critique/pairs"] > 0


def episode(role, text, group, advantage, **options):
    """One that is shown: its reward does not matter here."""
    made = Episode(a_sample(), text, role, Problem("1+1?", "2"), **options)
    made.group = group
    made.advantage = advantage
    return made


def test_what_is_shown_belongs_together():
    """A response and a critique of that response, from a group that something is learned from."""
    pair = Pair(Problem("1+1?", "2"), "b", False)
    other = Pair(Problem("1+1?", "2"), "of an earlier step", False)
    episodes = [
        episode("response", "a", "r", 1.0, right=True),
        episode("response", "b", "r", -1.0),
        episode("critique", "c", "first", 1.0, pair=other),
        episode("critique", "d", "second", 0.0, pair=pair),
        episode("critique", "e", "third", -1.0, pair=pair, says_right=True),
    ]
    assert [e.text for e in report.choose_chain(episodes)] == ["b", "e"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        rows = report.show_samples(base()[1], 3, episodes)
    assert "[response is wrong, reward 0, advantage -1.00]\nb\n" in printed.getvalue()
    assert "[critique says right, reward 0, advantage -1.00]\ne\n" in printed.getvalue()
    assert [row["completion"] for row in rows] == ["b", "a", "e"]


CANNOT_LEARN = [
    ({"truncated": 1.0}, "all completions were cut; raise --max-new-tokens"),
    ({"critique/pairs": 0}, "the critic has no pairs"),
    ({"critique/unreadable": 1.0}, "no critique ends in a judgement"),
    ({"traces": 0}, "no second attempt is right"),
    ({"groups/no_spread": 1.0, "response/accuracy": 1.0}, "all completions are right"),
    ({"groups/no_spread": 1.0, "t1": 0.0}, "all completions are wrong"),
    ({"groups/no_spread": 1.0, "response/accuracy": 0.5}, "inside each group"),
]


def test_a_run_that_cannot_learn_says_why():
    """Cause and remedy in one line; nothing where something can be learned."""
    for metrics, words in CANNOT_LEARN:
        line = report.why_nothing_is_learned(metrics)
        assert "cannot learn: " in line
        assert words in line
    assert report.why_nothing_is_learned({"groups/no_spread": 0.9, "truncated": 0.9}) is None


def test_the_end_of_a_run(tmp_path):
    """It says what came of it, draws its curves, and returns its numbers without taking signals
    away from whoever called it."""
    before = signal.getsignal(signal.SIGINT)
    returned = []

    def main(argv):
        returned.append(train.main(argv))

    flags = f"{ON_TOY} --steps 1 --questions 4 --eval-size 8 --out"
    printed = printed_by(main, flags, tmp_path)
    assert signal.getsignal(signal.SIGINT) == before
    rows = lines(tmp_path / "metrics.jsonl")
    assert returned == [rows[-1]]
    assert re.search(
        r"\nanswers \d+% -> \d+%, critiques \d+% -> \d+% \(8 held-out problems", printed
    )
    root = ElementTree.parse(tmp_path / "curves.svg").getroot()
    assert "held out, greedy" in "".join(root.itertext())
    numbers = []
    printed_by(lambda argv: numbers.append(sample.main(argv)), "--eval --model", tmp_path)
    assert numbers[0]["eval/generation"] == rows[-1]["eval/generation"]


def test_a_step_in_slow_motion():
    """--explain shows prompt, responses, the pair, critiques and tokens; the answer is looked up
    in the model's data files or given."""
    question = data.load_problems(TOY / "train.jsonl")[0].question
    printed = used("--explain --n 6", question)
    for words in ("PROMPT, ", "6 RESPONSES", "6 CRITIQUES of", "EVERY TOKEN", "<- a decision"):
        assert words in printed, words
    printed = used("--explain --n 2 --answer nonsense", question)
    assert "drops the question" in printed
    fails("--explain|--answer", used, "--explain", "Compute 1+1 modulo 10.")
    fails("--explain|question", used, "--explain")


def test_a_pipe_that_closes_ends_quietly():
    """`python sample.py ... | head -1`: no traceback."""
    command = f"{sys.executable} sample.py --n 1 'Compute 1+1 modulo 10.' | head -1"
    folder = Path(sample.__file__).parent
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
    assert done.stdout == "QUESTION\n"
    assert done.stderr == ""


def test_the_readmes_notebook_runs():
    """The lines of Python in details/README.md run as they stand."""
    text = (Path(data.__file__).parent / "README.md").read_text(encoding="utf-8")
    code = text.partition("one by one:\n\n")[2].partition("\n\n")[0]
    assert 10 <= len(code.splitlines()) <= 12
    names = {}
    with contextlib.chdir(Path(sample.__file__).parent):
        exec("\n".join(line.removeprefix("    ") for line in code.splitlines()), names)
    close(names["loss"].detach(), -1.0, 1e-4)  # on policy the ratio is 1, and so is the advantage


# ------------------------------------------------------------------------------------------- main


def main(names):
    """Run the tests that are asked for; 1 if any failed, or if there are none."""
    kind = "long_" if "--long" in names else "test_"
    parts = [name for name in names if name != "--long"] or [kind]
    passed = 0
    failed = 0
    for name, test in list(globals().items()):
        if not name.startswith(kind) or not any(part in name for part in parts):
            continue
        start = time.time()
        try:
            with tempfile.TemporaryDirectory() as folder:
                test(*[Path(folder)] * test.__code__.co_argcount)
            passed += 1
            print(f"ok    {name} ({time.time() - start:.1f} s)", flush=True)
        except (Exception, SystemExit):
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
