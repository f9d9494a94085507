"""Rewards, balanced resampling and advantages: everything that needs no model.

Equations 1 to 6 are those of GC-RL (arXiv 2602.22765), the shaped reward is that of SCoRe (arXiv
2409.12917), the group-relative advantage that of GRPO (arXiv 2402.03300).
"""

from collections import defaultdict, deque
from dataclasses import dataclass, field, replace

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

from details.answers import is_correct
from details.grader import graded
from details.programs import passed


@dataclass(frozen=True)
class Problem:
    """A question and how a response to it is judged: by an answer, by tests, or by a grader of the
    user's."""

    question: str
    answer: str = ""  # a number, an expression or text; `... #### 42` is understood
    program: bool | None = False  # True: a program is asked for; None: whatever the grader judges
    tests: tuple = ()  # a call and what it must return, as (("f(2)", "4"), ...)
    setup: str = ""  # Python that runs between the program and the calls
    row: str = field(default="", compare=False)  # the line of the data file, JSON


@dataclass(frozen=True)
class Pair:
    """A question with a response to it, on its way to the critic."""

    problem: Problem
    response: str
    right: bool  # its outcome: see `outcomes`
    step: int = 0  # the step whose policy gave the response, for the log
    accuracy: float = 0.5  # for eq. 3: see `random_pairs`


# ------------------------------------------------------------------------- outcomes and rewards


def outcomes(problems, texts):
    """Eq. 1, as a list of bools: is each response right? One call judges all responses of a
    rollout, and runs their programs side by side: texts[i] responds to problems[i]."""
    # Programs are run; of other problems `passed` says None.
    result = passed(problems, texts)
    for index, problem in enumerate(problems):
        if problem.program is False:
            result[index] = is_correct(texts[index], problem.answer)
        elif problem.program is None:
            result[index] = graded(problem.row, texts[index])
    return result


def response_reward(response, answer):
    """Eq. 1 of one response to a question with an answer, as a number: 1 if right, else 0."""
    return float(is_correct(response, answer))


def critique_reward(says_right, is_right, reward_on_right=0.7, reward_on_wrong=0.7):
    """Eq. 2: R(c) = 0.7 if the judgement agrees with the outcome of the response, else 0.

    says_right: the judgement, None where none can be read. Eq. 5 (lean to precision) is
    reward_on_right=0.6, reward_on_wrong=0.8; eq. 6 (lean to recall) the reverse.

    By default these constants make no difference: advantages are taken among the critiques of one
    response, where rewards are 0 or one constant, and the division by the standard deviation
    cancels it: 0.7, 0, 0 and 1, 0, 0 have the same advantages. They matter with --no-std, --group
    question or batch, or --denoise.
    """
    if says_right is not is_right:
        return 0.0
    return reward_on_right if is_right else reward_on_wrong


def reweighted_reward(says_right, is_right, accuracy):
    """Eq. 3: 0.35 / E[R(r)] for judging a right response right, 0.35 / (1 - E[R(r)]) for judging a
    wrong one wrong, else 0. Where half of the responses are right this is eq. 2's 0.7.

    For use without the filter: both labels then carry about the same total weight, however rare one
    of them is. accuracy: E[R(r)] (see `random_pairs`).
    """
    if says_right is not is_right:
        return 0.0
    return 0.35 / (accuracy if is_right else 1 - accuracy)


def denoising_reward(says_right, refined_right):
    """Eq. 4, added to eq. 2 or 3: with k of m refined responses right, 0.1 k/m if the critique says
    right, 0.7 k/m if it says wrong. A critique that says wrong must help to correct the response;
    one that says right leaves nothing to correct, so it earns little. (This is the paper's formula;
    it also pays up to 0.7 for calling a right response wrong.)

    says_right: the judgement, True or False. refined_right: the outcomes of the m responses that
    were sampled with the critique in view.
    """
    share = sum(refined_right) / len(refined_right)  # k/m
    if says_right:
        return 0.1 * share
    return 0.7 * share


def shaped_reward(reward1, reward2, alpha):
    """SCoRe, Stage II: r(y2) + alpha (r(y2) - r(y1)), the reward of the second attempt."""
    return reward2 + alpha * (reward2 - reward1)


# --------------------------------------------------------------------------- balanced resampling


def pairs_by_question(responses, n, step=0):
    """Each question's pairs for the critic, from its n Samples: [[Pair, ...], ...]. A truncated
    response earns 0, but the critic is not shown it: it is unfinished. step: the step whose policy
    gave them.
    """
    by_question = []
    for start in range(0, len(responses), n):
        own = responses[start : start + n]
        by_question.append([Pair(s.problem, s.text, s.right, step) for s in own if s.stopped])
    return by_question


def filter_pairs(by_question, rng):
    """The data filter. Of a question that has right and wrong responses it keeps one of each, drawn
    at random, the right one first; other questions are dropped.

    by_question: for each question its [Pair, ...].
    """
    chosen = []
    for pairs in by_question:
        # A question that is too easy or too hard has one kind only.
        right = [pair for pair in pairs if pair.right]
        wrong = [pair for pair in pairs if not pair.right]
        if right and wrong:
            chosen += [rng.choice(right), rng.choice(wrong)]
    return chosen


def random_pairs(by_question, rng):
    """Without the filter: any two responses to each question. For eq. 3 each pair gets the
    expected share of right pairs: if 6 of 8 are right at one question and none at the other,
    (2 * 6/8 + 2 * 0) / 4, whatever is drawn."""
    chosen = []
    expected_right = 0.0
    for pairs in by_question:
        drawn = rng.sample(pairs, min(2, len(pairs)))
        share = sum(pair.right for pair in pairs) / max(1, len(pairs))
        expected_right += share * len(drawn)
        chosen += drawn
    accuracy = expected_right / max(1, len(chosen))
    return [replace(pair, accuracy=accuracy) for pair in chosen]


class PairCache(deque):
    """The question-response cache: pairs wait here for the critic and leave when drawn. Some steps
    bring more pairs than are criticised, others fewer; the cache evens this out.

    Bounded: beyond `maxlen` the oldest go first, since the policy has moved furthest from them.
    A draw of more pairs than it holds returns all of them.
    """

    def draw(self, count, rng):
        """Up to `count` pairs, at random, without replacement."""
        # Sorted: pairs come out in the order in which they came in.
        indices = sorted(rng.sample(range(len(self)), min(count, len(self))))
        drawn = [self[index] for index in indices]
        # Deleting from the end does not shift the indices that are left.
        for index in reversed(indices):
            del self[index]
        return drawn


# ------------------------------------------------------------------------------------ advantages


def advantages(rewards, groups, std=True):
    """A = (R - mean of the group) / (standard deviation of the group + 1e-6), or without the
    division (as in Dr. GRPO, arXiv 2503.20783): a float tensor [samples].

    rewards: numbers [samples]; groups: one hashable key for each. The variance is divided by n,
    since the group is all there is; verl and TRL divide by n - 1, which makes their advantages
    0.935 of these at n = 8.
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    result = torch.zeros(len(rewards))
    for indices in members_of(groups).values():
        group = rewards[indices]
        # A zero-variance group gets exact zeros: rounding must not become a gradient.
        if group.min() == group.max():
            continue
        advantage = group - group.mean()
        if std:
            advantage = advantage / (group.std(correction=0) + 1e-6)
        result[indices] = advantage.float()
    return result


def leave_one_out(rewards, groups):
    """A = R - mean of the *others* in the group: of 1, 0, 0 this is 1, -0.5, -0.5. A float tensor
    [samples]. A mean that includes the sample itself would scale its gradient by 1 - 1/m in a
    group of m, and the groups here differ in size.

    rewards: numbers [samples]; groups: a tuple for each, such as ("attempt 2", False, question). A
    sample that is alone in its group is compared with those of other questions: their tuples agree
    in all but the last entry.
    """
    members = members_of(groups)
    wider_members = members_of(group[:-1] for group in groups)
    result = torch.zeros(len(rewards))
    for index, reward in enumerate(rewards):
        group = groups[index]
        others = [i for i in members[group] if i != index]
        others = others or [i for i in wider_members[group[:-1]] if i != index]
        # Differences, so that equal rewards give an exact zero.
        ahead = [reward - rewards[other] for other in others]
        result[index] = sum(ahead) / max(1, len(others))
    return result


def members_of(groups):
    """{group: the indices of its samples}."""
    members = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    return members
