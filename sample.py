"""What a policy does with questions, as text: respond, criticise, correct; evaluate; vote.

python sample.py "Compute 7+6*7*8 modulo 10."       answer, critiques, corrected answers (toy)
python sample.py --model out --eval --json          a run on its own held-out problems and exam
python sample.py --model out --vote                 three ways to spend k samples a problem
"""

import argparse
import json
import math
import random
import re
import sys
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

import reward
from critique import correct, critique, judgement, solve
from reward import InputError, Pair, Problem, answer_key, filter_pairs, response_reward, to_pair
from rollout import TOY, Sample, context_length, decode, encode_chat, generate, load_policy


@dataclass
class Policy:
    """A model and how it is sampled."""

    model: object
    tokenizer: object
    limit: int  # of a completion, in tokens
    temperature: float = 1.0

    def greedy(self):
        return replace(self, temperature=0.0)


@dataclass
class Episode:
    """A sample with its text and its outcome, and what a recipe of train.py makes of it."""

    sample: Sample
    text: str
    role: str  # response, critique, attempt 1, attempt 2
    problem: Problem
    reward: float = 0.0
    judged: bool | None = None  # of a critique: its judgement
    group: tuple = ()  # with whom the reward is compared
    kl: float = 0.0  # weight of the KL to the reference on its tokens
    advantage: float = 0.0


def seed_of(*parts):
    """A seed that depends on all parts: run, step, what is sampled. It needs no state, so that a
    resumed run goes on alike."""
    return zlib.crc32(repr(parts).encode())


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def printable(text):
    """Text of a model, safe for a terminal: control characters and escapes are spelled out."""
    return re.sub(r"[^\n\t\x20-\x7e\u00a0-\U0010ffff]", lambda c: repr(c[0])[1:-1], text)


# -------------------------------------------------------------------------------------- rollouts


def complete(policy, chats, n, seed, show=None):
    """Sample n completions for each chat, in prompt-major order: [(Sample, text)]. A prompt that
    leaves no room in the context gives samples without tokens. show: title of a progress bar."""
    tokenizer, room = policy.tokenizer, context_length(policy.model)
    prompts = [encode_chat(tokenizer, chat) for chat in chats]
    fits = [prompt for prompt in prompts if len(prompt) < room]
    with tqdm(total=len(fits) * n, desc=show, disable=None if show else True, leave=False) as bar:
        how = dict(temperature=policy.temperature, seed=seed, bar=bar)
        done = iter(generate(policy.model, fits, n, policy.limit, **how))
    asked = [prompt for prompt in prompts for _ in range(n)]
    samples = [next(done) if len(p) < room else Sample(p, [], [], False) for p in asked]
    return [(sample, decode(tokenizer, sample)) for sample in samples]


def outcome(sample, text, problem):
    """Eq. 1 for a sample: one that was cut has no final answer, whatever number it stopped at."""
    return response_reward(text, problem.answer) if sample.stopped else 0.0


def respond(policy, problems, n, seed, show=None):
    """First-order rollout: n responses to each problem, rewarded by eq. 1; problem-major order."""
    done = complete(policy, [solve(p.question) for p in problems], n, seed, show)
    asked = [p for p in problems for _ in range(n)]
    return [Episode(s, t, "response", p, outcome(s, t, p)) for (s, t), p in zip(done, asked)]


def criticise(policy, pairs, n, seed, show=None):
    """Second-order rollout: n critiques of each pair with their judgements; pair-major order."""
    chats = [critique(p.problem.question, p.response) for p in pairs]
    done = complete(policy, chats, n, seed, show)
    calls = [judgement(text) if sample.stopped else None for sample, text in done]
    asked = [p.problem for p in pairs for _ in range(n)]
    return [Episode(*d, "critique", p, judged=call) for d, p, call in zip(done, asked, calls)]


def two_attempts(policy, problems, n, seed, show=None):
    """n first attempts at each problem and one second attempt for each: two lists of Episodes in
    the same order, and the table of both (see `attempts_table`)."""
    first, second = respond(policy, problems, n, seed, show), []
    chats = [correct(a.problem.question, a.text) for a in first]
    for a, (s, text) in zip(first, complete(policy, chats, 1, seed + 1, show)):
        a.role = "attempt 1"
        second.append(Episode(s, text, "attempt 2", a.problem, outcome(s, text, a.problem)))
    return first, second, attempts_table(first, second)


def draw_pairs(responses, n, balance, rng):
    """Pairs for the critic from n responses to each question: one right and one wrong response of
    those that have both (`filter`), else any two. Cut responses are left out, also of their
    accuracy: unfinished is not wrong."""
    accuracy = mean(e.reward for e in responses if e.sample.stopped)
    groups = []
    for i in range(0, len(responses), n):
        ended = [e for e in responses[i : i + n] if e.sample.stopped]
        groups.append([Pair(e.problem, e.text, e.reward == 1, accuracy) for e in ended])
    if balance == "filter":
        return filter_pairs(groups, rng)
    return [pair for group in groups for pair in rng.sample(group, min(2, len(group)))]


def sample_pairs(policy, problems, n, count, seed, balance="filter", show=None):
    """At most `count` pairs of the current policy from n responses to each problem: the critic's
    exam, static pairs."""
    rng, pairs, chunk = random.Random(seed), [], max(8, count // 4)
    for start in range(0, len(problems), chunk):
        part = problems[start : start + chunk]
        responses = respond(policy, part, n, seed_of(seed, start), show)
        pairs += draw_pairs(responses, n, balance, rng)
        if len(pairs) >= count:
            break
    return pairs[: count // 2 * 2]


# ------------------------------------------------------------------------------------ evaluation


def judge_table(judged, right):
    """Judgements (True, False, None) against outcomes: accuracy, P1 on right and P2 on wrong
    responses, precision and recall of "right", share without a readable judgement."""
    return {
        "accuracy": mean(j is r for j, r in zip(judged, right)),
        "p1": mean(j is True for j, r in zip(judged, right) if r),
        "p2": mean(j is False for j, r in zip(judged, right) if not r),
        "precision": mean(r for j, r in zip(judged, right) if j),
        "recall": mean(j is True for j, r in zip(judged, right) if r),
        "unreadable": mean(j is None for j in judged),
    }


def attempts_table(first, second):
    """SCoRe's metrics of two lists of Episodes: accuracies t1 and t2, their difference, the shares
    of problems that went from incorrect to correct and back. And the collapse: the share of second
    attempts that repeat the first word for word (`unchanged`), and of the wrong first answers that
    the second attempt gives again, in whatever words (`kept`)."""
    both = list(zip(first, second))
    t1, t2 = mean(a.reward for a in first), mean(b.reward for b in second)
    return {
        "t1": t1,
        "t2": t2,
        "delta": t2 - t1,
        "i_to_c": mean(b.reward and not a.reward for a, b in both),
        "c_to_i": mean(a.reward and not b.reward for a, b in both),
        "unchanged": mean(a.text == b.text for a, b in both),
        "kept": mean(same_answer(a, b) for a, b in both if not a.reward),
        "truncated": mean(not e.sample.stopped for e in first + second),
    }


def same_answer(a, b):
    """Do two attempts that ended by themselves give one answer?"""
    first = answer_key(a.text) if a.sample.stopped and b.sample.stopped else None
    return first is not None and first == answer_key(b.text)


def evaluate(policy, problems, exam):
    """Greedy evaluation on held-out problems (answers, second attempts) and on the exam's pairs
    (critiques): a dict of eval/... numbers."""
    *_, table = two_attempts(policy.greedy(), problems, 1, 0, "evaluation")
    result = {"generation": table["t1"]} | table | {"size": len(problems)}
    calls = [e.judged for e in criticise(policy.greedy(), exam, 1, 0, "critiques")]
    table = judge_table(calls, [pair.right for pair in exam])
    result |= {"critique": table.pop("accuracy"), "pairs": len(exam)}
    result |= {"critique_" + name: value for name, value in table.items()}
    return {"eval/" + name: value for name, value in result.items()}


def print_table(title, columns):
    """A line for each metric of any column {heading: {metric: value}}, under its own name."""
    width = max(9, *(len(heading) + 2 for heading in columns))
    print(f"\n{title:32}" + "".join(f"{heading:>{width}}" for heading in columns))
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [column.get(name) for column in columns.values()]
        cells = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in cells]
        print(f"{name:32}" + "".join(f"{cell:>{width}}" for cell in cells))


# ------------------------------------------------------------------------------------------ votes


def majority_vote(responses, weights=None):
    """The index of the response that the vote elects, None if no answer can be read.

    Answers are counted by `answer_key`, each with its weight (1 by default). Of equals the one that
    came first wins; where all weights are 0 everybody votes with weight 1.
    """
    keys, votes = [answer_key(response) for response in responses], {}
    for key, weight in zip(keys, weights or [1.0] * len(keys)):
        if key is not None:
            votes[key] = votes.get(key, 0.0) + weight
    if weights and not any(votes.values()):
        return majority_vote(responses)
    return keys.index(max(votes, key=votes.get)) if votes else None  # max: the first of equals


def vote(policy, problems, budgets, critiques, seed):
    """Accuracy by three ways to spend k samples a problem, each by majority vote: k answers; k/2
    answers, each corrected once; k/(1 + m) answers, each weighted by the share of its m critiques
    that call it right. One sampling serves all budgets: the smaller use the first answers.

    Returns {"vote/WAY": {k: accuracy}}.
    """

    def by_problem(items, each):
        return [items[i : i + each] for i in range(0, len(items), each)]

    def first_of(each):
        return [e for group in answers for e in group[:each]]

    most, each = max(budgets), max(budgets) // (1 + critiques)
    answers = by_problem(respond(policy, problems, most, seed_of(seed, "vote"), "answers"), most)

    chats = [correct(e.problem.question, e.text) for e in first_of(most // 2)]
    done = complete(policy, chats, 1, seed_of(seed, "vote", "corrections"), "corrections")
    second = [Episode(*d, "attempt 2", e.problem) for d, e in zip(done, first_of(most // 2))]

    pairs = [Pair(e.problem, e.text, e.reward == 1) for e in first_of(each)]
    checks = criticise(policy, pairs, critiques, seed_of(seed, "vote", "critiques"), "critiques")
    weights = [mean(c.judged is True for c in part) for part in by_problem(checks, critiques)]

    ballots = {  # way: what a vote costs in samples, and each problem's [(episode, weight), ...]
        "parallel": (1, [[(e, 1.0) for e in group] for group in answers]),
        "parallel, corrected": (2, by_problem([(e, 1.0) for e in second], most // 2)),
        "critique-weighted": (1 + critiques, by_problem(list(zip(first_of(each), weights)), each)),
    }

    def right(ballot):
        texts = [e.text if e.sample.stopped else "" for e, _ in ballot]
        elected = majority_vote(texts, [weight for _, weight in ballot])
        return elected is not None and response_reward(texts[elected], ballot[0][0].problem.answer)

    table = {}
    for way, (cost, cast) in ballots.items():
        shares = {k: mean(right(ballot[: k // cost]) for ballot in cast) for k in budgets}
        table["vote/" + way] = {k: share for k, share in shares.items() if k >= cost}
    return table


# --------------------------------------------------------------------------- the command line


def show_question(policy, question, n, seed):
    """Print an answer, n critiques and their judgements, and corrected answers."""

    def greedy(chat):
        return complete(policy.greedy(), [chat], 1, 0)[0][1]

    answer = greedy(solve(question))
    print(f"QUESTION\n{printable(question)}\n\nANSWER\n{printable(answer)}")
    critiques = criticise(policy, [Pair(Problem(question, ""), answer, False)], n, seed)
    names = {True: "right", False: "wrong", None: "no judgement that can be read"}
    for i, e in enumerate(critiques, 1):
        print(f"\nCRITIQUE {i}: {names[e.judged]}\n{printable(e.text)}")
    helped = greedy(correct(question, answer, critiques[0].text))
    print(f"\nCORRECTED, with critique 1\n{printable(helped)}")
    print(f"\nCORRECTED, without a hint\n{printable(greedy(correct(question, answer)))}")


def check_lengths(policy, problems):
    """Refuse problems that leave no room for an answer in the model's context, and conversations
    that its chat template refuses, before the first token is sampled (of the 50 longest)."""
    room = context_length(policy.model)
    for problem in sorted(problems, key=lambda p: -len(p.question))[:50]:
        size = len(encode_chat(policy.tokenizer, correct(problem.question, "0")))
        if size + policy.limit > room:
            need = f"{size} and --max-new-tokens {policy.limit} for {problem.question[:60]!r}"
            raise InputError(f"the model's context of {room} tokens is too short: {need}")


def check_numbers(args, may_be_zero):
    """Refuse numbers of the command line that are not finite and above 0; where 0 has a sense, in
    the flags `may_be_zero` (names with spaces between them), those below 0."""
    for name, value in vars(args).items():
        low = "at least 0" if name in may_be_zero.split() else "above 0"
        if type(value) in (int, float) and not 0 < value < math.inf and (value or low == "above 0"):
            raise InputError(f"--{name.replace('_', '-')} {value}: must be finite and {low}")


def parse_args(argv):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.error = lambda message: sys.exit(f"error: {message}")
    add = parser.add_argument
    add("question", nargs="?", help="a question to answer")
    add("--model", default="toy", help="toy, a run's folder, a model folder or a hub id [toy]")
    add("--eval", action="store_true", help="evaluate: answers, second attempts, critiques")
    add("--vote", action="store_true", help="vote at budgets of up to --n samples a problem")
    add("--data", help="gsm8k (its test file) or a JSONL file [MODEL/held_out.jsonl]")
    add("--exam", help="JSONL file of critique pairs for --eval [MODEL's own; of --data: sampled]")
    add("--size", type=int, help="use the first N problems", metavar="N")
    add("--n", type=int, help="critiques of a question [4]; the largest budget of --vote [16]")
    add("--critiques", type=int, default=1, help="critiques of each answer in --vote [1]")
    add("--temperature", type=float, default=1.0, help="of critiques and votes [1.0]")
    add("--max-new-tokens", type=int, help="limit of a completion [that of the run, else 512]")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda, mps [cuda where there is one]")
    add("--json", action="store_true", help="the numbers as one JSON object on the last line")
    args = parser.parse_args(argv)
    args.n = args.n if args.n is not None else 16 if args.vote else 4
    check_numbers(args, "seed")
    if args.vote and args.critiques >= args.n:
        raise InputError(f"--critiques {args.critiques}: must be less than --n {args.n}")
    if not (args.question or args.eval or args.vote):
        raise InputError("give a question, --eval or --vote (see --help)")
    return args


def use(argv):
    """Do what the flags ask for."""
    args = parse_args(argv)
    folder = TOY if args.model == "toy" else Path(args.model)
    problems, exam = [], []
    if args.eval or args.vote:
        if not args.data and not (folder / "held_out.jsonl").exists():
            raise InputError(f"{folder} has no held_out.jsonl: name the problems by --data FILE")
        problems = reward.load_problems(args.data or folder / "held_out.jsonl", "test")[: args.size]
    own = folder / "exam.jsonl"  # without a line where no question had right and wrong responses
    if args.exam or (args.eval and not args.data and own.exists() and own.stat().st_size):
        exam = reward.read_jsonl(args.exam or own, to_pair)
    model, tokenizer = load_policy(args.model, args.device)
    limit = args.max_new_tokens or model.generation_config.max_new_tokens or 512
    policy = Policy(model, tokenizer, limit, args.temperature)
    check_lengths(policy, [*problems, Problem(args.question or "", "")])
    if args.question:
        show_question(policy, args.question, args.n, args.seed)
    numbers = {}
    if args.eval:
        if not exam:
            seed = seed_of(args.seed, "exam")
            exam = sample_pairs(policy, problems, 8, len(problems), seed, show="critique pairs")
        numbers |= evaluate(policy, problems, exam)
        print_table(str(args.data or folder), {args.model: numbers})
    if args.vote:
        budgets = sorted({2**i for i in range(1, 20) if 2**i < args.n} | {args.n})
        table = vote(policy, problems, budgets, args.critiques, args.seed)
        *_, greedy = two_attempts(policy.greedy(), problems, 1, 0, "greedy")
        error = f"standard error up to {0.5 / len(problems) ** 0.5:.3f}"
        print(f"\ngreedy: t1 {greedy['t1']:.3f}, t2 {greedy['t2']:.3f}; {error}")
        columns = {f"k={k}": {way: row.get(k) for way, row in table.items()} for k in budgets}
        print_table(f"accuracy by vote, {len(problems)} problems", columns)
        numbers |= table | {"greedy/t1": greedy["t1"], "greedy/t2": greedy["t2"]}
    if args.json:
        print(json.dumps(numbers))


def main(argv=None):
    reward.exits(use, argv)


if __name__ == "__main__":
    main()
