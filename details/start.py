"""What a run needs before its first step; it uses the sampler (`rollout`).

Input is read and refused, a model is loaded, demonstrations are learned; then pairs are sampled
with the starting policy: the critic's evaluation set, and the pairs that critics are trained on if
these are static.
"""

import copy
import random
from pathlib import Path

from details.flags import largest_kl  # isort: skip (before torch)

import torch

from critique import correct_prompt
from details import grader, programs
from details.data import (
    batch_of,
    load_problems,
    load_split,
    read_jsonl,
    seed_of,
    to_pair,
    without,
)
from details.demonstrations import load_demonstrations
from details.errors import InputError, one_line
from details.lora import add_adapters
from details.policy import (
    compute_dtype,
    context_length,
    device_of,
    dtype_of,
    encode_chat,
    save_policy,
    trained_weights,
)
from details.runs import FORMAT, lock_folder, open_run, save_state, write_files
from details.supervised import cold_start, demonstration
from figures.fits import check_memory
from reward import filter_pairs, pairs_by_question, random_pairs
from rollout import Sampler, load_policy, respond

STATIC_QUESTIONS = 512  # that static pairs are sampled from
STATIC_RESPONSES = 10  # to each of them (paper: 10)


def begin_run(args):
    """What can be refused before the first sample is refused here. Returns (sampler, reference,
    optimizer, state) that the run starts from, or goes on with, and the lock on its folder.

    reference: the policy that RL starts from, for the KL; None if no KL has a weight.
    """
    out = Path(args.out)
    set_judges(args)
    state = open_run(args)
    check_memory(args)
    begins = not state
    if begins:
        data, examples = load_data(args)
        state = first_state(args, data)
    problems = state["problems"] + state["held_out"] + state["selecting"]
    check_judges(problems)
    model, tokenizer, base = load_start(args, begins)
    sampler = Sampler(model, tokenizer, args.max_new_tokens, args.temperature)
    if begins:
        # What does not fit the model's context is refused before the first file is written.
        samples = [demonstration(tokenizer, *example) for example in examples]
        check_lengths(sampler, problems, samples)
        # If it is not named, the device decides; a run that goes on may have another device.
        state["precision"] = "bf16" if dtype_of(model) == torch.bfloat16 else "fp32"
    lock = lock_folder(out)
    if begins:
        if samples:
            cold_start(args, model, samples)
        if args.lora:
            state["base"] = base
            state["start"] = copy.deepcopy(trained_weights(model))
        else:
            save_policy(model, tokenizer, out / "start")
    else:
        if base != state["base"]:
            raise InputError(
                f"--resume: --model {args.model} is not the model that the run began with"
            )
        model.load_state_dict(state["start"], strict=False)
    # Stage I is half of the steps that are planned when training starts, whatever --steps a run
    # that goes on has.
    if state["step"] <= 1:
        state["planned"] = args.steps
    if args.stage1_steps is None:
        args.stage1_steps = state["planned"] // 2
    state["flags"]["steps"] = args.steps
    state["flags"]["unsafe_code"] |= args.unsafe_code
    reference = None
    if largest_kl(args) > 0:
        # It stays as the model is now. What is not trained is shared: with adapters it costs no
        # more than these. Without gradients autocast keeps no copy in bf16.
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        reference = copy.deepcopy(model, shared).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0, fused=True)
    if begins:
        save_state(out, state, model, optimizer)
    else:
        model.load_state_dict(state.pop("weights"), strict=False)
        optimizer.load_state_dict(state.pop("optimizer"))
    return sampler, reference, optimizer, state, lock


def load_start(args, begins):
    """(model, tokenizer, None): the model that a run begins with, or of a run that goes on the one
    that its RL began with. With --lora the base model with new adapters, and a checksum: a run's
    folder has no copy of it."""
    if not args.lora:
        source = args.model if begins else Path(args.out) / "start"
        return *load_policy(source, args.device, args.precision), None
    # On the CPU first: a device may be too small for its weights in fp32.
    model, tokenizer = load_policy(args.model, "cpu")
    # A sum of the weights' bits, exact in whatever order.
    base = sum(weight.data.view(torch.int32).sum().item() for weight in model.parameters())
    try:
        device = device_of(args.device)
        model.compute_dtype = compute_dtype(device, args.precision)
        add_adapters(model, args.lora, seed_of(args.seed, "lora"))
        return model.to(device), tokenizer, base
    # What torch makes of a device that is not there.
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {args.device}: {one_line(error)}") from error


def first_state(args, data):
    """What resume.pt has beside weights and optimizer: cache and metrics are those before `step`.
    What was read (`load_data`) and sampled at the start is kept: a run goes on with that, whatever
    has become of the files."""
    return {
        "format": FORMAT,
        "flags": vars(args).copy(),
        "step": 0,
        "seconds": 0.0,
        "base": None,  # with --lora: a checksum of the model, and the adapters that RL started from
        "start": {},
        # The best evaluation: its step, its value, with --lora its adapters.
        "best": {"value": -1.0},
        "metrics": [],
        "samples": 0,  # bytes of samples.jsonl
        "cache": [],
        "selecting_exam": [],
        "static": [],
        "reasons": [],  # why nothing could be learned, once each
    } | data


def load_data(args):
    """({"problems": those to train on, "held_out": ..., "selecting": those that choose OUT/best,
    "exam": the critic's evaluation set}, demonstrations). No held-out question is trained on, and
    none that the critic is evaluated on, whether or not it is among those that --eval-size takes.
    """
    problems, held_out = load_split(args.data, args.eval_data)
    selecting = []
    if args.select_data:
        # Neither trained nor reported.
        others = load_problems(args.select_data, "test")
        selecting = without(problems + held_out, f"--select-data {args.select_data}", others)
    unseen = held_out + selecting
    exam = []
    examples = []
    if args.exam:
        # Of trained questions the critic has seen the answers.
        pairs = read_jsonl(args.exam, to_pair)
        source = f"--exam {args.exam}"
        pairs = without(problems + selecting, source, pairs, lambda pair: pair.problem.question)
        unseen += [pair.problem for pair in pairs]
        # Both labels alike, though the file may be sorted by them.
        right = [pair for pair in pairs if pair.right]
        wrong = [pair for pair in pairs if not pair.right]
        exam = [pair for both in zip(right, wrong) for pair in both]
        if not exam:
            raise InputError(f"--exam {args.exam}: no pair of a right and a wrong response is left")
    if args.cold_start:
        examples = load_demonstrations(args.cold_start, unseen)
    size = args.eval_size
    return {
        "problems": problems,
        "held_out": held_out[:size],
        "selecting": selecting[:size],
        "exam": exam[: size // 2 * 2],
    }, examples


def set_judges(args):
    """What train.py and sample.py were given to judge responses by, until one is called again."""
    grader.GRADER.clear()
    programs.layer = programs.UNSAFE if args.unsafe_code else None
    if args.grader:
        grader.load(args.grader)


def check_judges(problems):
    """Refuse, before any work is done, programs where there is no sandbox, and a grader that cannot
    judge the first of the problems."""
    if any(problem.program for problem in problems):
        programs.find_layer()
    if problems[0].program is None:
        grader.verdict(problems[0].row, "")


def check_lengths(sampler, problems, demonstrations=()):
    """Refuse problems that leave no room for an answer in the model's context, and conversations
    that its chat template refuses, before the first token is sampled (of the 50 longest);
    demonstrations, Samples, that do not fit it."""
    room = context_length(sampler.model)
    # Bytes stand for tokens here: whichever is longest in tokens is among these.
    longest = sorted(problems, key=lambda problem: -len(problem.question.encode()))[:50]
    for problem in longest:
        chat = correct_prompt(problem.question, "0", program=problem.program)
        size = len(encode_chat(sampler.tokenizer, chat))
        if size + sampler.max_new_tokens > room:
            raise InputError(
                f"the model's context of {room} tokens is too short: {size} and "
                f"--max-new-tokens {sampler.max_new_tokens} for {problem.question[:60]!r}"
            )
    for sample in demonstrations:
        size = len(sample.prompt + sample.tokens)
        if size > room:
            raise InputError(f"--cold-start: a demonstration has {size} tokens, the context {room}")


# ------------------------------------------------------------------ pairs of the starting policy


def first_pairs(args, sampler, state):
    """Sample what a run that begins needs of pairs, and write its files. The critic's evaluation
    set is fixed by the seed and the starting policy, unless there is one: --exam gives runs that
    start from different policies the same. Static pairs (the papers': C-RL's, Pair-SFT's) stay
    the same through the run."""
    if state["step"] == 0:
        size = args.eval_size
        if not state["exam"]:
            seed = seed_of(args.seed, "exam")
            state["exam"] = sample_pairs(sampler, state["held_out"], 8, size, seed)
        if args.method == "c-rl":
            seed = seed_of(args.seed, "selecting")
            state["selecting_exam"] = sample_pairs(sampler, state["selecting"], 8, size, seed)
        critic = args.method in ("c-rl", "gc-rl") and args.critique_data == "static"
        if critic or args.method == "pair-sft":
            count = min(len(state["problems"]), STATIC_QUESTIONS)
            asked = batch_of(state["problems"], 1, args.seed, count)
            choose = random_pairs if critic and args.balance != "filter" else filter_pairs
            seed = seed_of(args.seed, "static")
            state["static"] = sample_pairs(
                sampler, asked, STATIC_RESPONSES, 2 * count, seed, choose
            )
            if not state["static"]:
                raise InputError(
                    f"static pairs: {count} questions gave none; easier --data or more tokens"
                )
    write_files(Path(args.out), state)


def sample_pairs(sampler, problems, n, count, seed, choose=filter_pairs):
    """At most `count` pairs of the current policy from n responses to each problem: the critic's
    evaluation set, static pairs. choose: `filter_pairs` or `random_pairs`."""
    rng = random.Random(seed)
    pairs = []
    # A part of the problems at a time: often a few give enough pairs.
    chunk = max(8, count // 4)
    for start in range(0, len(problems), chunk):
        asked = problems[start : start + chunk]
        responses = respond(sampler, asked, n, seed_of(seed, start))
        pairs += choose(pairs_by_question(responses, n), rng)
        if len(pairs) >= count:
            break
    return pairs[: count // 2 * 2]
