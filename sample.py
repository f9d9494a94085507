"""A trained policy at work: it answers a question, criticises its answer and corrects it.

python sample.py "Compute 7+6*7*8 modulo 10."       answer, critiques, corrected answers (toy)
python sample.py --model out --eval --json          a run on its own held-out problems and exam
"""

import argparse
import json
import math
import random
import sys
from pathlib import Path

from critique import correct, solve
from details.answers import answer_key
from details.data import InputError, Pair, Problem, load_problems, read_jsonl, run_command, to_pair
from details.policy import TOY
from details.runs import print_table, printable, run_flags, seed_of
from reward import filter_pairs
from rollout import (
    Policy,
    complete,
    context_length,
    criticise,
    encode_chat,
    load_policy,
    pairs_by_question,
    respond,
    two_attempts,
)


def show_question(policy, question, n, seed):
    """Print an answer, n critiques and their judgements, and corrected answers."""
    # What the policy holds for best; its critiques are drawn, so that they differ.
    answer = greedy_text(policy, solve(question))
    print(f"QUESTION\n{printable(question)}\n\nANSWER\n{printable(answer)}")
    # Whether the answer is right is not known here, and nobody asks the pair.
    pair = Pair(Problem(question, ""), answer, right=False)
    critiques = criticise(policy, [pair], n, seed)
    judgements = {True: "right", False: "wrong", None: "no judgement that can be read"}
    for number, episode in enumerate(critiques, 1):
        print(f"\nCRITIQUE {number}: {judgements[episode.says_right]}\n{printable(episode.text)}")
    chat = correct(question, answer, critiques[0].text)
    helped = greedy_text(policy, chat)
    print(f"\nCORRECTED, with critique 1\n{printable(helped)}")
    unaided = greedy_text(policy, correct(question, answer))
    print(f"\nCORRECTED, without a hint\n{printable(unaided)}")


def greedy_text(policy, chat):
    completions = complete(policy.greedy(), [None], [chat], 1, seed=0)
    _, _, text = completions[0]
    return text


# ------------------------------------------------------------------------------------ evaluation


def evaluate(policy, problems, exam):
    """Greedy evaluation on held-out problems (answers, second attempts) and on the exam's pairs
    (critiques): a dict of eval/... numbers."""
    policy = policy.greedy()
    first, second = two_attempts(policy, problems, 1, seed=0, show="evaluation")
    critiques = criticise(policy, exam, 1, seed=0, show="critiques")
    attempts = attempts_table(first, second)
    judgements = judgement_table(critiques)
    numbers = {
        "eval/generation": attempts["t1"],
        "eval/critique": judgements.pop("accuracy"),
        "eval/size": len(problems),
        "eval/pairs": len(exam),
    }
    for name, value in attempts.items():
        numbers[f"eval/{name}"] = value
    for name, value in judgements.items():
        numbers[f"eval/critique_{name}"] = value
    return numbers


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def judgement_table(critiques):
    """What critiques say against what is so. accuracy: the share of judgements that agree with the
    outcome; p1, p2: the same on right and on wrong responses; precision and recall of "right";
    unreadable: the share without a judgement that can be read."""
    # The share of right responses that are judged right, of wrong ones that are judged wrong.
    on_right = [e for e in critiques if e.pair.right]
    on_wrong = [e for e in critiques if not e.pair.right]
    called_right = [e for e in critiques if e.says_right]
    p1 = mean(e.says_right is True for e in on_right)
    return {
        "accuracy": mean(e.says_right is e.pair.right for e in critiques),
        "p1": p1,
        "p2": mean(e.says_right is False for e in on_wrong),
        "precision": mean(e.pair.right for e in called_right),
        "recall": p1,
        "unreadable": mean(e.says_right is None for e in critiques),
    }


def attempts_table(first, second):
    """SCoRe's metrics of two lists of Episodes: accuracies t1 and t2, their difference, the shares
    of problems that went from incorrect to correct and back. And the collapse: the share of second
    attempts that repeat the first word for word (`unchanged`), and of the wrong first answers that
    the second attempt gives again, in whatever words (`kept`)."""
    both = list(zip(first, second))
    wrong_first = [(a, b) for a, b in both if not a.right]
    t1 = mean(a.right for a in first)
    t2 = mean(b.right for b in second)
    return {
        "t1": t1,
        "t2": t2,
        "delta": t2 - t1,
        "i_to_c": mean(b.right and not a.right for a, b in both),
        "c_to_i": mean(a.right and not b.right for a, b in both),
        "unchanged": mean(a.text == b.text for a, b in both),
        "kept": mean(same_answer(a, b) for a, b in wrong_first),
        "truncated": mean(not e.sample.stopped for e in first + second),
    }


def same_answer(a, b):
    """Do two attempts that ended by themselves give one answer?"""
    if not (a.sample.stopped and b.sample.stopped):
        return False
    answer = answer_key(a.text)
    return answer is not None and answer == answer_key(b.text)


def sample_pairs(policy, problems, n, count, seed, choose=filter_pairs, show=None):
    """At most `count` pairs of the current policy from n responses to each problem: the critic's
    exam, static pairs. choose: `filter_pairs` or `random_pairs`."""
    rng = random.Random(seed)
    pairs = []
    # A part of the problems at a time: often a few give enough pairs.
    chunk = max(8, count // 4)
    for start in range(0, len(problems), chunk):
        asked = problems[start : start + chunk]
        responses = respond(policy, asked, n, seed_of(seed, start), show)
        pairs += choose(pairs_by_question(responses, n), rng)
        if len(pairs) >= count:
            break
    return pairs[: count // 2 * 2]


# --------------------------------------------------------------------------- the command line


def check_lengths(policy, problems):
    """Refuse problems that leave no room for an answer in the model's context, and conversations
    that its chat template refuses, before the first token is sampled (of the 50 longest)."""
    room = context_length(policy.model)
    # Characters stand for tokens here: whichever is longest in tokens is among these.
    longest = sorted(problems, key=lambda problem: -len(problem.question))[:50]
    for problem in longest:
        chat = correct(problem.question, "0")
        size = len(encode_chat(policy.tokenizer, chat))
        if size + policy.limit > room:
            need = f"{size} and --max-new-tokens {policy.limit} for {problem.question[:60]!r}"
            raise InputError(f"the model's context of {room} tokens is too short: {need}")


def check_numbers(args, may_be_zero):
    """Refuse numbers of the command line that are not finite and above 0; where 0 has a sense, in
    the flags `may_be_zero`, those below 0."""
    for name, value in vars(args).items():
        if type(value) not in (int, float):
            continue
        flag = name.replace("_", "-")
        if name in may_be_zero and not 0 <= value < math.inf:
            raise InputError(f"--{flag} {value}: must be finite and at least 0")
        if name not in may_be_zero and not 0 < value < math.inf:
            raise InputError(f"--{flag} {value}: must be finite and above 0")


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: sys.exit(f"error: {message}")
    add = parser.add_argument
    add("question", nargs="?", help="a question to answer")
    add("--model", default="toy", help="toy, a run's folder, a model folder or a hub id [toy]")
    add("--eval", action="store_true", help="evaluate: answers, second attempts, critiques")
    add("--data", help="gsm8k (its test file) or a JSONL file [MODEL/held_out.jsonl]")
    add("--exam", help="JSONL file of critique pairs for --eval [MODEL's own; of --data: sampled]")
    add("--size", type=int, help="use the first N problems", metavar="N")
    add("--n", type=int, default=4, help="critiques of a question [4]")
    add("--temperature", type=float, default=1.0, help="of critiques [1.0]")
    add("--max-new-tokens", type=int, help="limit of a completion [that of the run, else 512]")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda, mps [cuda where there is one]")
    add("--json", action="store_true", help="the numbers as one JSON object on the last line")
    args = parser.parse_args(argv)
    check_numbers(args, ["seed"])
    # Without this the program would load a model and say nothing.
    if not args.question and not args.eval:
        raise InputError("give a question or --eval (see --help)")
    return args


def held_out_and_exam(args, folder):
    """The problems and pairs of --eval: named by flags, else those that the folder holds. The exam
    is empty where none is to be had, and is then sampled."""
    if not args.data and not (folder / "held_out.jsonl").exists():
        raise InputError(f"{folder} has no held_out.jsonl: name the problems by --data FILE")
    problems = load_problems(args.data or folder / "held_out.jsonl", "test")[: args.size]
    exam = args.exam
    own = folder / "exam.jsonl"
    # An exam is without a line where no question had right and wrong responses.
    if not args.exam and not args.data and own.exists() and own.stat().st_size:
        exam = own
    return problems, read_jsonl(exam, to_pair) if exam else []


def use(argv):
    """Do what the flags ask for."""
    args = parse_args(argv)
    # All input is read and refused before the model is loaded.
    folder = TOY if args.model == "toy" else Path(args.model)
    problems = exam = []
    if args.eval:
        problems, exam = held_out_and_exam(args, folder)
    model, tokenizer = load_policy(args.model, args.device)
    # A run's folder knows how long its completions may be.
    limit = args.max_new_tokens or run_flags(folder).get("max_new_tokens", 512)
    policy = Policy(model, tokenizer, limit, args.temperature)
    check_lengths(policy, [*problems, Problem(args.question or "", "")])
    if args.question:
        show_question(policy, args.question, args.n, args.seed)
    if args.eval:
        if not exam:
            # Its own responses: of two policies the exams then differ.
            exam = sample_pairs(
                policy,
                problems,
                n=8,
                count=len(problems),
                seed=seed_of(args.seed, "exam"),
                show="critique pairs",
            )
        numbers = evaluate(policy, problems, exam)
        print_table(str(args.data or folder), {args.model: numbers})
        if args.json:
            print(json.dumps(numbers))


def main(argv=None):
    run_command(use, argv)


if __name__ == "__main__":
    main()
