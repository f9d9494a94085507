"""The policy and its rollouts: load and save a model, sample completions, score given completions.

All that is trained here is a *sample*: a prompt, the tokens that the policy added to it, and the
log-prob of each of them at the moment it was drawn. Responses (first-order rollout), critiques
(second-order rollout), refinements and second attempts are all made by the one function `generate`;
they differ in the prompt only.

    python rollout.py [MODEL]      the sampler beside `model.generate`: same greedy tokens, speed
"""

import contextlib
import functools
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer

from critique import solve
from reward import InputError, one_line

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOY = Path(__file__).parent / "toy"
CACHE_BYTES = 4 << 30  # of one sampling batch on a CPU; on CUDA a quarter of the device's memory
MICRO_TOKENS = 8192  # tokens in one forward pass of `logprobs` ...
MICRO_LOGITS = 1 << 27  # ... and at most this many logits: 0.5 GiB in fp32


@dataclass
class Sample:
    """One completion of one prompt."""

    prompt: list[int]  # token ids
    tokens: list[int]  # token ids of the completion, the stop token included
    logprobs: list[float]  # one per token, in nats, as drawn; [] for a given text
    stopped: bool  # True: ended with a stop token; False: cut at the limit


# ------------------------------------------------------------------------------------ the policy


class FloatHead(torch.nn.Linear):
    """The output head in fp32, under autocast too: bf16 logits double the distance between what
    the sampler and what the learner take for a token's log-prob."""

    def forward(self, hidden):
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def load_policy(name, device=None, precision=None):
    """Load a causal LM and its tokenizer: (model, tokenizer).

    name: `toy`, a model folder or a hub id; safetensors only, no remote code. precision: fp32 or
    bf16 arithmetic (default: bf16 on CUDA, else fp32); the weights are fp32 everywhere, since a
    learning rate of 1e-6 rounds away in bf16. `model.generation_config` is replaced by a plain one
    with the full stop set (see `stop_set`): settings such as a repetition penalty would make
    `model.generate` sample another policy than the one trained. Raises InputError.
    """
    path = TOY if str(name) == "toy" else name
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {str(device)!r}: {one_line(error)}") from error
    how = dict(dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **how)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the library makes of a broken folder
        raise InputError(f"cannot load model {str(name)!r}: {one_line(error)}") from error
    for kind in ("missing", "unexpected", "mismatched"):
        if report[kind + "_keys"]:  # the library would fill them at random, or drop them
            found = ", ".join(sorted(map(str, report[kind + "_keys"])))[:200]
            raise InputError(f"model {str(name)!r}: {kind} weights: {found}")
    known, rows = len(tokenizer), model.get_input_embeddings().num_embeddings
    if known > rows:
        raise InputError(f"model {str(name)!r}: {known} tokens in its tokenizer, {rows} embeddings")
    stops = stop_set(model, tokenizer)
    if not stops:
        raise InputError(f"model {str(name)!r}: no EOS token, so no completion could ever end")
    if tokenizer.eos_token_id is None:  # demonstrations end with it
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    pad = stops[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    plain = dict(eos_token_id=stops, pad_token_id=pad, bos_token_id=tokenizer.bos_token_id)
    limit = model.generation_config.max_new_tokens  # that a run of train.py has left
    model.generation_config = GenerationConfig(**plain, max_new_tokens=limit)
    if type(model.get_output_embeddings()) is torch.nn.Linear:
        model.get_output_embeddings().__class__ = FloatHead
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    model.arithmetic = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return model.to(device).eval(), tokenizer  # eval for good: dropout makes another policy


def stop_set(model, tokenizer):
    """The sorted ids that end a completion: EOS of the config, of the generation config and of the
    tokenizer, and the special token behind an assistant's turn in the chat template. A chat model
    often names its end of turn in one of the four only."""
    stops = set()
    for config in (model.config, model.generation_config, tokenizer):
        eos = config.eos_token_id
        stops.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    if tokenizer.chat_template:
        with contextlib.suppress(InputError):  # a template that wants more than these two turns
            behind = render(tokenizer, PROBE[:2]).split(PROBE[1]["content"])[1:]
            ids = tokenizer("".join(behind), add_special_tokens=False).input_ids
            stops.update([i for i in ids if i in tokenizer.all_special_ids][:1])
    return sorted(stops)


def save_policy(model, tokenizer, folder):
    """Write `folder` so that `AutoModelForCausalLM.from_pretrained(folder)` loads it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def autocast(model):
    """The arithmetic that the policy was loaded for; the same for sampling and for learning."""
    if getattr(model, "arithmetic", torch.float32) == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(model.device.type, dtype=model.arithmetic)


def context_length(model):
    """The longest sequence in tokens that the model's positions allow."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


# -------------------------------------------------------------------------- text to tokens, back

ROLES = ("user", "assistant", "user")
PROBE = [{"role": role, "content": f"\u2460probe{i}\u2461"} for i, role in enumerate(ROLES)]


def render(tokenizer, messages, **options):
    """A conversation as text, through the chat template; a plain form where there is none."""
    if not tokenizer.chat_template:
        end = tokenizer.eos_token or ""
        turns = [f"{m['role'].capitalize()}:\n{m['content']}" for m in messages]
        turns = [t + end if m["role"] == "assistant" else t for t, m in zip(turns, messages)]
        return "\n\n".join([*turns, "Assistant:\n"])
    options["enable_thinking"] = False  # for the templates that know it
    fixed = "{% macro strftime_now(form) %}01 Jan 2026{% endmacro %}"  # the same prompt tomorrow
    try:
        options["chat_template"] = fixed + tokenizer.chat_template
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program and may raise anything
        raise InputError(f"the chat template: {one_line(error)}") from error


@functools.lru_cache
def turn_marks(tokenizer, template):
    """The texts that mark turns: the special tokens, and what the template writes between contents.

    Of the latter those that are no mere words: `[INST]` or `### User:`, but not the `user` that
    stands behind a special token.
    """
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    special = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
    text = render(tokenizer, PROBE, add_generation_prompt=True)
    between = re.split("|".join(m["content"] for m in PROBE), text)[1:]
    pieces = re.split("|".join(["\n", *map(re.escape, special)]), "\n".join(between))
    pieces = {piece.strip() for piece in pieces}
    return frozenset(special) | {p for p in pieces if not p.replace(" ", "").isalnum() and p}


def unmarked(text, marks):
    """`text` without the marks, also without those that taking one out would spell; linear time."""
    if not any(mark in text for mark in marks):
        return text
    lengths, ends = sorted({len(mark) for mark in marks}), {mark[-1] for mark in marks}
    kept = []
    for character in text:
        kept.append(character)
        if character in ends:
            for length in lengths:
                if "".join(kept[-length:]) in marks:
                    del kept[-length:]
                    break
    return "".join(kept)


def encode_chat(tokenizer, messages):
    """Token ids of a conversation [{"role", "content"}, ...] up to where the assistant is to go on.

    Marks of turns that are spelled out in the contents are taken out: a response is quoted in the
    critique's prompt, and a policy that writes `<|im_end|>` letter by letter must not be able to
    close its own quotation. Raises InputError where the chat template raises anything.
    """
    marks = turn_marks(tokenizer, tokenizer.chat_template)
    clean = [m | {"content": unmarked(m["content"], marks)} for m in messages]
    if tokenizer.chat_template:  # it brings its own BOS
        text = render(tokenizer, clean, add_generation_prompt=True)
        return tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(render(tokenizer, clean)).input_ids
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids  # some close every text with EOS


def decode(tokenizer, sample):
    """The text of a completion, without special tokens and surrounding white space."""
    how = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return tokenizer.decode(sample.tokens, **how).strip()


def demonstration(tokenizer, messages, text):
    """A given text as a Sample, to be learned: its tokens and the EOS that ends a turn."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return Sample(encode_chat(tokenizer, messages), tokens, [], True)


# -------------------------------------------------------------------------------------- sampling


class GrowingLayer(DynamicLayer):
    """One layer's keys and values [rows, heads, length, head_dim], with room to grow.

    The library's own layer copies everything seen so far at every token; this one writes into
    spare room behind it and copies only when that is used up, or when rows have left the batch.
    """

    room = 64
    buffers = None

    def update(self, keys, values, *args, **kwargs):
        keys = keys.to(values.dtype)  # under autocast the rotary embedding leaves them in fp32
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            return keys, values
        old, new = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        own = self.buffers is not None and self.buffers[0].data_ptr() == self.keys.data_ptr()
        if not own or self.buffers[0].shape[2] < new:
            shape = (*keys.shape[:2], new + self.room)
            self.buffers = [x.new_empty(*shape, x.shape[3]) for x in (keys, values)]
            self.buffers[0][:, :, :old] = self.keys
            self.buffers[1][:, :, :old] = self.values
        self.buffers[0][:, :, old:new] = keys
        self.buffers[1][:, :, old:new] = values
        self.keys, self.values = (buffer[:, :, :new] for buffer in self.buffers)
        return self.keys, self.values


def token_logprobs(logits, temperature):
    """Log-probs [..., vocabulary] in fp32 of the distribution that tokens are drawn from.

    Greedy decoding (temperature 0) is a choice and not a distribution: its tokens get the log-probs
    of the model itself, at temperature 1.
    """
    return (logits.float() / (temperature or 1.0)).log_softmax(-1)


def left_pad(rows, device):
    """Rows of ids, right-aligned: ids and mask, both [rows, longest]. The pad id is never looked
    at: a pad token may equal EOS, or be sampled. Mask by length."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def positions(mask):
    """Position ids of left-padded rows: the first real token is at 0."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def rows_that_fit(model, length):
    """How many rows of `length` tokens one sampling batch may have: keys, values, some logits.

    From the shapes and the device's whole memory, not from what is free at the moment: how a batch
    is cut shapes its rounding, and a resumed run must cut alike.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = getattr(model, "arithmetic", torch.float32).itemsize
    row = length * config.num_hidden_layers * 2 * heads * width * size + 16 * config.vocab_size
    cuda = model.device.type == "cuda"
    memory = torch.cuda.mem_get_info(model.device)[1] // 4 if cuda else CACHE_BYTES
    return max(1, memory // row)


def generate(
    model, prompts, n=1, max_new_tokens=256, temperature=1.0, stop=None, seed=0, progress=None
):
    """Sample n completions for each prompt (a list of token ids); Samples in prompt-major order.

    temperature 0 is greedy. stop: ids that end a completion (None: the model's own stop set). Row
    i's j-th token is drawn with the j-th of row i's own random numbers, so that a seed gives the
    same tokens however the rows are cut into parts. Rows that do not fit the memory for caches are
    sampled in parts, halved again should the device still run out. progress: called with the number
    of rows done. A completion that reaches the end of the context is cut there. Raises InputError
    for a prompt that is empty or leaves no room, or for bad settings.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        given = f"{n}, {max_new_tokens}, {temperature}"
        raise InputError(f"generate needs n, max_new_tokens >= 1, temperature >= 0; got {given}")
    prompts, context = [list(prompt) for prompt in prompts], context_length(model)
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise InputError(f"prompt {i} has {len(prompt)} tokens, the model's context {context}")
    if stop is None:
        stop = model.generation_config.eos_token_id
    stop = [stop] if isinstance(stop, int) else list(stop or ())
    stop = torch.tensor(stop, dtype=torch.long, device=model.device)
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(prompts) * n, max_new_tokens, generator=random)
    todo = sorted(range(len(noise)), key=lambda row: len(prompts[row // n]))  # less padding
    samples, most = [None] * len(todo), max(1, len(todo))
    while todo:
        longest = min(context, len(prompts[todo[-1] // n]) + max_new_tokens)
        size = min(most, rows_that_fit(model, longest), len(todo))
        part, done = todo[-size:], []  # the longest first: fail early
        rows = [prompts[row // n] for row in part]
        try:
            done = sample_rows(model, rows, noise[part], temperature, stop)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if not done:  # outside of `except`, where the error still holds on to the tensors
            most = size // 2
            torch.cuda.empty_cache()
            continue
        for row, sample in zip(part, done):
            samples[row] = sample
        del todo[-size:]
        if progress:
            progress(size)
    return samples


def forward(model, ids, mask, position, keep, cache=None):
    """The logits [rows, keep, vocabulary] of the last `keep` positions."""
    how = dict(past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep)
    return model(input_ids=ids, attention_mask=mask, position_ids=position, **how).logits


def prefill(model, prompts, cache):
    """Run the model over each distinct prompt once, and give every row a copy of its keys, values.

    Returns the last position's logits [rows, vocabulary] and the mask [rows, longest prompt].
    """
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids, mask = left_pad(list(place), model.device)
    logits = forward(model, ids, mask, positions(mask), 1, cache)[:, -1]
    owner = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=model.device)
    cache.batch_select_indices(owner)
    return logits[owner], mask[owner]


def decode_step(model, token, mask, cache):
    """The next logits [rows, vocabulary] after one more token a row, and the mask that holds it."""
    # clamped for rows that have ended but not left yet: nothing reads what they decode
    position = mask.sum(1, keepdim=True).clamp(max=context_length(model) - 1)
    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return forward(model, token[:, None], mask, position, 1, cache)[:, -1], mask


def choose(logits, noise, temperature):
    """One token a row and its log-prob, both [rows]; noise [rows] in [0, 1)."""
    logp = token_logprobs(logits, temperature)
    token = logp.argmax(-1)
    if temperature > 0:  # invert the cumulative distribution at this row's own random number
        total = logp.exp().cumsum(-1)
        drawn = torch.searchsorted(total, noise[:, None] * total[:, -1:], right=True).squeeze(1)
        token = drawn.clamp(max=logp.shape[1] - 1)  # rounding at the very edge
    return token, logp.gather(1, token[:, None]).squeeze(1)


@torch.no_grad()
def sample_rows(model, prompts, noise, temperature, stop):
    """One part of `generate`: prefill, then token by token; rows that have ended leave."""
    device, count, steps = model.device, *noise.shape
    room = [context_length(model) - len(prompt) for prompt in prompts]
    limit, noise = torch.tensor(room, device=device), noise.to(device)
    tokens = torch.zeros(count, steps, dtype=torch.long, device=device)
    logprob = torch.zeros(count, steps, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # in the batch: rows of `tokens`
    alive = torch.ones(count, dtype=torch.bool, device=device)  # of those
    with autocast(model):
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        logits, mask = prefill(model, prompts, cache)
        for t in range(steps):
            token, logp = choose(logits, noise[rows, t], temperature)
            live = rows[alive]
            tokens[live, t], logprob[live, t] = token[alive], logp[alive]
            length[live] += 1
            stopped[live] = torch.isin(token[alive], stop)
            alive = alive & ~stopped[rows] & (length[rows] < limit[rows])
            left = int(alive.sum())
            if left == 0 or t + 1 == steps:
                break
            if left <= 0.9 * len(rows):  # a few at a time: each leave copies the cache
                cache.batch_select_indices(alive.nonzero().squeeze(1))
                rows, token, mask, alive = rows[alive], token[alive], mask[alive], alive[alive]
            logits, mask = decode_step(model, token, mask, cache)
    ends = zip(prompts, tokens.tolist(), logprob.tolist(), length.tolist(), stopped.tolist())
    return [Sample(prompt, ids[:size], logp[:size], end) for prompt, ids, logp, size, end in ends]


# --------------------------------------------------------------------------------------- scoring


def micro_batches(model, samples, parts=1):
    """Cut `samples` for forward passes: lists of indices; with `parts`, of that share of the size.

    Either the completions of a prompt stay together, which is then computed once for all of them,
    or like lengths do, which saves padding: whichever costs fewer tokens.
    """
    vocabulary = model.config.get_text_config().vocab_size
    prompts, lengths = [tuple(s.prompt) for s in samples], [len(s.tokens) for s in samples]

    def cut(order):
        """What batches in this order cost in tokens, with their padding, and the batches."""
        batches, costs, distinct, deep, wide = [], [], set(), 0, 0
        for i in order:
            if batches:
                deep, wide = max(deep, len(prompts[i])), max(wide, lengths[i])
                distinct.add(prompts[i])
                rows = len(batches[-1]) + 1
                cost, logits = len(distinct) * deep + rows * wide, rows * wide * vocabulary
                if parts * max(cost / MICRO_TOKENS, logits / MICRO_LOGITS) <= 1:
                    batches[-1].append(i)
                    costs[-1] = cost
                    continue
            batches.append([i])
            distinct, deep, wide = {prompts[i]}, len(prompts[i]), lengths[i]
            costs.append(deep + wide)
        return sum(costs), batches

    every = range(len(samples))
    by_prompt = sorted(every, key=lambda i: (len(prompts[i]), prompts[i], lengths[i]))
    by_length = sorted(every, key=lambda i: (len(prompts[i]) + lengths[i], lengths[i]))
    return min(cut(by_prompt), cut(by_length))[1]


def logprobs(model, samples, temperature=1.0) -> list[torch.Tensor]:
    """The log-probs that `generate` recorded, by teacher forcing: fp32 [completion length] each.

    Gradients follow the caller's grad mode. As in sampling, each distinct prompt is computed once,
    and the completions attend to their copies of its keys and values; the gradient flows through.
    """
    result, device = [None] * len(samples), model.device
    for part in micro_batches(model, samples):
        batch = [samples[i] for i in part]
        completion = pad_sequence([torch.tensor(s.tokens) for s in batch], True).to(device)
        width, lengths = completion.shape[1], torch.tensor([len(s.tokens) for s in batch])
        with autocast(model):
            cache = Cache(layer_class_to_replicate=DynamicLayer)
            logits, mask = prefill(model, [s.prompt for s in batch], cache)
            logits = logits[:, None]
            if width > 1:
                real = torch.arange(width - 1) < lengths[:, None] - 1
                mask = torch.cat([mask, real.long().to(device)], 1)
                place = positions(mask)[:, 1 - width :]
                rest = forward(model, completion[:, :-1], mask, place, width - 1, cache)
                logits = torch.cat([logits, rest], 1)
        chosen = token_logprobs(logits, temperature).gather(-1, completion[..., None]).squeeze(-1)
        for row, i in zip(chosen, part):
            result[i] = row[: len(samples[i].tokens)]
    return result


def main(name="toy"):
    """Show the sampler: the greedy tokens of `model.generate`, and the speed of both."""
    model, tokenizer = load_policy(name)
    chats = [solve(f"Compute {work} modulo 10.") for work in ("3*4+5", "9-7*2-5", "8*9-7*6")]
    prompts = [encode_chat(tokenizer, chat) for chat in chats * 16]
    ids, mask = left_pad(prompts, model.device)
    start = time.time()
    with torch.no_grad(), autocast(model):
        theirs = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=64)
    middle = time.time()
    ours = generate(model, prompts, max_new_tokens=64, temperature=0)
    end = time.time()
    for s, row in list(zip(ours, theirs[:, ids.shape[1] :].tolist()))[:3]:
        print(f"{decode(tokenizer, s)}\n[as model.generate: {s.tokens == row[: len(s.tokens)]}]\n")
    ratio = (middle - start) / (end - middle)
    tokens = sum(len(s.tokens) for s in ours) / (end - middle)
    print(f"{len(ours)} rows: {tokens:.0f} tokens/s, {ratio:.2f} times model.generate's")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except InputError as error:
        sys.exit(f"error: {error}")
