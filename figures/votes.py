"""Three ways to spend k samples on a problem, each by majority vote, and a picture of them.

    python -m figures.votes MODEL [--data FILE] [--n 16] [--critiques 1] [--out votes.svg]

parallel                k answers vote
parallel, corrected     k/2 answers, each corrected once without a hint; the corrected ones vote
critique-weighted       k/(1 + m) answers, each with m critiques; a vote weighs as much as the share
                        of its critiques that call it right

MODEL is a run's folder, whose held-out problems are used unless --data names others; or `toy`, a
model folder, a hub id. One sampling serves all budgets k = 2, 4, ..., n: a smaller budget uses the
first answers.
"""

import json
from pathlib import Path

from critique import correct_prompt
from details.answers import answer_key
from details.data import load_problems, mean, run_command, seed_of
from details.errors import InputError
from details.flags import check_numbers
from details.policy import TOY
from details.start import check_lengths
from figures.chart import command, line_charts, refuse_other_files
from figures.tables import print_table
from rollout import Sampler, criticise, load_policy, respond, set_outcomes, two_attempts
from sample import attempts_table, pairs_of, run_flags


def majority_vote(texts, weights):
    """The index of the text that the vote elects, None if no answer can be read.

    Answers are counted by `answer_key`, each with its weight. A tie goes to the answer that
    came first; where all weights are 0 everybody votes with weight 1.
    """
    keys = [answer_key(text) for text in texts]
    votes = {}
    for key, weight in zip(keys, weights):
        if key is not None:
            votes[key] = votes.get(key, 0.0) + weight
    if not votes:
        return None
    if not any(votes.values()):
        return majority_vote(texts, [1.0] * len(texts))
    elected = max(votes, key=votes.get)  # the first of equals
    return keys.index(elected)


def elects_right(ballot):
    """Is the response right that a ballot [(sample, weight), ...] elects?"""
    texts = []
    weights = []
    for sample, weight in ballot:
        # A truncated response has no answer to vote for.
        text = sample.text if sample.stopped else ""
        texts.append(text)
        weights.append(weight)
    elected = majority_vote(texts, weights)
    if elected is None:
        return False
    sample, _ = ballot[elected]
    return sample.right


def accuracies(votes, ballot_size, cost, budgets):
    """{k: accuracy} of votes [(sample, weight), ...], `ballot_size` on each problem, that cost
    `cost` samples each."""
    ballots = in_groups(votes, ballot_size)
    found = {}
    for k in budgets:
        if k >= cost:
            found[k] = mean(elects_right(ballot[: k // cost]) for ballot in ballots)
    return found


def in_groups(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def vote(sampler, problems, budgets, critiques, seed):
    """{way: {k: accuracy}} of the three ways."""
    most = max(budgets)
    responses = respond(sampler, problems, most, seed_of(seed, "vote"))
    answers = in_groups(responses, most)
    parallel = [(e, 1.0) for e in responses]

    # Each of the first half is corrected once, without a hint.
    half = most // 2
    first = [e for group in answers for e in group[:half]]
    chats = [correct_prompt(e.problem.question, e.text) for e in first]
    second = sampler.complete(chats, 1, seed_of(seed, "vote", "corrections"))
    set_outcomes(second, [e.problem for e in first], "attempt 2")
    corrected = [(e, 1.0) for e in second]

    # As many as leave room for their critiques.
    cost = 1 + critiques
    each = most // cost
    judged = [e for group in answers for e in group[:each]]
    critique_seed = seed_of(seed, "vote", "critiques")
    checks = criticise(sampler, pairs_of(judged), critiques, critique_seed)
    weighted = []
    for e, own in zip(judged, in_groups(checks, critiques)):
        weight = mean(check.says_right is True for check in own)
        weighted.append((e, weight))

    return {
        "parallel": accuracies(parallel, most, 1, budgets),
        "parallel, corrected": accuracies(corrected, half, 2, budgets),
        "critique-weighted": accuracies(weighted, each, cost, budgets),
    }


def parse_args(argv):
    parser = command(__doc__, "votes.svg")
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run's folder, toy, a model folder or a hub id")
    add("--data", help="gsm8k (its test file) or a JSONL file [MODEL/held_out.jsonl]")
    add("--size", type=int, help="use the first N problems", metavar="N")
    add("--n", type=int, default=16, help="the largest budget [16]")
    add("--critiques", type=int, default=1, help="critiques of each answer [1]")
    add("--temperature", type=float, default=1.0, help="[1.0]")
    add("--max-new-tokens", type=int, help="of a completion [those of the run, else 512]")
    add("--seed", type=int, default=0, help="[0]")
    add("--device", help="cpu, cuda, mps [cuda where there is one]")
    add("--json", action="store_true", help="the numbers as one JSON object on the last line")
    args = parser.parse_args(argv)
    check_numbers(args)
    refuse_other_files(args.out)
    if args.critiques >= args.n:
        raise InputError(f"--critiques {args.critiques}: must be less than --n {args.n}")
    return args


def main(argv=None):
    args = parse_args(argv)
    folder = TOY if args.model == "toy" else Path(args.model)
    data = args.data or folder / "held_out.jsonl"
    if not args.data and not data.exists():
        raise InputError(f"{folder} has no held_out.jsonl: name the problems by --data FILE")
    flags = run_flags(folder)
    if flags.get("grader"):
        raise InputError(f"{folder}: a grader judged its responses, which have no votes")
    problems = load_problems(data, "test")[: args.size]
    if problems[0].program is not False:
        raise InputError(f"{data}: programs have no answers that could be voted for")
    longest = args.max_new_tokens or flags.get("max_new_tokens", 512)
    policy = load_policy(args.model, args.device, flags.get("precision"))
    sampler = Sampler(*policy, longest, args.temperature)
    check_lengths(sampler, problems)

    budgets = []
    k = 2
    while k < args.n:
        budgets.append(k)
        k *= 2
    budgets.append(args.n)
    table = vote(sampler, problems, budgets, args.critiques, args.seed)
    first, second = two_attempts(sampler.greedy(), problems, 1, 0)
    greedy = attempts_table(first, second)

    error = f"standard error up to {0.5 / len(problems) ** 0.5:.3f}"
    print(f"\ngreedy: t1 {greedy['t1']:.3f}, t2 {greedy['t2']:.3f}; {error}")
    columns = {}
    for k in budgets:
        columns[f"k={k}"] = {way: row.get(k) for way, row in table.items()}
    print_table(f"accuracy by vote, {len(problems)} problems", columns)
    series = {}
    numbers = {}
    for way, row in table.items():
        series[way] = [list(row.items())]
        numbers[f"vote/{way}"] = row
    numbers["greedy/t1"] = greedy["t1"]
    numbers["greedy/t2"] = greedy["t2"]
    chart = ("accuracy by vote", "samples per problem", series)
    line_charts(args.out, [chart], "Self-correction at inference")
    print(f"picture: {args.out}")
    if args.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    run_command(main)
