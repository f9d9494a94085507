"""How fast rollouts and updates are, beside `model.generate` and the machine's own limit.

    python -m figures.speed [MODEL] [--data FILE] [--questions 64] [--n 8] [--tokens 64]

Sampling takes turns with `model.generate` in fp32, which gets the same prompts, number of samples,
stop set and limit, and draws other tokens. What is printed are medians of the repeats. The roofline
is 2 x parameters x tokens (each distinct prompt once, completions with their stop token) at the
rate of a large matrix product that is timed in between.
"""

import argparse
import random
from statistics import median

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch

import train
from critique import critique_prompt, solve_prompt
from details import cost
from details.data import load_problems, run_command
from details.fast import left_pad
from details.flags import train_flags
from details.policy import autocast, dtype_of, encode_chat
from rollout import Sampler, generate, load_policy, respond

SIZE = 2048  # rows and columns of the matrix


def product_seconds(matrix):
    """Seconds of a matrix product, the shortest of five."""
    cost.start_step()
    for turn in range(5):
        with cost.timed(turn):
            torch.mm(matrix, matrix)
    return min(cost.COST.values())


def library(model, prompts, n, limit):
    """Sample by `model.generate`; the tokens up to each row's first stop token."""
    ids, mask = left_pad(prompts, model.device)
    with autocast(model):
        rows = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=limit,
        )
    completions = rows[:, ids.shape[1] :]
    stops = torch.tensor(model.generation_config.eos_token_id, device=rows.device)
    stop = torch.isin(completions, stops).long()
    stops_before = stop.cumsum(1) - stop
    return int((stops_before == 0).sum())


def sampling(role, sampler, peer, chats, args):
    """Print tokens/s of both, their ratio and the share of the roofline."""
    model = sampler.model
    prompts = [encode_chat(sampler.tokenizer, chat) for chat in chats]
    distinct = set(map(tuple, prompts))
    prompt_tokens = sum(map(len, distinct))
    matrix = torch.randn(SIZE, SIZE, device=model.device)
    matrix = matrix.to(dtype_of(model))
    our_speeds = []
    library_speeds = []
    shares = []
    for seed in range(args.repeats):
        rate = 2 * SIZE**3 / product_seconds(matrix)
        cost.start_step()
        with cost.timed("ours"):
            samples = generate(model, prompts, args.n, args.tokens, seed=seed)
        tokens = sum(len(sample.tokens) for sample in samples)
        operations = 2 * model.num_parameters() * (prompt_tokens + tokens)
        with cost.timed("library"):
            library_tokens = library(peer, prompts, args.n, args.tokens)
        seconds = cost.COST["seconds/ours"]
        our_speeds.append(tokens / seconds)
        library_speeds.append(library_tokens / cost.COST["seconds/library"])
        shares.append(operations / rate / seconds)
    ours = median(our_speeds)
    theirs = median(library_speeds)
    speed = f"{ours:.0f} tokens/s, model.generate {theirs:.0f}, ratio {ours / theirs:.2f}"
    share = f"roofline {median(shares):.2f}"
    print(f"{role}, {len(prompts)} x {args.n}: {speed}, {share}", flush=True)


def steps(name, sampler, problems, flags, repeats, spread):
    """Print the seconds of a g-rl step. spread: every group of responses gets both rewards."""
    sampling_seconds = []
    update_seconds = []
    for _ in range(repeats):
        cost.start_step()
        with cost.timed("sampling"):
            samples, _ = train.g_rl(flags, sampler, 1, problems, None, [])
        if spread:
            for index, sample in enumerate(samples):
                sample.reward = index % 2
        optimizer = torch.optim.AdamW(sampler.model.parameters(), lr=flags.lr, fused=True)
        with cost.timed("update"):
            train.update(flags, sampler, None, optimizer, samples, random.Random(0))
        sampling_seconds.append(cost.COST["seconds/sampling"])
        update_seconds.append(cost.COST["seconds/update"])
    a = median(sampling_seconds)
    b = median(update_seconds)
    print(f"g-rl step, {name}: {a + b:.2f} s ({a:.2f} sampling, {b:.2f} update)", flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", default="toy", help="as --model of train.py [toy]")
    add("--data", help="as --data of train.py [the toy's; gsm8k]")
    add("--questions", type=int, default=64, help="[64]")
    add("--n", type=int, default=8, help="samples of each prompt [8]")
    add("--tokens", type=int, default=64, help="limit of a completion [64]")
    add("--repeats", type=int, default=5, help="[5]")
    add("--precision", choices=["fp32", "bf16"], help="of this side")
    args = parser.parse_args(argv)
    model, tokenizer = load_policy(args.model, precision=args.precision)
    sampler = Sampler(model, tokenizer, args.tokens)
    peer, _ = load_policy(args.model, precision="fp32")
    peer.set_attn_implementation("sdpa")
    # With so small a learning rate every step begins with the same policy.
    flags = train_flags(
        [
            "--method=g-rl",
            "--kl=0",
            "--lr=1e-9",
            f"--n={args.n}",
            f"--model={args.model}",
        ],
        train.METHODS,
    )
    problems = load_problems(args.data or flags.data)[: args.questions]

    responses = respond(sampler, problems, 1, 0)
    chats = [solve_prompt(problem.question, problem.program) for problem in problems]
    sampling("responses", sampler, peer, chats, args)
    chats = [critique_prompt(e.problem.question, e.text) for e in responses]
    sampling("critiques", sampler, peer, chats, args)
    skipped = "zero-variance groups skipped"
    steps(skipped, sampler, problems, flags, args.repeats, spread=False)
    steps("none skipped", sampler, problems, flags, args.repeats, spread=True)


if __name__ == "__main__":
    run_command(main)
