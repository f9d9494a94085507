"""Tests of train.py: steps of a run, and what its rollouts and updates are."""

import copy
import math
import random
from unittest import mock

import torch

import train
from details import data, start
from reward import PairCache, advantages
from rollout import Sampler, load_policy
from tests.helpers import (
    TOY,
    arguments,
    base,
    close,
    files,
    gradient_of,
    patch,
    plain_logprobs,
    printed_by,
    problems,
    rewards_of,
    same_gradient,
    shown_rows,
    toy_rollout,
    trained,
    updated,
)

ODD_FLAGS = """--steps 4 --questions 6 --n 8 --updates 2 --lr 2e-4 --kl 1.5 --clip 0.005 --seed 5
--temperature 0.8 --max-new-tokens 40 --pairs 3 --cache 4 --cold-start-lr 3e-4 --eval-size 4"""


def plain_step(model, begun, optimizer, step, asked, cache):
    """One step of GC-RL under ODD_FLAGS, in ordinary code but for the recipe and the advantages,
    which have tests of their own."""
    sampler = Sampler(model, base()[1], 40, 0.8)
    samples, _ = train.gc_rl(arguments(ODD_FLAGS), sampler, step, asked, cache, [])
    # Advantages inside the samples of each prompt.
    prompts_of = [tuple(sample.prompt) for sample in samples]
    values = advantages(rewards_of(samples), prompts_of)

    # Two optimizer steps, each on half of the prompts.
    prompts = list(dict.fromkeys(prompts_of))
    rng = random.Random(data.seed_of(5, step, "mini-batches"))
    prompts = rng.sample(prompts, len(prompts))
    for group in optimizer.param_groups:
        group["lr"] = 2e-4 * min(1, step / 3)
    for half in (prompts[0::2], prompts[1::2]):
        loss = 0.0
        tokens = 0
        for sample, value, prompt in zip(samples, values, prompts_of):
            if prompt not in half:
                continue
            new = plain_logprobs(sample, 0.8, model)
            old = torch.tensor(sample.logprobs)
            ref = plain_logprobs(sample, 0.8, begun).detach()
            own, _, _ = train.grpo_loss(new, old, value, torch.ones_like(new), 0.005, ref, 1.5)
            loss = loss + own * len(new)
            tokens += len(new)
        optimizer.zero_grad()
        (loss / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def weights(model):
    """All parameters as one vector."""
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_a_run_with_odd_flags_is_the_plain_one(tmp_path):
    """Four steps of GC-RL after a cold start end in the weights of the same steps written out."""
    asked = problems(20, seed=5)
    argv = files(tmp_path, data=asked, cold_start=shown_rows(problems(8, seed=11)))
    trained(tmp_path / "run", ODD_FLAGS, *argv)
    model, _ = load_policy(tmp_path / "run" / "start", "cpu")
    begun = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0)
    cache = PairCache(maxlen=4)
    for step in (1, 2, 3, 4):
        plain_step(model, begun, optimizer, step, data.batch_of(asked, step, 5, 6), cache)
    ended, _ = load_policy(tmp_path / "run", "cpu")
    moved = (weights(model) - weights(begun)).norm()
    apart = (weights(model) - weights(ended)).norm()
    assert apart < 0.07 * moved, (apart, moved)


def seeds_of(folder, seed, flags):
    """All seeds of a run: of its rollouts at a temperature, and of what is drawn in train.py and
    details/start.py."""
    seeds = []
    complete = Sampler.complete

    def note_rollout(sampler, chats, n, seed):
        if sampler.temperature:
            seeds.append(seed)
        return complete(sampler, chats, n, seed)

    drawing = mock.Mock(wraps=random)
    # Not of the questions that are asked again with the same random numbers.
    in_train, in_start = patch(train, "random", drawing), patch(start, "random", drawing)
    unasked = patch(train, "log_probes")
    dealt = patch(data, "seed_of", wraps=data.seed_of)  # of batches
    with patch(Sampler, "complete", note_rollout), in_train, in_start, unasked, dealt as deal:
        printed_by(train.main, f"--device cpu --out {folder} --seed {seed} {flags}")
    assert {call.args[0] for call in deal.call_args_list} == {seed}
    return seeds + [call.args[0] for call in drawing.Random.call_args_list]


def test_no_two_rollouts_share_their_random_numbers(tmp_path):
    """Steps, responses, critiques, pairs, traces, mini-batches, first and second attempts, each
    part of an exam and of static pairs: the seed of each is its own, and all change with --seed."""
    [flag, file] = files(tmp_path, data=problems(16))
    short = f"{flag} {file} --eval-data {TOY}/held_out.jsonl --eval-size 8 --denoise 1"
    short += " --steps 2 --questions 2 --n 2"
    for method, runs in (("gc-rl", 2), ("c-rl", 1), ("score", 1), ("pair-sft", 2)):
        seeds = []
        for seed in range(1, 1 + runs):
            out = tmp_path / f"{method}-{seed}"
            seeds += seeds_of(out, seed, f"{short} --method {method}")
        assert len(set(seeds)) == len(seeds) > 4, method


def test_no_optimizer_step_without_a_gradient():
    """Where no sample has an advantage or a KL, Adam's momentum must not move the weights: here in
    three of the mini-batches, then in all four."""
    samples = toy_rollout(n=2, count=4)
    for reward, steps in ((1.0, 1), (0.0, 0)):
        for sample in samples:
            sample.reward = 0.0
        samples[0].reward = reward
        metrics, gradients = updated(samples, "--updates 4")
        assert len(gradients) == metrics["updates"] == steps


def test_tokens_far_from_the_reference_are_pulled_back():
    """A reference that thinks e^5 times better of a token counts as e^MAX_AWAY times better. Beyond
    that bound the pull of the KL stays what it is at the bound, exp(3) - 1, and does not vanish:
    the tokens that drifted furthest need it most."""
    [sample] = toy_rollout(n=1, count=1)
    sample.reward = 0.0
    sample.kl_weight = 1.0
    # d k3 / d new = 1 - exp(ref - new), and the loss is a mean over the tokens.
    pull = (1 - math.exp(train.MAX_AWAY)) * plain_logprobs(sample).mean()
    expected = gradient_of(pull)
    reference = copy.deepcopy(base()[0])
    real = train.batch_logprobs

    def batch_logprobs(model, *settings):
        return [row + 5.0 * (model is reference) for row in real(model, *settings)]

    with patch(train, "batch_logprobs", batch_logprobs):
        metrics, (seen,) = updated([sample], reference=reference)
    same_gradient(seen, expected)
    close(metrics["kl/response"], math.exp(train.MAX_AWAY) - train.MAX_AWAY - 1, 1e-3)
