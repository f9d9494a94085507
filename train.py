"""Train a policy to answer, to criticise answers and to correct itself, by GRPO on outcome rewards.

What an optimizer step maximises, over all tokens of its completions:

    mean of  min(ratio A, clip(ratio, 1 - clip, 1 + clip) A)  -  kl k3        (grpo_loss)
    A      = (reward - mean of its group) / standard deviation of its group   (reward.advantages)
    ratio  = p(token) now / p(token) when it was sampled
    k3     = exp(d) - d - 1,  d = log p(token) of the starting policy - log p(token) now

k3 estimates the KL divergence to the starting policy (the reference): it is 0 where the two agree,
and never negative. It is a term of the loss, and no part of the reward that A compares. kl is its
weight: --kl (0 on the toy), of SCoRe and multi-turn RL --beta1 and --beta2.

A method is a recipe: which prompts are built, which rewards are given (GC-RL: eqs. 1 and 2, SCoRe:
see `score`). All but star and pair-sft share the update. Each completion is reinforced by its own
reward, given its prompt: no credit flows from a second attempt back to the first. What departs from
GRPO as published (arXiv 2402.03300), and why:

- As in DAPO and verl, the mean is over all tokens at once. If it were taken within each completion
  first, a token of a long completion would count less than one of a short completion.
- A mini-batch without a gradient makes no optimizer step: Adam's momentum would move the weights.
- SCoRe and multi-turn RL have a baseline of their own: see `rewarded_attempts`.
- In k3, d is at most MAX_AWAY = 3, so that a token's gradient, exp(d) - 1, is at most 19.1.
  Otherwise one token could dominate the others.

    python train.py                        GC-RL on the embedded toy model, 80 to 140 s
    python train.py --method score         SCoRe on the toy
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k --out runs/gsm8k

Below: the recipes of GC-RL (arXiv 2602.22765) and SCoRe (arXiv 2409.12917), a step, the baselines,
the run.
"""

import math
import random
import sys
import time
from collections import Counter
from pathlib import Path

from details.data import batch_of, mean, run_command, seed_of  # isort: skip (before torch)

import torch
from tqdm import tqdm

from critique import correct_prompt
from details import cost
from details.flags import SUPERVISED, selected_by, train_flags
from details.log import (
    BAR_OFF,
    log_row,
    say,
    step_metrics,
    truncation,
)
from details.memory import in_micro_batches
from details.policy import context_length, save_policy
from details.runs import keep_best, save_state, signals_caught
from details.start import begin_run, first_pairs
from details.supervised import demonstration, imitate
from figures.page import write_page
from figures.samples import log_probes, log_samples, not_finite
from figures.tables import finish_best, log_answers, show_result
from reward import (
    PairCache,
    advantages,
    critique_reward,
    denoising_reward,
    filter_pairs,
    leave_one_out,
    members_of,
    pairs_by_question,
    random_pairs,
    reweighted_reward,
    shaped_reward,
)
from rollout import batch_logprobs, criticise, refine, respond, two_attempts
from sample import attempts_table, evaluate, judgement_table, pass_at_n

WARMUP = 3  # steps in which the learning rate rises to --lr
GRAD_CLIP = 1.0  # largest gradient norm
MAX_AWAY = 3.0  # the largest d, in nats

# ----------------------------------------------------------------------------------- the recipes
#
# From a recipe to a gradient:
#
#     train_step      calls the recipe, which METHODS names
#     the recipe      returns Samples with reward and kl_weight, and metrics for the log
#     update          compares rewards, which gives each Sample its advantage; makes mini-batches
#     add_gradient    log-probs now, when drawn, and the reference's; the backward pass
#     grpo_loss       minus what is maximised, as it stands above
#
# star and pair-sft go from train_step to `imitate`. Parameters of a recipe: `cache` has the pairs
# that wait for the critic, `static` the starting policy's pairs, where they are used, else none.
# seed_of makes one seed from its arguments.


def gc_rl(args, sampler, step, problems, cache, static):
    """GC-RL (2602.22765, Figure 2): responses and critiques of them, one update for both."""
    # First-order rollout, rewarded by eq. 1.
    responses, metrics = rewarded_responses(args, sampler, step, problems)
    # Data filter and cache.
    pairs = pairs_to_criticise(args, step, responses, cache, static)
    # Second-order rollout, rewarded by eq. 2; by flags eqs. 3 to 6.
    critiques, more = rewarded_critiques(args, sampler, step, pairs)
    return responses + critiques, metrics | more


def rewarded_responses(args, sampler, step, problems):
    """First-order rollout: n responses to each question. Eq. 1: is the answer right?"""
    responses = respond(sampler, problems, args.n, seed_of(args.seed, step, "responses"))
    for sample in responses:
        # Add bonuses here, not to `right`, which defines pairs and accuracies.
        sample.reward = float(sample.right)
        sample.kl_weight = args.kl
    return responses, {
        "response/accuracy": mean(sample.right for sample in responses),
        "response/truncated": truncation(responses)["truncated"],
        "pass@n": pass_at_n(responses, args.n),
    }


def pairs_to_criticise(args, step, responses, cache, static):
    """Dynamic pairs come from the policy's own responses of this step, and wait in the cache until
    they are drawn. Static ones are the starting policy's, from 10 responses to each of up to 512
    questions; they come in pass after pass, as questions do."""
    if args.critique_data == "static":
        count = min(args.pairs, len(static))
        return batch_of(static, step, args.seed, count)
    rng = random.Random(seed_of(args.seed, step, "pairs"))
    choose = filter_pairs if args.balance == "filter" else random_pairs
    cache.extend(choose(pairs_by_question(responses, args.n, step), rng))
    return cache.draw(args.pairs, rng)


def rewarded_critiques(args, sampler, step, pairs):
    """Second-order rollout: n critiques of each pair, rewarded by eqs. 2 to 6."""
    seed = seed_of(args.seed, step, "critiques")
    critiques = criticise(sampler, pairs, args.n, seed)
    for sample in critiques:
        pair = sample.pair
        if args.balance == "reweight":
            # Eq. 3: both labels carry about the same weight though one of them is rare.
            sample.reward = reweighted_reward(
                sample.says_right,
                pair.right,
                pair.accuracy,
            )
        else:
            # Eq. 2; eqs. 5 and 6 have other constants.
            sample.reward = critique_reward(
                sample.says_right,
                pair.right,
                args.reward_right,
                args.reward_wrong,
            )
        sample.kl_weight = args.kl
    refined = []
    if args.denoise:
        # Eq. 4: does the critique help to correct the response? It is rewarded by --denoise refined
        # responses. Nothing is trained on them.
        readable = [sample for sample in critiques if sample.says_right is not None]
        refined = refine(sampler, readable, args.denoise, seed + 1)
        for index, sample in enumerate(readable):
            own = refined[index * args.denoise : (index + 1) * args.denoise]
            refined_right = [response.right for response in own]
            sample.reward += denoising_reward(sample.says_right, refined_right)
    return critiques, critique_metrics(step, pairs, critiques, refined)


def critique_metrics(step, pairs, critiques, refined):
    metrics = {
        "critique/pairs": len(pairs),
        "critique/age": mean(step - pair.step for pair in pairs),  # in steps
        "critique/reward": mean(sample.reward for sample in critiques),
    }
    for name, value in judgement_table(critiques).items():
        metrics[f"critique/{name}"] = value
    if refined:
        metrics["refined/accuracy"] = mean(sample.right for sample in refined)
    return metrics


def g_rl(args, sampler, step, problems, cache, static):
    """Plain RL: responses alone."""
    return rewarded_responses(args, sampler, step, problems)


def c_rl(args, sampler, step, problems, cache, static):
    """The critic alone. Responses are sampled only if pairs are dynamic, and not trained on."""
    responses = []
    metrics = {}
    if args.critique_data == "dynamic":
        responses, metrics = rewarded_responses(args, sampler, step, problems)
    pairs = pairs_to_criticise(args, step, responses, cache, static)
    critiques, more = rewarded_critiques(args, sampler, step, pairs)
    return critiques, metrics | more


def score(args, sampler, step, problems, cache, static):
    """SCoRe (2409.12917): Stage I teaches the second attempt alone, Stage II both. Each attempt
    maximises its own line, where x1 is the question, x2 the conversation before the second attempt,
    r1 and r2 are 1 for a right attempt, else 0, and D(x) is the sum of k3 over the tokens after x:

        Stage I     attempt 1:  -(beta1 + beta2) D(x1)
                    attempt 2:  r2 - beta1 D(x2)
        Stage II    attempt 1:  r1 - beta1 D(x1)
                    attempt 2:  r2 + alpha (r2 - r1) - beta1 D(x2)

    The baseline is this project's choice: a second attempt is compared with others that follow the
    same outcome (see `rewarded_attempts`). Among them r1 is one number, so it drops out:

        r2 + alpha (r2 - r1) - mean of that = (1 + alpha) (r2 - mean of r2)

    So alpha merely weights second attempts: with alpha 2 the rewards 3 and 0, or 1 and -2, differ
    by 3. (Dividing by the standard deviation would cancel that.) A second attempt loses nothing by
    that: r1 is known before y2 is drawn, so -alpha r1 could teach it nothing. It could teach the
    first attempt, which is not credited with it here.
    """
    first, second, metrics = rewarded_attempts(args, sampler, step, problems)
    if step <= args.stage1_steps:
        # Stage I: the second attempt is rewarded, the first is held where it was by a strong KL.
        metrics["stage"] = 1
        for sample in first:
            sample.reward = 0.0  # all alike, so no advantage
            sample.kl_weight = args.beta1 + args.beta2
    else:
        # Stage II: both are rewarded, the second by the shaped reward.
        metrics["stage"] = 2
        for sample in second:
            sample.reward = shaped_reward(sample.first.reward, sample.reward, args.alpha)
    return first + second, metrics


def rewarded_attempts(args, sampler, step, problems):
    """n first attempts at each question and a second attempt after each. Eq. 1 for both.

    The baseline of a first attempt is the mean of the others at its question. That of a second
    attempt is the mean of the others at its question whose first attempt had the same outcome; if
    there are none, of all others in the batch whose first attempt had it. Advantages are not
    divided by the deviation.
    """
    seed = seed_of(args.seed, step, "attempts")
    first, second = two_attempts(sampler, problems, args.n, seed)
    for sample in first + second:
        first_right = sample.first.right if sample.first else None
        sample.reward = float(sample.right)
        # For example ("attempt 2", False, "Compute 7-6 ..."): for `leave_one_out`, in `update`.
        sample.group = (sample.role, first_right, sample.problem.question)
        sample.kl_weight = args.beta1
    return first, second, attempt_metrics(first, second, args.n)


def attempt_metrics(first, second, n):
    sizes = Counter(sample.group for sample in second)
    return attempts_table(first, second) | {
        "pass@n": pass_at_n(first, n),
        "groups/alone": mean(sizes[sample.group] == 1 for sample in second),
    }


def multi_turn(args, sampler, step, problems, cache, static):
    """SCoRe without its two ideas: both attempts are rewarded alike, from the first step on."""
    first, second, metrics = rewarded_attempts(args, sampler, step, problems)
    return first + second, metrics


# ------------------------------------------------------------------------------------------ a step


def train_step(args, sampler, reference, optimizer, step, cache, state):
    """Sample, then learn. Returns metrics, and the samples, for a person to read."""
    cost.start_step()
    recipe = METHODS[args.method]
    problems = batch_of(state["problems"], step, args.seed, args.questions)
    with cost.timed("sample"):
        samples, metrics = recipe(
            args,
            sampler,
            step,
            problems,
            cache,
            state["static"],
        )
    # A sample has no tokens where its prompt left no room in the context.
    fitting = [sample for sample in samples if sample.tokens]
    optimizer.param_groups[0]["lr"] = args.lr * min(1, step / WARMUP)
    rng = random.Random(seed_of(args.seed, step, "mini-batches"))
    with cost.timed("update"):
        if args.method in SUPERVISED:
            for sample in fitting:
                sample.advantage = sample.reward  # the weight of its log-prob, for the log
            learned = [sample for sample in fitting if sample.reward > 0]
            batches = mini_batches(learned, args.updates, rng)
            metrics |= imitate(sampler.model, optimizer, batches)
        else:
            metrics |= update(args, sampler, reference, optimizer, fitting, rng)
    metrics["skipped"] = len(samples) - len(fitting)
    metrics |= cost.step_cost(sum(len(sample.tokens) for sample in fitting))
    return metrics, fitting


def update(args, sampler, reference, optimizer, samples, rng):
    """One policy update, from the rewards of a rollout to new weights; returns metrics.

    It makes at most --updates optimizer steps, each on its share of the prompts. All ratios are to
    the log-probs that the completions were sampled with. reference: the model of the KL, None where
    there is none. Raises InputError for a gradient that is not finite.
    """
    if not samples:
        return {}
    rewards = [sample.reward for sample in samples]
    groups = [sample.group for sample in samples]
    if groups[0]:
        # SCoRe and multi-turn RL, see `rewarded_attempts`. They ignore --group and --no-std.
        relative = leave_one_out(rewards, groups)
    else:
        # The samples of a prompt, of a question (responses and critiques), or the whole batch.
        groups = ["batch"] * len(samples)
        if args.group == "prompt":
            groups = [tuple(sample.prompt) for sample in samples]
        elif args.group == "question":
            groups = [sample.problem.question for sample in samples]
        relative = advantages(rewards, groups, std=not args.no_std)
    for sample, advantage in zip(samples, relative.tolist()):
        sample.advantage = advantage

    model = sampler.model
    batches = []
    norms = []
    for batch in mini_batches(samples, args.updates, rng):
        # Samples without a gradient are left out of the computation; their tokens stay in the mean.
        token_count = sum(len(sample.tokens) for sample in batch)
        with_gradient = [s for s in batch if s.advantage != 0 or s.kl_weight > 0]
        if not with_gradient:
            continue  # no optimizer step: Adam's momentum would move the weights
        add_gradient(model, with_gradient, reference, token_count, args)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
        if not math.isfinite(norm):
            raise not_finite(args.out, sampler.tokenizer, norm, with_gradient)
        optimizer.step()
        optimizer.zero_grad()
        batches.append(with_gradient)
        norms.append(norm)
    return step_metrics(samples, groups, batches, norms)


def mini_batches(samples, updates, rng):
    """Each optimizer step's share of the prompts, in random order, with all their completions."""
    members = members_of(tuple(sample.prompt) for sample in samples)
    prompts = rng.sample(list(members), len(members))
    batches = []
    for start in range(min(updates, len(prompts))):
        batch = []
        for prompt in prompts[start::updates]:
            # Together, so that their prompt may be computed once.
            batch += [samples[index] for index in members[prompt]]
        batches.append(batch)
    return batches


@in_micro_batches
def add_gradient(model, batch, reference, token_count, args):
    """Adds the gradient of a mini-batch to the model's, and writes the log-ratios, clips and k3 of
    its tokens onto each sample. The decorator calls it for one part after another, each small
    enough for the memory; `token_count` is of the whole mini-batch."""
    lengths = [len(sample.tokens) for sample in batch]
    # Log-probs now, when they were sampled, and the reference's. All tensors are [tokens]: the
    # tokens of one completion after the other.
    new = torch.cat(batch_logprobs(model, batch, args.temperature))
    old = new.new_tensor([logprob for sample in batch for logprob in sample.logprobs])
    ref = None
    if reference is not None:
        with torch.no_grad():
            ref = torch.cat(batch_logprobs(reference, batch, args.temperature))
        # Clamping d = ref - new to 3 would cut its gradient there. So `ref` is lowered to new + 3,
        # detached: d is 3, and still has its gradient with respect to `new`.
        ref = torch.minimum(ref, new.detach() + MAX_AWAY)
    # One advantage and one weight of the KL for all tokens of a completion.
    advantage = new.new_tensor([sample.advantage for sample in batch for _ in sample.tokens])
    kl = new.new_tensor([sample.kl_weight for sample in batch for _ in sample.tokens])
    assert new.shape == old.shape == advantage.shape == kl.shape == (sum(lengths),)
    mask = torch.ones_like(new)  # [tokens] have no padding
    loss, clipped, k3 = grpo_loss(new, old, advantage, mask, args.clip, ref, kl)
    # The sum over these tokens, divided by the tokens of the whole mini-batch.
    (loss * (len(new) / token_count)).backward()

    # For the log: one number a token.
    log_ratios = (new - old).detach().split(lengths)
    clipped = clipped.split(lengths)
    k3 = k3.split(lengths)
    for index, sample in enumerate(batch):
        sample.log_ratios = log_ratios[index].tolist()
        sample.clipped = clipped[index].tolist()
        if ref is not None:
            sample.k3 = k3[index].tolist()


def grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl=0.0):
    """GRPO's loss: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl k3 for each token.

    ratio = exp(logprobs - old_logprobs); k3 = exp(d) - d - 1, d = ref_logprobs - logprobs. On
    tokens just sampled the mean of k3 is KL(policy || reference), the papers' penalty; the mean of
    its gradient, (1 - p_ref / p) grad log p, is that of KL(reference || policy), another pull
    towards the reference.

    All tensors have one shape, [tokens] or a padded [batch, length], or broadcast to it. Where the
    mask is 0 they may hold anything. `add_gradient` bounds d by MAX_AWAY.

    Returns the mean over all unmasked tokens, the tokens at which the clip takes away the gradient
    of the advantage, and k3, both zero where masked.
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
        d = (ref_logprobs - logprobs).masked_fill(~mask, 0.0)
        k3 = d.exp() - d - 1
        loss = loss + kl * k3
    loss = loss.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)
    return loss, clipped, k3.detach()


# ----------------------------------------------------- the baselines, and the list of all methods
#
# `imitate` learns those of their samples whose reward is above 0.


def star(args, sampler, step, problems, cache, static):
    """STaR: learn each right second attempt, and the first one before it if that is right, too.
    Both are sampled anew from the current policy at each step."""
    first, second, metrics = rewarded_attempts(args, sampler, step, problems)
    samples = []
    for sample in second:
        if not sample.right:
            sample.first.reward = 0.0  # it may be right, but the trace does not end right
        samples += [sample.first, sample]
    return samples, metrics | {"traces": sum(sample.right for sample in second)}


def pair_sft(args, sampler, step, problems, cache, static):
    """Pair-SFT: learn a right response as the second attempt after a wrong one, both the starting
    policy's own."""
    # The filter leaves right, wrong, right, wrong, ...
    couples = list(zip(static[::2], static[1::2]))
    count = min(args.pairs, len(couples))
    learned = []
    for right, wrong in batch_of(couples, step, args.seed, count):
        sample = demonstration(
            sampler.tokenizer,
            correct_prompt(
                right.problem.question,
                wrong.response,
                program=right.problem.program,
            ),
            right.response,
        )
        if len(sample.prompt + sample.tokens) > context_length(sampler.model):
            sample.tokens = []  # no room: it is skipped
        sample.role = "attempt 2"
        sample.problem = right.problem
        sample.right = True
        sample.reward = 1.0
        learned.append(sample)
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


# --------------------------------------------------------------------------------------- the run


def train(args):
    """One run, from the flags to the final table; meanwhile no other process gets into --out.
    Returns the last row of metrics."""
    begin = time.time()
    # state: what resume.pt keeps: problems, metrics, the next step and more (details/start.py).
    sampler, reference, optimizer, state, lock = begin_run(args)
    begin -= state["seconds"]  # of a resumed run: as if it had not paused
    out = Path(args.out)
    with lock, signals_caught() as signals:
        first_pairs(args, sampler, state)
        size = f"{sampler.model.num_parameters():,} parameters on {sampler.model.device}"
        count = f"{len(state['problems'])} problems, {len(state['held_out'])} held out"
        say(f"{args.method} on {args.model}: {size}; {count}; {out}")
        cache = PairCache(state["cache"], maxlen=args.cache)
        done = max(0, state["step"] - 1)
        bar = tqdm(desc=args.method, total=args.steps, initial=done, disable=BAR_OFF)
        # Step 0 only evaluates.
        for step in range(state["step"], args.steps + 1):
            row = {"step": step}
            evaluates = step == args.steps or step % args.eval_every == 0
            if step > 0:
                metrics, samples = train_step(
                    args, sampler, reference, optimizer, step, cache, state
                )
                row |= metrics
                if samples:
                    show = evaluates or step == 1
                    log_samples(out, state, sampler.tokenizer, step, samples, show)
                bar.update()
            if evaluates:
                start = time.time()
                numbers, answers = evaluate(sampler, state["held_out"], state["exam"])
                row |= numbers
                if state["selecting"]:
                    numbers, _ = evaluate(sampler, state["selecting"], state["selecting_exam"])
                    row["select"] = numbers[selected_by(args.method)]
                log_answers(state, step, answers)
                log_probes(out, state, sampler, step)
                row["seconds/eval"] = time.time() - start
            row["seconds"] = time.time() - begin
            log_row(out, state, row)
            if evaluates:
                keep_best(out, state, sampler)
            stopped = len(signals) > 0  # read once: one may come while the run saves
            state |= {"step": step + 1, "seconds": row["seconds"], "cache": list(cache)}
            if evaluates or stopped:
                save_state(out, state, sampler.model, optimizer)
                write_page(out)
            if stopped and step < args.steps:
                words = f"stopped after step {step}; go on with the same command and --resume"
                print(words, file=sys.stderr)
                sys.exit(128 + signals[0])
        bar.close()
        save_policy(sampler.model, sampler.tokenizer, out)
        show_result(state, out)
        finish_best(out, state, sampler)
    return state["metrics"][-1]


def main(argv=None):
    """The command line; returns the last row of metrics, for a notebook."""
    return run_command(lambda: train(train_flags(argv, METHODS)))


if __name__ == "__main__":
    main()
