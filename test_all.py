"""The tests: `python test_all.py [NAME ...]` runs all of them, or those whose names contain a NAME;
pytest finds them too. `--long` runs the long ones instead: kills, fuzz, memory; half an hour.

These may be read as documentation: equations, advantages, loss, filter and cache, prompts and
judgement, rollouts, recipes, update. Those of the sampler, the programs and the details are in
tests/, a file for each module. Values are worked out by hand or come from an independent path:
`model.generate` and plain forward passes against the sampler, autograd against closed forms, an
undisturbed run against one that was killed. No network and no file outside the repository is
needed.
"""

import copy
import importlib
import math
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import reward
import rollout
import train
from critique import correct_prompt, critique_prompt, judgement, solve_prompt
from details import memory, policy, start, supervised
from details.answers import is_correct
from details.supervised import demonstration
from reward import Pair, PairCache, Problem, advantages, leave_one_out
from rollout import encode_chat
from sample import attempts_table, pass_at_n
from tests.helpers import (
    SEVEN,
    a_sample,
    arguments,
    attempts,
    base,
    box,
    close,
    fails,
    gradient_of,
    learned,
    patch,
    plain_logprobs,
    problems,
    rewards_of,
    rows_of,
    same_gradient,
    small_device,
    solved,
    static_pairs,
    toy_rollout,
    toy_sampler,
    updated,
)

# -------------------------------------------------------------------------------------- equations


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


def test_shaped_reward_pays_what_the_second_attempt_changes():
    """SCoRe: r(y2) + alpha (r(y2) - r(y1)), here with alpha = 10."""
    for first, second, paid in ((0, 0, 0), (0, 1, 11), (1, 0, -10), (1, 1, 1)):
        assert reward.shaped_reward(first, second, alpha=10) == paid


# ------------------------------------------------------------------------------------- advantages


AWAY = torch.tensor([0.75, -0.25, -0.25, -0.25])  # from the mean of 1, 0, 0, 0


def test_advantages_by_hand():
    """A reward minus the mean of its group, divided by the population's standard deviation of
    the group; or, as in Dr. GRPO, without the division."""
    close(advantages([1, 0, 0, 0], "gggg", std=False), AWAY)
    close(advantages([1, 0, 0, 0], "gggg"), AWAY / (math.sqrt(3) / 4), 1e-5)


def test_leave_one_out_by_hand():
    """R - mean of the others in the group. A sample that is alone in its group is compared with
    the others of the wider group, here with 1, 0 and 5. One that is alone there too has nothing to
    learn from."""
    keys = ["wa", "wa", "wb", "wb", "wb", "vc"]  # c is in another wider group, v
    close(leave_one_out([3, 0, 1, 0, 5, 9], keys), [3, -3, -1.5, -3, 4.5, 0])
    close(leave_one_out([4, 1, 0, 5], keys[1:5]), [2, -1.5, -3, 4.5])
    assert leave_one_out([1.1] * 7, ["wa"] * 7).tolist() == [0] * 7, "exactly"


def test_zero_variance_groups_have_no_advantage():
    """Exact zeros, though the mean of seven times 0.7 is not 0.7 in floating point."""
    assert advantages([0.7] * 7 + [1.1], [0] * 7 + [1]).tolist() == [0.0] * 8


def test_where_the_constants_of_equation_5_cancel():
    """The open point of the paper: divided by the standard deviation, the critiques of one
    response have the same advantages under eqs. 2 and 5; over a batch, or without the division,
    they differ."""
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


# ------------------------------------------------------------------------------------------- loss


# Two completions, of two tokens and of one, sampled with log-probs of 0: so the logarithms of these
# ratios are the log-probs of now. Where the mask has a 0 anything may stand.
RATIOS = torch.tensor([[1.5, 0.7], [0.7, math.nan]])
MASK = torch.tensor([[1, 1], [1, 0]])
ADVANTAGES = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])


def loss_by_hand(mask=MASK, **options):
    return train.grpo_loss(RATIOS.log(), torch.zeros(2, 2), ADVANTAGES, mask, **options)


def test_loss_is_clipped():
    """-min(ratio A, clipped ratio A), as a mean over all tokens that are not masked; nothing is
    clipped inside a wide clip. Where all is masked the loss is 0."""
    loss, clipped, k3 = loss_by_hand(clip=0.2)
    # min(1.5, 1.2) = 1.2; min(0.7, 0.8) = 0.7; min(0.7 * -2, 0.8 * -2) = -1.6; three tokens
    close(loss, -(1.2 + 0.7 - 1.6) / 3)
    assert clipped.tolist() == [[True, False], [True, False]]
    assert not k3.any(), "no reference, no KL"
    loss, clipped, _ = loss_by_hand(clip=0.6)
    close(loss, -(1.5 + 0.7 - 1.4) / 3)  # 0.7 * -2 = -1.4
    assert not clipped.any()
    loss, _, _ = loss_by_hand(mask=torch.zeros(2, 2))
    assert loss == 0


def test_loss_has_a_weighted_kl():
    """kl k3 is added on each token: with one weight for all, or with a weight for each row."""
    # ref/new = 1, 2 and 2; k3 = ref/new - log(ref/new) - 1
    ref_logprobs = torch.tensor([[1.5, 1.4], [1.4, 9.0]]).log()
    k3_of_2 = 2 - math.log(2) - 1
    first_row_only = torch.tensor([[0.5], [0.0]])
    for kl, tokens in ((0.5, 2), (first_row_only, 1)):
        loss, _, k3 = loss_by_hand(ref_logprobs=ref_logprobs, kl=kl)
        close(k3, [[0, k3_of_2], [k3_of_2, 0]])
        close(loss, (-(1.2 + 0.7 - 1.6) + 0.5 * tokens * k3_of_2) / 3)


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


# ------------------------------------------------------------------------------- filter and cache


def answers_to(question, outcomes):
    """Pairs of a question with responses, right where `outcomes` has a 1."""
    problem = Problem(question, "1")
    return [Pair(problem, str(index), it == "1") for index, it in enumerate(outcomes)]


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


def test_without_the_filter_any_two_responses():
    """Two of each question's responses, drawn at random; of a single one that one."""
    groups = [answers_to("a", "110"), answers_to("b", "0")]
    draws = {tuple(reward.random_pairs(groups, random.Random(seed))[:2]) for seed in range(60)}
    assert len(draws) == 6, "any of three first, any other second"
    [alone] = reward.random_pairs(groups[1:], random.Random(0))
    assert alone.response == groups[1][0].response


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
    assert not cache
    assert cache.draw(3, rng) == []


# -------------------------------------------------------------------------- prompts and judgement


def test_prompt_to_criticise():
    """One user message, since the response is somebody's text: question, response, and the two
    conclusions to choose from."""
    parts = ["How many {x}?", "It is \\boxed{5} {", "Conclusion: right", "Conclusion: wrong"]
    (message,) = critique_prompt(*parts[:2])
    assert message["role"] == "user"
    for part in parts:
        assert part in message["content"]


def test_prompts_to_solve_and_to_correct():
    """The question stands as it is, braces included; what is asked for is an answer in a box, a
    program, or what the question says. To correct goes on with the conversation in which the
    response was given, and asks for the same. A critique stands in the request, if there is one."""
    question = "How many {x}?"
    response = "It is \\boxed{5} {"
    check = "No. {\nConclusion: wrong"
    for program, end in ((False, "\\boxed{}."), (True, "```python."), (None, "{x}?")):
        [asked] = solve_prompt(question, program)
        assert asked["content"].startswith(question)
        assert asked["content"].endswith(end)
        unaided = correct_prompt(question, response, program=program)
        helped = correct_prompt(question, response, check, program)
        for chat in (unaided, helped):
            assert [message["role"] for message in chat] == ["user", "assistant", "user"]
            assert chat[0] == asked
            assert chat[1]["content"] == response
            assert chat[2]["content"].endswith("corrected." if program is None else end)
        assert check not in unaided[2]["content"]
        assert check in helped[2]["content"]


# A critique, and its judgement, if it has one; ¶ is a new line.
JUDGEMENTS = r"""
Conclusion: right -> right
**Conclusion:** right -> right
**Conclusion: right** -> right
Conclusion: $\boxed{\text{right}}$ -> right
Conclusion: `right`! -> right
Conclusion: _right_ -> right
- Conclusion: RIGHT -> right
**Conclusion:** Right. [END] -> right
Conclusion: right <end> -> right
Conclusion: right <|im_end|> -> right
1. Conclusion: right -> right
It is a matter of life. Conclusion: wrong [END] -> wrong
Conclusion：wrong。 -> wrong
hm¶  ## Conclusion¶¶right¶ -> right
Conclusion: wrong ... so¶Conclusion:  right   ¶¶Thanks -> right
Conclusion: maybe¶Conclusion: right -> right
Conclusion: right¶Conclusion: maybe -> right
Conclusion: wrong -> wrong
conclusion:WRONG. -> wrong
Conclusion - \boxed{\text{Wrong}} -> wrong
# Conclusion:¶wrong -> wrong
Conclusion: wrong. [/end] -> wrong
8*9=5:2¶Conclusion: wrong -> wrong
Conclusion: right¶Conclusion: wrong -> wrong
Conclusion: wrong¶¶Right answer: 5 -> wrong
Conclusion: wrong¶> Conclusion: right -> wrong
Conclusion: wrong¶"Conclusion:right" -> wrong
 -> none
right -> none
Conclusion: -> none
Conclusion: unclear -> none
Conclusion: not right -> none
Conclusion: rightly so -> none
Conclusion: right|wrong -> none
Conclusion: right or wrong -> none
Conclusion: right / wrong -> none
Conclusion: **right** or **wrong** -> none
Conclusion: right, or wrong -> none
Conclusion: right (not) -> none
Conclusion: right (or wrong) -> none
Conclusion: right (almost) -> none
Conclusion: right-or-wrong -> none
Conclusion: the solution is right. -> none
Conclusion: wrong (right answer: 5) -> none
## Conclusion¶wrong, since 3*4 is 12 -> none
In conclusion, it went right -> none
So, conclusion: right -> none
The conclusion is: wrong -> none
> Conclusion: right -> none
> It is 5. Conclusion: right -> none
"Conclusion: right" -> none
"""


def test_judgement_is_the_last_conclusion():
    """A line of its own, in whatever markup; prose and quotations are not read. The same with the
    line ends of Windows."""
    for text, name in rows_of(JUDGEMENTS):
        expected = {"right": True, "wrong": False, "none": None}[name]
        assert judgement(text) is expected, text
        assert judgement(text.replace("\n", "\r\n") + "\r\n") is expected, text


# --------------------------------------------------------------------------------------- rollouts


def test_truncated_completions_have_no_outcome():
    """Whatever they say so far: a response has no final answer, and a critique no judgement."""
    responses = [a_sample("7"), a_sample("7", stopped=False)]
    rollout.set_outcomes(responses, [SEVEN, SEVEN], "response")
    assert [sample.right for sample in responses] == [True, False]
    drawn = [a_sample("Conclusion: right"), a_sample("Conclusion: right", stopped=False)]
    sampler = mock.Mock()
    sampler.complete.return_value = drawn
    critiques = rollout.criticise(sampler, SEVEN_PAIRS[:1], 2, seed=0)
    assert [sample.says_right for sample in critiques] == [True, None]


def test_second_attempt_goes_on_with_the_conversation():
    """Each first attempt is followed by one second attempt, whose prompt holds it."""
    one, other = problems(2, seed=6)
    first, second = rollout.two_attempts(toy_sampler(), [one, other], 2, seed=5)
    assert len(first) == len(second) == 4
    for problem, a, b in zip([one, one, other, other], first, second):
        assert a.problem == b.problem == problem
        assert b.first is a
        chat = correct_prompt(problem.question, a.text)
        assert b.prompt == encode_chat(base()[1], chat)


# ---------------------------------------------------------------------------------------- recipes


def a_step(flags, cache=None, static=(), step=1):
    """(samples, metrics) of a recipe on the toy: eight problems, four samples per prompt, at most
    six pairs for the critic."""
    args = arguments(flags + " --n 4 --pairs 6")
    recipe = train.METHODS[args.method]
    return recipe(args, toy_sampler(), step, problems(8, seed=8), cache, static)


def test_gc_rl_samples_responses_and_critiques_of_them():
    """Four responses to each problem, which are all that G-RL has, then four critiques of each
    pair, for one update. Two pairs of each problem with right and wrong responses: six at most are
    criticised, the rest waits."""
    cache = PairCache(maxlen=100)
    samples, metrics = a_step("--method gc-rl --kl 0.5", cache)
    alone, _ = a_step("--method g-rl --kl 0.5")
    responses = samples[:32]
    critiques = samples[32:]
    assert responses == alone
    for index, sample in enumerate(responses):
        problem = problems(8, seed=8)[index // 4]
        assert sample.role == "response"
        assert sample.problem == problem
        assert sample.reward == is_correct(sample.text, problem.answer)
    assert metrics["pass@n"] == pass_at_n(responses, 4)
    pairs = metrics["critique/pairs"]
    assert {sample.kl_weight for sample in samples} == {0.5}
    assert {sample.reward for sample in critiques} == {0.0, 0.7}
    assert len(critiques) == 4 * pairs
    assert len({tuple(sample.prompt) for sample in critiques}) == pairs
    assert metrics["critique/reward"] == sum(rewards_of(critiques)) / len(critiques)
    assert metrics["critique/age"] == 0, "of this very step"
    mixed = 0
    for first in range(0, 32, 4):
        mixed += len(set(rewards_of(responses[first : first + 4]))) == 2
    assert 2 < pairs <= 6
    assert pairs + len(cache) == 2 * mixed


def test_c_rl_passes_over_static_pairs():
    """Six of eight pairs a step: in four steps each pair comes three times."""
    static = static_pairs(problems(4, seed=8))
    seen = Counter()
    for step in range(1, 5):
        samples, metrics = a_step("--method c-rl", None, static, step)
        assert [sample.role for sample in samples] == ["critique"] * 24
        assert "response/accuracy" not in metrics, "no response is sampled"
        seen.update(sample.pair for sample in samples)
    assert seen == Counter(static * 4 * 3)
    few = train.pairs_to_criticise(arguments("--method c-rl"), 1, [], None, static)
    assert len(few) == 8, "each once"


def test_c_rl_with_dynamic_pairs():
    """Responses are sampled, for the critic to look at; the critiques alone are learned."""
    cache = PairCache(maxlen=100)
    samples, metrics = a_step("--method c-rl --critique-data dynamic", cache)
    assert {sample.role for sample in samples} == {"critique"}
    assert 0 < metrics["response/accuracy"] < 1


def test_pairs_with_and_without_the_filter():
    """Without it any two responses to a question go to the critic; a truncated response never does,
    and does not count in the accuracy, which is that of the pairs: two of one question, which are
    right, and one of the other, which is wrong. So by eq. 3 both labels have the same total weight,
    though more responses of one kind ended."""
    right, wrong, long = problems(3)
    responses = []
    for problem, ended in ((right, "abcd"), (wrong, "a"), (long, "")):
        for text in "abcd":
            drawn = a_sample(text, "response", problem, stopped=text in ended)
            drawn.right = problem == right
            responses.append(drawn)
    for balance, count in (("filter", 0), ("none", 3), ("reweight", 3)):
        args = arguments(f"--balance {balance} --n 4")
        pairs = train.pairs_to_criticise(args, 1, responses, PairCache(), [])
        assert len(pairs) == len(set(pairs)) == count
        for pair in pairs:
            assert pair.problem != long
            assert pair.right == (pair.problem == right)
            assert pair.accuracy == 2 / 3, "of three pairs, though four of five are right"


def test_with_whom_a_reward_is_compared():
    """By --group: with the samples of the prompt, of the question, or of the batch. Divided by the
    standard deviation, which is sqrt(3) / 4 in the batch, or not."""
    for flags, expected in (
        ("--group prompt", [0, 0, 0, 0]),
        ("--group question --no-std", [2 / 3, -1 / 3, -1 / 3, 0]),
        ("--group batch --no-std", AWAY),
        ("--group batch", AWAY / (math.sqrt(3) / 4)),
    ):
        # A response to the question q, critiques of two of its pairs, and a response to p.
        samples = []
        for index, question in enumerate("qqqp"):
            samples.append(a_sample(problem=Problem(question, "1"), reward=float(index == 0)))
            samples[-1].prompt = [index + 1]
        learned(samples, flags)
        close([sample.advantage for sample in samples], expected, 1e-5)


# A right and a wrong response; one of five was right where they were drawn.
SEVEN_PAIRS = [
    Pair(SEVEN, box(7), right=True, accuracy=0.2),
    Pair(SEVEN, box(8), right=False, accuracy=0.2),
]


def rewarded_critiques(flags, sampler=None):
    """(samples, metrics): each pair is judged right, wrong and not readably, and rewarded under
    the flags."""
    critiques = []
    for pair in SEVEN_PAIRS:
        for text, says_right in (("says right", True), ("says wrong", False), ("hm", None)):
            critiques.append(a_sample(text, "critique", pair=pair, says_right=says_right))
    with patch(train, "criticise", return_value=critiques):
        return train.rewarded_critiques(arguments(flags), sampler, 1, SEVEN_PAIRS)


def test_critiques_are_rewarded_by_equations_2_3_and_5():
    """By eq. 2, whose constants are --reward-right and --reward-wrong; or by eq. 3, with the
    accuracy that the pairs have with them. A judgement in three is right."""
    for flags, on_right, on_wrong in (
        ("", 0.7, 0.7),
        ("--reward-right 0.6 --reward-wrong 0.8", 0.6, 0.8),
        ("--balance reweight", 0.35 / 0.2, 0.35 / 0.8),
    ):
        critiques, metrics = rewarded_critiques(flags)
        close(rewards_of(critiques), [on_right, 0, 0, 0, on_wrong, 0])
        assert metrics["critique/accuracy"] == 1 / 3
        assert metrics["critique/age"] == 1, "of step 0"
        assert "refined/accuracy" not in metrics


def test_critiques_are_rewarded_by_equation_4():
    """--denoise 2: two refined responses with each critique in view that has a judgement; what they
    earn is added to equation 2."""
    sampler = mock.Mock()
    # k/m = 1, 1/2, 0, 1/2
    sampler.complete.return_value = [a_sample(box(answer)) for answer in (7, 7, 7, 9, 9, 9, 7, 9)]
    critiques, metrics = rewarded_critiques("--denoise 2", sampler)
    of_right = [0.7 + 0.1 * 1, 0 + 0.7 / 2, 0]
    of_wrong = [0 + 0.1 * 0, 0.7 + 0.7 / 2, 0]
    close(rewards_of(critiques), of_right + of_wrong)
    assert metrics["refined/accuracy"] == 0.5
    expected = []
    for pair in SEVEN_PAIRS:
        for text in ("says right", "says wrong"):
            expected.append(correct_prompt("q", pair.response, text))
    assert sampler.complete.call_args.args[:2] == (expected, 2)


# Four first attempts and the second attempts after them.
FIRST_RIGHT = [False, False, True, True]
SECOND_RIGHT = [False, True, False, True]
SCORE = "--method score --stage1-steps 1 --steps 2 --updates 1 --beta1 0.01 --beta2 0.1 --alpha 10"
MULTI_TURN = "--method multi-turn --updates 1 --beta1 0.01"


def score_step(flags, step=1, first_right=FIRST_RIGHT):
    """(first attempts, second attempts, metrics) of a step with those outcomes. The attempts'
    tokens are real, so that they can be learned; their texts are made up."""
    (problem,) = problems(1, seed=4)
    first, second = rollout.two_attempts(toy_sampler(), [problem], 4, seed=1)
    for sample, right in zip(first + second, first_right + SECOND_RIGHT):
        sample.text = box(problem.answer) if right else box("x")
        sample.right = right
        sample.stopped = True
    with patch(train, "two_attempts", return_value=(first, second)):
        samples, metrics = a_step(flags, step=step)
    assert samples == first + second
    return first, second, metrics


def test_score_and_multi_turn_reward_attempts():
    """Stage I rewards the second attempt and holds the first to the base by beta2 on top of beta1.
    Stage II rewards both, and the second is paid alpha times what it changes. Multi-turn is SCoRe
    without stages and shaping, from the first step on. Metrics have the table of the attempts."""
    for flags, step, stage, of_first, of_second, kl_of_first in (
        (SCORE, 1, {"stage": 1}, [0, 0, 0, 0], SECOND_RIGHT, 0.11),
        (SCORE, 2, {"stage": 2}, FIRST_RIGHT, [0, 11, -10, 1], 0.01),
        (MULTI_TURN, 1, {}, FIRST_RIGHT, SECOND_RIGHT, 0.01),
    ):
        first, second, metrics = score_step(flags, step)
        assert rewards_of(first) == of_first
        assert rewards_of(second) == of_second
        close([sample.kl_weight for sample in first], [kl_of_first] * 4)
        close([sample.kl_weight for sample in second], [0.01] * 4)
        assert metrics.pop("groups/alone") == 0
        assert metrics.pop("pass@n") == 1
        assert metrics == attempts_table(first, second) | stage


def test_star_keeps_right_traces():
    """A right first attempt whose second is wrong is no trace; a wrong first one is not learned."""
    first, second = attempts(
        ("a", True, "A", False),
        ("b", False, "B", True),
        ("c", True, "C", True),
        ("d", False, "D", False),
    )
    second[1].prompt = [2]
    settings = arguments("--method star --updates 2"), toy_sampler(), None, mock.MagicMock()
    state = {"problems": problems(1), "static": []}
    drawn = patch(train, "two_attempts", return_value=(first, second))
    with drawn, patch(train, "imitate", return_value={}) as imitate:
        metrics, _ = train.train_step(*settings, 1, None, state)
    batches = imitate.call_args.args[2]
    assert sorted("".join(s.text for s in batch) for batch in batches) == ["B", "cC"]
    assert metrics["traces"] == 2


def test_pair_sft_learns_the_right_response_after_the_wrong_one():
    """As the second attempt in a conversation; --pairs different problems a step."""
    args = arguments("--method pair-sft --pairs 3")
    asked = [replace(problem, program=None) for problem in problems(6, seed=8)]
    static = static_pairs(asked)
    kept = []
    for step in (1, 2):
        samples, metrics = train.pair_sft(args, toy_sampler(), step, [], None, static)
        assert metrics["traces"] == len(samples) == 3
        kept += samples
    assert {sample.problem for sample in kept} == set(asked)
    for sample in kept:
        chat = correct_prompt(sample.problem.question, box("x"), program=None)
        shown = demonstration(base()[1], chat, solved(sample.problem))
        assert (sample.prompt, sample.tokens) == (shown.prompt, shown.tokens)
    args.pairs = 7
    with patch(train, "context_length", return_value=50):
        kept, _ = train.pair_sft(args, toy_sampler(), 1, [], None, static)
    assert [sample.tokens for sample in kept] == [[]] * 6, "no room"


# ----------------------------------------------------------------------------------------- update


def plain_gradient(samples, temperature=1.0):
    """The gradient of GRPO's loss, unclipped, of samples that have their advantages."""
    total = 0.0
    tokens = 0
    for sample in samples:
        new = plain_logprobs(sample, temperature)
        ratio = (new - torch.tensor(sample.logprobs)).exp()
        total = total - (sample.advantage * ratio).sum()
        tokens += len(sample.tokens)
    return gradient_of(total / tokens)


def micro_batches_of(tokens):
    """Memory for micro-batches of the toy of so many tokens."""
    return patch(memory, "memory", return_value=tokens * memory.token_bytes(base()[0]))


def test_update_has_the_gradient_of_the_loss():
    """In micro-batches, with logits in slices and without what has no advantage, it is the gradient
    that plain passes over everything find."""
    for temperature in (1.0, 0.7):
        samples = toy_rollout(temperature=temperature)
        # 388 tokens are in the vocabulary.
        with micro_batches_of(200), patch(rollout, "LOGITS", 30 * 388):
            assert len(memory.micro_batches(base()[0], samples)) > 3
            _, (seen,) = updated(samples, f"--temperature {temperature}")
        same_gradient(seen, plain_gradient(samples, temperature))


def gradients_added():
    """Notes the calls of `add_gradient`, whose second argument is what a step computes."""
    return patch(train, "add_gradient", wraps=train.add_gradient)


def test_update_does_not_compute_what_has_no_gradient():
    """Samples without advantage and KL are left out; those with either are not."""
    samples = toy_rollout(n=8, count=1)  # the third and the seventh have no advantage
    samples[2].kl_weight = 0.1
    with gradients_added() as added:
        updated(samples)
    assert added.call_args.args[1] == samples[:6] + samples[7:]


def test_gradient_is_clipped_to_its_largest_norm():
    """The same direction, of length GRAD_CLIP; the metric is the norm before."""
    samples = toy_rollout()
    metrics, (seen,) = updated(samples, grad_clip=0.01)
    expected = plain_gradient(samples)
    same_gradient(seen, 0.01 * expected / expected.norm())
    close(metrics["grad_norm"], expected.norm(), 1e-4)
    assert train.GRAD_CLIP == supervised.GRAD_CLIP == 1


def test_mini_batches_share_out_the_prompts():
    """Two optimizer steps: each has the gradient of its own samples, and all have their turn. The
    completions of a prompt stay together; so there are no more steps than prompts."""
    samples = [sample for sample in toy_rollout() if sample.reward != 0]
    with gradients_added() as added:
        _, gradients = updated(samples, "--updates 2")
    batches = [call.args[1] for call in added.call_args_list]
    assert len(gradients) == len(batches) == 2
    prompts = []
    for seen, batch in zip(gradients, batches):
        same_gradient(seen, plain_gradient(batch))
        prompts.append({sample.problem for sample in batch})
    assert prompts[0].isdisjoint(prompts[1])
    assert sorted(map(id, batches[0] + batches[1])) == sorted(map(id, samples))
    assert len(train.mini_batches(samples, 8, random.Random(0))) == 4


def test_metrics_of_a_policy_that_has_moved():
    """Each log-prob is half a nat above that of sampling: a ratio of 1.65, clipped at 1.2."""
    sample = toy_rollout()[0]
    sample.logprobs = [logprob - 0.5 for logprob in sample.logprobs]
    metrics, _ = updated([sample])
    close(metrics["ratio/max_log"], 0.5, 1e-3)
    close(metrics["ratio/mean_log"], 0.5, 1e-3)
    assert min(sample.log_ratios) > 0
    assert metrics["ratio/clipped"] == 1
    metrics, _ = updated([sample], "--clip 0.9")
    assert metrics["ratio/clipped"] == 0, "1.65 is inside 1.9"


def test_metrics_of_a_rollout_by_hand():
    """Zero-variance groups, completions that were truncated or ended inside their thinking,
    entropy, mean length of each role."""
    samples = toy_rollout(n=4, count=2)
    nats = 0.0
    for index, sample in enumerate(samples):
        sample.group = (index // 3,)
        sample.reward = 1 if index == 0 else 0  # of groups of 3, 3 and 2 two have zero variance
        sample.role = "a" if index < 6 else "b"
        sample.stopped = index not in (1, 2)
        sample.unclosed = index == 2
        nats -= sum(sample.logprobs)
    metrics, _ = learned(samples)
    lengths = [len(sample.tokens) for sample in samples]
    close(metrics["groups/no_spread"], 2 / 3)
    close(metrics["truncated"], 1 / 8)
    close(metrics["unclosed"], 1 / 8)
    close(metrics["entropy"], nats / sum(lengths))
    close(metrics["length/a"], sum(lengths[:6]) / 6)
    close(metrics["length/b"], sum(lengths[6:]) / 2)


def test_kl_to_the_reference():
    """The gradient of k3, by plain passes, times its weight; its mean for each role as a metric."""
    # The toy with its weights moved a little.
    torch.manual_seed(0)
    reference = copy.deepcopy(base()[0])
    for p in reference.parameters():
        p.data += 0.005 * torch.randn_like(p)
    samples = toy_rollout()
    samples[0].role = "attempt 1"
    k3 = []
    weighted = []
    for index, sample in enumerate(samples):
        sample.reward = 0.0
        sample.kl_weight = 1.0 + index % 2
        away = plain_logprobs(sample, model=reference).detach() - plain_logprobs(sample)
        k3.append(away.exp() - away - 1)
        weighted.append(sample.kl_weight * k3[-1])
    expected = gradient_of(torch.cat(weighted).mean())
    metrics, (seen,) = updated(samples, reference=reference)
    same_gradient(seen, expected)
    close(metrics["kl/attempt 1"], k3[0].mean().item(), 1e-4)
    close(metrics["kl/response"], torch.cat(k3[1:]).mean().item(), 1e-4)


def test_reference_is_loaded_where_it_is_needed(tmp_path):
    """It is the starting policy in the same precision, a model of its own that is not learned;
    without a KL there is none."""
    for flags, needed in (("--kl 0", False), ("--kl 0.1", True), ("--method score", True)):
        args = arguments(flags + " --device cpu --precision bf16")
        args.out = str(tmp_path / flags)
        sampler, reference, optimizer, _, lock = start.begin_run(args)
        lock.close()
        assert (reference is not None) == needed
        assert optimizer.defaults["weight_decay"] == 0
        assert optimizer.defaults["betas"] == (0.9, 0.95)
        if needed:
            assert reference is not sampler.model
            assert policy.dtype_of(reference) == torch.bfloat16
            assert not any(p.requires_grad for p in reference.parameters())


def test_out_of_memory_means_smaller_micro_batches():
    """They are halved until they fit, down to single rows; the gradient stays the same. What
    micro-batches before have added to it is not counted twice."""
    samples = toy_rollout()
    _, (expected,) = updated(samples)
    # The second call fails; the others do what they should.
    once = mock.Mock(wraps=train.batch_logprobs)
    error = torch.OutOfMemoryError("out of memory once")
    once.side_effect = [mock.DEFAULT, error] + [mock.DEFAULT] * 99
    in_the_middle = patch(train, "batch_logprobs", once)
    for room, device in ((10**6, small_device(train, "batch_logprobs", 1)), (200, in_the_middle)):
        with micro_batches_of(room), device:
            _, (seen,) = updated(samples)
        same_gradient(seen, expected)
    # Of a single row nothing is left to halve.
    with small_device(train, "batch_logprobs", 0):
        fails("a small device", updated, samples[:4], kind=torch.OutOfMemoryError)


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
        metrics, (seen,) = learned(first + second, flags, base()[0])
        close([sample.advantage for sample in first], of_first)
        close([sample.advantage for sample in second], of_second)
        same_gradient(seen, plain_gradient(first + second))
        close(metrics["groups/no_spread"], no_spread)


def test_attempt_without_others_of_the_same_past():
    """It is compared with those in the batch that follow the same outcome."""
    _, second, metrics = score_step(SCORE, first_right=[False, False, False, True])
    assert metrics["groups/alone"] == 1 / 4
    question = second[0].problem.question
    groups = {sample.group for sample in second}
    assert groups == {("attempt 2", before, question) for before in (False, True)}


# ------------------------------------------------------------------------------------------- main


def all_tests():
    """{name: function} of this file's tests and of those in tests/, the long ones included."""
    modules = [sys.modules[__name__]]
    for path in sorted(Path(__file__).parent.glob("tests/test_*.py")):
        modules.append(importlib.import_module(f"tests.{path.stem}"))
    found = {}
    for module in modules:
        for name, test in vars(module).items():
            if name.startswith(("test_", "long_")):
                assert found.setdefault(name, test) is test, f"two tests are called {name}"
    return found


def run(name):
    """(seconds, what went wrong or None) of one test."""
    began = time.time()
    test = all_tests()[name]
    try:
        with tempfile.TemporaryDirectory() as folder:
            test(*[Path(folder)] * test.__code__.co_argcount)
    except (Exception, SystemExit):
        return time.time() - began, traceback.format_exc()
    return time.time() - began, None


def main(words):
    """Run the tests that are asked for, two at a time; 1 if any failed, or if there are none."""
    kind = "long_" if "--long" in words else "test_"
    words = [word for word in words if word != "--long"] or [kind]
    names = []
    for name in all_tests():
        if name.startswith(kind) and any(word in name for word in words):
            names.append(name)
    failed = 0
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for name, (seconds, error) in zip(names, pool.map(run, names)):
            failed += error is not None
            verdict = f"FAIL  {name}\n{error}" if error else f"ok    {name} ({seconds:.1f} s)"
            print(verdict, flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed or not names else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
