"""Rollouts: what the policy is asked, and how its completions are sampled and scored.

All that is trained here is a *sample*: a prompt, the tokens that the policy added to it, and the
log-prob of each of them at the moment it was drawn. Responses (first-order rollout), critiques
(second-order rollout), refinements and second attempts are all made by the one function `generate`;
they differ in the prompt only. If you only want to know what is trained, and not how sampling
works, stop after `generate` and `logprobs`.
"""

import functools
import math
from dataclasses import dataclass, field, replace

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

from critique import correct, critique, judgement, solve
from details.answers import is_correct
from details.data import InputError, Pair, Problem, one_line
from details.fast import (
    LOGITS,
    SharedLayer,
    left_pad,
    micro_batches,
    packed,
    rows_that_fit,
    shares_prompts,
    unless_memory_runs_out,
)
from details.policy import autocast, context_length, decode, encode_chat, load_folder, setup_of
from details.runs import BAR_OFF, Meter


@dataclass
class Sample:
    """One completion of one prompt."""

    prompt: list[int]  # token ids
    tokens: list[int]  # token ids of the completion, the stop token included
    logprobs: list[float]  # one per token, in nats, as drawn
    stopped: bool  # True: ended with a stop token; False: cut at the limit
    given: bool = False  # True: not drawn but given, to be learned; it has no log-probs


@dataclass
class Policy:
    """A model and how it is sampled."""

    model: torch.nn.Module
    tokenizer: object
    limit: int  # of a completion, in tokens
    temperature: float = 1.0  # 0 is greedy
    meter: Meter = field(default_factory=Meter)

    def greedy(self):
        return replace(self, temperature=0.0)


@dataclass
class Episode:
    """A sample as text with what is read in it, and what a recipe of train.py makes of it."""

    sample: Sample
    text: str
    role: str  # response, critique, attempt 1, attempt 2, refinement; given
    problem: Problem
    right: bool = False  # of a response or an attempt: its outcome
    pair: Pair | None = None  # of a critique: what it criticises
    says_right: bool | None = None  # of a critique: its judgement, None if none can be read
    first: "Episode | None" = None  # of a second attempt: the first
    # Set by the recipe; the advantage by `train.learn`.
    reward: float = 0.0
    group: tuple = ()  # episodes with the same group share one baseline
    kl: float = 0.0  # weight of the KL to the reference on its tokens
    advantage: float = 1.0  # the reward, compared inside the group; of a given text 1


# -------------------------------------------------------------------------------------- rollouts


def respond(policy, problems, n, seed, show=None):
    """First-order rollout: n responses to each problem, in problem-major order.

    show: the title of a progress bar; none by default.
    """
    chats = [solve(problem.question) for problem in problems]
    responses = []
    for problem, sample, text in complete(policy, problems, chats, n, seed, show):
        responses.append(answered(problem, sample, text, "response"))
    return responses


def criticise(policy, pairs, n, seed, show=None):
    """Second-order rollout: n critiques of each pair, in pair-major order."""
    chats = []
    for pair in pairs:
        chats.append(critique(pair.problem.question, pair.response))
    critiques = []
    for pair, sample, text in complete(policy, pairs, chats, n, seed, show):
        episode = Episode(sample, text, "critique", pair.problem, pair=pair)
        if sample.stopped:  # a critique that was cut has no conclusion
            episode.says_right = judgement(text)
        critiques.append(episode)
    return critiques


def two_attempts(policy, problems, n, seed, show=None):
    """SCoRe: n first attempts at each problem, and one second attempt after each of them: two lists
    of Episodes in the same order."""
    first = respond(policy, problems, n, seed, show)
    chats = []
    for attempt in first:
        attempt.role = "attempt 1"
        # The second goes on with the conversation in which the first was given.
        chats.append(correct(attempt.problem.question, attempt.text))
    second = []
    for attempt, sample, text in complete(policy, first, chats, 1, seed + 1, show):
        second.append(answered(attempt.problem, sample, text, "attempt 2"))
        second[-1].first = attempt
    return first, second


def refine(policy, critiques, n, seed):
    """n refined responses for each critique, sampled with it in view."""
    chats = []
    for episode in critiques:
        question = episode.problem.question
        chats.append(correct(question, episode.pair.response, episode.text))
    refined = []
    for episode, sample, text in complete(policy, critiques, chats, n, seed):
        refined.append(answered(episode.problem, sample, text, "refinement"))
    return refined


def answered(problem, sample, text, role):
    """An Episode with its outcome. A response that was cut has no final answer, whatever number it
    stopped at."""
    right = sample.stopped and is_correct(text, problem.answer)
    return Episode(sample, text, role, problem, right=right)


def complete(policy, items, chats, n, seed, show=None):
    """Sample n completions for each chat, in prompt-major order: [(item, Sample, text), ...], where
    items has what each chat is about. A prompt that leaves no room in the context gives samples
    without tokens."""
    room = context_length(policy.model)
    prompts = [encode_chat(policy.tokenizer, chat) for chat in chats]
    fitting = [prompt for prompt in prompts if len(prompt) < room]
    bar = tqdm(
        total=n * len(fitting),
        desc=show,
        disable=BAR_OFF if show else True,
        leave=False,
    )
    with bar:
        drawn = generate(
            policy.model,
            fitting,
            n,
            policy.limit,
            temperature=policy.temperature,
            seed=seed,
            bar=bar,
            meter=policy.meter,
        )
    drawn = iter(drawn)
    completions = []
    for item, prompt in zip(items, prompts):
        for _ in range(n):
            sample = Sample(prompt, [], [], stopped=False)
            if len(prompt) < room:
                sample = next(drawn)
            text, sample.stopped = decode(policy.tokenizer, sample)
            completions.append((item, sample, text))
    return completions


def demonstration(tokenizer, messages, text):
    """A given text as a Sample, to be learned: its tokens and the EOS that ends a turn."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    prompt = encode_chat(tokenizer, messages)
    tokens.append(tokenizer.eos_token_id)
    return Sample(prompt, tokens, [], stopped=True, given=True)


# -------------------------------------------------------------------------- sampling and log-probs


@torch.no_grad()
def generate(
    model,
    prompts,
    n=1,
    max_new_tokens=256,
    temperature=1.0,
    stop=None,
    seed=0,
    bar=None,
    meter=None,
):
    """Sample n completions for each prompt (a list of token ids); Samples in prompt-major order.

    temperature 0 is greedy. stop: ids that end a completion (None: the model's own stop set). Row
    i's j-th token is drawn with the j-th of row i's own random numbers, so that a seed gives the
    same tokens however the rows are cut into parts. Rows that do not fit the memory for caches are
    sampled in parts, halved again should the device still run out. bar: a tqdm bar, counts rows. A
    completion that reaches the end of the context is cut there. Raises InputError for a prompt that
    is empty or leaves no room, or for bad settings.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise InputError("generate needs n, max_new_tokens >= 1 and temperature >= 0")
    meter = meter or Meter()
    context = context_length(model)
    for place, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            sizes = f"{len(prompt)} tokens, the model's context {context}"
            raise InputError(f"prompt {place} has {sizes}")
    # Tokens are drawn where there is float64: Apple's GPUs have none.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    if stop is None:
        stop = model.generation_config.eos_token_id
    stop = torch.tensor(stop, dtype=torch.long, device=device)
    rows = [list(prompt) for prompt in prompts for _ in range(n)]
    meter.samples += len(rows)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(rows), max_new_tokens, generator=generator, dtype=torch.float64)
    noise = noise.to(device)

    # Like lengths together means less padding. Parts are taken from the end, the longest first:
    # what fails, fails early.
    waiting = sorted(
        range(len(rows)),
        key=lambda row: (len(rows[row]), rows[row]),
    )
    samples = [None] * len(rows)
    most = len(rows)
    with packed(model, most, meter):
        while waiting:
            longest = min(context, len(rows[waiting[-1]]) + max_new_tokens)
            size = min(most, len(waiting), rows_that_fit(model, longest, n))
            part = waiting[-size:]
            drawn = unless_memory_runs_out(
                size > 1,
                sample_part,
                model,
                [rows[row] for row in part],
                noise[part],
                temperature,
                stop,
                meter,
            )
            if drawn is None:
                most = size // 2
                continue
            for row, sample in zip(part, drawn):
                samples[row] = sample
            del waiting[-size:]
            if bar:
                bar.update(size)
    return samples


def logprobs(model, samples, temperature=1.0) -> list[torch.Tensor]:
    """The log-probs that `generate` recorded, by teacher forcing: fp32 [completion length] each.

    Gradients follow the caller's grad mode.
    """
    result = [None] * len(samples)
    meter = Meter()
    for places in micro_batches(model, samples):
        part = [samples[place] for place in places]
        rows = logprobs_part(model, part, temperature, meter)
        for place, row in zip(places, rows):
            result[place] = row
    return result


# ---------------------------------------------------------------- the sampler, one part at a time


def sample_part(model, prompts, noise, temperature, stop, meter):
    """Prefill, then token by token; rows that have ended leave. noise [rows, max_new_tokens]."""
    device = noise.device  # where tokens are drawn
    count, steps = noise.shape
    context = context_length(model)
    room = [context - len(prompt) for prompt in prompts]  # for tokens behind each prompt
    room = torch.tensor(room, device=device)
    tokens = torch.full((count, steps), -1, device=device)
    logprob = torch.zeros(count, steps, device=device)
    # The rows that are still computed, by their places in `tokens`; and which of them go on. Rows
    # that have ended leave a few at a time only, since each leave copies the cache.
    batch = torch.arange(count, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    layer = DynamicLayer  # each row has a copy of its prompt
    if shares_prompts(model):
        layer = functools.partial(SharedLayer, steps)
    cache = Cache(layer_class_to_replicate=layer)
    with autocast(model), meter.timed("prefill", model):
        states, mask, owner = prefill(model, prompts, cache, meter)
        cache.batch_select_indices(owner)
        logits = to_logits(model, states)[owner]
        mask = mask[owner]
        space = torch.empty_like(logits, dtype=torch.float64, device=device)
    with autocast(model), meter.timed("decode", model):
        for t in range(steps):
            logits = logits.to(device)
            token, logp = choose(
                logits,
                noise[batch, t],
                temperature,
                space[: len(batch)],
            )
            rows = batch[going]
            tokens[rows, t] = token[going]
            logprob[rows, t] = logp[going]
            ended = torch.isin(token, stop)
            fits = t + 1 < room[batch]
            going = going & ~ended & fits
            left = int(going.sum())
            if left == 0 or t + 1 == steps:
                break
            if left <= 0.9 * len(batch):
                staying = going.nonzero().squeeze(1)
                cache.batch_select_indices(staying.to(model.device))
                mask = mask[staying.to(model.device)]
                batch = batch[staying]
                token = token[staying]
                going = going[staying]
            logits, mask = decode_step(model, token.to(model.device), mask, cache)
            meter.count(len(batch), left)
    # Back into lists, each row up to its own last token.
    lengths = (tokens >= 0).sum(1)
    stopped = torch.isin(tokens, stop).any(1).tolist()
    tokens = tokens.tolist()
    logprob = logprob.tolist()
    samples = []
    for row, size in enumerate(lengths.tolist()):
        sample = Sample(
            prompts[row],
            tokens[row][:size],
            logprob[row][:size],
            stopped[row],
        )
        samples.append(sample)
    return samples


def prefill(model, prompts, cache, meter):
    """Run the model over each distinct prompt once; for rows that go on from them.

    Returns the last position's states [distinct prompts, width], the mask [distinct prompts,
    longest prompt] and the owner [rows]: the place of each of `prompts` among the distinct ones.
    """
    # A dict keeps the order, and each key once.
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    ids, mask = left_pad(distinct, model.device)
    # The first real token of a row is at 0.
    position = (mask.cumsum(1) - 1).clamp(min=0)
    states = forward(model, ids, mask, position, 1, cache)
    meter.count(ids.numel(), sum(map(len, distinct)))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    owner = [place[tuple(prompt)] for prompt in prompts]
    owner = torch.tensor(owner, device=model.device)
    return states[:, -1], mask, owner


def decode_step(model, token, mask, cache):
    """The next logits [rows, vocabulary] after one more token a row, and the mask that holds it."""
    # Clamped for rows that have ended but not left yet: nothing reads what they decode.
    position = mask.sum(1, keepdim=True).clamp(max=context_length(model) - 1)
    mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    states = forward(model, token[:, None], mask, position, 1, cache)
    return to_logits(model, states[:, -1]), mask


def forward(model, ids, mask, position, keep, cache):
    """What the output head reads at the last `keep` positions [rows, keep, width]. Of a model that
    does more behind its head (a soft cap) these are its logits: see `to_logits`."""
    setup = setup_of(model)
    options = {
        "attention_mask": mask,
        "position_ids": position,
        "use_cache": True,
        setup.cache_name: cache,
    }
    if setup.plain_head:
        return model.base_model(ids, **options).last_hidden_state[:, -keep:]
    return model(ids, logits_to_keep=keep, **options).logits


def to_logits(model, states):
    """From what `forward` returned to logits. A plain head's are computed in fp32 under autocast
    too: bf16 would double the distance between what sampler and learner take for a log-prob."""
    with torch.autocast(states.device.type, enabled=False):
        if not setup_of(model).plain_head:
            return states.float()
        head = model.get_output_embeddings()
        return head(states.to(head.weight.dtype)).float()


def choose(logits, noise, temperature, space=None):
    """One token a row and its log-prob, both [rows]; noise [rows] in [0, 1). Greedy decoding
    (temperature 0) is a choice and not a distribution: its tokens get the model's own log-probs.

    The cumulative distribution is float64, as the noise is: in fp32 tokens at the end of a large
    vocabulary could never be drawn. Works in place, since fresh memory costs more than the
    arithmetic: overwrites `logits` [rows, vocabulary] and, where given, `space`, its like in
    float64.
    """
    logits /= temperature or 1.0
    token = logits.argmax(-1, keepdim=True)
    logits -= logits.gather(1, token)  # no exponential overflows
    weights = logits.exp_()
    total = torch.cumsum(weights, -1, dtype=torch.float64, out=space)
    if temperature > 0:
        # Invert the cumulative distribution at this row's own random number.
        drawn = noise[:, None] * total[:, -1:]
        token = torch.searchsorted(total, drawn, right=True)
        token = token.clamp(max=logits.shape[1] - 1)  # rounding at the very edge
    logprob = (weights.gather(1, token) / total[:, -1:]).log()
    return token.squeeze(1), logprob.squeeze(1).float()


# ---------------------------------------------------------------- log-probs, one part at a time


def logprobs_part(model, samples, temperature, meter):
    """Log-probs of the samples' tokens: fp32 [completion length] each.

    As in sampling, each distinct prompt is computed once, and the completions go on from copies of
    its keys and values; the gradient flows through.
    """
    lengths = [len(sample.tokens) for sample in samples]
    tokens = [torch.tensor(sample.tokens) for sample in samples]
    tokens = pad_sequence(tokens, batch_first=True)
    width = tokens.shape[1]
    real = torch.arange(width) < torch.tensor(lengths)[:, None]  # which are no padding
    tokens = tokens.to(model.device)
    real = real.to(model.device)
    with autocast(model):
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        prompts = [sample.prompt for sample in samples]
        states, mask, owner = prefill(model, prompts, cache, meter)
        for layer in cache.layers:  # not by [owner]: its gradient adds up in any order on a CPU
            layer.keys = layer.keys.index_select(0, owner)
            layer.values = layer.values.index_select(0, owner)
        # The prompt's last position predicts the first token, the rest of them predict the rest.
        states = states.index_select(0, owner)[:, None]
        if width > 1:
            # A token is fed where another follows it.
            mask = torch.cat([mask[owner], real[:, 1:].long()], 1)
            position = mask.cumsum(1)[:, 1 - width :] - 1
            rest = forward(model, tokens[:, :-1], mask, position, width - 1, cache)
            states = torch.cat([states, rest], 1)
        meter.count(tokens.numel(), sum(lengths))
        scored = token_logprobs(model, states[real], tokens[real], temperature)
    return scored.split(lengths)


def token_logprobs(model, states, tokens, temperature):
    """Log-probs [tokens] of `tokens` after `states` [tokens, width], under the distribution that
    they are drawn from. In slices that backward computes again: of all tensors the logits are the
    largest, and with this they do not grow with the batch."""

    def slice_logprobs(states, tokens):
        logits = to_logits(model, states) / (temperature or 1.0)
        chosen = logits.gather(1, tokens[:, None])
        return chosen.squeeze(1) - logits.logsumexp(1)

    size = max(1, LOGITS // model.config.get_text_config().vocab_size)
    scored = []
    for part in zip(states.split(size), tokens.split(size)):
        scored.append(checkpoint(slice_logprobs, *part, use_reentrant=False))
    return torch.cat(scored)


# ---------------------------------------------------------------------------------------- loading


def load_policy(name, device=None, precision=None):
    """Load a causal LM and its tokenizer: (model, tokenizer).

    name: `toy`, a model folder or a hub id; safetensors only, no remote code. precision: fp32 or
    bf16 arithmetic (default: bf16 on CUDA, else fp32); the weights are fp32 everywhere, since a
    learning rate of 1e-6 rounds away in bf16. `model.generation_config` is replaced by a plain one
    with the full stop set: settings such as a repetition penalty would make `model.generate` sample
    another policy than the one trained. Raises InputError.
    """
    model, tokenizer = load_folder(name, device, precision)
    error, reason = sampling_error(model)
    if not error < 0.1:  # Mamba and its like keep another state
        raise InputError(f"model {name}: no sampling with a key-value cache: {reason}")
    share_prompts(model, name, error)
    return model, tokenizer


def share_prompts(model, name, error):
    """Let rows share the keys of their prompts in sampling, where that finds the same log-probs as
    the library's attention in the same arithmetic. Where not, one line says so. error: the
    `sampling_error` of the library's attention."""
    library = model.config._attn_implementation
    if library != "sdpa" or not model._supports_attention_backend:
        return
    tolerance = 1e-3 if setup_of(model).arithmetic == torch.float32 else 0.02
    bound = 1.3 * error + tolerance
    model.set_attn_implementation("shared_prompts")
    error, reason = sampling_error(model)
    if not error <= bound:
        model.set_attn_implementation(library)
        print(f"note: {name}: each row copies its prompt ({reason})")


def sampling_error(model):
    """How far sampling is from scoring, in which the library's attention is at work: the mean
    |log ratio| of what they find for the same tokens, and a reason in words."""
    prompts = [list(range(length)) for length in range(5, 9)]
    try:
        samples = generate(model, prompts, 2, max_new_tokens=4, stop=())
        with torch.no_grad():
            scored = logprobs(model, samples)
    except Exception as error:  # models differ in what caches and attention get
        return math.inf, one_line(error)
    drawn = [torch.tensor(sample.logprobs) for sample in samples]
    log_ratio = torch.cat(scored).cpu() - torch.cat(drawn)
    error = log_ratio.abs().mean().item()
    return error, f"mean |log ratio| {error:.2g}"
