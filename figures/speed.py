"""How fast rollouts and updates are, beside `model.generate` and the machine's own limit.

    python -m figures.speed [MODEL] [--data FILE] [--questions 64] [--n 8] [--tokens 64]

Sampling alternates with `model.generate` in fp32: the same prompts, number of samples, stop set and
limit, other draws; medians of the repeats. Roofline: 2 x parameters x tokens (each distinct prompt
once, completions with their stop token) at the rate of a large matrix product in between.
"""

import argparse
import statistics
import time

import torch

import train
from critique import critique, solve
from details.data import load_problems, run_command
from details.fast import left_pad
from details.policy import autocast, encode_chat, setup_of
from details.runs import Meter
from rollout import Policy, generate, load_policy, respond


def timed(work, *args, **how):
    start = time.perf_counter()
    result = work(*args, **how)
    return time.perf_counter() - start, result


def library(model, prompts, n, limit):
    """The same work by `model.generate`; the tokens up to each row's first stop token."""
    ids, mask = left_pad(prompts, model.device)
    how = dict(do_sample=True, top_k=0, top_p=1.0, num_return_sequences=n, max_new_tokens=limit)
    with torch.no_grad(), autocast(model):
        rows = model.generate(ids, attention_mask=mask, **how)[:, ids.shape[1] :]
    stops = torch.tensor(model.generation_config.eos_token_id, device=rows.device)
    stop = torch.isin(rows, stops).long()
    return int((stop.cumsum(1) - stop == 0).sum())


def sampling(role, model, peer, chats, tokenizer, args):
    """Print tokens/s of both, their ratio and the share of the roofline."""
    prompts = [encode_chat(tokenizer, chat) for chat in chats]
    once, size, found = sum(map(len, set(map(tuple, prompts)))), 2048, []
    matrix = torch.randn(size, size, device=model.device).to(setup_of(model).arithmetic)
    for seed in range(args.repeats):
        spent, samples = timed(generate, model, prompts, args.n, args.tokens, seed=seed)
        tokens = sum(len(s.tokens) for s in samples)
        product = min(timed(lambda: (matrix @ matrix)[0, 0].item())[0] for _ in range(5))
        ideal = 2 * model.num_parameters() * (once + tokens) * product / (2 * size**3)
        theirs, count = timed(library, peer, prompts, args.n, args.tokens)
        found.append((tokens / spent, count / theirs, ideal / spent))
    ours, theirs, share = (statistics.median(column) for column in zip(*found))
    speed = f"{ours:.0f} tokens/s, model.generate {theirs:.0f}, ratio {ours / theirs:.2f}"
    print(f"{role}, {len(prompts)} x {args.n}: {speed}, roofline {share:.2f}", flush=True)


def step(policy, problems, flags, spread):
    """Seconds of one g-rl step: sampling, update. spread: no group is without spread."""
    begin, (episodes, _) = timed(train.g_rl, flags, policy, 1, problems, None, [])
    for i, e in enumerate(episodes):
        e.reward = i % 2 if spread else e.reward
    optimizer = torch.optim.AdamW(policy.model.parameters(), fused=True)
    work = timed(train.learn, flags, policy, optimizer, None, episodes, 1, Meter())
    return begin, work[0]


def main(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("model", nargs="?", default="toy", help="as --model of train.py [toy]")
    parser.add_argument("--data", help="as --data of train.py [the toy's; gsm8k]")
    for name, value in dict(questions=64, n=8, tokens=64, repeats=5).items():
        parser.add_argument("--" + name, type=int, default=value, help=f"[{value}]")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of this side")
    args = parser.parse_args(argv)
    model, tokenizer = load_policy(args.model, precision=args.precision)
    peer, _ = load_policy(args.model, precision="fp32")
    peer.set_attn_implementation("sdpa")
    text = f"--method g-rl --kl 0 --lr 1e-9 --n {args.n} --max-new-tokens {args.tokens} --model"
    flags = train.parse_args([*text.split(), args.model])
    problems = load_problems(args.data or flags.data)[: args.questions]
    policy = Policy(model, tokenizer, args.tokens)
    responses = respond(policy, problems, 1, 0)
    solving = [solve(e.problem.question) for e in responses]
    sampling("responses", model, peer, solving, tokenizer, args)
    criticising = [critique(e.problem.question, e.text) for e in responses]
    sampling("critiques", model, peer, criticising, tokenizer, args)
    for spread, skipped in ((False, "groups without spread skipped"), (True, "none skipped")):
        both = [step(policy, problems, flags, spread) for _ in range(args.repeats)]
        a, b = map(statistics.median, zip(*both))
        print(f"g-rl step, {skipped}: {a + b:.2f} s ({a:.2f} sampling, {b:.2f} update)", flush=True)


if __name__ == "__main__":
    run_command(main)
