"""Train a policy to answer, to criticise answers and to correct itself, by GRPO on outcome rewards.

One step of every method: sample n completions for each prompt, reward them, compare them inside
their group, and move the policy towards the better ones. A method is a recipe: a function that says
which prompts are built and which rewards are given. Sampling, advantages, loss and update are the
same for all; supervised learning is the same update on given tokens with advantage 1.

    python train.py                        GC-RL on the embedded toy model, minutes on two cores
    python train.py --method score         SCoRe on the toy
    python train.py --model Qwen/Qwen2.5-0.5B-Instruct --data gsm8k --out runs/gsm8k

GC-RL: arXiv 2602.22765, SCoRe: arXiv 2409.12917, GRPO: arXiv 2402.03300. Left out, to stay short:
several devices, a value network, serving engines. Below: flags, loss, update, recipes, the run.
"""

import argparse
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import reward
import rollout
import sample
from critique import correct, load_demonstrations
from reward import InputError, exits, from_pair, from_problem, one_line, to_pair
from rollout import TOY, demonstration, load_policy, micro_batches, score_rows, timed
from sample import Episode, Policy, mean, seed_of

WARMUP = 3  # steps in which the learning rate rises to --lr
GRAD_CLIP = 1.0  # largest gradient norm
COLD_START = 3, 32  # passes over the demonstrations, demonstrations an optimizer step
MAX_AWAY = 3.0  # nats, most of ref - logprobs: k3 is exponential in it, one token could rule all
STATIC_QUESTIONS = 512  # that static pairs are sampled from, 10 responses each (paper: 10)

# What differs from the defaults on the toy: a tiny model on tiny problems learns faster.
TOY_FILES = {"data": "train.jsonl", "eval_data": "held_out.jsonl", "exam": "exam.jsonl"}
TOY_SETTINGS = dict(steps=20, questions=64, lr=1e-4, kl=0.0, max_new_tokens=64, eval_size=512)
TOY_SETTINGS["beta2"] = 0.25


# ----------------------------------------------------------------------------------------- flags


def parse_args(argv=None):
    """The command line; bad values end the program with one line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.error = lambda message: sys.exit(f"error: {message}")

    def add(name, default, help, kind=str):
        """One flag. A list names its choices, the first is the default."""
        how = {"type": kind if default is None else type(default)}
        if isinstance(default, list):
            how, default = {"choices": list(filter(None, default))}, default[0]
        toy = TOY_SETTINGS.get(name.replace("-", "_"))
        note = "" if default is None else f" [{default}]"
        note += "" if toy is None else f" [toy: {toy}]"
        parser.add_argument("--" + name, default=default, help=help + note, **how)

    def switch(name, help):
        parser.add_argument("--" + name, action="store_true", help=help)

    add("method", list(METHODS), "what is trained, see the README")
    add("model", "toy", "toy, a model folder or a hub id")
    add("data", None, "JSONL file with question and answer, or gsm8k [the toy's; gsm8k]")
    add("eval-data", None, "held-out problems (else gsm8k's test file, or --data's last tenth)")
    add("exam", None, "JSONL file of pairs for the critic's exam (else sampled at the start)")
    add("cold-start", None, "JSONL file of demonstrations to be learned before RL")
    add("cold-start-lr", 2e-5, "learning rate of the cold start")
    add("steps", 200, "steps of RL (paper: 10 epochs)")
    add("questions", 32, "questions a step (paper: 512)")
    add("n", 8, "samples per prompt (paper: 5)")
    add("updates", 4, "optimizer steps per rollout, whatever it holds (paper: 4)")
    add("lr", 1e-6, "learning rate of AdamW, constant after a short warm-up (paper: 1e-6)")
    add("kl", 1e-3, "g-rl, c-rl, gc-rl: weight of the KL to the starting policy (paper: 1e-3)")
    add("clip", 0.2, "the ratio is clipped to 1 - clip, 1 + clip (paper: 0.2)")
    add("temperature", 1.0, "of sampling; the log-probs are those of this distribution")
    add("max-new-tokens", 512, "limit of a completion; cut ones count as wrong (paper: 4096)")
    add("seed", 0, "of data order and sampling")
    add("device", None, "cpu, cuda, cuda:1, mps (else cuda where there is one)")
    add("precision", [None, "fp32", "bf16"], "of the arithmetic (else bf16 on cuda, else fp32)")
    add("out", "out", "folder of the run: model, metrics.jsonl, samples.jsonl, resume.pt")
    switch("resume", "go on with the run in --out: the same command and this flag")
    add("eval-every", 10, "steps between evaluations with a checkpoint; both also at the end")
    add("eval-size", 256, "held-out problems, and pairs of the exam, in an evaluation")
    # GC-RL
    add("balance", ["filter", "reweight", "none"], "one right, one wrong; eq. 3; random pairs")
    add("critique-data", [None, "static", "dynamic"], "pairs (else c-rl static, gc-rl dynamic)")
    add("pairs", None, "pairs criticised, traces of pair-sft, a step (else --questions)", int)
    add("cache", 1024, "capacity of the pair cache in pairs; the oldest leave first")
    add("denoise", 0, "refined responses for each critique, eq. 4 (0: off; paper: 1)")
    add("reward-right", 0.7, "of a right call on a right response (eq. 5: 0.6, eq. 6: 0.8)")
    add("reward-wrong", 0.7, "of a right call on a wrong response (eq. 5: 0.8, eq. 6: 0.6)")
    add("group", ["prompt", "question", "batch"], "the samples that a reward is compared with")
    switch("no-std", "advantages are not divided by the group's deviation")
    # SCoRe
    add("alpha", 10.0, "weight of the shaping alpha (r(y2) - r(y1)) in Stage II (paper: 10)")
    add("beta1", 0.01, "KL weight on both attempts, of multi-turn too (paper: 0.01)")
    add("beta2", 0.1, "KL weight on first attempts in Stage I, on top (paper: 0.1, 0.25)")
    add("stage1-steps", None, "of --steps, those of Stage I (else half)", int)
    known, _ = parser.parse_known_args(argv)
    if known.model == "toy":
        files = {} if known.data else {name: f"{TOY / file}" for name, file in TOY_FILES.items()}
        parser.set_defaults(**TOY_SETTINGS, **files)
    return settle(parser.parse_args(argv))


MAY_BE_ZERO = "steps kl clip seed denoise reward_right reward_wrong alpha beta1 beta2 stage1_steps"


def settle(args):
    """Fill in what depends on other flags; refuse what cannot work before any work is done."""
    sample.check_numbers(args, MAY_BE_ZERO)
    if args.n == 1 and args.group != "batch" and args.method not in SUPERVISED:
        raise InputError("--n 1: a single sample has nothing to be compared with; use 2 or more")
    if args.method == "score" and (args.stage1_steps or 0) > args.steps:
        raise InputError(f"--stage1-steps {args.stage1_steps}: --steps is only {args.steps}")
    args.data, args.pairs = args.data or "gsm8k", args.pairs or args.questions
    args.critique_data = args.critique_data or ("static" if args.method == "c-rl" else "dynamic")
    if args.method == "multi-turn":  # SCoRe without its two ideas
        args.alpha, args.stage1_steps = 0.0, 0
    constants = args.balance == "reweight" or args.reward_right != 0.7 or args.reward_wrong != 0.7
    if constants and args.group == "prompt" and not args.no_std:
        print("note: --group prompt, divided by its deviation: constants of eqs. 3, 5, 6 cancel")
    args.no_std = args.no_std or METHODS[args.method] is score  # see `score` for why
    return args


# ------------------------------------------------------------------------------- loss and update


def grpo_loss(logprobs, old_logprobs, advantages, mask, clip=0.2, ref_logprobs=None, kl=0.0):
    """GRPO's loss: -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + kl k3 for each token.

    ratio = exp(logprobs - old_logprobs); k3 = exp(ref - logprobs) - (ref - logprobs) - 1, an
    estimate of KL(policy || reference) that is never negative. All tensors are [batch, length] or
    broadcast to it; kl may hold a weight for each row; masked places may hold anything.

    Returns the mean over all unmasked tokens, which tokens were clipped, and k3, both [batch,
    length] and zero where masked.
    """
    mask = mask.bool()
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)  # before exp: inf * 0 is nan
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantages, bounded * advantages)
    clipped = mask & (bounded * advantages < ratio * advantages)
    k3 = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        away = (ref_logprobs - logprobs).masked_fill(~mask, 0.0)
        k3 = away.exp() - away - 1
        loss = loss + kl * k3
    return loss.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1), clipped, k3.detach()


def accumulate(model, episodes, cuts, tokens, clip, temperature, reference):
    """Add the gradient of `episodes` to the model's, as a share of a batch of `tokens` tokens; in
    micro-batches: cuts, lists of indices. reference: a model; the policy itself in step 1, when the
    log-probs that were sampled with are the reference's.

    Returns sums for the log. A given text has no log-probs from a sampler: its old ones are its
    current ones, so that ratio is 1 and the gradient that of the mean negative log-prob.
    """
    sums, device = Counter(), model.device
    for part in cuts:
        part = [episodes[i] for i in part]
        rows = score_rows(model, [e.sample for e in part], temperature)
        old = [torch.tensor(e.sample.logprobs or r.tolist()) for e, r in zip(part, rows)]
        new, old = pad_sequence(rows, True), pad_sequence(old, True).to(device)
        mask = pad_sequence([torch.ones_like(r, dtype=torch.bool) for r in rows], True)
        ref, held = old if reference is model else None, [e.sample for e in part if e.kl > 0]
        if reference not in (None, model) and held:
            with torch.no_grad():
                known = iter(score_rows(reference, held, temperature))
            ref = [next(known) if e.kl > 0 else r.detach() for e, r in zip(part, rows)]
            ref = pad_sequence(ref, True)
        if ref is not None:
            ref = torch.minimum(ref, new + MAX_AWAY)
        advantage, kl = new.new_tensor([(e.advantage, e.kl) for e in part]).split(1, 1)
        loss, clipped, k3 = grpo_loss(new, old, advantage, mask, clip, ref, kl)
        (loss * (mask.sum() / tokens)).backward()
        log_ratio = (new - old).detach().masked_fill(~mask, 0.0).abs()
        sums["max"] = max(sums["max"], log_ratio.max().item())
        sums["distance"] += log_ratio.sum().item()
        sums["clipped"] += clipped.sum().item()
        sums["tokens"] += mask.sum().item()
        sums["nll"] -= new.detach().masked_fill(~mask, 0.0).sum().item()
        for e, size in zip(part, k3.sum(1).tolist()):
            if e.kl > 0:  # else it was not computed
                sums["kl/" + e.role] += size
                sums["tokens/" + e.role] += len(e.sample.tokens)
    return sums


def gradient(model, optimizer, episodes, *how):
    """`accumulate`, in smaller micro-batches if the device runs out of memory, and clipping. How
    small is kept with the optimizer, so that a resumed run cuts alike. Returns (sums, norm).

    A norm that is not finite raises FloatingPointError, its `episode` the first that gives one.
    """
    kept, sums = optimizer.param_groups[0], None
    while sums is None:
        parts = kept.setdefault("parts", 1)
        cuts = micro_batches(model, [e.sample for e in episodes], parts)
        single = len(cuts) == len(episodes)
        sums = rollout.attempt(single, accumulate, model, episodes, cuts, *how)
        if sums is None:
            kept["parts"] = 2 * parts
            model.zero_grad()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
    if not math.isfinite(norm):
        for e in episodes:
            model.zero_grad()
            accumulate(model, [e], [[0]], *how)
            if not all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None):
                break
        error = FloatingPointError(f"the gradient norm is {norm}; a smaller --lr may help")
        error.episode = e
        raise error
    return sums, norm


def update(model, optimizer, episodes, updates, rng, clip=0.2, temperature=1.0, reference=None):
    """One policy update: `updates` optimizer steps over one rollout, each on its share of the
    prompts, against the log-probs that their completions were sampled with. Returns metrics.

    Episodes that give no gradient (no advantage and no KL) are not computed but count in the token
    mean: the gradient is the same, the time is not. `ratio/max_log` and `ratio/mean_log` are
    |log ratio| before the first optimizer step: how far the learner is from the sampler.
    """
    members, total, norms, first = {}, Counter(), [], None
    for e in episodes:
        members.setdefault(tuple(e.sample.prompt), []).append(e)
    prompts = rng.sample(list(members), len(members))
    for chosen in [prompts[i::updates] for i in range(min(updates, len(prompts)))]:
        batch = [e for prompt in chosen for e in members[prompt]]
        tokens = sum(len(e.sample.tokens) for e in batch)
        learn = [e for e in batch if e.advantage != 0 or e.kl > 0] or batch[:1]
        with timed(model, "forward_backward"):
            sums, norm = gradient(model, optimizer, learn, tokens, clip, temperature, reference)
        with timed(model, "optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        norms.append(norm)
        first = first or sums
        total.update(sums)
    metrics = {"ratio/max_log": first["max"], "grad_norm": mean(norms)}
    metrics["ratio/mean_log"] = first["distance"] / first["tokens"]
    metrics["ratio/clipped"] = total["clipped"] / total["tokens"]
    for name in total:
        if reference is not None and name.startswith("kl/"):
            metrics[name] = total[name] / total["tokens/" + name.removeprefix("kl/")]
    if not any(e.sample.logprobs for e in episodes):
        metrics["loss"] = total["nll"] / total["tokens"]  # of given texts, in nats a token
    return metrics


# ----------------------------------------------------------------------------------- the recipes


def group_key(args, *prompt):
    """With whom a reward is compared, under --group: the samples of a prompt (given as the question
    and what else is in it), all of a question, or the whole batch."""
    return {"prompt": prompt, "question": prompt[:1], "batch": ()}[args.group]


def gcrl(args, policy, step, problems, cache, static):
    """GC-RL and its two halves (2602.22765, Figure 2): responses, data filter, cache, critiques;
    one update for both.

    g-rl trains the responses only; c-rl the critiques only (with static pairs it samples no
    responses at all).
    """
    rng, episodes, metrics = random.Random(seed_of(args.seed, step, "pairs")), [], {}
    if args.method != "c-rl" or args.critique_data == "dynamic":
        # with their rewards, eq. 1
        responses = sample.respond(policy, problems, args.n, seed_of(args.seed, step, "responses"))
        for e in responses:
            e.group = group_key(args, e.problem.question, "response")
        metrics["response/accuracy"] = mean(e.reward for e in responses)
        if args.method != "c-rl":
            episodes += responses
    if args.method != "g-rl":
        if args.critique_data == "dynamic":
            cache.extend(sample.draw_pairs(responses, args.n, args.balance, rng))
        elif len(cache) < args.pairs:  # another pass over the static set
            cache.extend(rng.sample(static, len(static)))
        pairs = cache.draw(args.pairs, rng)
        seed = seed_of(args.seed, step, "critiques")
        critiques = sample.criticise(policy, pairs, args.n, seed)
        asked = [pair for pair in pairs for _ in range(args.n)]
        reward_critiques(args, policy, critiques, asked, seed + 1, metrics)
        metrics |= {"critique/pairs": len(pairs), "cache/size": len(cache)}
        episodes += critiques
    for e in episodes:
        e.kl = args.kl
    return episodes, metrics


def reward_critiques(args, policy, critiques, pairs, seed, metrics):
    """Eqs. 2-6 for critiques of `pairs`, one pair each."""
    for e, pair in zip(critiques, pairs):
        e.group = group_key(args, pair.problem.question, "critique", pair.response)
        if args.balance == "reweight":
            e.reward = reward.reweighted_reward(e.judged, pair.right, pair.accuracy)
        else:
            constants = args.reward_right, args.reward_wrong
            e.reward = reward.critique_reward(e.judged, pair.right, *constants)
    table = sample.judge_table([e.judged for e in critiques], [pair.right for pair in pairs])
    metrics |= {"critique/" + name: value for name, value in table.items()}
    if args.denoise:  # the refined responses give a reward and are not trained on
        read = [(e, p) for e, p in zip(critiques, pairs) if e.judged is not None]
        chats = [correct(p.problem.question, p.response, e.text) for e, p in read]
        refined, every = iter(sample.complete(policy, chats, args.denoise, seed)), []
        for e, _ in read:
            outcomes = [sample.outcome(*next(refined), e.problem) for _ in range(args.denoise)]
            e.reward += reward.denoising_reward(e.judged, outcomes)
            every += outcomes
        metrics["refined/accuracy"] = mean(every)
    metrics["critique/reward"] = mean(e.reward for e in critiques)


def score(args, policy, step, problems, *_):
    """SCoRe (2409.12917). Stage I rewards the second attempt alone and holds the first to the base
    by a strong KL; Stage II rewards both, and pays the second for what it changes.

    Each attempt is credited with its own reward and compared with the same attempts at the same
    question. Advantages are not divided by the deviation: r(y1) is settled when y2 is drawn, so on
    average the shaping is a weight of 1 + alpha on the second attempt, and a division would bring
    every alpha to about the same size.
    """
    seed = seed_of(args.seed, step, "attempts")
    first, second, metrics = sample.two_attempts(policy, problems, args.n, seed)
    stage = 1 if step <= args.stage1_steps else 2
    for a, b in zip(first, second):
        a.group = ("attempt 1", *group_key(args, a.problem.question))
        b.group = ("attempt 2", *group_key(args, a.problem.question))
        a.kl = b.kl = args.beta1
        if stage == 1:
            a.kl += args.beta2
            a.reward = 0.0  # no spread, so no advantage: KL only
        else:
            b.reward = reward.shaped_reward(a.reward, b.reward, args.alpha)
    return first + second, {"stage": stage} | metrics


def star(args, policy, step, problems, *_):
    """STaR: learn the sampled traces that end right, their first attempts too where right. Traces
    are sampled anew from the current policy at each step."""
    seed = seed_of(args.seed, step, "attempts")
    first, second, metrics = sample.two_attempts(policy, problems, args.n, seed)
    traces = [(a, b) for a, b in zip(first, second) if b.reward == 1]
    kept = [e for trace in traces for e in trace if e.reward == 1]
    return kept, metrics | {"traces": len(traces)}


def pair_sft(args, policy, step, problems, cache, static):
    """Pair-SFT: learn a right response as the second attempt after a wrong one, both the starting
    policy's own."""
    couples = list(zip(static[::2], static[1::2]))  # the filter leaves right, wrong, right, wrong
    rng = random.Random(seed_of(args.seed, step, "traces"))
    kept = []
    for right, wrong in rng.sample(couples, min(args.pairs, len(couples))):
        chat = correct(right.problem.question, wrong.response)
        given = demonstration(policy.tokenizer, chat, right.response)
        kept.append(Episode(given, right.response, "attempt 2", right.problem, 1.0))
    return kept, {"traces": len(kept)}


METHODS = dict.fromkeys(("gc-rl", "g-rl", "c-rl"), gcrl)
METHODS |= dict.fromkeys(("score", "multi-turn"), score) | {"star": star, "pair-sft": pair_sft}
SUPERVISED = ("star", "pair-sft")


def learn(args, policy, optimizer, reference, episodes, step):
    """From a recipe's episodes to a policy update: groups, advantages, loss. Returns metrics."""
    rng = random.Random(seed_of(args.seed, step, "mini-batches"))
    optimizer.param_groups[0]["lr"] = args.lr * min(1, step / WARMUP)
    how = [policy.model, optimizer, episodes, args.updates, rng, args.clip]
    if args.method in SUPERVISED:
        for e in episodes:
            e.advantage, e.sample.logprobs = 1.0, []
        return update(*how)
    groups = [e.group for e in episodes]
    values = reward.advantages([e.reward for e in episodes], groups, not args.no_std).tolist()
    for e, advantage in zip(episodes, values):
        e.advantage = advantage
    spread = {e.group for e in episodes if e.advantage != 0}
    metrics = {"groups/no_spread": mean(group not in spread for group in set(groups))}
    metrics["truncated"] = mean(not e.sample.stopped for e in episodes)
    # E[-log p] under p is the entropy: the sampler's log-probs estimate it without bias
    metrics["entropy"] = -mean(p for e in episodes for p in e.sample.logprobs)
    for role in dict.fromkeys(e.role for e in episodes):
        metrics["length/" + role] = mean(len(e.sample.tokens) for e in episodes if e.role == role)
    if reference is not None and step == 1:  # it is the reference's own rollout
        reference = policy.model
    return metrics | update(*how, args.temperature, reference)


def cold_start(args, model, samples):
    """Supervised learning of demonstrations before RL: a short warm-up, then linear decay."""
    passes, size = COLD_START
    steps = math.ceil(passes * len(samples) / size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    rng = random.Random(seed_of(args.seed, "cold start"))
    for step in tqdm(range(steps), "cold start", disable=None):
        batch = batch_of(samples, step + 1, args.seed, size)
        rate = min(1, (step + 1) / (0.1 * steps)) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = args.cold_start_lr * rate
        given = [Episode(s, "", "given", None, advantage=1.0) for s in batch]
        loss = update(model, optimizer, given, 1, rng)["loss"]
        if step == 0 or (step + 1) % max(1, steps // 10) == 0:
            tqdm.write(f"cold start {step + 1}/{steps}: loss {loss:.3f} nats per token")


# --------------------------------------------------------------------------------------- the run

FORMAT = 3  # of resume.pt
torch.serialization.add_safe_globals([reward.Problem, reward.Pair])  # all that it holds of ours
BEFORE_CHECKPOINT = {"start", "resume.pt.partial"}  # what a run writes before its first resume.pt
MAY_CHANGE = ("steps", "resume", "device", "eval_every", "out")  # flags, when a run goes on


def open_run(args):
    """The state saved in --out, None for a run that begins; refuses a folder that is in use."""
    out, path = Path(args.out), Path(args.out) / "resume.pt"
    if not path.exists():
        found = set(os.listdir(out)) if out.is_dir() else {out.name} if out.exists() else set()
        if found - BEFORE_CHECKPOINT:
            raise InputError(f"--out {out}: holds files but no resume.pt; name another folder")
        return None
    if not args.resume:
        raise InputError(f"--out {out}: holds a run; go on by --resume, or name another folder")
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if state["format"] != FORMAT:
            raise ValueError("it is of another version of this program")
    except Exception as error:  # a file that is cut, or of another program
        raise InputError(f"--resume: {path} cannot be read: {one_line(error)}") from error
    for name, value in vars(args).items():
        flag, before = name.replace("_", "-"), state["flags"].get(name)
        if before != value and (name not in MAY_CHANGE or (name == "steps" and value < before)):
            raise InputError(f"--resume: the run in {out} has --{flag} {before}, not {value}")
    return state


def save_state(out, state, model, optimizer):
    """Write resume.pt: aside, flushed to disk, renamed. At no moment is there half of one."""
    whole = state | {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
    try:
        with open(out / "resume.pt.partial", "wb") as file:
            torch.save(whole, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(out / "resume.pt.partial", out / "resume.pt")
    except (OSError, RuntimeError) as error:
        raise InputError(f"{out}: {one_line(error)}; the last checkpoint is whole") from error


def load_data(args):
    """(training problems, held-out problems, exam, demonstrations). No held-out question is trained
    on, and none of the exam."""
    problems, held_out = reward.load_split(args.data, args.eval_data, args.eval_size)
    exam, examples = [], []
    if args.exam:
        trained = {p.question for p in problems}
        pairs = reward.read_jsonl(args.exam, to_pair)
        exam = [pair for pair in pairs if pair.problem.question not in trained]
        if len(exam) < len(pairs):
            print(f"{args.exam}: {len(pairs) - len(exam)} pairs left out, on questions in --data")
        exam = exam[: args.eval_size // 2 * 2]
    if args.cold_start:
        unseen = {p.question for p in held_out} | {pair.problem.question for pair in exam}
        examples, dropped = load_demonstrations(args.cold_start, unseen)
        if dropped:
            print(f"{args.cold_start}: {dropped} demonstrations left out: held out")
    return problems, held_out, exam, examples


def batch_of(items, step, seed, count):
    """The items of a step: pass after pass over all of them, each in an order of its own."""
    places = [divmod(i, len(items)) for i in range((step - 1) * count, step * count)]
    rngs = {epoch: random.Random(seed_of(seed, "epoch", epoch)) for epoch, _ in places}
    order = {epoch: rng.sample(items, len(items)) for epoch, rng in rngs.items()}
    return [order[epoch][place] for epoch, place in places]


def first_pairs(args, policy, state):
    """(exam, static pairs) of the starting policy. The exam is fixed by the seed and that policy,
    unless there is one: --exam gives runs that start from different policies the same."""
    problems, exam, static = state["problems"], state["exam"], []
    if not exam:
        how = state["held_out"], 8, args.eval_size, seed_of(args.seed, "exam")
        exam = sample.sample_pairs(policy, *how, show="critique pairs")
    critics = args.method in ("c-rl", "gc-rl") and args.critique_data == "static"
    if critics or args.method == "pair-sft":
        asked = batch_of(problems, 1, args.seed, min(len(problems), STATIC_QUESTIONS))
        balance = "filter" if args.method == "pair-sft" else args.balance
        how = policy, asked, 10, 2 * len(asked), seed_of(args.seed, "static")
        static = sample.sample_pairs(*how, balance, "static pairs")
        if not static:
            raise InputError(f"static pairs: 0 of {len(asked)} questions had right and wrong ones")
    return exam, static


SHOWN = "stage response/accuracy critique/p1 critique/p2 t1 t2 kept groups/no_spread truncated"
SHOWN += " skipped traces loss ratio/max_log grad_norm seconds/sample seconds/update"
SHOWN += " eval/generation eval/critique eval/t2 eval/delta"


def show_step(row, steps):
    """One step as a line of text, under the names of metrics.jsonl."""
    shown = [f"{name} {row[name]:.3g}" for name in SHOWN.split() if row.get(name) is not None]
    tqdm.write(f"step {row['step']}/{steps}  " + "  ".join(shown))
    if row.get("truncated", 0) > 0.5:
        tqdm.write("warning: more than half were cut at --max-new-tokens and count as wrong")


def sample_row(policy, step, e):
    """An episode for a person to read."""
    row = {"step": step, "role": e.role, "prompt": policy.tokenizer.decode(e.sample.prompt)}
    row |= {"completion": e.text, "stopped": e.sample.stopped}
    return row | {"reward": e.reward, "advantage": e.advantage}


def show_samples(out, policy, step, episodes):
    """The texts of a step: of each role one group, one that has spread if any has. Prints the first
    text of each; returns the rows that it adds to samples.jsonl."""
    rows = []
    for role in dict.fromkeys(e.role for e in episodes):
        some = [e for e in episodes if e.role == role]
        chosen = next((e.group for e in some if e.advantage), some[0].group)
        group = [e for e in some if e.group == chosen][:8]
        rows += [sample_row(policy, step, e) for e in group]
        text = sample.printable(f"{group[0].problem.question}\n{group[0].text}")
        tqdm.write(f"--- {role}, reward {group[0].reward:g}:\n{text}")
    reward.write_jsonl(out / "samples.jsonl", rows, "a")
    return rows


def catch_signals():
    """A list that gets the number of the first SIGINT or SIGTERM; the second leaves at once."""
    seen = []

    def on_signal(number, frame):
        if seen:
            sys.exit(128 + number)
        seen.append(number)

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    return seen


def begin_run(args):
    """Everything that can be refused is refused here. Returns (policy, optimizer, state) that the
    run starts from, or goes on with."""
    out, state = Path(args.out), open_run(args)
    source = out / "start" if state else args.model
    problems, held_out, exam, examples = ((),) * 4 if state else load_data(args)
    model, tokenizer = load_policy(source, args.device, args.precision)
    policy = Policy(model, tokenizer, args.max_new_tokens, args.temperature)
    model.generation_config.max_new_tokens = args.max_new_tokens
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0, fused=True)
    if state:
        model.load_state_dict(state.pop("weights"))
        optimizer.load_state_dict(state.pop("optimizer"))
        return policy, optimizer, state
    sample.check_lengths(policy, problems + held_out)
    samples = [demonstration(tokenizer, *example) for example in examples]
    longest = max((len(s.prompt + s.tokens) for s in samples), default=0)
    if longest > (room := rollout.context_length(model)):
        raise InputError(f"--cold-start: a demonstration has {longest} tokens, the context {room}")
    (out / "start").mkdir(parents=True, exist_ok=True)
    if samples:
        cold_start(args, model, samples)
    rollout.save_policy(model, tokenizer, out / "start")
    # Weights, optimizer, cache, metrics and samples are those before `step`. What was read and
    # sampled at the start is kept: a run goes on with that, whatever has become of the files.
    state = dict(format=FORMAT, flags=vars(args).copy(), step=0, seconds=0.0, metrics=[])
    state |= dict(samples=[], cache=[], problems=problems, held_out=held_out, exam=exam, static=[])
    save_state(out, state, model, optimizer)
    return policy, optimizer, state


def one_step(args, policy, optimizer, reference, step, problems, cache, static):
    """Sample by the method's recipe, then learn. Returns (episodes, metrics)."""
    rollout.spent()  # by an evaluation
    with timed(policy.model, "sample"):
        episodes, metrics = METHODS[args.method](args, policy, step, problems, cache, static)
    fit = [e for e in episodes if e.sample.tokens]  # of the others the prompts did not fit
    try:
        with timed(policy.model, "update"):
            metrics |= learn(args, policy, optimizer, reference, fit, step) if fit else {}
    except FloatingPointError as error:
        path = Path(args.out) / "not_finite.jsonl"
        reward.write_jsonl(path, [sample_row(policy, step, error.episode)])
        raise InputError(f"step {step}: {error}; its sample is in {path}") from error
    spent, tokens = rollout.spent(), sum(len(e.sample.tokens) for e in fit)
    sampling, updating = spent["seconds/sample"], spent["seconds/update"]
    spent["seconds/rewards"] = sampling - spent["seconds/prefill"] - spent["seconds/decode"]
    metrics |= {"skipped": len(episodes) - len(fit), "tokens": tokens}
    return fit, metrics | {"tokens/s": tokens / (sampling + updating)} | spent


def train(args):
    """One run, from the flags to the final table."""
    out, begin = Path(args.out), time.time()
    policy, optimizer, state = begin_run(args)
    model, begin = policy.model, begin - state["seconds"]
    if state["step"] == 0:
        state["exam"], state["static"] = first_pairs(args, policy, state)
    problems, held_out, exam, static = map(state.get, ("problems", "held_out", "exam", "static"))
    size = f"{model.num_parameters():,} parameters on {model.device}; {len(problems)} problems"
    print(f"{args.method} on {args.model}: {size}, {len(held_out)} held out; {out}", flush=True)
    if args.stage1_steps is None:  # half of what the run was begun with
        args.stage1_steps = state["flags"]["steps"] // 2
    cache = reward.PairCache(state["cache"], max(args.cache, len(static) + args.pairs))
    weights = {gcrl: args.kl, score: max(args.beta1, args.beta2 * (args.stage1_steps != 0))}
    start = out / "start", args.device, args.precision
    reference = load_policy(*start)[0] if weights.get(METHODS[args.method]) else None
    files = {"train": map(from_problem, problems), "held_out": map(from_problem, held_out)}
    files |= {"exam": map(from_pair, exam)} | {name: state[name] for name in ("metrics", "samples")}
    for name, rows in files.items():  # steps behind the checkpoint are done again
        reward.write_jsonl(out / "partial", rows)
        os.replace(out / "partial", out / f"{name}.jsonl")

    stop, first, last = catch_signals(), state["step"], args.steps
    for step in tqdm(range(first, last + 1), args.method, last + 1, initial=first, disable=None):
        row, due = {"step": step}, step in (0, last) or step % args.eval_every == 0
        if step > 0:  # step 0 is the evaluation before the first
            asked = batch_of(problems, step, args.seed, args.questions)
            done, more = one_step(args, policy, optimizer, reference, step, asked, cache, static)
            row |= more
            if done and (due or step == 1):
                state["samples"] += show_samples(out, policy, step, done)
        if due:
            row |= sample.evaluate(policy, held_out, exam)
        state["seconds"] = row["seconds"] = time.time() - begin
        show_step(row, last)
        reward.write_jsonl(out / "metrics.jsonl", [row], "a")
        state["metrics"].append(row)
        state |= {"step": step + 1, "cache": list(cache)}
        if due or stop:
            save_state(out, state, model, optimizer)
            if stop and step < last:
                print(f"stopped after step {step}; go on with the same command and --resume")
                sys.exit(128 + stop[0])
    rollout.save_policy(model, policy.tokenizer, out)
    rows = [row for row in state["metrics"] if "eval/generation" in row]
    start, end = ({k: row[k] for k in row if k.startswith("eval/")} for row in (rows[0], rows[-1]))
    sample.print_table(f"{args.method}, seed {args.seed}", {"start": start, "end": end})
    print(f"wall time {time.time() - begin:.0f} s; try: python sample.py --model {out} --eval")


def main(argv=None):
    exits(lambda: train(parse_args(argv)))


if __name__ == "__main__":
    main()
