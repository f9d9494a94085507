"""A policy at work: it answers a question, criticises the answer, corrects it.

python sample.py "Compute 7-6+4+8 modulo 10."  answer, critiques, corrections
python sample.py --explain "Compute ..."       a step of GC-RL in slow motion
python sample.py --model out --eval --json     a run on its held-out problems
"""

import argparse
import json
import math
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1500")  # see train.py

import torch

from critique import correct, solve
from details.answers import answer_key
from details.data import (
    InputError,
    Pair,
    Problem,
    load_problems,
    read_jsonl,
    run_command,
    seed_of,
    to_pair,
    to_problem,
)
from details.policy import TOY, run_flags
from figures.report import print_table, printable
from reward import advantages, critique_reward, filter_pairs, pairs_by_question
from rollout import (
    Policy,
    complete,
    context_length,
    criticise,
    encode_chat,
    load_policy,
    refine,
    respond,
    two_attempts,
)


def show_question(policy, question, n, seed):
    """Print an answer, n critiques and their judgements, and what is answered in the end: the
    answer, or the corrected one if its greedy critique calls it wrong."""
    # The answer is greedy; its critiques are drawn, so that they differ.
    [answer] = greedy_texts(policy, solve(question))
    print(f"QUESTION\n{printable(question)}\n\nANSWER\n{printable(answer)}")
    # Whether the answer is right is not known here, and nobody asks the pair.
    pair = Pair(Problem(question, ""), answer, right=False)
    critiques = criticise(policy, [pair], n, seed)
    # They need not agree: each is a sample.
    for number, episode in enumerate(critiques, 1):
        print(f"\nCRITIQUE {number}: {JUDGED[episode.says_right]}\n{printable(episode.text)}")
    # With the first critique that finds fault, if any does.
    number = next((i for i, e in enumerate(critiques) if e.says_right is False), 0)
    [greedy] = criticise(policy.greedy(), [pair], 1, seed)
    # In one batch, which takes little longer than one of them.
    helped, unaided, revised = greedy_texts(
        policy,
        correct(question, answer, critiques[number].text),
        correct(question, answer),
        correct(question, answer, greedy.text),
    )
    print(f"\nCORRECTED, with critique {number + 1}\n{printable(helped)}")
    print(f"\nCORRECTED, without a critique\n{printable(unaided)}")
    # Selective revision, as in PAG (arXiv 2506.10406): correct only what is judged wrong.
    final = revised if greedy.says_right is False else answer
    print(
        f"\nFINAL ANSWER: its greedy critique says {JUDGED[greedy.says_right]}\n{printable(final)}"
    )


JUDGED = {True: "right", False: "wrong", None: "no judgement that can be read"}


def greedy_texts(policy, *chats):
    return [text for _, _, text in complete(policy.greedy(), chats, chats, 1, seed=0)]


# ------------------------------------------------------------------------- a step in slow motion


def explain(policy, problem, n, seed):
    """Print what a step of GC-RL would do with one question. No weights are changed."""
    # What the model sees, with the marks of its chat template.
    prompt = encode_chat(policy.tokenizer, solve(problem.question))
    print(f"PROMPT, {len(prompt)} tokens\n{printable(policy.tokenizer.decode(prompt))}\n")
    responses = respond(policy, [problem], n, seed)
    print(f"{n} RESPONSES; a right one earns 1")
    show_group(responses, [float(e.right) for e in responses])

    # The data filter, as in train.pairs_to_criticise.
    pairs = filter_pairs(pairs_by_question(responses, n), random.Random(seed))
    if not pairs:
        print("All are right or all are wrong: the filter drops the question.")
        return
    critiques = criticise(policy, pairs, n, seed + 1)
    print("THE FILTER KEEPS a right and a wrong response")
    for place, pair in enumerate(pairs):
        outcome = "right" if pair.right else "wrong"
        print(
            f"\n{n} CRITIQUES of {one_line(pair.response)}, which is {outcome}; to say so earns 0.7"
        )
        # The critiques of one response are one group.
        group = critiques[place * n : (place + 1) * n]
        show_group(group, [critique_reward(e.says_right, pair.right) for e in group])

    # One that can be learned from, with as few decisions as possible, but not none.
    critique = min(critiques, key=lambda e: (e.advantage == 0, decisions(e) == 0, decisions(e)))
    print("EVERY TOKEN of one critique moves with the critique's advantage")
    print(f"{'token':16}{'log-prob':>10}{'advantage':>11}")
    for token, logprob in zip(critique.sample.tokens, critique.sample.logprobs):
        text = repr(policy.tokenizer.decode([token]))
        mark = "  <- a decision" if logprob < DECISION else ""
        print(f"{text:16}{logprob:10.2f}{critique.advantage:+11.2f}{mark}")


DECISION = -0.3  # nats: a token with a lower log-prob could well have been another


def decisions(episode):
    return sum(logprob < DECISION for logprob in episode.sample.logprobs)


def show_group(episodes, rewards):
    """A group of completions with their rewards and advantages, as they were drawn."""
    values = torch.tensor(rewards)
    print(f"mean reward {values.mean():.2f}, deviation {values.std(correction=0):.2f}")
    for e, reward, advantage in zip(episodes, rewards, advantages(rewards, [0] * len(rewards))):
        e.advantage = advantage.item()
        print(f"{reward:5.1f}{e.advantage:+7.2f}  {one_line(e.text)}")
    print()


def one_line(text):
    return printable(" / ".join(text.splitlines()))


# ------------------------------------------------------------------------------------ evaluation


def evaluate(policy, problems, exam):
    """Greedy evaluation on held-out problems (answers, second attempts) and on the exam's pairs
    (critiques): a dict of eval/... numbers, and the answers as Episodes."""
    policy = policy.greedy()
    first, second = two_attempts(policy, problems, 1, seed=0, show="evaluation")
    critiques = criticise(policy, exam, 1, seed=0, show="critiques")
    attempts = attempts_table(first, second)
    judgements = judgement_table(critiques)
    # Selective revision: it criticises its own answers, and corrects those that it judges wrong.
    own = [Pair(e.problem, e.text, e.right) for e in first]
    own = criticise(policy, own, 1, seed=0, show="own critiques")
    doubted = [e for e in own if e.says_right is False]
    trusted = [e.pair.right for e in own if e.says_right is not False]
    refined = refine(policy, doubted, 1, seed=0)
    numbers = {
        "eval/generation": attempts["t1"],
        "eval/critique": judgements.pop("accuracy"),
        "eval/size": len(problems),
        "eval/pairs": len(exam),
        "eval/revised": mean(trusted + [e.right for e in refined]),
        "eval/self_critique": judgement_table(own)["accuracy"],
    }
    for name, value in attempts.items():
        numbers[f"eval/{name}"] = value
    for name, value in judgements.items():
        numbers[f"eval/critique_{name}"] = value
    return numbers, first


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def pass_at_n(responses):
    """The share of the questions to which at least one of the n responses is right: if it
    is far above their accuracy, RL has something to lift."""
    solved = {e.problem for e in responses if e.right}
    return len(solved) / len({e.problem for e in responses})


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
    # A problem's two attempts belong together.
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
    # What was cut has no answer to give again.
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


def check_lengths(policy, problems, demonstrations=()):
    """Refuse problems that leave no room for an answer in the model's context, and conversations
    that its chat template refuses, before the first token is sampled (of the 50 longest);
    demonstrations, Samples, that do not fit it."""
    room = context_length(policy.model)
    # Characters stand for tokens here: whichever is longest in tokens is among these.
    longest = sorted(problems, key=lambda problem: -len(problem.question))[:50]
    for problem in longest:
        chat = correct(problem.question, "0")
        size = len(encode_chat(policy.tokenizer, chat))
        if size + policy.limit > room:
            need = f"{size} and --max-new-tokens {policy.limit} for {problem.question[:60]!r}"
            raise InputError(f"the model's context of {room} tokens is too short: {need}")
    for sample in demonstrations:
        size = len(sample.prompt + sample.tokens)
        if size > room:
            raise InputError(f"--cold-start: a demonstration has {size} tokens, the context {room}")


def check_numbers(args, may_be_zero):
    """Refuse numbers of the command line that are not finite and above 0; where 0 has a sense, in
    the flags `may_be_zero`, those below 0."""
    for name, value in vars(args).items():
        # Not isinstance: True is an int.
        if type(value) not in (int, float):
            continue
        bound = "at least" if name in may_be_zero else "above"
        fine = 0 < value < math.inf or (value == 0 and name in may_be_zero)
        if not fine:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag} {value}: must be finite and {bound} 0")


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: sys.exit(f"error: {message}")
    add = parser.add_argument
    add("question", nargs="?", help="a question to answer")
    add("--model", default="toy", help="toy, a run's folder, a model folder or a hub id [toy]")
    add("--explain", action="store_true", help="a step of GC-RL on the question in slow motion")
    add("--answer", help="the right answer, for --explain [that of MODEL's data files]")
    add("--eval", action="store_true", help="evaluate: answers, second attempts, critiques")
    add("--data", help="gsm8k (its test file) or a JSONL file [MODEL/held_out.jsonl]")
    add("--exam", help="JSONL file of critique pairs for --eval [MODEL's own; of --data: sampled]")
    add("--size", type=int, help="use the first N problems", metavar="N")
    add("--n", type=int, help="critiques of a question [4]; samples per prompt of --explain [8]")
    add("--temperature", type=float, default=1.0, help="of critiques [1.0]")
    add("--max-new-tokens", type=int, help="limit of a completion [that of the run, else 512]")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda, mps [cuda where there is one]")
    add("--precision", choices=["fp32", "bf16"], help="of the arithmetic [that of the run]")
    add("--json", action="store_true", help="the numbers as one JSON object on the last line")
    args = parser.parse_args(argv)
    check_numbers(args, ["seed"])
    args.n = args.n or (8 if args.explain else 4)
    # Without this the program would load a model and say nothing.
    if args.explain and not args.question:
        raise InputError("--explain: give a question")
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
    # A run keeps its exam beside its model.
    own = folder / "exam.jsonl"
    # An exam is without a line where no question had right and wrong responses.
    if not args.exam and not args.data and own.exists() and own.stat().st_size:
        exam = own
    return problems, read_jsonl(exam, to_pair) if exam else []


def problem_of(args, folder):
    """The question with its answer: --answer, or what the data files beside the model say."""
    if args.answer:
        return to_problem({"question": args.question, "answer": args.answer})
    # Of a run's problems and of the toy's the answers are known.
    for name in ("held_out", "train"):
        path = folder / f"{name}.jsonl"
        for problem in load_problems(path) if path.exists() else []:
            if problem.question == args.question:
                return problem
    raise InputError(f"--explain: the answer is not known in {folder}: give it by --answer")


def use(argv):
    """Do what the flags ask for; returns the numbers of --eval."""
    args = parse_args(argv)
    # All input is read and refused before the model is loaded.
    folder = TOY if args.model == "toy" else Path(args.model)
    problems = exam = []
    if args.explain:
        problem = problem_of(args, folder)
    if args.eval:
        problems, exam = held_out_and_exam(args, folder)
    # A run's folder knows in which arithmetic it was trained, and how long completions may be.
    flags = run_flags(folder)
    model, tokenizer = load_policy(
        args.model, args.device, args.precision or flags.get("precision")
    )
    limit = args.max_new_tokens or flags.get("max_new_tokens", 512)
    policy = Policy(model, tokenizer, limit, args.temperature)
    # A question that leaves no room for an answer is refused before anything is sampled.
    check_lengths(policy, [*problems, Problem(args.question or "", "")])
    numbers = {}
    if args.explain:
        explain(policy, problem, args.n, args.seed)
    elif args.question:
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
        numbers, _ = evaluate(policy, problems, exam)
        print_table(str(args.data or folder), {args.model: numbers})
        if args.json:
            print(json.dumps(numbers))
    return numbers


def main(argv=None):
    """The command line; returns the numbers of --eval, for a notebook."""
    return run_command(use, argv)


if __name__ == "__main__":
    main()
