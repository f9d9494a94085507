"""Train a policy to answer, to criticise answers and to correct itself, by GRPO on outcome rewards.

What is maximised, over all tokens of all completions that the policy samples:

    mean of  min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)  -  kl k3        (grpo_loss)
    A      = (reward - mean of its group) / deviation of its group            (reward.advantages)
    ratio  = p(token) now / p(token) when it was sampled;  k3: distance to the starting policy

A method is a recipe: which prompts are built, which rewards are given. All else is the same for all
methods. What departs from GRPO as published (arXiv 2402.03300), and why:

- The mean is over tokens and not first over each completion, as in DAPO and verl: otherwise a token
  of a long completion would count less than one of a short completion.
- Completions without an advantage and without a KL give no gradient and are not computed; their
  tokens count in the mean.
- SCoRe's advantages are not divided by the deviation, and a sample is compared with the others of
  its group only (see `rewarded_attempts`).
- The reference counts as at most MAX_AWAY nats above the policy on any token.
- Supervised learning is the same update: a given text has advantage 1 and ratio 1.

    python train.py                        GC-RL on the embedded toy model, minutes on two cores
    python train.py --method score         SCoRe on the toy
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k --out runs/gsm8k

GC-RL: arXiv 2602.22765, SCoRe: arXiv 2409.12917. Below: recipes, loss and update, flags, the run.
"""

import argparse
import functools
import math
import os
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

# A thread that waits for the others spins for a moment, then sleeps. If it spun on, as is usual, a
# run beside two busy programs would take four times as long, and not twice. To be set before torch
# is imported. What the user has set wins.
os.environ.setdefault("GOMP_SPINCOUNT", "1500")

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from critique import correct
from details.data import InputError, batch_of, run_command, seed_of, write_jsonl
from details.fast import micro_batches, unless_memory_runs_out
from details.policy import TOY, save_policy
from details.runs import (
    BAR_OFF,
    FORMAT,
    Meter,
    check_memory,
    load_data,
    lock_folder,
    log_row,
    open_run,
    save_state,
    signals_caught,
    write_files,
)
from figures.report import (
    draw_curves,
    sample_row,
    show_result,
    show_samples,
    show_step,
    why_nothing_is_learned,
)
from reward import (
    PairCache,
    advantages,
    critique_reward,
    denoising_reward,
    filter_pairs,
    leave_one_out,
    pairs_by_question,
    random_pairs,
    response_reward,
    reweighted_reward,
    shaped_reward,
)
from rollout import (
    Episode,
    Policy,
    criticise,
    demonstration,
    load_policy,
    logprobs_part,
    refine,
    respond,
    two_attempts,
)
from sample import (
    attempts_table,
    check_lengths,
    check_numbers,
    evaluate,
    judgement_table,
    mean,
    pass_at_n,
    sample_pairs,
)

WARMUP = 3  # steps in which the learning rate rises to --lr
GRAD_CLIP = 1.0  # largest gradient norm
MAX_AWAY = 3.0  # nats: the KL's gradient is exponential in ref - logprobs, one token could rule all
COLD_START_PASSES = 3  # over the demonstrations
COLD_START_BATCH = 32  # demonstrations an optimizer step
STATIC_QUESTIONS = 512  # that static pairs are sampled from
STATIC_RESPONSES = 10  # to each of them (paper: 10)

# ----------------------------------------------------------------------------------- the recipes
#
# Every recipe is called with the same arguments: the flags, the policy, the step and its problems,
# the pair cache and the static pairs. It returns the episodes to learn from, and metrics.


def gc_rl(args, policy, step, problems, cache, static):
    """GC-RL (2602.22765, Figure 2): responses and critiques of them, one update for both."""
    # First-order rollout, rewarded by eq. 1.
    responses, metrics = rewarded_responses(args, policy, step, problems)
    # Data filter and cache.
    pairs = pairs_to_criticise(args, step, responses, cache, static)
    # Second-order rollout, rewarded by eqs. 2 to 6.
    critiques, more = rewarded_critiques(args, policy, step, pairs)
    return responses + critiques, metrics | more


def g_rl(args, policy, step, problems, cache, static):
    """Plain RL: the first stage alone."""
    return rewarded_responses(args, policy, step, problems)


def c_rl(args, policy, step, problems, cache, static):
    """The critic alone. Responses are sampled for dynamic pairs only, and they are not trained."""
    responses = []
    metrics = {}
    if args.critique_data == "dynamic":
        responses, metrics = rewarded_responses(args, policy, step, problems)
    pairs = pairs_to_criticise(args, step, responses, cache, static)
    critiques, more = rewarded_critiques(args, policy, step, pairs)
    return critiques, metrics | more


def rewarded_responses(args, policy, step, problems):
    """First-order rollout: n responses to each question. Eq. 1: is the answer right?"""
    responses = respond(policy, problems, args.n, seed_of(args.seed, step, "responses"))
    for e in responses:
        e.reward = outcome_reward(e)
        e.group = group_key(args.group, e.problem.question, "response")
        e.kl = args.kl
    accuracy = mean(e.right for e in responses)
    return responses, {"response/accuracy": accuracy, "pass@n": pass_at_n(responses)}


def outcome_reward(episode):
    """Eq. 1. A response that was cut has no final answer. Whoever pays for more than the outcome
    changes this, and not `Episode.right`, by which pairs and accuracies go."""
    if not episode.sample.stopped:
        return 0.0
    return response_reward(episode.text, episode.problem.answer)


def pairs_to_criticise(args, step, responses, cache, static):
    """Dynamic pairs come from the policy's own responses of this step, static ones are fixed. Both
    wait in the cache until they are drawn, each once."""
    rng = random.Random(seed_of(args.seed, step, "pairs"))
    if args.critique_data == "dynamic":
        # Data filter: of each question that has both, one right and one wrong response.
        choose = filter_pairs if args.balance == "filter" else random_pairs
        cache.extend(choose(pairs_by_question(responses, args.n, step), rng))
    elif len(cache) < args.pairs:  # another pass over the static pairs
        cache.extend(rng.sample(static, len(static)))
    return cache.draw(args.pairs, rng)


def rewarded_critiques(args, policy, step, pairs):
    """Second-order rollout: n critiques of each pair. Eqs. 2 to 6: is the judgement right?"""
    seed = seed_of(args.seed, step, "critiques")
    critiques = criticise(policy, pairs, args.n, seed)
    for e in critiques:
        if args.balance == "reweight":
            # Eq. 3: both labels carry the same weight though one of them is rare.
            e.reward = reweighted_reward(e.says_right, e.pair.right, e.pair.accuracy)
        else:
            # Eq. 2, by default; eqs. 5 and 6 have other constants.
            e.reward = critique_reward(
                e.says_right, e.pair.right, args.reward_right, args.reward_wrong
            )
        e.group = group_key(args.group, e.problem.question, "critique", e.pair.response)
        e.kl = args.kl
    metrics = {
        "critique/pairs": len(pairs),
        "critique/age": mean(step - pair.step for pair in pairs),  # in steps
    }
    for name, value in judgement_table(critiques).items():
        metrics[f"critique/{name}"] = value

    # Eq. 4: does the critique help to mend the response?
    if args.denoise:
        readable = [e for e in critiques if e.says_right is not None]
        # The refined responses give a reward and are not trained.
        refined = refine(policy, readable, args.denoise, seed + 1)
        outcomes = [e.right for e in refined]
        for place, e in enumerate(readable):
            own = outcomes[place * args.denoise : (place + 1) * args.denoise]
            e.reward += denoising_reward(e.says_right, own)
        metrics["refined/accuracy"] = mean(outcomes)
    metrics["critique/reward"] = mean(e.reward for e in critiques)
    return critiques, metrics


def group_key(group, question, *rest_of_prompt):
    """Episodes with the same key share one baseline: the samples of a prompt, all of a question, or
    the whole batch (--group)."""
    if group == "prompt":
        return (question, *rest_of_prompt)
    if group == "question":
        return (question,)
    return ()


def score(args, policy, step, problems, cache, static):
    """SCoRe (2409.12917): Stage I teaches the second attempt alone, Stage II both.

    Each attempt is credited with its own reward. r(y1) is settled when y2 is drawn, so among second
    attempts that follow the same outcome the shaping is a weight of 1 + alpha, which a division by
    the deviation would cancel. The penalty is k3, whose gradient is that of KL(reference ||
    policy), where the paper writes KL(policy || reference).
    """
    first, second, metrics = rewarded_attempts(args, policy, step, problems)
    if step <= args.stage1_steps:
        # Stage I: the second attempt is rewarded, the first is held to the base by a strong KL.
        metrics["stage"] = 1
        for a in first:
            a.reward = 0.0  # no spread in the group, so no advantage
            a.kl += args.beta2
    else:
        # Stage II: both are rewarded, and the second is paid for what it changes.
        metrics["stage"] = 2
        for a, b in zip(first, second):
            b.reward = shaped_reward(a.reward, b.reward, args.alpha)
    return first + second, metrics


def multi_turn(args, policy, step, problems, cache, static):
    """SCoRe without its two ideas: both attempts are rewarded alike, from the first step on."""
    first, second, metrics = rewarded_attempts(args, policy, step, problems)
    return first + second, metrics


def rewarded_attempts(args, policy, step, problems):
    """n first attempts at each question and a second attempt after each. Eq. 1 for both.

    A first attempt is compared with the others at its question; a second attempt with those at its
    question whose first attempt had the same outcome, or if there are none, with those in the
    batch. So r(y1) is the same for all that are compared, and Stage II's -alpha r(y1) drops out; a
    baseline may depend on all that is known when a sample is drawn. Else it would be noise.
    """
    seed = seed_of(args.seed, step, "attempts")
    first, second = two_attempts(policy, problems, args.n, seed)
    for e in first + second:
        outcome = e.first and e.first.right  # of the attempt before; None: there is none
        e.reward = outcome_reward(e)
        e.group = (e.role, outcome, group_key(args.group, e.problem.question))
        e.kl = args.beta1
    metrics = attempts_table(first, second) | {"pass@n": pass_at_n(first)}
    sizes = Counter(e.group for e in second)
    metrics["groups/alone"] = mean(sizes[e.group] == 1 for e in second)
    return first, second, metrics


def star(args, policy, step, problems, cache, static):
    """STaR: learn the sampled traces that end right, their first attempts too where right. Traces
    are sampled anew from the current policy at each step."""
    first, second, metrics = rewarded_attempts(args, policy, step, problems)
    learned = []
    for a, b in zip(first, second):
        # A right first attempt whose second is wrong is no trace.
        if b.right:
            if a.right:
                learned.append(a)
            learned.append(b)
    for e in learned:
        e.sample.given = True  # from here on a text like any other
        e.kl = 0.0
    return learned, metrics | {"traces": sum(b.right for b in second)}


def pair_sft(args, policy, step, problems, cache, static):
    """Pair-SFT: learn a right response as the second attempt after a wrong one, both the starting
    policy's own."""
    # The filter leaves right, wrong, right, wrong, ...
    couples = list(zip(static[::2], static[1::2]))
    rng = random.Random(seed_of(args.seed, step, "traces"))
    learned = []
    for right, wrong in rng.sample(couples, min(args.pairs, len(couples))):
        chat = correct(right.problem.question, wrong.response)
        given = demonstration(policy.tokenizer, chat, right.response)
        e = Episode(given, right.response, "attempt 2", right.problem, right=True, reward=1.0)
        learned.append(e)
    return learned, {"traces": len(learned)}


METHODS = {
    "gc-rl": gc_rl,
    "g-rl": g_rl,
    "c-rl": c_rl,
    "score": score,
    "multi-turn": multi_turn,
    "star": star,
    "pair-sft": pair_sft,
}
TWO_ATTEMPTS = ("score", "multi-turn")  # their advantages leave one out: see `rewarded_attempts`
SUPERVISED = ("star", "pair-sft")

# ------------------------------------------------------------------------------- loss and update


def grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl=0.0):
    """GRPO's loss: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl k3 for each token.

    ratio = exp(logprobs - old_logprobs); k3 = exp(ref - logprobs) - (ref - logprobs) - 1 is never
    negative. Over samples of the policy as it is, its value estimates KL(policy || reference)
    without bias; its gradient, in expectation, is that of KL(reference || policy). All tensors are
    [batch, length] or broadcast to it; kl may hold a weight for each row; masked places may hold
    anything.

    Returns the mean over all unmasked tokens, which tokens were clipped, and k3, both [batch,
    length] and zero where masked.
    """
    mask = mask.bool()
    # Masked before exp, not after: inf * 0 is nan.
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    # The smaller of the two: beyond the clip nothing is gained by moving on.
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    clipped = mask & (bounded * advantages < ratio * advantages)
    k3 = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        away = (ref_logprobs - logprobs).masked_fill(~mask, 0.0)
        k3 = away.exp() - away - 1
        loss = loss + kl * k3
    mean = loss.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
    return mean, clipped, k3.detach()


class NotFinite(FloatingPointError):
    """A gradient that is not finite, and the mini-batch that gave it."""

    def __init__(self, norm, episodes):
        super().__init__(f"the gradient norm is {norm}; a smaller --lr may help")
        self.episodes = episodes


def update(
    model,
    optimizer,
    episodes,
    rng,
    updates=1,
    clip=0.2,
    temperature=1.0,
    reference=None,
    meter=None,
):
    """One policy update, from the advantages of one rollout to new weights; returns metrics.

    It takes `updates` optimizer steps, each on its share of the prompts, against the log-probs that
    their completions were sampled with. reference: the model of the KL. In step 1 it is the policy
    itself; then the log-probs that were sampled with are the reference's.

    `ratio/max_log` and `ratio/mean_log` are |log ratio| before the first optimizer step: how far
    the learner is from the sampler. Raises NotFinite.
    """
    meter = meter or Meter()
    drawn = [e for e in episodes if not e.sample.given]
    metrics = rollout_metrics(drawn)
    totals = Counter()
    norms = []
    first = None  # sums of the first mini-batch
    shrink = 1  # doubled where memory runs out
    for batch in mini_batches(episodes, updates, rng):
        # What gives no gradient is not computed but counts in the token mean: the gradient is the
        # same, the time is not.
        tokens = sum(len(e.sample.tokens) for e in batch)
        learned = [e for e in batch if e.advantage != 0 or e.kl > 0]
        if not learned:
            continue  # a step without a gradient would move the weights by Adam's momentum
        with meter.timed("forward_backward", model):
            sums = None
            while sums is None:
                micro = micro_batches(model, [e.sample for e in learned], shrink)
                again = len(micro) < len(learned)
                sums = unless_memory_runs_out(
                    again,
                    accumulate,
                    model,
                    learned,
                    micro,
                    tokens,
                    clip,
                    temperature,
                    reference,
                    meter,
                )
                if sums is None:
                    shrink *= 2
                    model.zero_grad()
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
        if not math.isfinite(norm):
            raise NotFinite(norm, learned)
        with meter.timed("optimizer", model):
            optimizer.step()
            optimizer.zero_grad()
        norms.append(norm)
        totals.update(sums)
        first = first or sums

    metrics["updates"] = len(norms)
    if not norms:
        return metrics
    metrics["grad_norm"] = mean(norms)
    metrics["ratio/max_log"] = first["max"]
    metrics["ratio/mean_log"] = first["distance"] / first["tokens"]
    metrics["ratio/clipped"] = totals["clipped"] / totals["tokens"]
    for name in totals:
        if name.startswith("kl/"):
            metrics[name] = totals[name] / totals[name.replace("kl/", "tokens/")]
    # Of given texts the mean negative log-prob, in nats a token, is worth a look. GRPO's loss is
    # not: it says how far the policy has moved in this update, not how good it is.
    if not drawn:
        metrics["loss"] = totals["nll"] / totals["tokens"]
    return metrics


def accumulate(model, episodes, micro, tokens, clip, temperature, reference, meter):
    """Loss and backward, one micro-batch after the other: adds the gradient of a mini-batch of
    `tokens` tokens to the model's. micro: the places of each micro-batch's episodes. Returns sums
    for the metrics."""
    sums = Counter()
    for places in micro:
        part = [episodes[place] for place in places]
        samples = [e.sample for e in part]
        # Log-probs now, all tensors [episodes, longest completion].
        rows = logprobs_part(model, samples, temperature, meter)
        new = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool()
        # Log-probs when they were sampled.
        old = []
        for sample, row in zip(samples, rows):
            old.append(row.detach() if sample.given else row.new_tensor(sample.logprobs))
        old = pad_sequence(old, batch_first=True)
        # The reference's.
        ref = None
        if reference is model:
            ref = old
        elif reference is not None:
            with torch.no_grad():
                ref = pad_sequence(logprobs_part(reference, samples, temperature, meter), True)
        if ref is not None:
            # What is bounded is the pull: without `detach` it would be gone beyond the bound.
            ref = torch.minimum(ref, new.detach() + MAX_AWAY)

        # One advantage and one weight of the KL for all tokens of a completion.
        advantage = new.new_tensor([[e.advantage] for e in part])
        kl = new.new_tensor([[e.kl] for e in part])
        loss, clipped, k3 = grpo_loss(new, old, advantage, mask, clip, ref, kl)
        # The loss is the mean over this micro-batch; its share in the mean over the mini-batch:
        share = mask.sum() / tokens
        (loss * share).backward()

        # For the metrics.
        log_ratio = (new - old).detach().masked_fill(~mask, 0.0).abs()
        sums["max"] = max(sums["max"], log_ratio.max().item())
        sums["distance"] += log_ratio.sum().item()
        sums["clipped"] += clipped.sum().item()
        sums["tokens"] += mask.sum().item()
        sums["nll"] -= new.detach().masked_fill(~mask, 0.0).sum().item()
        if ref is not None:
            for e, total in zip(part, k3.sum(1).tolist()):
                sums[f"kl/{e.role}"] += total
                sums[f"tokens/{e.role}"] += len(e.sample.tokens)
    return sums


def mini_batches(episodes, updates, rng):
    """Each optimizer step's share of the prompts, in random order, with all their completions."""
    members = {}
    for e in episodes:
        members.setdefault(tuple(e.sample.prompt), []).append(e)
    prompts = rng.sample(list(members), len(members))
    batches = []
    # A prompt's completions stay together: its keys are then computed once.
    for start in range(min(updates, len(prompts))):
        batch = []
        for prompt in prompts[start::updates]:
            batch += members[prompt]
        batches.append(batch)
    return batches


def rollout_metrics(episodes):
    """What a rollout was like, its advantages given; nothing of no episodes."""
    if not episodes:
        return {}
    groups = {e.group for e in episodes}
    spread = {e.group for e in episodes if e.advantage != 0}
    metrics = {
        "groups/no_spread": mean(group not in spread for group in groups),
        "truncated": mean(not e.sample.stopped for e in episodes),
        # E[-log p] under p is the entropy: the sampler's log-probs estimate it without bias.
        "entropy": -mean(p for e in episodes for p in e.sample.logprobs),
    }
    for role in sorted({e.role for e in episodes}):
        metrics[f"length/{role}"] = mean(len(e.sample.tokens) for e in episodes if e.role == role)
    return metrics


def cold_start(args, model, samples):
    """Supervised learning of demonstrations before RL: a short warm-up, then linear decay."""
    steps = math.ceil(COLD_START_PASSES * len(samples) / COLD_START_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    rng = random.Random(seed_of(args.seed, "cold start"))
    for step in tqdm(range(steps), "cold start", disable=BAR_OFF):
        batch = batch_of(samples, step + 1, args.seed, COLD_START_BATCH)
        rate = min(1, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = args.cold_start_lr * rate
        episodes = [Episode(sample, "", "given", None) for sample in batch]
        loss = update(model, optimizer, episodes, rng)["loss"]
        if step == 0 or (step + 1) % max(1, steps // 10) == 0:
            tqdm.write(f"cold start {step + 1}/{steps}: loss {loss:.3f} nats per token")


# ----------------------------------------------------------------------------------------- flags

# What differs on the toy: a tiny model on tiny problems learns faster.
TOY_FILES = {
    "data": f"{TOY}/train.jsonl",
    "eval_data": f"{TOY}/held_out.jsonl",
    "exam": f"{TOY}/exam.jsonl",
}
TOY_SETTINGS = {
    "steps": 30,
    "lr": 2e-4,
    "kl": 0.0,
    "max_new_tokens": 64,
    "eval_size": 512,
    "alpha": 2.0,
    "beta2": 0.25,
}


def parse_args(argv=None):
    """The command line; bad values end the program with one line."""
    parser = argparse.ArgumentParser(
        description="Train a policy to answer, to criticise answers and to correct itself.",
        epilog="In [brackets]: the default. README.md says what the methods are.",
    )
    parser.error = lambda message: sys.exit(f"error: {message}")

    def add(name, default, help, kind=None, choices=None):
        toy = TOY_SETTINGS.get(name.replace("-", "_"))
        if default is not None:
            help += f" [{default}]"
        if toy is not None:
            help += f" [toy: {toy}]"
        kind = kind or type(default)
        group.add_argument("--" + name, default=default, help=help, type=kind, choices=choices)

    group = parser.add_argument_group("what is run, and where")
    add("method", "gc-rl", "what is trained, see the README", choices=list(METHODS))
    add("model", "toy", "toy, a model folder or a hub id")
    add("data", None, "JSONL file with question and answer, or gsm8k [the toy's; gsm8k]", str)
    add(
        "eval-data", None, "held-out problems (else gsm8k's test file, or --data's last tenth)", str
    )
    add("exam", None, "JSONL file of pairs for the critic's exam (else sampled at the start)", str)
    add("cold-start", None, "JSONL file of demonstrations to be learned before RL", str)
    add("cold-start-lr", 2e-5, "learning rate of the cold start")
    add("seed", 0, "of data order and sampling")
    add("device", None, "cpu, cuda, cuda:1, mps (else cuda where there is one)", str)
    add("precision", None, "of the arithmetic (else bf16 on cuda)", str, choices=["fp32", "bf16"])
    add("out", "out", "folder of the run: model, metrics.jsonl, samples.jsonl, resume.pt")
    resume = "go on with the run in --out: the same command and this flag"
    group.add_argument("--resume", action="store_true", help=resume)
    add("eval-every", 10, "steps between evaluations with a checkpoint; both also at the end")
    add("eval-size", 256, "held-out problems, and pairs of the exam, in an evaluation")
    group = parser.add_argument_group("a step: sampling and learning")
    add("steps", 200, "steps of RL (paper: 10 epochs)")
    add("questions", 32, "questions a step (paper: 512)")
    add("n", 8, "samples per prompt (paper: 5)")
    add("updates", 4, "optimizer steps per rollout, whatever it holds (paper: 4)")
    add(
        "minibatch",
        None,
        "in place of --updates: as many as give each at most so many prompts",
        int,
    )
    add("lr", 1e-6, "learning rate of AdamW, constant after a short warm-up (paper: 1e-6)")
    add("kl", 1e-3, "g-rl, c-rl, gc-rl: weight of the KL to the starting policy (paper: 1e-3)")
    add("clip", 0.2, "the ratio is clipped to 1 - clip, 1 + clip (paper: 0.2)")
    add("temperature", 1.0, "of sampling; the log-probs are those of this distribution")
    add("max-new-tokens", 512, "limit of a completion; cut ones count as wrong (paper: 4096)")
    group = parser.add_argument_group("GC-RL: pairs, rewards of critiques, groups")
    add(
        "balance",
        "filter",
        "pairs: one right and one wrong response; any two, weighted by eq. 3; any two",
        choices=["filter", "reweight", "none"],
    )
    add(
        "critique-data",
        None,
        "where pairs come from (else c-rl static, gc-rl dynamic)",
        str,
        choices=["static", "dynamic"],
    )
    add("pairs", None, "pairs criticised, traces of pair-sft, a step (else --questions)", int)
    add("cache", None, "capacity of the pair cache; the oldest leave first (else 2 x --pairs)", int)
    add("denoise", 0, "refined responses for each critique, eq. 4 (0: off; paper: 1)")
    add("reward-right", 0.7, "for judging a right response right (eq. 5: 0.6, eq. 6: 0.8)")
    add("reward-wrong", 0.7, "for judging a wrong response wrong (eq. 5: 0.8, eq. 6: 0.6)")
    add(
        "group",
        "prompt",
        "the samples that a reward is compared with: of a prompt, a question (responses "
        "and critiques), the batch",
        choices=["prompt", "question", "batch"],
    )
    no_std = "advantages are not divided by the group's deviation"
    group.add_argument("--no-std", action="store_true", help=no_std)
    group = parser.add_argument_group("SCoRe")
    add("alpha", 10.0, "weight of the shaping alpha (r(y2) - r(y1)) in Stage II (paper: 10)")
    add("beta1", 0.01, "KL weight on both attempts, of multi-turn too (paper: 0.01)")
    add("beta2", 0.1, "KL weight on first attempts in Stage I, on top (paper: 0.1, 0.25)")
    add("stage1-steps", None, "of --steps, those of Stage I (else half)", int)
    # The toy brings its files and settings as defaults: what is asked for by name still wins.
    known, _ = parser.parse_known_args(argv)
    if known.model == "toy":
        parser.set_defaults(**TOY_SETTINGS)
        if not known.data:
            parser.set_defaults(**TOY_FILES)
    args = parser.parse_args(argv)
    settle(args)
    return args


MAY_BE_ZERO = (
    "steps",
    "kl",
    "clip",
    "seed",
    "denoise",
    "reward_right",
    "reward_wrong",
    "alpha",
    "beta1",
    "beta2",
    "stage1_steps",
)


def settle(args):
    """Fill in what depends on other flags; refuse what cannot work before any work is done."""
    check_numbers(args, MAY_BE_ZERO)
    if args.n == 1 and args.group != "batch" and args.method not in SUPERVISED:
        raise InputError("--n 1: a single sample has nothing to be compared with; use 2 or more")
    if (args.stage1_steps or 0) > args.steps:
        raise InputError(f"--stage1-steps {args.stage1_steps}: --steps is only {args.steps}")
    args.data = args.data or "gsm8k"
    args.pairs = args.pairs or args.questions
    # Small, since pairs should be the policy's own: at this size they wait a step or two.
    args.cache = args.cache or 2 * args.pairs
    args.critique_data = args.critique_data or ("static" if args.method == "c-rl" else "dynamic")
    # By themselves the constants of rewards make no difference: see reward.critique_reward.
    constants = args.balance == "reweight" or args.reward_right != 0.7 or args.reward_wrong != 0.7
    if constants and args.group == "prompt" and not args.no_std and not args.denoise:
        print("note: --group prompt, divided by its deviation: constants of eqs. 3, 5, 6 cancel")


# --------------------------------------------------------------------------------------- the run


def train(args):
    """One run, from the flags to the final table; meanwhile no other process gets into --out.
    Returns the last row of metrics."""
    begin = time.time()
    policy, optimizer, state, lock = begin_run(args)
    with lock, signals_caught() as stop:
        return run(args, policy, optimizer, state, begin - state["seconds"], stop)


def run(args, policy, optimizer, state, begin, stop):
    """The steps that are left. begin: when the run began, in the clock of a run without a pause;
    stop: signals that came in."""
    out = Path(args.out)
    model = policy.model
    problems = state["problems"]
    if state["step"] == 0:
        state["exam"], state["static"] = first_pairs(args, policy, state)
    # Half of the steps that the run was begun with: a run that is extended keeps its Stage I.
    if args.stage1_steps is None:
        args.stage1_steps = state["flags"]["steps"] // 2
    write_files(out, state)
    size = f"{model.num_parameters():,} parameters on {model.device}"
    count = f"{len(problems)} problems, {len(state['held_out'])} held out"
    print(f"{args.method} on {args.model}: {size}; {count}; {out}", flush=True)
    cache = PairCache(state["cache"], max(args.cache, len(state["static"]) + args.pairs))

    @functools.cache  # in memory from the first step on that has a KL
    def load_reference():
        # Without gradients autocast keeps no copy of it in bf16.
        return load_policy(out / "start", args.device, args.precision)[0].requires_grad_(False)

    bar = tqdm(
        desc=args.method, total=args.steps, initial=max(0, state["step"] - 1), disable=BAR_OFF
    )
    for step in range(state["step"], args.steps + 1):  # step 0 is the evaluation before the first
        row = {"step": step}
        due = step == args.steps or step % args.eval_every == 0

        if step > 0:
            # Sample.
            asked = batch_of(problems, step, args.seed, args.questions)
            meter = Meter()
            with meter.timed("sample", model):
                episodes, metrics = METHODS[args.method](
                    args, replace(policy, meter=meter), step, asked, cache, state["static"]
                )
            # Learn. What has no tokens had a prompt that left no room in the context.
            learned = [e for e in episodes if e.sample.tokens]
            with meter.timed("update", model):
                metrics |= learn(args, policy, optimizer, load_reference, learned, step, meter)
            # Log.
            metrics["skipped"] = len(episodes) - len(learned)
            tokens = sum(len(e.sample.tokens) for e in learned)
            row |= metrics | meter.metrics(tokens)
            reason = why_nothing_is_learned(row)
            if reason and reason not in state["reasons"]:
                tqdm.write(reason)
                state["reasons"].append(reason)
            if learned and (due or step == 1):
                rows = show_samples(policy.tokenizer, step, learned)
                write_jsonl(out / "samples.jsonl", rows, "a")
                state["samples"] += rows
            bar.update()

        # Evaluate.
        if due:
            numbers, answers = evaluate(policy, state["held_out"], state["exam"])
            row |= numbers
            wrong = [e.problem.question for e in answers if not e.right]
            if step == 0:
                state["missed"] = wrong
            state["gained"] = [q for q in state["missed"] if q not in wrong]
        row["seconds"] = time.time() - begin
        show_step(row)
        log_row(out, row)
        state["metrics"].append(row)

        # Save.
        state |= {"step": step + 1, "seconds": row["seconds"], "cache": list(cache)}
        if due or stop:
            save_state(out, state, model, optimizer)
            draw_curves(out / "curves.svg", state["metrics"])
        if stop and step < args.steps:
            print(f"stopped after step {step}; go on with the same command and --resume")
            sys.exit(128 + stop[0])
    bar.close()
    save_policy(model, policy.tokenizer, out)
    show_result(state, out)
    return state["metrics"][-1]


def begin_run(args):
    """What can be refused before the first sample is refused here. Returns (policy, optimizer,
    state) that the run starts from, or goes on with, and the lock on its folder."""
    out = Path(args.out)
    saved, lock = open_run(args)
    check_memory(args)
    if not saved:
        problems, held_out, exam, examples = load_data(args)
    source = out / "start" if saved else args.model
    model, tokenizer = load_policy(source, args.device, args.precision)
    policy = Policy(model, tokenizer, args.max_new_tokens, args.temperature)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0, fused=True)
    if saved:
        model.load_state_dict(saved.pop("weights"))
        optimizer.load_state_dict(saved.pop("optimizer"))
        return policy, optimizer, saved, lock

    # What does not fit the model's context is refused before the first file is written.
    samples = [demonstration(tokenizer, *example) for example in examples]
    check_lengths(policy, problems + held_out, samples)
    lock = lock_folder(out)
    if samples:
        cold_start(args, model, samples)
    save_policy(model, tokenizer, out / "start")
    # Weights, optimizer, cache, metrics and samples are those before `step`. What was read and
    # sampled at the start is kept: a run goes on with that, whatever has become of the files.
    state = {
        "format": FORMAT,
        "flags": vars(args).copy(),
        "step": 0,
        "seconds": 0.0,
        "metrics": [],
        "samples": [],
        "cache": [],
        "problems": problems,
        "held_out": held_out,
        "exam": exam,
        "static": [],
        "missed": [],  # held-out questions that the starting policy got wrong
        "gained": [],  # of those, what it answers right by now
        "reasons": [],  # why nothing could be learned, once each
    }
    save_state(out, state, model, optimizer)
    return policy, optimizer, state, lock


def first_pairs(args, policy, state):
    """(exam, static pairs) of the starting policy. The exam is fixed by the seed and that policy,
    unless there is one: --exam gives runs that start from different policies the same."""
    exam = state["exam"]
    if not exam:
        seed = seed_of(args.seed, "exam")
        held_out = state["held_out"]
        exam = sample_pairs(policy, held_out, 8, args.eval_size, seed, show="critique pairs")
    critic = args.method in ("c-rl", "gc-rl") and args.critique_data == "static"
    if not critic and args.method != "pair-sft":
        return exam, []
    count = min(len(state["problems"]), STATIC_QUESTIONS)
    static = sample_pairs(
        policy,
        batch_of(state["problems"], 1, args.seed, count),
        STATIC_RESPONSES,
        2 * count,
        seed_of(args.seed, "static"),
        random_pairs if critic and args.balance != "filter" else filter_pairs,
        show="static pairs",
    )
    if not static:
        raise InputError(f"static pairs: 0 of {count} questions had right and wrong ones")
    return exam, static


def learn(args, policy, optimizer, load_reference, episodes, step, meter):
    """A step's advantages and policy update under the flags; without episodes it does nothing."""
    if not episodes:
        return {}
    # Rewards are compared inside groups. A given text is learned as it stands.
    drawn = [e for e in episodes if not e.sample.given]
    rewards = [e.reward for e in drawn]
    groups = [e.group for e in drawn]
    if args.method in TWO_ATTEMPTS:
        values = leave_one_out(rewards, groups)
    else:
        values = advantages(rewards, groups, std=not args.no_std)
    for e, value in zip(drawn, values.tolist()):
        e.advantage = value
    updates = args.updates
    if args.minibatch:
        prompts = {tuple(e.sample.prompt) for e in episodes}
        updates = math.ceil(len(prompts) / args.minibatch)
    reference = None
    if any(e.kl > 0 for e in episodes):
        # In step 1 the policy still is the reference.
        reference = policy.model if step == 1 else load_reference()
    optimizer.param_groups[0]["lr"] = args.lr * min(1, step / WARMUP)
    try:
        return update(
            policy.model,
            optimizer,
            episodes,
            random.Random(seed_of(args.seed, step, "mini-batches")),
            updates=updates,
            clip=args.clip,
            temperature=args.temperature,
            reference=reference,
            meter=meter,
        )
    except NotFinite as error:
        path = Path(args.out) / "not_finite.jsonl"
        write_jsonl(path, [sample_row(policy.tokenizer, step, e) for e in error.episodes])
        raise InputError(f"step {step}: {error}; its mini-batch is in {path}") from error


def main(argv=None):
    """The command line; returns the last row of metrics, for a notebook."""
    return run_command(lambda: train(parse_args(argv)))


if __name__ == "__main__":
    main()
