"""`python sample.py --explain QUESTION`: what a step of GC-RL would do with one question."""

import random

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

from critique import solve_prompt
from details.data import read_some, to_problem
from details.errors import InputError, printable
from details.policy import encode_chat
from reward import advantages, critique_reward, filter_pairs, pairs_by_question
from rollout import criticise, respond


def explain(sampler, problem, n, seed):
    """Print what a step of GC-RL would do with one question. No weights are changed."""
    # What the model sees, with the marks of its chat template.
    prompt = encode_chat(sampler.tokenizer, solve_prompt(problem.question, problem.program))
    print(f"PROMPT, {len(prompt)} tokens\n{printable(sampler.tokenizer.decode(prompt))}\n")
    responses = respond(sampler, [problem], n, seed)
    print(f"{n} RESPONSES; a right one earns 1")
    show_group(responses, [float(e.right) for e in responses])

    # The data filter, as in train.pairs_to_criticise.
    pairs = filter_pairs(pairs_by_question(responses, n), random.Random(seed))
    if not pairs:
        print("Of those that ended none is right, or none is wrong: the filter drops the question.")
        return
    critiques = criticise(sampler, pairs, n, seed + 1)
    print("THE FILTER KEEPS a right and a wrong response")
    for index, pair in enumerate(pairs):
        outcome = "right" if pair.right else "wrong"
        print(
            f"\n{n} CRITIQUES of {one_line(pair.response)}, which is {outcome}; to say so earns 0.7"
        )
        # The critiques of one response are one group.
        group = critiques[index * n : (index + 1) * n]
        show_group(group, [critique_reward(e.says_right, pair.right) for e in group])

    # One that can be learned from, with as few decisions as possible, but not none.
    critique = min(critiques, key=lambda e: (e.advantage == 0, decisions(e) == 0, decisions(e)))
    print("EVERY TOKEN of one critique moves with the critique's advantage")
    print(f"{'token':16}{'log-prob':>10}{'advantage':>11}")
    for token, logprob in zip(critique.tokens, critique.logprobs):
        text = repr(sampler.tokenizer.decode([token]))
        mark = "  <- a decision" if logprob < DECISION else ""
        print(f"{text:16}{logprob:10.2f}{critique.advantage:+11.2f}{mark}")


DECISION = -0.3  # nats: a token with a lower log-prob could well have been another


def decisions(sample):
    return sum(logprob < DECISION for logprob in sample.logprobs)


def show_group(samples, rewards):
    """A group of completions with their rewards and advantages, as they were drawn."""
    values = torch.tensor(rewards)
    print(f"mean reward {values.mean():.2f}, standard deviation {values.std(correction=0):.2f}")
    for e, reward, advantage in zip(samples, rewards, advantages(rewards, [0] * len(rewards))):
        e.advantage = advantage.item()
        print(f"{reward:5.1f}{e.advantage:+7.2f}  {one_line(e.text)}")
    print()


def one_line(text):
    return printable(" / ".join(text.splitlines()))


def problem_of(args, folder):
    """The question with its answer: --answer, or what the data files beside the model say."""
    if args.answer:
        try:
            return to_problem({"question": args.question, "answer": args.answer})
        except ValueError as error:
            raise InputError(f"--explain: {error}") from error
    # Of a run's problems and of the toy's the answers are known.
    for name in ("held_out", "train"):
        for problem in read_some(folder / f"{name}.jsonl", to_problem):
            if problem.question == args.question:
                return problem
    raise InputError(f"--explain: the answer is not known in {folder}: give it by --answer")
