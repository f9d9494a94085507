"""The policy and its rollouts: load and save a model, sample completions, score given completions.

All that is trained here is a *sample*: a prompt, the tokens that the policy added to it, and the
log-prob of each of them at the moment it was drawn. Responses (first-order rollout), critiques
(second-order rollout), refinements and second attempts are all made by the one function `generate`;
they differ in the prompt only.

    python rollout.py [MODEL]      one question by the sampler and by `model.generate`
"""

import bisect
import contextlib
import functools
import re
import sys
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
from transformers.masking_utils import sdpa_mask

from critique import solve
from reward import InputError, exits, one_line

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOY = Path(__file__).parent / "toy"
CPU_BYTES = 1 << 27  # see `memory`
LOGITS = 1 << 24  # that scoring computes at once
LARGE = 1 << 16  # a weight of more numbers than this is laid out anew on a CPU, see `packed`
SPENT = Counter()  # seconds/KIND of work, tokens computed, tokens/useful: see `spent`


@contextlib.contextmanager
def timed(model, kind):
    """Add the seconds that the block takes to SPENT."""
    start = time.perf_counter()
    yield
    if model.device.type == "cuda":  # where work goes on after the call
        torch.cuda.synchronize(model.device)
    SPENT["seconds/" + kind] += time.perf_counter() - start


def spent():
    """What has been added to SPENT since the last call, as metrics; `padding` is the share of the
    tokens computed that nobody needed."""
    metrics = Counter(SPENT)
    metrics["padding"] = 1 - metrics.pop("tokens/useful", 1) / metrics.pop("tokens/computed", 1)
    SPENT.clear()
    return metrics


@dataclass
class Sample:
    """One completion of one prompt."""

    prompt: list[int]  # token ids
    tokens: list[int]  # token ids of the completion, the stop token included
    logprobs: list[float]  # one per token, in nats, as drawn; [] for a given text
    stopped: bool  # True: ended with a stop token; False: cut at the limit


# ------------------------------------------------------------------------------------ the policy


def load_policy(name, device=None, precision=None):
    """Load a causal LM and its tokenizer: (model, tokenizer).

    name: `toy`, a model folder or a hub id; safetensors only, no remote code. precision: fp32 or
    bf16 arithmetic (default: bf16 on CUDA, else fp32); the weights are fp32 everywhere, since a
    learning rate of 1e-6 rounds away in bf16. `model.generation_config` is replaced by a plain one
    with the full stop set (see `stop_set`): settings such as a repetition penalty would make
    `model.generate` sample another policy than the one trained. Raises InputError.
    """
    path = TOY if str(name) == "toy" else name
    how = dict(dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
        model, report = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **how)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever the library makes of a broken folder
        where = f"model {str(name)!r} on device {str(device)!r}"
        raise InputError(f"cannot load {where}: {one_line(error)}") from error
    for kind, keys in report.items():
        if keys:  # the library would fill them at random, or drop them
            found = ", ".join(sorted(map(str, keys)))[:200]
            raise InputError(f"model {str(name)!r}: {kind.replace('_', ' ')}: {found}")
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
    model.generation_config = transformers.GenerationConfig(**plain, max_new_tokens=limit)
    prepare(model.to(device))
    precision = precision or ("bf16" if device.type == "cuda" else "fp32")
    model.arithmetic = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return model, tokenizer


@torch.no_grad()
def prepare(model):
    """Set a model up: an output head to be used by itself, attention through `attend`. Where one is
    not to be had, scoring holds all logits at once, or rows get copies of their prompts."""
    model.eval()  # for good: dropout makes another policy
    names = signature(model.forward).parameters  # renamed in transformers 5.24
    model.cache_key = "cache" if "cache" in names else "past_key_values"
    model.plain_head, model.arithmetic = False, torch.float32
    ids, library = torch.arange(8, device=model.device)[None], model.config._attn_implementation
    with contextlib.suppress(Exception):  # is the head all that is behind the states?
        states = model.base_model(ids).last_hidden_state
        model.plain_head = torch.equal(model.get_output_embeddings()(states), model(ids).logits)
    if library == "sdpa" and model._supports_attention_backend:
        model.set_attn_implementation("rollout")
        if not agrees(model):
            model.set_attn_implementation(library)


def agrees(model):
    """Does the sampler find the log-probs of a scoring pass, in which the library's attention is at
    work? Models differ in what attention gets."""
    with contextlib.suppress(Exception):
        samples = generate(model, [[1], [2, 1]], max_new_tokens=3, temperature=0, stop=())
        drawn = torch.tensor([s.logprobs for s in samples])
        return torch.allclose(torch.stack(logprobs(model, samples)).cpu(), drawn, atol=1e-3)
    return False


def stop_set(model, tokenizer):
    """The sorted ids that end a completion: EOS of the config, of the generation config and of the
    tokenizer, and the special token behind an assistant's turn in the chat template. A chat model
    often names its end of turn in one of the four only."""
    stops = set()
    for config in (model.config, model.generation_config, tokenizer):
        eos = config.eos_token_id
        stops.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
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
    return torch.autocast(model.device.type, model.arithmetic, model.arithmetic != torch.float32)


def context_length(model):
    """The longest sequence in tokens that the model's positions allow."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


# -------------------------------------------------------------------------- text to tokens, back

ROLES = ("user", "assistant", "user")
PROBE = [{"role": role, "content": f"\u2460probe{i}\u2461"} for i, role in enumerate(ROLES)]
PLAIN = (  # for a tokenizer without a chat template
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}:\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def render(tokenizer, messages, **options):
    """A conversation as text, through the chat template; a plain one where there is none."""
    options["enable_thinking"] = False  # for the templates that know it
    fixed = "{% macro strftime_now(form) %}01 Jan 2026{% endmacro %}"  # the same prompt tomorrow
    try:
        options["chat_template"] = fixed + (tokenizer.chat_template or PLAIN)
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:  # a template is a program and may raise anything
        raise InputError(f"the chat template: {one_line(error)}") from error


@functools.lru_cache
def turn_marks(tokenizer, template):
    """The texts that mark turns: the special tokens, and what the template writes between contents.

    Of the latter those that are no mere words: `[INST]` or `### User:`, but not the `user` that
    stands behind a special token. A pattern that finds any of them, the longest first.
    """
    special = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special}
    special = sorted(special | set(tokenizer.all_special_tokens), key=len, reverse=True)
    text = render(tokenizer, PROBE, add_generation_prompt=True)
    between = re.split("|".join(m["content"] for m in PROBE), text)[1:]
    pieces = re.split("|".join(["\n", *map(re.escape, special)]), "\n".join(between))
    pieces = {p for p in map(str.strip, pieces) if p and not p.replace(" ", "").isalnum()}
    marks = pieces.union(special)
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


def encode_chat(tokenizer, messages):
    """Token ids of a conversation [{"role", "content"}, ...] up to where the assistant is to go on.

    Marks of turns that are spelled out in the contents are replaced: a response is quoted in the
    critique's prompt, and a policy that writes `<|im_end|>` letter by letter must not be able to
    close its own quotation. Raises InputError where the chat template raises anything.
    """
    marks = turn_marks(tokenizer, str(tokenizer.chat_template))
    # by a sign that no mark holds: what stands before and behind must not become one
    clean = [m | {"content": marks.sub("\ufffd", m["content"])} for m in messages]
    text = render(tokenizer, clean, add_generation_prompt=True)  # with its own BOS
    return tokenizer(text, add_special_tokens=False).input_ids


def decode(tokenizer, sample):
    """The text of a completion, without special tokens and surrounding white space."""
    how = dict(skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return tokenizer.decode(sample.tokens, **how).strip()


def demonstration(tokenizer, messages, text):
    """A given text as a Sample, to be learned: its tokens and the EOS that ends a turn."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return Sample(encode_chat(tokenizer, messages), tokens, [], True)


# -------------------------------------------------------------------------------------- sampling


class SharedLayer(DynamicLayer):
    """One layer's keys and values: the prompts' [prompts, heads, length, head_dim], once for all
    rows that go on from one, and the rows' own [rows, heads, added, head_dim].

    The library's layer copies everything at every token; this one writes into room that is made
    for all that may come, time first, so that what a token writes lies together.
    """

    def __init__(self, most):
        super().__init__()
        self.prompts, self.most, self.added = None, most, 0

    def update(self, keys, values, *args, **kwargs):
        keys = keys.to(values.dtype)  # under autocast the rotary embedding leaves them in fp32
        if self.prompts is None:
            return super().update(keys, values)
        for room, new in zip(self.room, (keys, values)):
            room[self.added] = new.squeeze(2)
        self.added += 1
        self.keys, self.values = (room[: self.added].permute(1, 2, 0, 3) for room in self.room)
        self.keys.layer = weakref.proxy(self)  # for `attend`; no cycle that outlives the rollout
        return self.keys, self.values

    def get_seq_length(self):
        before = super().get_seq_length() if self.prompts is None else self.prompts[0].shape[2]
        return before + self.added

    def batch_select_indices(self, rows):
        """After the prefill: row i goes on from prompt rows[i], by at most `most` tokens. From then
        on: only these rows stay, and the prompts that they go on from."""
        if self.prompts is None:
            self.owner, self.prompts = rows, [self.keys.contiguous(), self.values.contiguous()]
            shapes = [(self.most, len(rows), *x.shape[1::2]) for x in self.prompts]
            self.room = [self.keys.new_empty(shape) for shape in shapes]
        else:
            prompts, self.owner = self.owner[rows].unique(return_inverse=True)
            self.prompts = [x[prompts] for x in self.prompts]
            self.room = [room[:, rows] for room in self.room]
        self.slots = by_owner(self.owner)


def by_owner(owner):
    """Rows in a table with a line for each prompt: `table` [prompts * widest] has the row in each
    place, 0 where there is none, and `place` [rows] is where each row stands. owner [rows] must be
    sorted."""
    sizes = torch.bincount(owner)
    rows, widest = torch.arange(len(owner), device=owner.device), int(sizes.max())
    place = owner * widest + rows - (sizes.cumsum(0) - sizes)[owner]
    return owner.new_zeros(len(sizes) * widest).scatter(0, place, rows), place


def times_prompts(rows, prompts, table, place):
    """`rows` [rows, heads, m, a] times their own prompt's matrix of `prompts` [prompts, heads, a,
    b]: one product for all rows of a prompt, which so is read once."""
    count, heads, a, b = prompts.shape
    lines = rows[table].view(count, -1, heads, rows.shape[2], a).transpose(1, 2)
    result = lines.reshape(count, heads, -1, a) @ prompts
    result = result.view(*lines.shape[:-1], b).transpose(1, 2)
    return result.reshape(-1, *result.shape[2:])[place]


def attend(module, query, keys, values, attention_mask, scaling=None, **how):
    """Attention of transformers' models: in decoding over the prompt's keys, which its rows share,
    and over the row's own; else the library's. query [rows, query heads, 1, head_dim], keys and
    values [rows, heads, added, head_dim], mask [rows, 1, 1, length]: paddings, windows."""
    layer = getattr(keys, "layer", None)
    if layer is None:
        return sdpa(module, query, keys, values, attention_mask, scaling=scaling, **how)
    rows, size = len(query), layer.prompts[0].shape[2]
    query = query.reshape(rows, keys.shape[1], -1, query.shape[3])  # by the head that they read
    query = (query * (query.shape[3] ** -0.5 if scaling is None else scaling)).to(values.dtype)
    shared = times_prompts(query, layer.prompts[0].mT, *layer.slots)
    # in the other order a CPU copies bf16 keys first; elsewhere either will do
    own = (keys @ query.mT).mT if keys.dtype == torch.bfloat16 else query @ keys.mT
    scores = torch.cat([shared, own], -1)
    if attention_mask is not None:
        scores += torch.where(attention_mask, 0.0, -torch.inf)
    weights = scores.softmax(-1).to(values.dtype)
    shared = times_prompts(weights[..., :size], layer.prompts[1], *layer.slots)
    return (shared + weights[..., size:] @ values).reshape(rows, 1, -1, values.shape[3]), None


transformers.AttentionInterface.register("rollout", attend)
transformers.AttentionMaskInterface.register("rollout", sdpa_mask)


def left_pad(rows, device):
    """Rows of ids, right-aligned: ids and mask, both [rows, longest]. The pad id is never looked
    at: a pad token may equal EOS, or be sampled. Mask by length."""
    rows = [torch.tensor(row) for row in rows]
    pad = functools.partial(pad_sequence, batch_first=True, padding_side="left")
    return pad(rows).to(device), pad([torch.ones_like(row) for row in rows]).to(device)


def memory(model):
    """Bytes that a batch may take: on CUDA a quarter of the device's memory, all of it and not what
    is free at the moment, since how a batch is cut shapes its rounding, and a resumed run must cut
    alike. On a CPU, where more brings no speed, twice the weights, or CPU_BYTES if that is more."""
    if model.device.type == "cuda":
        return torch.cuda.mem_get_info(model.device)[1] // 4
    return max(CPU_BYTES, 8 * model.num_parameters())


def rows_that_fit(model, length, n):
    """How many rows of `length` tokens one sampling batch may have: keys, values, the prefill's
    widest tensors, which n rows share, some logits."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = model.arithmetic.itemsize
    token = config.num_hidden_layers * 2 * heads * width * size + 32 * config.hidden_size // n
    return max(1, memory(model) // (length * token + 16 * config.vocab_size))


def attempt(last, work, *args):
    """work(*args); None where the device runs out of memory, but where this is the last attempt."""
    try:
        return work(*args)
    except torch.OutOfMemoryError:
        if last:
            raise
    torch.cuda.empty_cache()  # outside of `except`, where the error still holds on to the tensors


@torch.no_grad()
def generate(model, prompts, n=1, max_new_tokens=256, temperature=1.0, stop=None, seed=0, bar=None):
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
    asked, context = [list(prompt) for prompt in prompts for _ in range(n)], context_length(model)
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise InputError(f"prompt {i} has {len(prompt)} tokens, the model's context {context}")
    ends = model.generation_config.eos_token_id if stop is None else stop
    stop = torch.tensor(ends, dtype=torch.long, device=model.device)
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(asked), max_new_tokens, generator=random).to(model.device)
    todo = sorted(range(len(asked)), key=lambda row: (len(asked[row]), asked[row]))  # less padding
    samples, most = [None] * len(todo), max(1, len(todo))
    with packed(model):
        while todo:
            longest = min(context, len(asked[todo[-1]]) + max_new_tokens)
            size = min(most, rows_that_fit(model, longest, n), len(todo))
            part = todo[-size:]  # the longest first: fail early
            rows = [asked[row] for row in part]
            done = attempt(size == 1, sample_rows, model, rows, noise[part], temperature, stop)
            if done is None:
                most = size // 2
                continue
            for row, sample in zip(part, done):
                samples[row] = sample
            del todo[-size:]
            if bar:
                bar.update(size)
    return samples


def forward(model, ids, mask, position, keep, cache):
    """What the output head reads at the last `keep` positions [rows, keep, width]. Of a model that
    does more behind its head (a soft cap) these are its logits: see `to_logits`."""
    how = dict(attention_mask=mask, position_ids=position, use_cache=True)
    how[model.cache_key] = cache
    if model.plain_head:
        return model.base_model(ids, **how).last_hidden_state[:, -keep:]
    return model(ids, logits_to_keep=keep, **how).logits


def to_logits(model, states):
    """From what `forward` returned to logits; a plain head's in fp32 under autocast too: bf16 would
    double the distance between what sampler and learner take for a token's log-prob."""
    with torch.autocast(states.device.type, enabled=False):
        states = states.float()
        return model.get_output_embeddings()(states) if model.plain_head else states


@contextlib.contextmanager
def packed(model):
    """Inside the block large weights lie as a CPU reads them best, in oneDNN's layout: there
    products with few rows take 0.5 to 0.9 of their time. For sampling: gradients and updates do not
    reach the copies, and in `seconds/prefill` is the time to make them."""
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and m.weight.numel() > LARGE]
    usable = model.device.type == "cpu" and torch.backends.mkldnn.is_available()
    head = model.plain_head and model.get_output_embeddings()  # in fp32: see `to_logits`
    with contextlib.ExitStack() as undo:
        with timed(model, "prefill"), contextlib.suppress(RuntimeError):  # of a CPU without bf16
            for layer in layers if usable else []:
                kind = torch.float32 if layer is head else model.arithmetic
                weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.to(kind))
                layer.forward = functools.partial(times_packed, weight, layer.bias)
                undo.callback(vars(layer).pop, "forward", None)
        yield


def times_packed(weight, bias, rows):
    """What torch.nn.Linear gives, of a weight that `packed` has laid out."""
    bias = bias if bias is None else bias.to(weight.dtype)
    return torch.ops.mkldnn._linear_pointwise(rows.to(weight.dtype), weight, bias, "none", [], "")


def prefill(model, prompts, cache):
    """Run the model over each distinct prompt once; for rows that go on from them.

    Returns the last position's states [distinct prompts, width], the mask [distinct prompts,
    longest prompt] and the owner [rows]: the place of each of `prompts` among the distinct ones.
    """
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids, mask = left_pad(list(place), model.device)
    # positions: the first real token of a row is at 0
    states = forward(model, ids, mask, (mask.cumsum(1) - 1).clamp(min=0), 1, cache)[:, -1]
    SPENT.update({"tokens/computed": ids.numel(), "tokens/useful": sum(map(len, place))})
    return states, mask, torch.tensor([place[tuple(p)] for p in prompts], device=model.device)


def decode_step(model, token, mask, cache):
    """The next logits [rows, vocabulary] after one more token a row, and the mask that holds it."""
    # clamped for rows that have ended but not left yet: nothing reads what they decode
    position = mask.sum(1, keepdim=True).clamp(max=context_length(model) - 1)
    mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    states = forward(model, token[:, None], mask, position, 1, cache)[:, -1]
    return to_logits(model, states), mask


def choose(logits, noise, temperature, space=None):
    """One token a row and its log-prob, both [rows]; noise [rows] in [0, 1). Greedy decoding
    (temperature 0) is a choice and not a distribution: its tokens get the model's own log-probs.

    Works in place, since fresh memory costs more than the arithmetic: overwrites `logits` [rows,
    vocabulary] and, where given, `space`, a tensor like it.
    """
    logits /= temperature or 1.0
    logits -= logits.amax(-1, keepdim=True)
    total = torch.exp(logits, out=space).cumsum_(-1)
    if temperature > 0:  # invert the cumulative distribution at this row's own random number
        token = torch.searchsorted(total, noise[:, None] * total[:, -1:], right=True)
        token = token.clamp(max=logits.shape[1] - 1)  # rounding at the very edge
    else:
        token = logits.argmax(-1, keepdim=True)
    return token.squeeze(1), (logits.gather(1, token) - total[:, -1:].log()).squeeze(1)


def sample_rows(model, prompts, noise, temperature, stop):
    """One part of `generate`: prefill, then token by token; rows that have ended leave."""
    device, count, steps = model.device, *noise.shape
    limit = torch.tensor([context_length(model) - len(p) for p in prompts], device=device)
    tokens = torch.full((count, steps), -1, device=device)
    logprob = torch.zeros(count, steps, device=device)
    rows = torch.arange(count, device=device)  # in the batch: rows of `tokens`
    alive = torch.ones(count, dtype=torch.bool, device=device)  # of those
    with autocast(model), timed(model, "prefill"):
        shared = model.config._attn_implementation == "rollout"  # else each row copies its prompt
        layer = functools.partial(SharedLayer, steps) if shared else DynamicLayer
        cache = Cache(layer_class_to_replicate=layer)
        states, mask, owner = prefill(model, prompts, cache)
        cache.batch_select_indices(owner)
        logits, mask = to_logits(model, states)[owner], mask[owner]
        space = torch.empty_like(logits)
    with autocast(model), timed(model, "decode"):
        for t in range(steps):
            token, logp = choose(logits, noise[rows, t], temperature, space[: len(rows)])
            live = rows[alive]
            tokens[live, t], logprob[live, t] = token[alive], logp[alive]
            alive = alive & ~torch.isin(token, stop) & (t + 1 < limit[rows])
            left = int(alive.sum())
            if left == 0 or t + 1 == steps:
                break
            if left <= 0.9 * len(rows):  # a few at a time: each leave copies the cache
                cache.batch_select_indices(alive.nonzero().squeeze(1))
                rows, token, mask, alive = rows[alive], token[alive], mask[alive], alive[alive]
            logits, mask = decode_step(model, token, mask, cache)
            SPENT.update({"tokens/computed": len(rows), "tokens/useful": left})
    length = (tokens >= 0).sum(1, keepdim=True)
    stopped = torch.isin(tokens.gather(1, length - 1), stop)
    ends = zip(prompts, *(x.tolist() for x in (tokens, logprob, length, stopped)))
    return [Sample(p, ids[:size], logp[:size], end) for p, ids, logp, [size], [end] in ends]


# --------------------------------------------------------------------------------------- scoring


def micro_batches(model, samples, parts=1):
    """Cut `samples` for forward passes: lists of indices; with `parts`, of that share of the size.

    Either the completions of a prompt stay together, which is then computed once for all of them,
    or like lengths do, which saves padding: whichever costs fewer tokens.
    """
    # A backward pass needs about what goes into and comes out of each matrix, for every token.
    vocabulary = model.get_input_embeddings().num_embeddings
    kept = sum(sum(p.shape) for p in model.parameters() if p.dim() == 2 and len(p) != vocabulary)
    most = memory(model) / parts / (kept * model.arithmetic.itemsize)
    prompts, lengths = [tuple(s.prompt) for s in samples], [len(s.tokens) for s in samples]

    def cost(part):
        """In tokens, with their padding."""
        distinct = {prompts[i] for i in part}
        wide = max(lengths[i] for i in part)
        return len(distinct) * max(map(len, distinct)) + len(part) * wide

    def cut(order):
        batches = []
        while order:
            fits = bisect.bisect(range(1, len(order) + 1), most, key=lambda n: cost(order[:n]))
            batches.append(order[: max(1, fits)])
            order = order[max(1, fits) :]
        return sum(map(cost, batches)), batches

    by_prompt = sorted(range(len(samples)), key=lambda i: (len(prompts[i]), prompts[i], lengths[i]))
    by_size = sorted(range(len(samples)), key=lambda i: (len(prompts[i]) + lengths[i], lengths[i]))
    return min(cut(by_prompt), cut(by_size))[1]


def logprobs(model, samples, temperature=1.0) -> list[torch.Tensor]:
    """The log-probs that `generate` recorded, by teacher forcing: fp32 [completion length] each.

    Gradients follow the caller's grad mode.
    """
    result = [None] * len(samples)
    for part in micro_batches(model, samples):
        for i, row in zip(part, score_rows(model, [samples[i] for i in part], temperature)):
            result[i] = row
    return result


def score_rows(model, samples, temperature):
    """One part of `logprobs`. As in sampling, each distinct prompt is computed once, and the
    completions go on from copies of its keys and values; the gradient flows through."""
    lengths = [len(s.tokens) for s in samples]
    tokens = pad_sequence([torch.tensor(s.tokens) for s in samples], True).to(model.device)
    width = tokens.shape[1]
    real = (torch.arange(width) < torch.tensor(lengths)[:, None]).to(model.device)
    with autocast(model):
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        states, mask, owner = prefill(model, [s.prompt for s in samples], cache)
        for layer in cache.layers:  # not by [owner]: its gradient adds up in any order on a CPU
            layer.keys = layer.keys.index_select(0, owner)
            layer.values = layer.values.index_select(0, owner)
        states = states.index_select(0, owner)[:, None]
        if width > 1:
            mask = torch.cat([mask[owner], real[:, 1:].long()], 1)
            position = mask.cumsum(1)[:, 1 - width :] - 1
            rest = forward(model, tokens[:, :-1], mask, position, width - 1, cache)
            states = torch.cat([states, rest], 1)
        SPENT.update({"tokens/computed": tokens.numel(), "tokens/useful": sum(lengths)})
        return token_logprobs(model, states[real], tokens[real], temperature).split(lengths)


def token_logprobs(model, states, tokens, temperature):
    """Log-probs [tokens] of `tokens` after `states` [tokens, width], under the distribution that
    they are drawn from. In slices that backward computes again: of all tensors the logits are the
    largest, and with this they do not grow with the batch."""

    def score_slice(states, tokens):
        logits = to_logits(model, states) / (temperature or 1.0)
        return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)

    size = max(1, LOGITS // model.config.get_text_config().vocab_size)
    slices = zip(states.split(size), tokens.split(size))
    return torch.cat([checkpoint(score_slice, *each, use_reentrant=False) for each in slices])


def main(name="toy"):
    """One question by `generate` and by `model.generate`: the same greedy tokens."""
    model, tokenizer = load_policy(name)
    prompt = encode_chat(tokenizer, solve("Compute 7+6*7*8 modulo 10."))
    [ours] = generate(model, [prompt], max_new_tokens=64, temperature=0)
    with torch.no_grad(), autocast(model):
        theirs = model.generate(left_pad([prompt], model.device)[0], max_new_tokens=64).tolist()
    print(f"{decode(tokenizer, ours)}\nas model.generate: {theirs == [prompt + ours.tokens]}")


if __name__ == "__main__":
    exits(main, *sys.argv[1:2])
