"""How fast rollouts and updates are, beside `model.generate` and the machine's own limit.

    python -m figures.speed [MODEL] [--data FILE] [--questions 64] [--n 8] [--tokens 64]

Sampling alternates with `model.generate` (same prompts, stop set and limit; other draws), the table
holds medians. Roofline: 2 x parameters x tokens, each distinct prompt once and completions with
their stop token, at the rate of a large matrix product here.
"""

import argparse
import statistics
import sys
import time

import torch

import train
from critique import critique, solve
from reward import InputError, load_problems
from rollout import autocast, encode_chat, generate, left_pad, load_policy
from sample import Policy


def seconds(work, repeats=1):
    """The median time of `work()`, and what it returned last."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent), result


def library(model, prompts, n, limit):
    """`model.generate` on the same work; the number of tokens up to each row's first stop token."""
    ids, mask = left_pad(prompts, model.device)
    how = dict(do_sample=True, top_k=0, top_p=1.0, num_return_sequences=n, max_new_tokens=limit)
    with torch.no_grad(), autocast(model):
        rows = model.generate(ids, attention_mask=mask, **how)[:, ids.shape[1] :]
    stop = torch.isin(rows, torch.tensor(model.generation_config.eos_token_id)).long()
    return int((stop.cumsum(1) - stop == 0).sum())


def sampling(model, peer, prompts, n, limit, repeats):
    """(tokens/s here, tokens/s of model.generate, share of the roofline)."""
    size = 2048
    matrix = torch.randn(size, size).to(peer.arithmetic)
    product, _ = seconds(lambda: matrix @ matrix, 9)
    ours, theirs, shares = [], [], []
    for seed in range(repeats):
        spent, samples = seconds(lambda: generate(model, prompts, n, limit, seed=seed))  # noqa: B023
        tokens = sum(len(s.tokens) for s in samples)
        work = tokens + sum(map(len, set(map(tuple, prompts))))
        shares.append(2 * model.num_parameters() * work / spent * product / (2 * size**3))
        ours.append(tokens / spent)
        spent, tokens = seconds(lambda: library(peer, prompts, n, limit))
        theirs.append(tokens / spent)
    return [statistics.median(x) for x in (ours, theirs, shares)]


def step(policy, problems, args, spread):
    """Seconds of one g-rl step: sampling, update. spread: no group is skipped."""
    begin, (episodes, _) = seconds(lambda: train.gcrl(args, policy, 1, problems, None, []))
    for i, e in enumerate(episodes):
        e.reward = i % 2 if spread else e.reward
    optimizer = torch.optim.AdamW(policy.model.parameters(), fused=True)
    end, _ = seconds(lambda: train.learn(args, policy, optimizer, None, episodes, 1))
    return begin, end


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", nargs="?", default="toy")
    parser.add_argument("--data", help="problems [the toy's; gsm8k]")
    for name, value in dict(questions=64, n=8, tokens=64, repeats=5).items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    given = parser.parse_args(argv)
    model, tokenizer = load_policy(given.model, precision=given.precision)
    peer, _ = load_policy(given.model, precision="fp32")
    peer.set_attn_implementation("sdpa")
    flags = f"--method g-rl --kl 0 --lr 1e-9 --n {given.n} --max-new-tokens {given.tokens}"
    args = train.parse_args([*flags.split(), "--model", given.model])
    problems = load_problems(given.data or args.data)[: given.questions]
    policy = Policy(model, tokenizer, given.tokens)
    answers = [p.answer for p in problems]
    first = generate(
        model, [encode_chat(tokenizer, solve(p.question)) for p in problems], 1, given.tokens
    )
    chats = {
        "responses": [solve(p.question) for p in problems],
        "critiques": [
            critique(p.question, tokenizer.decode(s.tokens, skip_special_tokens=True))
            for p, s in zip(problems, first)
        ],
    }
    for role, asked in chats.items() if not given.repeats == 7 else ():
        prompts = [encode_chat(tokenizer, chat) for chat in asked]
        a, b, share = sampling(model, peer, prompts, given.n, given.tokens, given.repeats)
        print(
            f"{role} {len(prompts)} x {given.n}: {a:.0f} tokens/s, model.generate {b:.0f}, ratio {a / b:.2f}, roofline {share:.2f}",
            flush=True,
        )
    for spread in (False, True) if given.repeats > 1 else ():
        both = [step(policy, problems, args, spread) for _ in range(given.repeats)]
        a, b = (statistics.median(x) for x in zip(*both))
        print(
            f"g-rl step, {'no group' if spread else 'groups without spread'} skipped: {a + b:.2f} s ({a:.2f} sampling, {b:.2f} update)",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
