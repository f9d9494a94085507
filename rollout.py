"""The policy and its rollouts: load and save a model, sample completions over a KV cache, score given completions.

Everything the project trains is a *sample*: a prompt, the tokens that the policy added to it, and the log-prob of each
of those tokens at the moment it was drawn. First-order rollout (responses), second-order rollout (critiques),
refinements and second attempts are all made by the one function `generate`; they differ in the prompt only.

    python rollout.py [MODEL]      the sampler beside `model.generate`: same greedy tokens, tokens per second
"""
import contextlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.cache_utils import Cache, DynamicLayer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOY = Path(__file__).parent / "toy"
CACHE_BYTES = 4 << 30        # KV cache and logits of one sampling batch on the CPU; on CUDA: half of what is free
MICRO_TOKENS = 8192          # tokens in one forward pass of `logprobs` ...
MICRO_LOGITS = 1 << 27       # ... and at most this many logits (rows x completion length x vocabulary): 0.5 GiB in fp32


class InputError(ValueError):
    """What the user gave cannot be used. The message is one line that says what is wrong and where."""


@dataclass
class Sample:
    """One completion of one prompt."""
    prompt: list[int]         # token ids
    tokens: list[int]         # token ids of the completion, the stop token included
    logprobs: list[float]     # one per token, in nats, under the distribution it was drawn from
    stopped: bool             # True: ended with a stop token; False: cut at the limit


# ---------------------------------------------------------------------------------------------------- the policy

def find_policy(name):
    """Where a policy's files are: the embedded toy, a folder or a hub id; raises InputError if no config is there."""
    path = TOY if str(name) == "toy" else name
    try:
        AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        hint = "; make it with: python train.py --make-toy" if path == TOY else ""
        raise InputError(f"cannot load model {str(name)!r} (neither a model folder nor a hub id that can be "
                         f"fetched){hint}: {' '.join(str(error).split())[:200]}") from error
    return path


def load_policy(name, device=None):
    """Load a causal LM and its tokenizer from `toy`, a folder or a hub id; safetensors only, no remote code.

    Weights are fp32 everywhere (a learning rate of 1e-6 rounds away in bf16); on CUDA the arithmetic is bf16, see
    `precision`. `model.generation_config` is replaced by a plain one with the full stop set: EOS of the config, of the
    generation config and of the tokenizer. A chat model often names its end of turn in one of the three only, and
    settings such as a repetition penalty would make `model.generate` sample another policy than the one trained.
    Raises InputError if the model cannot be loaded.
    """
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error
    path = find_policy(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:      # whatever the library makes of a broken folder, the user's mistake is the same
        raise InputError(f"cannot load model {str(name)!r}: {' '.join(str(error).split())[:200]}") from error
    stops = set()
    for eos in (model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id):
        stops.update(eos if isinstance(eos, (list, tuple)) else [] if eos is None else [eos])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=None)
    model.generation_config = GenerationConfig(eos_token_id=sorted(stops) or None, pad_token_id=pad,
                                               bos_token_id=tokenizer.bos_token_id)
    return model.to(device).eval(), tokenizer     # eval for good: dropout would make the learner another policy


def save_policy(model, tokenizer, folder, state=None):
    """Write `folder` so that `AutoModelForCausalLM.from_pretrained(folder)` loads it; `state`, if given, as resume.pt.

    Everything is written to a folder of its own first and moved over the old files at the end, so that a crash in the
    middle of a long write leaves the previous model whole.
    """
    folder = Path(folder)
    fresh = folder / "saving"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    if state is not None:
        torch.save(state, fresh / "resume.pt")
    for file in sorted(fresh.iterdir(), key=lambda file: file.name == "resume.pt"):      # the state last
        if file.is_dir():
            shutil.rmtree(folder / file.name, ignore_errors=True)
        os.replace(file, folder / file.name)
    shutil.rmtree(fresh)


def precision(model):
    """bf16 arithmetic over fp32 weights on CUDA, plain fp32 elsewhere; the same for sampling and for learning."""
    cuda = model.device.type == "cuda"
    return torch.autocast("cuda", dtype=torch.bfloat16) if cuda else contextlib.nullcontext()


def context_length(model):
    """The longest sequence in tokens that the model's positions allow (a large number where it names none)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30


def encode_chat(tokenizer, messages):
    """Token ids of a conversation [{"role", "content"}, ...] up to where the assistant is to go on.

    Through the tokenizer's chat template, which brings its own BOS; a plain `User:` / `Assistant:` form where there is
    none. Special tokens spelled out in the contents are taken out: a response is quoted inside the critique's prompt,
    and a policy that writes `<|im_end|>` letter by letter must not be able to close its own quotation.
    """
    specials = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens)
    clean = []
    for message in messages:
        content = message["content"]
        while any(special in content for special in specials):      # again: taking one out may spell another
            for special in specials:
                content = content.replace(special, "")
        clean.append({"role": message["role"], "content": content})
    if tokenizer.chat_template:
        return tokenizer.apply_chat_template(clean, add_generation_prompt=True, return_dict=False)
    end = tokenizer.eos_token or ""
    text = "".join(f"{m['role'].capitalize()}:\n{m['content']}{end if m['role'] == 'assistant' else ''}\n\n"
                   for m in clean) + "Assistant:\n"
    ids = tokenizer(text).input_ids
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids      # some tokenizers close every text with EOS


def decode(tokenizer, sample):
    """The text of a completion, without special tokens and surrounding white space."""
    return tokenizer.decode(sample.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def demonstration(tokenizer, messages, text):
    """A given text as a Sample, to be learned or scored: its tokens and the EOS that ends an assistant's turn."""
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no EOS token, so demonstrations cannot show where a completion ends")
    tokens = tokenizer(text, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    return Sample(encode_chat(tokenizer, messages), tokens, [], True)


# ------------------------------------------------------------------------------------------------------ sampling

class GrowingLayer(DynamicLayer):
    """One layer's keys and values [rows, heads, length, head_dim], with room to grow.

    The library's own layer copies everything seen so far at every token; this one writes into spare room behind it
    and copies only when that is used up, or when rows have left the batch.
    """
    room = 64
    buffers = None

    def update(self, keys, values, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values
            return keys, values
        old, new = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        if self.buffers is None or self.buffers[0].data_ptr() != self.keys.data_ptr() or self.buffers[0].shape[2] < new:
            shape = (*keys.shape[:2], new + self.room, keys.shape[3])
            self.buffers = keys.new_empty(shape), values.new_empty((*shape[:3], values.shape[3]))
            self.buffers[0][:, :, :old], self.buffers[1][:, :, :old] = self.keys, self.values
        self.buffers[0][:, :, old:new], self.buffers[1][:, :, old:new] = keys, values
        self.keys, self.values = self.buffers[0][:, :, :new], self.buffers[1][:, :, :new]
        return self.keys, self.values


def sampling_logprobs(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Log-probs [..., vocabulary] in fp32 of the distribution that tokens are drawn from.

    Temperature first, then top-k, then top-p (the smallest set of tokens that holds at least `top_p` of what is left);
    what is cut has log-prob -inf. Greedy decoding (temperature 0) is a choice and not a distribution: its tokens are
    given the log-probs of the model itself, at temperature 1.
    """
    if temperature == 0:
        return logits.float().log_softmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        probs, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        cut = probs.cumsum(-1) - probs >= top_p                         # the mass before a token is enough already
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -torch.inf)
    return logits.log_softmax(-1)


def left_pad(rows, device):
    """Rows of ids, right-aligned -> ids and mask, both [rows, longest]. The pad id is never looked at: mask by length."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)


def rows_that_fit(model, length, memory=None):
    """How many rows of `length` tokens one sampling batch may have: keys, values and a few copies of the logits."""
    config, cuda = model.config.get_text_config(), model.device.type == "cuda"
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # under autocast the keys leave the rotary embedding in fp32 and the values are bf16: 3 bytes on average
    row = length * config.num_hidden_layers * 2 * heads * width * (3 if cuda else 4) + 16 * config.vocab_size
    if memory is None and cuda:
        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        memory = (torch.cuda.mem_get_info(model.device)[0] + unused) // 2
    elif memory is None:
        memory = CACHE_BYTES
    return max(1, memory // row)


def generate(model, prompts, n=1, max_new_tokens=256, temperature=1.0, stop=None, seed=0, top_k=0, top_p=1.0,
             memory=None, progress=None):
    """Sample n completions for each prompt (lists of token ids); the Samples come in prompt-major order.

    temperature 0 is greedy; top_k 0 and top_p 1 leave the distribution whole. stop: ids that end a completion (None:
    the model's own stop set). Row i's j-th token is drawn with the j-th of row i's own random numbers, so that a seed
    gives the same tokens however the rows are cut into parts. memory: bytes for the cache (None: by device); what does
    not fit is sampled in parts, halved again should the device still run out. progress: called with the number of
    rows done. Raises InputError for an empty prompt, one that leaves no room in the model's context, or bad settings.
    A completion that reaches the end of the context is cut there.
    """
    if n < 1 or max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError(f"generate needs n >= 1, max_new_tokens >= 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1; "
                         f"got {n}, {max_new_tokens}, {temperature}, {top_k}, {top_p}")
    prompts, context = [list(prompt) for prompt in prompts], context_length(model)
    for i, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise InputError(f"prompt {i} has {len(prompt)} tokens; the model's context holds {context}, "
                             "and at least one token must fit on either side")
    if stop is None:
        stop = model.generation_config.eos_token_id
    stop = torch.tensor([stop] if isinstance(stop, int) else list(stop or ()), dtype=torch.long, device=model.device)
    noise = torch.rand(len(prompts) * n, max_new_tokens, generator=torch.Generator().manual_seed(seed))
    todo = sorted(range(len(noise)), key=lambda row: len(prompts[row // n]))     # like lengths together: less padding
    samples, most = [None] * len(todo), max(1, len(todo))
    while todo:
        longest = min(context, len(prompts[todo[-1] // n]) + max_new_tokens)
        size = min(most, rows_that_fit(model, longest, memory), len(todo))
        part, done = todo[-size:], None                                          # the longest first: fail early
        try:
            done = _sample([prompts[row // n] for row in part], model, noise[part], temperature, stop, top_k, top_p)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        if done is None:        # outside of `except`, where the error still holds on to the tensors
            most = size // 2
            torch.cuda.empty_cache()
            continue
        for row, sample in zip(part, done):
            samples[row] = sample
        del todo[-size:]
        if progress:
            progress(len(part))
    return samples


@torch.no_grad()
def _sample(prompts, model, noise, temperature, stop, top_k, top_p):
    """One part of `generate`: prefill each distinct prompt once, copy its cache to its rows, then token by token."""
    device, count, steps = model.device, *noise.shape
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    ids, mask = left_pad([list(prompt) for prompt in distinct], device)
    limit = torch.tensor([context_length(model) - len(prompt) for prompt in prompts], device=device)
    noise = noise.to(device)
    tokens = torch.zeros(count, steps, dtype=torch.long, device=device)
    logprob = torch.zeros(count, steps, device=device)
    length = torch.zeros(count, dtype=torch.long, device=device)
    stopped = torch.zeros(count, dtype=torch.bool, device=device)

    with precision(model):
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                       past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        owner = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
        cache.batch_select_indices(owner)
        logits, mask = logits[owner], mask[owner]
        rows, alive = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
        for t in range(steps):
            logp = sampling_logprobs(logits, temperature, top_k, top_p)
            token = logp.argmax(-1)
            if temperature > 0:     # invert the cumulative distribution at this row's own random number
                cdf = logp.exp().cumsum(-1)
                drawn = torch.searchsorted(cdf, noise[rows, t, None] * cdf[:, -1:], right=True).squeeze(1)
                drawn = drawn.clamp(max=logp.shape[1] - 1)
                possible = logp.gather(1, drawn[:, None]).squeeze(1) > -torch.inf     # rounding at the very edge
                token = torch.where(possible, drawn, token)
            live = rows[alive]
            tokens[live, t] = token[alive]
            logprob[live, t] = logp.gather(1, token[:, None]).squeeze(1)[alive]
            length[live] += 1
            stopped[live] = torch.isin(token[alive], stop)
            alive = alive & ~stopped[rows] & (length[rows] < limit[rows])
            left = int(alive.sum())
            if left == 0 or t + 1 == steps:
                break
            if left <= 0.9 * len(rows):      # stopped rows leave the batch, a few at a time: each leave copies the cache
                cache.batch_select_indices(alive.nonzero().squeeze(1))
                rows, token, mask, alive = rows[alive], token[alive], mask[alive], alive[alive]
            # clamped for rows that have ended but not left yet: nothing reads what they decode
            position = mask.sum(1, keepdim=True).clamp(max=context_length(model) - 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            logits = model(input_ids=token[:, None], attention_mask=mask, position_ids=position,
                           past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    return [Sample(prompt, ids[:size], values[:size], end) for prompt, ids, values, size, end in
            zip(prompts, tokens.tolist(), logprob.tolist(), length.tolist(), stopped.tolist())]


# ------------------------------------------------------------------------------------------------------- scoring

def micro_batches(model, samples):
    """Yield lists of indices into `samples`, like lengths together, each small enough for one forward pass."""
    def shape(i):
        return len(samples[i].prompt), len(samples[i].tokens)
    batch, widest = [], (0, 0)
    for i in sorted(range(len(samples)), key=lambda i: (sum(shape(i)), shape(i))):
        width = tuple(map(max, widest, shape(i)))
        rows = len(batch) + 1
        vocabulary = model.config.get_text_config().vocab_size
        if batch and (rows * sum(width) > MICRO_TOKENS or rows * (width[1] + 1) * vocabulary > MICRO_LOGITS):
            yield batch
            batch, width = [], shape(i)
        batch, widest = batch + [i], width
    if batch:
        yield batch


def logprobs(model, samples, temperature=1.0, top_k=0, top_p=1.0) -> list[torch.Tensor]:
    """The log-probs that `generate` recorded, by teacher forcing: one fp32 tensor [completion length] per sample.

    Gradients follow the caller's grad mode.
    Prompts are padded on the left and completions on the right, so that completions share their columns and
    `logits_to_keep` can spare the logits of all prompt tokens, the largest tensors of the whole computation.
    """
    result = [None] * len(samples)
    for part in micro_batches(model, samples):
        batch = [samples[i] for i in part]
        ids, mask = left_pad([list(s.prompt) for s in batch], model.device)
        completion = pad_sequence([torch.tensor(s.tokens, dtype=torch.long) for s in batch], True).to(model.device)
        lengths = torch.tensor([len(s.tokens) for s in batch], device=model.device)
        real = torch.arange(completion.shape[1], device=model.device) < lengths[:, None]
        ids, mask = torch.cat([ids, completion], 1), torch.cat([mask, real.long()], 1)
        with precision(model):
            logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                           use_cache=False, logits_to_keep=completion.shape[1] + 1).logits[:, :-1]
        logp = sampling_logprobs(logits, temperature, top_k, top_p)
        chosen = logp.gather(-1, completion[..., None]).squeeze(-1)
        for row, i in enumerate(part):
            result[i] = chosen[row, :len(samples[i].tokens)]
    return result


def main(name="toy"):
    """Show the sampler: greedy tokens equal to `model.generate`'s, and the speed of both on the same prompts."""
    model, tokenizer = load_policy(name)
    words = ["Compute 3*4+5 modulo 10.", "Compute 9-7*2-5 modulo 10.", "How many legs have two dogs and a bird?"]
    prompts = [encode_chat(tokenizer, [{"role": "user", "content": text}]) for text in words]
    ids, mask = left_pad(prompts * 16, model.device)
    with torch.no_grad(), precision(model):
        start = time.time()
        theirs = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=64)[:, ids.shape[1]:].tolist()
        middle = time.time()
    ours = generate(model, prompts, n=1, max_new_tokens=64, temperature=0)
    many = time.time()
    rows = generate(model, prompts, n=16, max_new_tokens=64, temperature=0)
    end = time.time()
    same = [sample.tokens == row[:len(sample.tokens)] for sample, row in zip(ours, theirs)]
    tokens = sum(len(sample.tokens) for sample in rows)
    for text, sample, equal in zip(words, ours, same):
        print(f"{text}\n{decode(tokenizer, sample)}\n  [{'the same' if equal else 'NOT the same'} as model.generate]\n")
    print(json.dumps({"rows": len(rows), "tokens": tokens, "same": all(same), "tokens/s": round(tokens / (end - many)),
                      "tokens/s of model.generate": round(tokens / (middle - start))}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except InputError as error:
        sys.exit(f"error: {error}")
