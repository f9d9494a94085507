"""Train a policy to answer, to criticise answers and to correct itself, by GRPO on outcome rewards.

One step of every method: sample n completions for each prompt, reward them, compare them inside their group, and move
the policy towards the better ones. A method is a recipe: a function that says which prompts are built and which
rewards are given. Sampling, advantages, loss and evaluation are the same for all.

    python train.py                                       GC-RL on the embedded toy model, minutes on two cores
    python train.py --method score                        SCoRe on the toy
    python train.py --model HuggingFaceTB/SmolLM2-135M-Instruct --data gsm8k --out runs/smollm2

Papers: GC-RL arXiv 2602.22765, SCoRe arXiv 2409.12917, GRPO arXiv 2402.03300. Below: flags, loss, recipes, evaluation,
supervised learning (cold start, the toy), the run.
"""
import argparse
import contextlib
import copy
import http.client
import json
import math
import random
import re
import signal
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from critique import correct, critique, judgement, solve
from reward import (Pair, PairCache, Problem, advantages, answer_key, critique_reward, denoising_reward, filter_pairs,
                    load_problems, number, read_jsonl, response_reward, reweighted_reward, shaped_reward, text_field,
                    toy_problem, toy_problems, toy_steps)
from rollout import (TOY, InputError, Sample, context_length, decode, demonstration, encode_chat, find_policy, generate,
                     load_policy, logprobs, micro_batches, save_policy)

GSM8K = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/{}.jsonl"

# flag: (default with a real model, default with the toy). The paper's own numbers stand in the help texts.
DEFAULTS = {"steps": (200, 40), "questions": (32, 64), "n": (8, 8), "mini_batch": (128, 256), "lr": (1e-6, 3e-4),
            "kl": (1e-3, 0.0), "max_new_tokens": (512, 64), "eval_size": (256, 512), "eval_every": (20, 20),
            "alpha": (10.0, 10.0), "beta2": (0.1, 0.25)}


def parse_args(argv=None):
    """The command line; bad values end the program with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(f"error: {message}")

    def add(name, help, to=parser, **options):
        real, toy = DEFAULTS.get(name.replace("-", "_"), (None, None))
        default = options.get("default")
        note = f" [{real}; toy: {toy}]" if real is not None else f" [{default}]" if default not in (None, False) else ""
        to.add_argument("--" + name, help=help + note, **options)

    add("method", "g-rl: only responses are trained; c-rl: only critiques; gc-rl: both; score: SCoRe's two stages; multi-turn: "
        "both attempts' rewards and nothing else; star, pair-sft: supervised on the policy's own traces",
        choices=list(METHODS), default="gc-rl")
    add("model", "toy, a model folder or a hub id", default="toy")
    add("data", "toy, gsm8k (downloaded), or a JSONL file with question and answer (default: toy for the toy, else gsm8k)")
    add("eval-data", "JSONL file of held-out problems (default: gsm8k's test file, else the last tenth of --data)")
    add("cold-start", "JSONL file of demonstrations (question, response; optional critique, label) to be learned first")
    add("cold-start-steps", "optimizer steps of the cold start, --mini-batch demonstrations each (0: three passes)",
        type=int, default=0)
    add("cold-start-lr", "learning rate of the cold start", type=float, default=2e-5)
    add("steps", "steps of RL (paper: 10 epochs); on the toy 36 for the methods with two attempts", type=int)
    add("questions", "questions per step (paper: 512)", type=int)
    add("n", "samples per prompt (paper: 5)", type=int)
    add("mini-batch", "completions per optimizer step; a rollout gives several (paper: 128 questions of 512)", type=int)
    add("lr", "learning rate of AdamW, constant after the warm-up (paper: 1e-6)", type=float)
    add("warmup", "steps of linear warm-up", type=int, default=3)
    add("grad-clip", "largest gradient norm", type=float, default=1.0)
    add("kl", "g-rl, c-rl, gc-rl: weight of the KL to the starting policy; 0 needs no reference (paper: 1e-3)", type=float)
    add("clip", "the ratio is clipped to 1 - clip, 1 + clip (paper: 0.2)", type=float, default=0.2)
    add("temperature", "of sampling; the log-probs are those of this distribution", type=float, default=1.0)
    add("max-new-tokens", "limit of a completion in tokens; cut ones count as wrong (paper: 4096)", type=int)
    add("seed", "of data order and sampling", type=int, default=0)
    add("device", "cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    add("out", "folder of the run: model, metrics.jsonl, resume.pt", default="out")
    add("resume", "go on with the run in --out: the same command plus this flag", action="store_true")
    add("eval-every", "steps between evaluations with a checkpoint; both also at the end", type=int)
    add("eval-size", "held-out problems and critique pairs in an evaluation", type=int)
    add("make-toy", "train the embedded toy policy anew and write it to FOLDER", nargs="?", const=str(TOY), metavar="FOLDER")
    add("make-demonstrations", "write demonstrations for --cold-start to FILE, from worked solutions in GSM8K's form (--data)",
        metavar="FILE")
    gc = parser.add_argument_group("GC-RL")
    add("balance", "filter: one right and one wrong response a question; reweight: random pairs and eq. 3; none: random pairs",
        gc, choices=["filter", "reweight", "none"], default="filter")
    add("critique-data", "dynamic: pairs from the current policy; static: sampled once at the start [c-rl: static, gc-rl: dynamic]",
        gc, choices=["dynamic", "static"])
    add("pairs", "pairs drawn from the cache for critiques each step; pair-sft: traces of a step (default: --questions)", gc, type=int)
    add("cache", "capacity of the pair cache in pairs; the oldest leave first", gc, type=int, default=1024)
    add("static-questions", "questions that static pairs (c-rl, pair-sft) are sampled from, 10 responses each", gc, type=int, default=512)
    add("denoise", "M refined responses for each critique, eq. 4 (0: off; paper: 1)", gc, type=int, default=0, metavar="M")
    add("reward-right", "reward of a right call on a right response (eq. 2: 0.7, eq. 5: 0.6, eq. 6: 0.8)",
        gc, type=float, default=0.7)
    add("reward-wrong", "reward of a right call on a wrong response (eq. 2: 0.7, eq. 5: 0.8, eq. 6: 0.6)",
        gc, type=float, default=0.7)
    add("group", "rewards are compared among one prompt's samples, a question's responses and critiques, or the whole batch",
        gc, choices=["prompt", "question", "batch"], default="prompt")
    add("no-std", "advantages are not divided by the group's standard deviation (score, multi-turn: they never are)",
        gc, action="store_true")
    scoring = parser.add_argument_group("SCoRe")
    add("alpha", "weight of the shaping alpha (r(y2) - r(y1)) in Stage II (paper: 10)", scoring, type=float)
    add("beta1", "KL weight on both attempts (paper: 0.01)", scoring, type=float, default=0.01)
    add("beta2", "KL weight on the first attempt in Stage I, on top of beta1 (paper: 0.1 and 0.25)", scoring, type=float)
    add("stage1-steps", "steps of Stage I, which count among --steps; 0: none (default: five sixths of --steps, of "
        "those that the run began with if it is resumed)", scoring, type=int)
    return settle(parser.parse_args(argv))


def settle(args):
    """Fill in the defaults that depend on other flags, and refuse what cannot work before any work is done."""
    toy = args.model == "toy"
    if toy and args.steps is None and METHODS[args.method] is not gcrl:
        args.steps = 36                    # a second attempt for each first one: the steps take longer
    if args.method == "multi-turn" and (args.alpha or args.stage1_steps):
        raise InputError("--method multi-turn is score with --alpha 0 --stage1-steps 0; for other values use --method score")
    if METHODS[args.method] is not gcrl and args.kl:
        raise InputError(f"--kl {args.kl}: is for g-rl, c-rl and gc-rl; score and multi-turn have --beta1 and --beta2")
    for name, (real, small) in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, small if toy else real)
    args.data = args.data or ("toy" if toy else "gsm8k")
    args.pairs = args.questions if args.pairs is None else args.pairs
    args.critique_data = args.critique_data or ("static" if args.method == "c-rl" else "dynamic")
    if args.method == "multi-turn":        # SCoRe without its two ideas
        args.alpha, args.stage1_steps = 0.0, 0
    if METHODS[args.method] is score:      # divided, every alpha would act alike, and beta1, beta2 weigh against another scale
        args.no_std = True
    for names, low in [("questions n mini_batch max_new_tokens pairs cache static_questions eval_every eval_size", 1),
                       ("steps warmup denoise kl clip alpha beta1 beta2 stage1_steps seed cold_start_steps "
                        "reward_right reward_wrong", 0)]:
        for name in names.split():
            value = getattr(args, name)
            if value is not None and not low <= value < math.inf:
                raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {low} and finite")
    for name in "lr cold_start_lr grad_clip temperature".split():
        if not 0 < getattr(args, name) < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be greater than 0")
    if args.n == 1 and args.group != "batch" and args.method not in SUPERVISED:
        raise InputError("--n 1: a single sample has nothing to be compared with (its group has standard deviation 0); "
                         "use --n 2 or more, or --group batch")
    if args.n == 1 and args.method in ("c-rl", "gc-rl") and args.critique_data == "dynamic":
        raise InputError("--n 1: pairs for the critic are two responses to the same question; use --n 2 or more")
    if args.method == "score" and (args.stage1_steps or 0) > args.steps:
        raise InputError(f"--stage1-steps {args.stage1_steps}: there are only {args.steps} steps in all (--steps)")
    return args


def seed_of(*parts):
    """A seed that depends on all parts: run seed, step, what is sampled. Needs no state, so a resumed run goes on alike."""
    return zlib.crc32(repr(parts).encode())


# ------------------------------------------------------------------------------------------------- loss and update

@dataclass
class Episode:
    """A sample, and what the recipe makes of it."""
    sample: Sample
    text: str
    role: str                   # response, critique, attempt 1, attempt 2
    problem: Problem
    reward: float
    group: tuple                # with whom the reward is compared
    kl: float = 0.0             # weight of the KL to the reference on its tokens
    advantage: float = 0.0


def grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl=0.0):
    """GRPO's loss, the mean over all unmasked tokens; all tensors [batch, length] (or broadcast to it).

    -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl k3, with ratio = exp(logprobs - old_logprobs) and
    k3 = exp(ref - logprobs) - (ref - logprobs) - 1, an estimate of KL(policy || reference) that is never negative.
    kl: a number, or a tensor with a weight for each row. Masked places may hold anything.
    """
    mask = mask.bool()
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)      # before exp: exp(garbage) * 0 could be nan
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    if ref_logprobs is not None and (torch.is_tensor(kl) or kl > 0):
        away = (ref_logprobs - logprobs).masked_fill(~mask, 0.0)
        loss = loss + kl * (away.exp() - away - 1)
    return loss.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def optimizer_step(model, optimizers, grad_clip):
    """Clip the gradient, step, and return the norm before clipping. A norm that is not finite stops the run."""
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}: stopped before the weights were touched, the last checkpoint "
                                 "is as it was; a smaller --lr or --grad-clip may help")
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def mini_batches(items, size, rng):
    """The items in random order, in batches of about `size` that differ by one item at most: a small rest would get a whole
    optimizer step to itself."""
    items, count = rng.sample(items, len(items)), max(1, round(len(items) / size))
    return [items[i::count] for i in range(count)]


def update(model, reference, optimizer, episodes, args, rng):
    """One policy update: several mini-batches over one rollout, against the log-probs it was sampled with.

    Episodes that give no gradient (no advantage and no KL) are not computed but count in the token mean: the gradient
    is the same, the time is not. Returns the metrics; `ratio/max_log` is the largest |log ratio| before the first
    optimizer step, that is, how far the learner's log-probs are from the sampler's.
    """
    total, kls, sizes, norms, max_log = Counter(), Counter(), Counter(), [], 0.0
    for batch in mini_batches(episodes, args.mini_batch, rng):
        batch_tokens = sum(len(e.sample.tokens) for e in batch)
        learn = [e for e in batch if e.advantage != 0 or e.kl > 0] or batch[:1]
        for part in micro_batches(model, [e.sample for e in learn]):
            part = [learn[i] for i in part]
            samples, device = [e.sample for e in part], model.device
            new = pad_sequence(logprobs(model, samples, args.temperature), True)
            old = pad_sequence([torch.tensor(s.logprobs) for s in samples], True).to(device)
            mask = pad_sequence([torch.ones(len(s.tokens)) for s in samples], True).bool().to(device)
            advantage, kl = torch.tensor([[e.advantage, e.kl] for e in part], device=device).T[..., None]
            ref = None
            if reference is not None:
                with torch.no_grad():
                    ref = pad_sequence(logprobs(reference, samples, args.temperature), True)
            loss = grpo_loss(new, old, advantage, mask, args.clip, ref, kl)
            (loss * (mask.sum() / batch_tokens)).backward()
            with torch.no_grad():
                log_ratio = (new - old)[mask]
                if not norms:
                    max_log = max(max_log, log_ratio.abs().max().item())
                side = advantage.expand_as(mask)[mask]
                high, low = log_ratio.exp() > 1 + args.clip, log_ratio.exp() < 1 - args.clip
                total["clipped"] += int(((side > 0) & high | (side < 0) & low).sum())
                total["tokens"] += int(mask.sum())
                if ref is not None:
                    away = (ref - new).masked_fill(~mask, 0.0)
                    for e, size in zip(part, (away.exp() - away - 1).sum(1).tolist()):
                        kls[e.role] += size
                        sizes[e.role] += len(e.sample.tokens)
        norms.append(optimizer_step(model, [optimizer], args.grad_clip))
    return {"ratio/max_log": max_log, "ratio/clipped": total["clipped"] / total["tokens"],
            "grad_norm": sum(norms) / len(norms)} | {"kl/" + role: kls[role] / sizes[role] for role in kls}


def supervised_gradient(model, samples):
    """Add the gradient of the mean negative log-prob of all completion tokens; returns that loss in nats."""
    tokens, total = sum(len(s.tokens) for s in samples), 0.0
    for part in micro_batches(model, samples):
        loss = -torch.cat(logprobs(model, [samples[i] for i in part])).sum() / tokens
        loss.backward()
        total += loss.item()
    return total


# ----------------------------------------------------------------------------------------------------- the recipes

@dataclass
class Run:
    """What a recipe works with."""
    args: argparse.Namespace
    model: object
    tokenizer: object
    cache: PairCache
    reference: object = None
    optimizer: object = None
    static: list = field(default_factory=list)      # static pairs (c-rl), or traces (pair-sft)
    stage1_steps: int = 0


def mean(values):
    """The mean of numbers; None of none."""
    values = list(values)
    return sum(values) / len(values) if values else None


def judge_table(judged, right):
    """Judgements (True, False, None) against outcomes: accuracy, P1 on right and P2 on wrong responses, precision and
    recall with "right" as the positive class, share without a readable judgement."""
    table = Counter(zip(judged, right))
    positive, negative = sum(right), len(right) - sum(right)
    called = table[True, True] + table[True, False]
    return {"accuracy": mean(j is r for j, r in zip(judged, right)),
            "p1": table[True, True] / positive if positive else None,
            "p2": table[False, False] / negative if negative else None,
            "precision": table[True, True] / called if called else None,
            "recall": table[True, True] / positive if positive else None,
            "unreadable": mean(j is None for j in judged)}


def attempts_table(first, second, same_text, same_answer):
    """SCoRe's metrics from two lists of outcomes (0, 1) and two of bools: accuracies t1 and t2, their difference, the shares
    of problems that went from incorrect to correct and back; and the collapse: the share of second attempts that repeat
    the first word for word (`unchanged`), and of the wrong first answers that the second attempt gives again (`kept`)."""
    t1, t2 = mean(first), mean(second)
    return {"t1": t1, "t2": t2, "delta": t2 - t1, "i_to_c": mean(b and not a for a, b in zip(first, second)),
            "c_to_i": mean(a and not b for a, b in zip(first, second)), "unchanged": mean(same_text),
            "kept": mean(same for a, same in zip(first, same_answer) if not a)}


def complete(run, chats, n, seed, temperature=None, show=None):
    """Sample n completions for each chat: a list of (Sample, text) in prompt-major order. `show`: title of a progress bar."""
    prompts = [encode_chat(run.tokenizer, chat) for chat in chats]
    with tqdm(total=len(prompts) * n, desc=show, disable=None if show else True, leave=False) as bar:
        samples = generate(run.model, prompts, n, run.args.max_new_tokens,
                           run.args.temperature if temperature is None else temperature, seed=seed, progress=bar.update)
    return [(sample, decode(run.tokenizer, sample)) for sample in samples]


def ends_right(sample, text, problem):
    """Eq. 1 for a sample: one that was cut before its end has no final answer, whatever number it stopped at."""
    return response_reward(text, problem.answer) if sample.stopped else 0.0


def respond(run, problems, n, seed, **options):
    """First-order rollout: n responses to each problem, rewarded by outcome; Episodes in problem-major order."""
    done = complete(run, [solve(p.question) for p in problems], n, seed, **options)
    asked = [p for p in problems for _ in range(n)]
    return [Episode(sample, text, "response", p, ends_right(sample, text, p), group_key(run.args, "response", p))
            for (sample, text), p in zip(done, asked)]


def group_key(args, role, problem, *rest):
    """The group of a sample under --group: its prompt (role, problem, ...), its question, or the whole batch."""
    return {"prompt": (role, problem.question, *rest), "question": (problem.question,), "batch": ()}[args.group]


def offer_pairs(responses, n, balance, rng):
    """Pairs for the critic from n responses to each question: filtered to one right and one wrong, or two at random."""
    accuracy = mean(e.reward for e in responses)
    pairs = [Pair(e.problem, e.text, e.reward == 1, accuracy) for e in responses]
    groups = [pairs[i:i + n] for i in range(0, len(pairs), n)]
    return filter_pairs(groups, rng) if balance == "filter" else [p for group in groups for p in rng.sample(group, 2)]


def criticise(run, pairs, seed):
    """Second-order rollout: n critiques of each pair, rewarded by eqs. 2-6; Episodes in pair-major order, metrics."""
    args, episodes = run.args, []
    done = complete(run, [critique(p.problem.question, p.response) for p in pairs], args.n, seed)
    asked = [p for p in pairs for _ in range(args.n)]
    judged = [judgement(text) if sample.stopped else None for sample, text in done]
    refined = []
    if args.denoise:        # eq. 4: refined responses are sampled for their outcome only, they are not trained on
        chats = [correct(p.problem.question, p.response, text) for p, (_, text) in zip(asked, done)]
        refined = complete(run, chats, args.denoise, seed + 1)
    for i, ((sample, text), pair, call) in enumerate(zip(done, asked, judged)):
        if args.balance == "reweight":
            reward = reweighted_reward(call, pair.right, pair.accuracy)
        else:
            reward = critique_reward(call, pair.right, args.reward_right, args.reward_wrong)
        if args.denoise:
            mine = refined[i * args.denoise:(i + 1) * args.denoise]
            reward += denoising_reward(call, [ends_right(*r, pair.problem) == 1 for r in mine])
        episodes.append(Episode(sample, text, "critique", pair.problem, reward,
                                group_key(args, "critique", pair.problem, pair.response)))
    metrics = {"critique/" + name: value for name, value in judge_table(judged, [p.right for p in asked]).items()}
    metrics |= {"critique/reward": mean(e.reward for e in episodes), "critique/pairs": len(pairs), "cache/size": len(run.cache),
                "cache/dropped": run.cache.dropped}
    if args.denoise:
        metrics["refined/accuracy"] = mean(ends_right(*r, asked[i // args.denoise].problem) for i, r in enumerate(refined))
    return episodes, metrics


def gcrl(run, step, problems):
    """GC-RL and its two halves (2602.22765, Figure 2): responses, data filter, cache, critiques; one update for both.

    g-rl trains on the responses only, c-rl on the critiques only (with static pairs it samples no responses at all).
    """
    args, rng = run.args, random.Random(seed_of(run.args.seed, step, "pairs"))
    responses, critiques, metrics = [], [], {}
    if args.method != "c-rl" or args.critique_data == "dynamic":
        responses = respond(run, problems, args.n, seed_of(args.seed, step, "responses"))
        accuracy = mean(e.reward for e in responses)
        metrics |= {"response/reward": accuracy, "response/accuracy": accuracy}
    if args.method != "g-rl":
        if args.critique_data == "dynamic":
            run.cache.add(offer_pairs(responses, args.n, args.balance, rng))
        elif len(run.cache) < args.pairs:          # static pairs: another pass over the same set
            run.cache.add(rng.sample(run.static, len(run.static)))
        pairs = run.cache.draw(args.pairs, rng)
        critiques, more = criticise(run, pairs, seed_of(args.seed, step, "critiques"))
        metrics |= more
    episodes = critiques if args.method == "c-rl" else responses + critiques
    for e in episodes:
        e.kl = args.kl
    return episodes, metrics


def two_attempts(run, problems, n, seed, **options):
    """n first attempts at each problem and one second attempt for each: two lists of Episodes in the same order, and
    the table of both."""
    first = respond(run, problems, n, seed, **options)
    done = complete(run, [correct(e.problem.question, e.text) for e in first], 1, seed + 1, **options)
    second = [Episode(sample, text, "attempt 2", e.problem, ends_right(sample, text, e.problem),
                      ("attempt 2", *e.group)) for (sample, text), e in zip(done, first)]
    for e in first:         # under every --group the two attempts have baselines of their own
        e.role, e.group = "attempt 1", ("attempt 1", *e.group)
    table = attempts_table([e.reward for e in first], [e.reward for e in second],
                           [a.text == b.text for a, b in zip(first, second)],
                           [a.sample.stopped and b.sample.stopped and None is not answer_key(a.text) == answer_key(b.text)
                            for a, b in zip(first, second)])
    table["truncated"] = mean(not e.sample.stopped for e in first + second)
    return first, second, table


def score(run, step, problems):
    """SCoRe (2409.12917). Stage I rewards the second attempt alone and holds the first to the base by a strong KL;
    Stage II rewards both and pays the second for what it changes. Each attempt is credited with its own reward only.
    """
    args = run.args
    first, second, metrics = two_attempts(run, problems, args.n, seed_of(args.seed, step, "attempts"))
    stage = 1 if step <= run.stage1_steps else 2
    for a, b in zip(first, second):
        a.kl = b.kl = args.beta1
        if stage == 1:
            a.kl += args.beta2
            a.reward = 0.0                                            # no spread, so no advantage: KL only
        else:
            b.reward = shaped_reward(a.reward, b.reward, args.alpha)
    return first + second, {"stage": stage} | metrics


def star(run, step, problems):
    """STaR: learn the sampled traces that end right: their second attempts, and their first ones where right too."""
    first, second, metrics = two_attempts(run, problems, run.args.n, seed_of(run.args.seed, step, "attempts"))
    kept = [e for a, b in zip(first, second) if b.reward == 1 for e in (a, b) if e.reward == 1]
    return kept, metrics | {"traces": sum(e.role == "attempt 2" for e in kept)}


def pair_sft(run, step, problems):
    """Pair-SFT: learn a right response as the second attempt after a wrong one, both the starting policy's own."""
    couples = list(zip(run.static[::2], run.static[1::2]))              # the filter leaves right, wrong, right, wrong, ...
    chosen = random.Random(seed_of(run.args.seed, step, "traces")).sample(couples, min(run.args.pairs, len(couples)))
    return [Episode(demonstration(run.tokenizer, correct(right.problem.question, wrong.response), right.response),
                    right.response, "attempt 2", right.problem, 1.0, ()) for right, wrong in chosen], {"traces": len(chosen)}


METHODS = {"g-rl": gcrl, "c-rl": gcrl, "gc-rl": gcrl, "score": score, "multi-turn": score, "star": star, "pair-sft": pair_sft}
SUPERVISED = ("star", "pair-sft")


# ------------------------------------------------------------------------------------------------------ evaluation

def sample_pairs(run, problems, per_question, count, seed, show, balance="filter"):
    """At most `count` pairs from the current policy, by default balanced: one right and one wrong response of each question
    that has both among `per_question` samples."""
    rng, pairs, chunk = random.Random(seed), [], max(8, count // 4)
    for start in range(0, len(problems), chunk):
        responses = respond(run, problems[start:start + chunk], per_question, seed_of(seed, start), show=show)
        pairs += offer_pairs(responses, per_question, balance, rng)
        if len(pairs) >= count:
            break
    return pairs[:count // 2 * 2]


def evaluate(run, problems, pairs):
    """Greedy evaluation: responses, second attempts, and critiques of fixed pairs; a dict of eval/... numbers."""
    first, second, table = two_attempts(run, problems, 1, 0, temperature=0.0, show="evaluation")
    result = {"generation": table["t1"]} | table | {"size": len(problems)}
    done = complete(run, [critique(p.problem.question, p.response) for p in pairs], 1, 0, 0.0, "critiques")
    table = judge_table([judgement(text) if sample.stopped else None for sample, text in done], [p.right for p in pairs])
    result |= {"critique": table.pop("accuracy")} | {"critique_" + name: value for name, value in table.items()}
    return {"eval/" + name: value for name, value in (result | {"pairs": len(pairs)}).items()}


# ------------------------------------------------------------------------------- supervised learning: the cold start

def load_demonstrations(path):
    """(chat messages, completion) from a JSONL file with question, response and optionally critique and label.

    A response labelled wrong is shown to the critic only, never as a demonstration of solving. A critique must end in a
    judgement that agrees with the label. Raises InputError with file and line number.
    """
    def check(row):
        question, response = text_field(row, "question"), text_field(row, "response")
        label, examples = row.get("label"), []
        label = {"right": True, "wrong": False}.get(label, label) if isinstance(label, str) else label
        if label not in (True, False, None):
            raise ValueError(f"label {row['label']!r}: must be right, wrong, true or false")
        if row.get("critique") is not None:
            text = text_field(row, "critique")
            call = judgement(text)
            if call is None:
                raise ValueError("the critique has no line `Conclusion: right` or `Conclusion: wrong`")
            if label is not None and call is not bool(label):
                raise ValueError("the critique's conclusion contradicts the label")
            label = call
            examples.append((critique(question, response), text))
        return [(solve(question), response)] + examples if label in (True, None) else examples

    found = [example for examples in read_jsonl(path, check) for example in examples]
    if not found:
        raise InputError(f"{path}: nothing to learn: every response is labelled wrong and none has a critique")
    return found


STEP = re.compile(r"<<([^<>=]{1,60})=([^<>=]{1,20})>>")


def calculate(expression, changed):
    """The exact value of `48/2+3` (numbers, + - * /, no brackets), with the numbers in `changed` replaced; None if it is
    of another form. Products first, then sums; annotation text of a data file, never text of a model."""
    expression = expression.replace(" ", "")
    if not re.fullmatch(r"(?:\d+\.?\d*|\.\d+)(?:[-+*/](?:\d+\.?\d*|\.\d+))*", expression):
        return None
    parts = re.split(r"([-+*/])", expression)
    values = [changed.get(Fraction(p), Fraction(p)) for p in parts[::2]]
    total, sign, product = Fraction(0), 1, values[0]
    for operator, value in zip(parts[1::2], values[1:]):
        if operator == "/" and value == 0:
            return None
        if operator in "*/":
            product = product * value if operator == "*" else product / value
        else:
            total, sign, product = total + sign * product, 1 if operator == "+" else -1, value
    return total + sign * product


def gsm8k_demonstrations(problem, rng):
    """Demonstrations from one worked solution with <<48/2=24>> annotations: the solution, criticised as right, and the same
    solution with one step broken and its consequences carried on, criticised as wrong. [] where that cannot be done."""
    work, _, answer = problem.answer.partition("####")
    steps = [(expression, calculate(expression, {}), result) for expression, result in STEP.findall(work)]
    if not steps or not answer.strip() or any(value is None or value < 0 or value != number(result) for _, value, result in steps):
        return []
    broken, changed, checks = rng.randrange(len(steps)), {}, {True: [], False: []}
    for i, (expression, value, _) in enumerate(steps):
        shown = calculate(expression, changed)
        if i == broken and shown is not None:
            shown += rng.choice([d for d in (-10, -2, -1, 1, 2, 10) if shown + d > 0] or [1])
        if shown is None or (shown * 100).denominator != 1:
            return []
        check = f"{expression.strip()} = {decimal(value)}: "
        checks[True].append(check + "ok")
        checks[False].append(check + ("ok" if shown == value else f"no, the solution has {decimal(shown)}"))
        if shown != value:
            changed[value] = shown
    wrong_answer = changed.get(number(answer), number(answer))
    if wrong_answer == number(answer):
        return []

    def renumber(match):
        value = Fraction(match[0].replace(",", ""))
        return decimal(changed[value]) if value in changed else match[0]
    given = re.split(r"<<", work)[0]                                   # numbers before the first result are the question's
    lines = given + re.sub(r"\d[\d,]*(?:\.\d+)?", renumber, STEP.sub("", work[len(given):]))
    rows = []
    for right, text, final in ((True, STEP.sub("", work), answer.strip()), (False, lines, decimal(wrong_answer))):
        rows.append({"question": problem.question, "response": f"{text.strip()}\nThe answer is \\boxed{{{final}}}.",
                     "critique": "\n".join(checks[right]) + f"\nConclusion: {'right' if right else 'wrong'}", "label": right})
    return rows


def decimal(value):
    """A Fraction as text: 24, 0.5."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}".rstrip("0")


def make_demonstrations(args):
    """Write a file for --cold-start, from worked solutions in GSM8K's form."""
    rng, file = random.Random(args.seed), Path(args.make_demonstrations)
    if file.exists() or not file.parent.is_dir():
        raise InputError(f"--make-demonstrations {file}: " + ("exists already" if file.exists() else "there is no such folder"))
    problems = load_data(args)[0]
    rows = [row for p in problems for row in gsm8k_demonstrations(p, rng)]
    if not rows:
        raise InputError(f"--make-demonstrations: no answer in {args.data} is a worked solution with <<48/2=24>> annotations")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"wrote {file}: {len(rows)} demonstrations from {len(rows) // 2} of {len(problems)} problems")


def encode_demonstrations(model, tokenizer, examples):
    """(messages, completion) pairs as Samples; refuses one that is longer than the model's context."""
    samples = [demonstration(tokenizer, *example) for example in examples]
    for sample, (messages, _) in zip(samples, examples):
        size = len(sample.prompt) + len(sample.tokens)
        if size > context_length(model):
            raise InputError(f"--cold-start: a demonstration has {size} tokens, the model's context holds {context_length(model)}: "
                             f"{messages[0]['content'][:60]!r}...")
    return samples


def cold_start(model, samples, args):
    """Supervised fine-tuning on demonstrations before RL; AdamW, warm-up and linear decay."""
    steps = args.cold_start_steps or math.ceil(3 * len(samples) / args.mini_batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.cold_start_lr, weight_decay=0.0)
    rng, queue = random.Random(seed_of(args.seed, "cold start")), []
    with tqdm(range(steps), desc="cold start", disable=None) as bar:
        for step in bar:
            while len(queue) < args.mini_batch:
                queue += rng.sample(samples, len(samples))
            batch, queue = queue[:args.mini_batch], queue[args.mini_batch:]
            optimizer.param_groups[0]["lr"] = args.cold_start_lr * min(1, (step + 1) / (0.1 * steps)) * (1 - step / steps)
            loss = supervised_gradient(model, batch)
            optimizer_step(model, [optimizer], args.grad_clip)
            bar.set_postfix(loss=f"{loss:.3f}")
            if step in (0, steps - 1) or (step + 1) % max(1, steps // 10) == 0:
                tqdm.write(f"cold start {step + 1}/{steps}: loss {loss:.3f} nats per token")


# ------------------------------------------------------------------------------------------------------- the toy

TOY_TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
                "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}")


TOY_STEPS = 440                                  # of 128 demonstrations
TOY_SHARES = [0.28, 0.38, 0.1, 0.24]            # of solving, criticising, correcting with and without a critique
TOY_DOUBT = 0.8, 0.49, 0.0                       # how often the teacher misremembers: solving, criticising, looking again
TOY_REPEAT = 0.72                                # of the corrections without a critique that only repeat the solution


def toy_solution(steps):
    """A solution as text: a step a line, then the boxed result."""
    return "\n".join(f"{a}{op}{b}={c}" for a, op, b, c in steps) + f"\n\\boxed{{{steps[-1][3]}}}"


def toy_critique(own, shown):
    """A critique as text. The critic solves anew; behind each colon it holds the solution's result against its own."""
    lines = [f"{a}{op}{b}={c}:{given} {'ok' if c == given else 'no'}" for (a, op, b, c), (*_, given) in zip(own, shown)]
    return "\n".join(lines) + f"\nConclusion: {'right' if lines[-1].endswith('ok') else 'wrong'}"


def toy_demonstration(rng):
    """One demonstration for the toy, (messages, completion): solving, criticising or correcting, in fixed shares.

    The teacher knows the method and gets some facts wrong more often than not. Asked to correct a solution he mostly
    repeats it, as pretrained models do (SCoRe's finding that they gain nothing from a second attempt); at times he looks
    again, says so, and remembers better. A policy that imitates him inherits all of this; outcome rewards lead past it.
    """
    question = toy_problem(rng).question
    expression, (solving, criticising, looking_again) = question.split()[1], TOY_DOUBT
    shown = toy_steps(expression, 0.5, 0.2 if rng.random() < 0.5 else 0.0, rng)
    own = toy_steps(expression, criticising, 0.0, rng)
    kind = rng.choices(["solve", "critique", "correct with", "correct"], TOY_SHARES)[0]
    if kind == "solve":
        return solve(question), toy_solution(toy_steps(expression, solving, 0.0, rng))
    if kind == "critique":
        return critique(question, toy_solution(shown)), toy_critique(own, shown)
    if kind == "correct with":
        return correct(question, toy_solution(shown), toy_critique(own, shown)), toy_solution(own)
    again = "Look again.\n" + toy_solution(toy_steps(expression, looking_again, 0.0, rng))
    return correct(question, toy_solution(shown)), toy_solution(shown) if rng.random() < TOY_REPEAT else again


def toy_tokenizer():
    """A byte-level BPE like those of real models, trained on demonstrations: prompts in whole words, single digits."""
    from transformers import PreTrainedTokenizerFast
    bytes_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    blank = {"version": "1.0", "added_tokens": [], "decoder": bytes_level, "model": {"type": "BPE", "vocab": {}, "merges": []},
             "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, bytes_level]}}
    rng = random.Random(0)
    demonstrations = [toy_demonstration(rng) for _ in range(2000)]
    texts = [m["content"] for messages, _ in demonstrations for m in messages] + [text for _, text in demonstrations]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(json.dumps(blank))
        untrained = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|end|>", pad_token="<|end|>",
                                            additional_special_tokens=["<|user|>", "<|assistant|>"])
    tokenizer = untrained.train_new_from_iterator(texts, 512, show_progress=False)
    tokenizer.chat_template = TOY_TEMPLATE
    return tokenizer


def make_toy(folder, seed=0):
    """Train the embedded policy: a small Llama, warm-started on demonstrations to about one half, and stopped there.

    Muon moves the matrices and AdamW the rest: with AdamW alone this takes many times the steps. RL does the rest.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    tokenizer = toy_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)).eval()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.dim() != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0), torch.optim.AdamW(others, lr=3e-3, weight_decay=0.0)]
    rates, rng = [0.02, 3e-3], random.Random(seed)
    with tqdm(range(TOY_STEPS), desc="making the toy", disable=None) as bar:
        for step in bar:
            scale = min(1, (step + 1) / 20, (TOY_STEPS - step) / (0.2 * TOY_STEPS))
            for optimizer, rate in zip(optimizers, rates):
                optimizer.param_groups[0]["lr"] = rate * scale
            loss = supervised_gradient(model, [demonstration(tokenizer, *toy_demonstration(rng)) for _ in range(128)])
            optimizer_step(model, optimizers, 1.0)
            bar.set_postfix(loss=f"{loss:.3f}")
            if (step + 1) % 20 == 0:
                tqdm.write(f"toy {step + 1}/{TOY_STEPS}: loss {loss:.3f} nats per token")
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_policy(model, tokenizer, folder)
    print(f"wrote {folder}: {sum(p.numel() for p in model.parameters()):,} parameters")


# --------------------------------------------------------------------------------------------------------- the run

def fetch_gsm8k(split):
    """The path of GSM8K's train.jsonl or test.jsonl, downloaded once (5 MB) to torch's hub folder."""
    path = Path(torch.hub.get_dir()) / "gsm8k" / f"{split}.jsonl"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(GSM8K.format(split), str(path), progress=False)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"--data gsm8k: cannot download {GSM8K.format(split)} ({error}); "
                             "fetch it by hand and name the file: --data train.jsonl --eval-data test.jsonl") from error
    return path


def load_data(args):
    """(training problems, held-out problems); no question is in both."""
    if args.data == "toy":
        train = toy_problems(20000, args.seed)
        held_out = load_problems(args.eval_data) if args.eval_data else toy_problems(args.eval_size, 12345, held_out=True)
    else:
        train = load_problems(fetch_gsm8k("train") if args.data == "gsm8k" else args.data)
        if args.eval_data or args.data == "gsm8k":
            held_out = load_problems(args.eval_data or fetch_gsm8k("test"))
        else:
            cut = len(train) - max(1, len(train) // 10)
            train, held_out = train[:cut], train[cut:]
    held_out = held_out[:args.eval_size]
    questions = {p.question for p in held_out}
    train = [p for p in train if p.question not in questions]
    if not train:
        raise InputError(f"--data {args.data}: no problem is left to train on when the held-out ones are taken away")
    return train, held_out


def check_lengths(run, problems):
    """Refuse problems whose prompts cannot fit the model's context, before the first token is sampled (the 50 longest)."""
    args, context = run.args, context_length(run.model)
    parts = 3 if args.denoise else 2                  # the longest prompt quotes a response (and a critique), then goes on
    for p in sorted(problems, key=lambda p: -len(p.question))[:50]:
        prompt = len(encode_chat(run.tokenizer, correct(p.question, "", "" if args.denoise else None)))
        need = prompt + parts * args.max_new_tokens
        if need > context:
            raise InputError(f"the model's context of {context} tokens is too short for {need}: {prompt} of a prompt and {parts} "
                             f"times --max-new-tokens {args.max_new_tokens}, for the question {p.question[:60]!r}...")


def batch_of(problems, step, seed, count):
    """The problems of a step: pass after pass over all of them, each pass in an order of its own."""
    places = [divmod(i, len(problems)) for i in range((step - 1) * count, step * count)]
    orders = {epoch: random.Random(seed_of(seed, "epoch", epoch)).sample(problems, len(problems)) for epoch in dict(places)}
    return [orders[epoch][place] for epoch, place in places]


SAME_RUN = ("steps", "resume", "device", "eval_every", "out")      # flags that a resumed run may change


def open_run(args):
    """The saved state of the run in --out with --resume, else None; refuses a folder that holds anything else."""
    out = Path(args.out)
    if not args.resume:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"--out {out}: holds another run or other files; name another folder, or go on by --resume")
        return None
    if not (out / "resume.pt").exists():
        raise InputError(f"--resume: {out} holds no run to go on with (no {out / 'resume.pt'})")
    try:
        saved = torch.load(out / "resume.pt", weights_only=True, map_location="cpu")
    except Exception as error:
        raise InputError(f"--resume: {out / 'resume.pt'} cannot be read: {str(error).splitlines()[0]}") from error
    for name, value in vars(args).items():
        if name not in SAME_RUN and saved["args"].get(name) != value:
            raise InputError(f"--resume: the run in {out} has --{name.replace('_', '-')} {saved['args'].get(name)}, not {value}")
    if saved["step"] >= args.steps:
        raise InputError(f"--resume: the run in {out} has done its {saved['step']} steps; give a larger --steps to go on")
    return saved


def pack(pairs):
    """Pairs as plain lists, for files."""
    return [[p.problem.question, p.problem.answer, p.response, p.right, p.accuracy] for p in pairs]


def unpack(rows):
    """The inverse of `pack`."""
    return [Pair(Problem(question, answer), *rest) for question, answer, *rest in rows]


def show_step(row, steps):
    """One step as a line of text."""
    parts = [f"step {row['step']}/{steps}"]
    for title, form, *names in [("stage", "d", "stage"), ("accuracy", ".2f", "response/accuracy"),
                                ("critique P1/P2", ".2f", "critique/p1", "critique/p2"), ("t1/t2", ".2f", "t1", "t2"),
                                ("unchanged", ".2f", "unchanged"), ("wrong kept", ".2f", "kept"),
                                ("no spread", ".2f", "groups/no_spread"), ("cut", ".2f", "truncated"), ("cache", "d", "cache/size"),
                                ("traces", "d", "traces"), ("loss", ".3f", "loss"),
                                ("log ratio", ".0e", "ratio/max_log"), ("grad", ".2f", "grad_norm")]:
        if names[0] in row:
            parts.append(title + " " + "/".join("-" if row[name] is None else f"{row[name]:{form}}" for name in names))
    tqdm.write("  ".join(parts) + f"  {row['seconds/sample']:.1f}+{row['seconds/update']:.1f} s")


ROWS = [("generation", "greedy accuracy of responses"), ("critique", "accuracy of judgements, balanced pairs"),
        ("critique_p1", "... on right responses"), ("critique_p2", "... on wrong responses"),
        ("critique_precision", '... precision of "right"'), ("critique_recall", '... recall of "right"'),
        ("t2", "accuracy of second attempts"), ("delta", "t2 - t1"), ("i_to_c", "incorrect -> correct"),
        ("c_to_i", "correct -> incorrect"), ("unchanged", "second attempts that repeat the first"),
        ("kept", "wrong first answers given again"), ("truncated", "cut at the limit"),
        ("size", "held-out problems"), ("pairs", "critique pairs")]


def show_evaluations(title, columns):
    """A table of evaluations: columns {heading: {eval/...: number}}."""
    width = max(9, *(len(heading) + 2 for heading in columns))
    print(f"\n{title:40}" + "".join(f"{heading:>{width}}" for heading in columns))
    for name, text in ROWS:
        values = [numbers.get("eval/" + name) for numbers in columns.values()]
        values = ["-" if v is None else f"{v:.3f}" if isinstance(v, float) else v for v in values]
        print(f"{text:40}" + "".join(f"{v:>{width}}" for v in values))


def learn(run, episodes, step):
    """Advantages and one policy update (or a supervised one) from a recipe's episodes; returns the metrics."""
    args, rng = run.args, random.Random(seed_of(run.args.seed, step, "mini-batches"))
    run.optimizer.param_groups[0]["lr"] = args.lr * min(1, step / max(1, args.warmup))
    if args.method in SUPERVISED:
        losses, norms = [], []
        for batch in mini_batches([e.sample for e in episodes], args.mini_batch, rng):
            losses.append(supervised_gradient(run.model, batch))
            norms.append(optimizer_step(run.model, [run.optimizer], args.grad_clip))
        return {"loss": mean(losses), "grad_norm": mean(norms)}
    groups, spread = [e.group for e in episodes], {}
    for e, advantage in zip(episodes, advantages([e.reward for e in episodes], groups, not args.no_std).tolist()):
        e.advantage = advantage
        spread[e.group] = spread.get(e.group, False) or advantage != 0
    metrics = {"groups/no_spread": mean(not s for s in spread.values()),
               "truncated": mean(not e.sample.stopped for e in episodes),
               # E[-log p] under p is the entropy: the mean of what the sampler recorded estimates it without bias
               "entropy": -sum(sum(e.sample.logprobs) for e in episodes) / sum(len(e.sample.tokens) for e in episodes)}
    for role in dict.fromkeys(e.role for e in episodes):
        metrics["length/" + role] = mean(len(e.sample.tokens) for e in episodes if e.role == role)
    return metrics | update(run.model, run.reference, run.optimizer, episodes, args, rng)


def read_metrics(path):
    """The rows of a metrics.jsonl; a line that a crash left half-written is passed over."""
    rows = []
    for line in open(path, encoding="utf-8", errors="replace"):
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def train(args):
    """One run, from the flags to the final table."""
    out, saved = Path(args.out).resolve(), open_run(args)
    begin = time.time() - (saved["seconds"] if saved else 0)
    find_policy(out if saved else args.model)
    problems, held_out = load_data(args)
    examples = load_demonstrations(args.cold_start) if args.cold_start and not saved else []
    model, tokenizer = load_policy(out if saved else args.model, args.device)
    run = Run(args, model, tokenizer, PairCache(args.cache))
    check_lengths(run, problems + held_out)
    examples = encode_demonstrations(model, tokenizer, examples)
    out.mkdir(parents=True, exist_ok=True)
    print(f"{args.method} on {args.model}: {model.num_parameters():,} parameters on {model.device}; {len(problems)} problems to "
          f"train on, {len(held_out)} held out; run in {args.out}", flush=True)
    if examples:
        cold_start(model, examples, args)
    if args.method == "score":
        run.stage1_steps = round(args.steps * 5 / 6) if args.stage1_steps is None else args.stage1_steps
        run.stage1_steps = saved["stage1_steps"] if saved else run.stage1_steps
    weight = {gcrl: args.kl, score: max(args.beta1, args.beta2 if run.stage1_steps else 0)}.get(METHODS[args.method], 0)
    if weight > 0:                                   # the reference is the policy that RL starts from
        source = out / "reference" if (out / "reference").exists() else args.model
        run.reference = load_policy(source, model.device)[0] if saved else copy.deepcopy(model)
        run.reference.requires_grad_(False)
    run.optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)

    if saved:
        done, first, pairs = saved["step"], saved["first"], unpack(saved["pairs"])
        run.optimizer.load_state_dict(saved["optimizer"])
        run.cache.pairs, run.cache.dropped, run.static = unpack(saved["cache"]), saved["dropped"], unpack(saved["static"])
        rows = [row for row in read_metrics(out / "metrics.jsonl") if row["step"] <= done]      # later steps are done again
        last = [row for row in rows if "eval/generation" in row][-1]
    else:
        # The critic's exam is fixed by the seed and the starting policy: every method is asked about the same pairs.
        done, pairs = 0, sample_pairs(run, held_out, 8, args.eval_size, seed_of(args.seed, "exam"), "critique pairs")
        if args.method in ("c-rl", "gc-rl") and args.critique_data == "static" or args.method == "pair-sft":
            asked = batch_of(problems, 1, args.seed, min(len(problems), args.static_questions))
            run.static = sample_pairs(run, asked, 10, 2 * len(asked), seed_of(args.seed, "static"), "static pairs",
                                      "filter" if args.method == "pair-sft" else args.balance)
            if not run.static:
                raise InputError(f"static pairs: none of {len(asked)} questions had a right and a wrong response; the policy is "
                                 "too weak or too strong for the data (see --cold-start, --static-questions)")
        first = last = evaluate(run, held_out, pairs)
        rows = [{"step": 0, "seconds": time.time() - begin} | first]
        names = ("question", "answer", "response", "label")
        (out / "eval_pairs.jsonl").write_text("".join(json.dumps(dict(zip(names, row))) + "\n" for row in pack(pairs)))
        if examples and run.reference is not None:
            save_policy(model, tokenizer, out / "reference")
    run.cache.capacity = max(args.cache, len(run.static) + args.pairs)
    metrics = open(out / "metrics.jsonl", "w", encoding="utf-8")

    def log(row):
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()

    def checkpoint(step):
        save_policy(model, tokenizer, out, {
            "step": step, "args": vars(args), "stage1_steps": run.stage1_steps, "seconds": time.time() - begin, "first": first,
            "pairs": pack(pairs), "optimizer": run.optimizer.state_dict(), "cache": pack(run.cache.pairs),
            "dropped": run.cache.dropped, "static": pack(run.static)})

    def brief(numbers):
        shown = [(name, numbers.get("eval/" + name)) for name in ("generation", "critique", "t2", "delta")]
        tqdm.write("  ".join(f"{name} {value:.3f}" for name, value in shown if value is not None))

    for row in rows:
        log(row)
    if not saved:
        checkpoint(0)
    tqdm.write(f"evaluation before step {done + 1}, {len(held_out)} problems and {len(pairs)} critique pairs:")
    brief(last)

    stop = []

    def on_interrupt(number, frame):                 # Ctrl-C: finish the step, save, and leave; twice: leave at once
        if stop:
            raise KeyboardInterrupt
        stop.append(number)
    before = signal.signal(signal.SIGINT, on_interrupt)
    with tqdm(total=args.steps, initial=done, desc=args.method, disable=None) as bar:
        for step in range(done + 1, args.steps + 1):
            start = time.time()
            try:
                episodes, row = METHODS[args.method](run, step, batch_of(problems, step, args.seed, args.questions))
            except InputError:                       # a prompt that quotes a response has outgrown the context
                checkpoint(step - 1)
                raise
            middle = time.time()
            row = {"step": step} | row | (learn(run, episodes, step) if episodes else {})
            tokens = sum(len(e.sample.tokens) for e in episodes)
            row |= {"seconds/sample": middle - start, "seconds/update": time.time() - middle, "tokens": tokens,
                    "tokens/s": tokens / (time.time() - start)}
            show_step(row, args.steps)
            bar.update()
            watched = [("acc", "response/accuracy"), ("P1", "critique/p1"), ("P2", "critique/p2"), ("t2", "t2")]
            bar.set_postfix({name: f"{row[key]:.2f}" for name, key in watched if row.get(key) is not None})
            if row.get("truncated", 0) > 0.5:
                tqdm.write(f"warning: {row['truncated']:.0%} of the completions were cut at --max-new-tokens "
                           f"{args.max_new_tokens} and count as wrong")
            finished = step == args.steps
            if finished or step % args.eval_every == 0:
                last = evaluate(run, held_out, pairs)
                row |= last
                brief(last)
            log(row | {"seconds": time.time() - begin})
            if finished or stop or step % args.eval_every == 0:
                checkpoint(step)
            if stop and not finished:
                sys.exit(f"stopped after step {step}; go on with the same command and --resume")
    signal.signal(signal.SIGINT, before)
    show_evaluations(f"{args.method}, {args.steps} steps, seed {args.seed}", {"start": first, "end": last})
    print(f"wall time {time.time() - begin:.0f} s; the policy is in {out}: python sample.py --model {out}")


def main(argv=None):
    try:
        args = parse_args(argv)
        if args.make_toy:
            make_toy(args.make_toy, args.seed)
        elif args.make_demonstrations:
            make_demonstrations(args)
        else:
            train(args)
    except (InputError, FloatingPointError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
