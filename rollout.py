"""Rollouts: what the policy is asked, how its completions are sampled, and their log-probs.

Everything that RL trains on is a `Sample`: a prompt, the tokens that the policy added to it, and
the log-prob of each of them at the moment it was drawn. Responses (first-order rollout), critiques
(second-order rollout), refinements and second attempts are all made by `Sampler.complete`; they
differ in the prompt only. If you want to know what is trained, and not how sampling works,
stop after the rollouts and the trace that follows: the rest, sampling, log-probs and loading, may
be taken on trust.
"""

import math
from dataclasses import dataclass, replace

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers.cache_utils import Cache, DynamicLayer

from critique import correct_prompt, critique_prompt, judgement, solve_prompt
from details import cost
from details.errors import InputError, one_line
from details.fast import LearningLayer, SharedLayer, left_pad, packed, shares_prompts
from details.log import BAR_OFF
from details.memory import (
    LOGITS,
    halved_if_memory_runs_out,
    micro_batches,
    recomputed,
    sampling_batches,
)
from details.policy import (
    autocast,
    context_length,
    decode,
    dtype_of,
    encode_chat,
    load_folder,
    to_logits,
)
from reward import Pair, Problem, outcomes


@dataclass
class Sample:
    """One completion of one prompt, what is read in it, and what train.py makes of it."""

    prompt: list[int]  # token ids
    tokens: list[int]  # token ids of the completion, the stop token included
    logprobs: list[float]  # of each token when drawn, in nats, at the sampling temperature
    stopped: bool  # True: it ended by itself; False: truncated, or `unclosed`
    # Set by the Sampler (`text`, `unclosed`) and the rollouts:
    text: str = ""
    role: str = ""  # response, critique, attempt 1, attempt 2, refinement
    problem: Problem | None = None
    pair: Pair | None = None  # of a critique: what it criticises
    first: "Sample | None" = None  # of a second attempt: the first
    right: bool | None = None  # the outcome of a response, an attempt, a refinement
    says_right: bool | None = None  # of a critique: its judgement, None if none can be read
    unclosed: bool = False  # it ended inside a <think> block
    # By the recipe:
    reward: float = 0.0
    group: object = None  # SCoRe: a tuple, for `leave_one_out`; None: `advantages`, --group
    kl_weight: float = 0.0  # of its tokens' distance to the reference, k3, in the loss
    # By `train.update`:
    advantage: float = 0.0  # the reward, compared inside the group
    # One number per token, None where the sample gave no gradient.
    log_ratios: list[float] | None = None  # log-prob now, minus that when drawn
    clipped: list[bool] | None = None  # did the clip take away the advantage's gradient?
    k3: list[float] | None = None  # distance to the reference, if there is one: see train.py


# -------------------------------------------------------------------------------------- rollouts


def respond(sampler, problems, n, seed, role="response"):
    """First-order rollout: n responses to each problem; the n of a problem stand together."""
    chats = [solve_prompt(problem.question, problem.program) for problem in problems]
    responses = sampler.complete(chats, n, seed)
    set_outcomes(responses, repeat(problems, n), role)
    return responses


def criticise(sampler, pairs, n, seed):
    """Second-order rollout: n critiques of each pair; the n of a pair stand together."""
    chats = []
    for pair in pairs:
        chats.append(critique_prompt(pair.problem.question, pair.response))
    critiques = sampler.complete(chats, n, seed)
    assert len(critiques) == n * len(pairs)
    for sample, pair in zip(critiques, repeat(pairs, n)):
        sample.role = "critique"
        sample.problem = pair.problem
        sample.pair = pair
        if sample.stopped:  # a truncated critique has no conclusion
            sample.says_right = judgement(sample.text)
    return critiques


def two_attempts(sampler, problems, n, seed):
    """SCoRe: n first attempts at each problem, and one second attempt after each of them: two lists
    of Samples in the same order."""
    first = respond(sampler, problems, n, seed, role="attempt 1")
    # The second goes on with the conversation in which the first was given.
    chats = []
    for sample in first:
        question = sample.problem.question
        chat = correct_prompt(question, sample.text, program=sample.problem.program)
        chats.append(chat)
    second = sampler.complete(chats, 1, seed + 1)
    set_outcomes(second, repeat(problems, n), "attempt 2")
    for before, after in zip(first, second):
        after.first = before
    return first, second


def refine(sampler, critiques, n, seed):
    """n refined responses for each critique, sampled with it in view."""
    chats = []
    for sample in critiques:
        response = sample.pair.response
        problem = sample.problem
        chat = correct_prompt(problem.question, response, sample.text, problem.program)
        chats.append(chat)
    refined = sampler.complete(chats, n, seed)
    problems = [sample.problem for sample in critiques]
    set_outcomes(refined, repeat(problems, n), "refinement")
    return refined


@cost.timed("outcomes")
def set_outcomes(responses, problems, role):
    """Write onto each response what it responds to, and whether it is right: eq. 1. A truncated one
    has no final answer, whatever number it stopped at."""
    assert len(responses) == len(problems)
    for sample, problem in zip(responses, problems):
        sample.role = role
        sample.problem = problem
        sample.right = False
    ended = [sample for sample in responses if sample.stopped]
    found = outcomes([sample.problem for sample in ended], [sample.text for sample in ended])
    for sample, right in zip(ended, found):
        sample.right = right


def repeat(items, n):
    """Each item n times in a row."""
    return [item for item in items for _ in range(n)]


# ------------------------------------------------------------------- from ids to log-probs: a trace
#
# The prompts [5, 6] and [7, 8, 9]; two completions of the first and one of the second, of up to
# three tokens. EOS is 2, a dot is padding.
#
# 1. The model reads each distinct prompt once, padded on the left: ids [2 prompts, 3].
#        . 5 6
#        7 8 9
# 2. Its logits at the last position, [2, vocabulary], repeated for the 3 rows, give the first token
#    of each. Each token is fed back and gives the next one, so tokens [3 rows, 3] are drawn
#    column by column.
#        4 4 2     ends with EOS
#        4 2 .     ends with EOS, and leaves
#        3 3 3     is truncated
# 3. For their log-probs the model is fed the prompts as above, then each row's tokens but the last.
#    The log-prob of a token is read at the position before it. For the first token that is the last
#    position of the prompt.
#                      row 0      row 1    row 2
#        token         4  4  2    4  2     3  3  3
#        read at       6  4  4    6  4     9  3  3
# 4. The loss, in train.py, is the mean over these 8 tokens (3 + 2 + 3).
#
# -------------------------------------------------------------------------- sampling and log-probs


@dataclass
class Sampler:
    """A model and how it is sampled. The rollouts need `complete` only, so another engine can take
    its place there: scale/ does that."""

    model: torch.nn.Module
    tokenizer: object
    max_new_tokens: int
    temperature: float = 1.0  # 0 is greedy

    def greedy(self):
        return replace(self, temperature=0.0)

    def complete(self, chats, n, seed):
        """n Samples with their texts for each chat; the n of a chat stand together. A prompt that
        leaves no room in the context gives Samples without tokens."""
        room = context_length(self.model)
        prompts = [encode_chat(self.tokenizer, chat) for chat in chats]
        fitting = [prompt for prompt in prompts if len(prompt) < room]
        drawn = generate(
            self.model,
            fitting,
            n,
            self.max_new_tokens,
            self.temperature,
            seed=seed,
        )
        drawn = iter(drawn)
        samples = []
        for prompt in repeat(prompts, n):
            sample = Sample(prompt, [], [], stopped=False)
            if len(prompt) < room:
                sample = next(drawn)
            sample.text, ended = decode(self.tokenizer, sample)
            sample.unclosed = sample.stopped != ended
            sample.stopped = ended
            samples.append(sample)
        return samples


@torch.no_grad()
def generate(
    model,
    prompts,
    n=1,
    max_new_tokens=256,
    temperature=1.0,
    stop=None,
    seed=0,
):
    """Sample n completions for each prompt (a list of token ids); Samples in prompt-major order.

    temperature 0 is greedy. stop: ids that end a completion (None: the model's own stop set). Row
    i's j-th token is drawn with the j-th of row i's own uniform random numbers, so that a seed
    gives the same tokens however the rows are cut into batches. A completion that reaches the end
    of the context is truncated there. What takes longer than five seconds shows a progress bar.
    Raises InputError for a prompt that is empty or leaves no room, or for bad settings.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise InputError("generate needs n, max_new_tokens >= 1 and temperature >= 0")
    context = context_length(model)
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            sizes = f"{len(prompt)} tokens, the model's context {context}"
            raise InputError(f"prompt {index} has {sizes}")
    # Tokens are drawn in float64 (see `choose`), which Apple's GPUs do not have.
    device = torch.device("cpu") if model.device.type == "mps" else model.device
    if stop is None:
        stop = model.generation_config.eos_token_id
    stop = torch.tensor(stop, dtype=torch.long, device=device)
    rows = [list(prompt) for prompt in repeat(prompts, n)]
    uniforms = torch.rand(
        len(rows),
        max_new_tokens,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    ).to(device)

    samples = [None] * len(rows)
    bar = tqdm(total=len(rows), desc="samples", leave=False, delay=5, disable=BAR_OFF)
    with bar, packed(model, len(rows)):
        for batch in sampling_batches(model, rows, n, max_new_tokens):
            drawn = sample_batch(
                model,
                [rows[row] for row in batch],
                uniforms[batch],
                temperature,
                stop,
            )
            for row, sample in zip(batch, drawn):
                samples[row] = sample
            bar.update(len(batch))
    cost.COST["samples"] += len(rows)
    return samples


@halved_if_memory_runs_out
def sample_batch(model, prompts, uniforms, temperature, stop):
    """Prefill, then token by token; rows that have ended leave. uniforms [rows, max_new_tokens].
    Equal prompts are computed once: see `prefill`."""
    device = uniforms.device  # where tokens are drawn
    count, steps = uniforms.shape
    room = [context_length(model) - len(prompt) for prompt in prompts]  # for tokens after each
    room = torch.tensor(room, device=device)
    tokens = torch.full((count, steps), -1, device=device)  # -1: not drawn
    logprobs = torch.zeros(count, steps, device=device)
    # The rows that are still computed, by their index in `tokens`; and which of them go on. Rows
    # that have ended leave a few at a time only, since each leave copies the cache.
    batch = torch.arange(count, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    cache = Cache(layer_class_to_replicate=DynamicLayer)
    with autocast(model), cost.timed("prefill"):
        states, mask, owner = prefill(model, prompts, cache)
        if shares_prompts(model):
            cache = Cache([SharedLayer(layer, owner, steps) for layer in cache.layers])
        else:
            cache.batch_select_indices(owner)  # each row has a copy of its prompt
        logits = to_logits(model, states)[owner]
        mask = mask[owner]
        space = torch.empty_like(logits, dtype=torch.float64, device=device)
    with autocast(model), cost.timed("decode"):
        for t in range(steps):
            token, logprob = choose(
                logits.to(device),
                uniforms[batch, t],
                temperature,
                space[: len(batch)],
            )
            rows = batch[going]
            tokens[rows, t] = token[going]
            logprobs[rows, t] = logprob[going]
            ended = torch.isin(token, stop)
            fits = t + 1 < room[batch]
            going = going & ~ended & fits
            left = int(going.sum())
            if left == 0 or t + 1 == steps:
                break
            if left <= 0.9 * len(batch):  # a tenth has ended
                staying = going.nonzero().squeeze(1)
                cache.batch_select_indices(staying.to(model.device))
                mask = mask[staying.to(model.device)]
                batch = batch[staying]
                token = token[staying]
                going = going[staying]
            # One more token a row, and the mask that holds it.
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            ids = token[:, None].to(model.device)
            states = forward(model, ids, mask, cache)
            logits = to_logits(model, states[:, -1])
    return to_samples(prompts, tokens, logprobs, stop)


def to_samples(prompts, tokens, logprobs, stop):
    """Tokens and their log-probs [rows, max_new_tokens] as Samples, each row up to its own last
    token."""
    lengths = (tokens >= 0).sum(1).tolist()
    stopped = torch.isin(tokens, stop).any(1).tolist()
    tokens = tokens.tolist()
    logprobs = logprobs.tolist()
    samples = []
    for row, prompt in enumerate(prompts):
        size = lengths[row]
        sample = Sample(
            prompt,
            tokens[row][:size],
            logprobs[row][:size],
            stopped[row],
        )
        samples.append(sample)
    return samples


def prefill(model, prompts, cache):
    """Run the model over each distinct prompt once; for rows that go on from them.

    Returns the last position's states [distinct prompts, width], the mask [distinct prompts,
    longest prompt] and the owner [rows]: the index of each of `prompts` among the distinct ones.
    """
    # A dict keeps the order, and each key once.
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    ids, mask = left_pad(distinct, model.device)
    states = forward(model, ids, mask, cache)
    index = {prompt: i for i, prompt in enumerate(distinct)}
    owner = [index[tuple(prompt)] for prompt in prompts]
    owner = torch.tensor(owner, device=model.device)
    return states[:, -1], mask, owner


def forward(model, ids, mask, cache):
    """The last hidden states [rows, length, width], which the output head reads, of the tokens
    `ids` [rows, length] that follow those in the cache. mask [rows, cached and new]: 0 is padding.
    """
    # The first real token of a row is at 0. Positions of padding, and of rows that have ended but
    # not left yet, are clamped: their outputs are never used.
    position = mask.cumsum(1)[:, -ids.shape[1] :] - 1
    position = position.clamp(0, context_length(model) - 1)
    output = model.base_model(
        ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state


def choose(logits, uniforms, temperature, space=None):
    """One token a row and its log-prob, both [rows]; uniforms [rows] in [0, 1). Greedy decoding
    (temperature 0) is a choice and not a distribution: its tokens get the model's own log-probs.

    The cumulative distribution is float64, as the uniforms are: in fp32 tokens at the end of a
    large vocabulary could never be drawn. Works in place, since fresh memory costs more than the
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
        drawn = uniforms[:, None] * total[:, -1:]
        token = torch.searchsorted(total, drawn, right=True)
        token = token.clamp(max=logits.shape[1] - 1)  # rounding at the very edge
    logprob = (weights.gather(1, token) / total[:, -1:]).log()
    return token.squeeze(1), logprob.squeeze(1).float()


def logprobs(model, samples, temperature=1.0) -> list[torch.Tensor]:
    """The log-probs that `generate` recorded, by teacher forcing: fp32 [completion length] each.

    Gradients follow the caller's grad mode. Learning calls `batch_logprobs` itself.
    """
    result = [None] * len(samples)
    for indices in micro_batches(model, samples):
        batch = [samples[index] for index in indices]
        for index, row in zip(indices, batch_logprobs(model, batch, temperature)):
            result[index] = row
    return result


def batch_logprobs(model, samples, temperature):
    """Log-probs of the samples' tokens: fp32 [completion length] each.

    As in sampling, each distinct prompt is computed once, and the completions go on from copies of
    its keys and values; the gradient flows through.
    """
    lengths = [len(sample.tokens) for sample in samples]
    tokens = [torch.LongTensor(sample.tokens) for sample in samples]
    tokens = pad_sequence(tokens, batch_first=True)
    count, width = tokens.shape
    real = torch.arange(width) < torch.tensor(lengths)[:, None]  # which are no padding
    tokens = tokens.to(model.device)
    real = real.to(model.device)
    longest = max(len(sample.prompt) + len(sample.tokens) for sample in samples)
    with autocast(model), recomputed(model, longest):
        cache = Cache(layer_class_to_replicate=LearningLayer)
        prompts = [sample.prompt for sample in samples]
        states, mask, owner = prefill(model, prompts, cache)
        copies = []  # one for each row
        for layer in cache.layers:
            # index_select: the gradient of [owner] is not deterministic.
            keys = layer.keys.index_select(0, owner)
            copies.append(LearningLayer(keys, layer.values.index_select(0, owner)))
        # The prompt's last position predicts the first token, the rest of them predict the rest.
        states = states.index_select(0, owner)[:, None][:, :width]
        if width > 1:
            # A token is fed where another follows it.
            mask = torch.cat([mask[owner], real[:, 1:].long()], 1)
            rest = forward(model, tokens[:, :-1], mask, Cache(copies))
            states = torch.cat([states, rest], 1)
        assert states.shape[:2] == tokens.shape == (count, width)
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

    size = LOGITS // model.config.get_text_config().vocab_size
    scored = []
    for part in zip(states.split(size), tokens.split(size)):
        scored.append(checkpoint(slice_logprobs, *part, use_reentrant=False))
    return torch.cat(scored)


# ---------------------------------------------------------------------------------------- loading


def load_policy(name, device=None, precision=None):
    """Load a causal LM and its tokenizer: (model, tokenizer).

    name: `toy`, a model folder or a hub id; safetensors only, no remote code. precision: the
    compute dtype, fp32 or bf16 (default: bf16 on CUDA, else fp32); the weights are fp32 everywhere,
    since a learning rate of 1e-6 rounds away in bf16. `model.generation_config` is replaced by a
    plain one with the full stop set: settings such as a repetition penalty would make
    `model.generate` sample another policy than the one trained. Raises InputError.
    """
    model, tokenizer = load_folder(name, device, precision)
    settle_attention(model, name)
    return model, tokenizer


def settle_attention(model, name):
    """Let rows share the keys of their prompts in sampling, if that finds the same log-probs as the
    library's attention. If not, one line says so. Raises InputError for a model that no key-value
    cache can sample."""
    library = model.config._attn_implementation
    if library == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation("shared_prompts")
        away, reason = sampling_error(model)
        if away < 1e-3:
            return
        print(f"note: {name}: each row copies its prompt ({reason})")
        model.set_attn_implementation(library)
    away, reason = sampling_error(model)
    if not away < 0.1:  # Mamba and its like keep another state
        raise InputError(f"model {name}: sampling with a key-value cache fails: {reason}")


@torch.no_grad()
def sampling_error(model):
    """How far sampling is from scoring, in which the library's attention is at work: the mean |log
    ratio|, and the same in words. In fp32, whatever the compute dtype: the rounding of bf16 would
    hide what a model computes otherwise."""
    dtype = dtype_of(model)
    model.compute_dtype = torch.float32
    prompts = [list(range(length)) for length in range(5, 9)]
    try:
        samples = generate(model, prompts, 2, max_new_tokens=4, stop=())
        scored = torch.cat(logprobs(model, samples)).cpu()
        drawn = torch.tensor([sample.logprobs for sample in samples])
        away = (scored - drawn.flatten()).abs().mean().item()
    except Exception as error:  # models differ in what caches and attention get
        return math.inf, one_line(error)
    finally:
        model.compute_dtype = dtype
    return away, f"mean |log ratio| {away:.2g}"
