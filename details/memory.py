"""What fits the memory: batches for sampling and for gradients (figures/fits.py: a whole run).

A batch is cut by a forecast of what it takes (`sampling_batches`, `micro_batches`), and smaller
where the memory runs out all the same (`halved_if_memory_runs_out`, `in_micro_batches`).
"""

import functools
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

from details.policy import dtype_of  # isort: skip (before torch)

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

CPU_BYTES = 1 << 27  # what a batch may take on a CPU, at least
CGROUP = Path("/sys/fs/cgroup")
# Torch, of which a build for CUDA is larger, transformers, and a small model loaded.
PROGRAM = (890 if torch.version.cuda else 450) << 20
LOGITS = 1 << 24  # that are held at once where log-probs are computed


def memory(model):
    """Bytes that a batch may take: on CUDA a quarter of the device's memory, all of it and not what
    is free at the moment, since how a batch is cut shapes its rounding, and a resumed run must cut
    alike. On a CPU, where more brings no speed, twice the weights, or CPU_BYTES if that is more."""
    if model.device.type == "cuda":
        return memory_of(model.device) // 4
    return max(CPU_BYTES, 8 * model.num_parameters())


def memory_of(device):
    """Bytes of a GPU; on a CPU those of the machine, or what a container may have of them. Infinite
    on Windows, which does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    there = float("inf")
    with suppress(AttributeError):
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroups of today, and before
        with suppress(OSError, ValueError):  # ValueError: "max", no limit
            there = min(there, int((CGROUP / file).read_text()))
    return there


def sampling_batches(model, rows, n, max_new_tokens):
    """Cut rows of token ids, n of each prompt, into batches for sampling: lists of their indices.

    Like lengths together means less padding. The longest come first: what fails, fails early.
    """
    waiting = sorted(range(len(rows)), key=lambda row: (len(rows[row]), rows[row]))
    batches = []
    while waiting:
        longest = len(rows[waiting[-1]]) + max_new_tokens
        size = rows_that_fit(model, longest, n)
        batches.append(waiting[-size:])
        del waiting[-size:]
    return batches


def rows_that_fit(model, length, n):
    """How many rows of `length` tokens one sampling batch may have: keys and values in fp32, the
    prefill's widest tensors, which n rows share, some logits."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 4 * config.num_hidden_layers * 2 * heads * width
    prefilled = 32 * config.hidden_size // n
    row = length * (cached + prefilled) + 16 * config.vocab_size
    return max(1, memory(model) // row)


def token_bytes(model):
    """What a backward pass needs for each token: about what goes into and comes out of each matrix
    (but for those of adapters, which are small)."""
    vocabulary = model.get_input_embeddings().num_embeddings
    numbers = 0
    for name, p in model.named_parameters():
        if p.dim() == 2 and len(p) != vocabulary and "lora" not in name:
            numbers += sum(p.shape)
    return numbers * dtype_of(model).itemsize


def standing_bytes(model):
    """What a model takes that learns: its weights, and of those that are trained the gradients and
    Adam's two moments; in bf16 autocast's copies of them, too."""
    copied = 2 * (dtype_of(model) == torch.bfloat16)
    trained = sum((12 + copied) * p.numel() for p in model.parameters() if p.requires_grad)
    return trained + sum(p.nbytes for p in model.parameters())


@contextmanager
def recomputed(model, tokens):
    """Inside the block, if the activations of so many tokens do not fit beside the model, only what
    goes into each block of it is kept for the backward pass, which computes the rest again: a third
    more time."""
    blocks = []
    # A KL's reference is as large as what is trained; to recompute without need costs time only.
    reference = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    room = memory_of(model.device) - standing_bytes(model) - reference - 16 * LOGITS - PROGRAM
    if torch.is_grad_enabled() and 2 * tokens * token_bytes(model) > room:
        blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def micro_batches(model, samples, parts=1):
    """Cut `samples` for forward passes with gradients: lists of indices; with `parts`, of that
    share of the size.

    Either the completions of a prompt stay together, which is then computed once for all of them,
    or like lengths do, which saves padding: whichever costs fewer tokens.
    """
    most = memory(model) / token_bytes(model) / parts
    sizes = [(tuple(sample.prompt), len(sample.tokens)) for sample in samples]

    def prompt_first(index):
        prompt, wide = sizes[index]
        return len(prompt), prompt, wide

    def size_first(index):
        prompt, wide = sizes[index]
        return len(prompt) + wide, wide

    def cost(batch):
        """The tokens of a batch with padding; each distinct prompt is computed once."""
        prompts, widths = zip(*[sizes[index] for index in batch])
        return len(set(prompts)) * max(map(len, prompts)) + len(batch) * max(widths)

    cuts = []
    for order in (prompt_first, size_first):
        batches = []
        for index in sorted(range(len(samples)), key=order):
            if not batches or cost([*batches[-1], index]) > most:
                batches.append([])
            batches[-1].append(index)
        cuts.append((sum(map(cost, batches)), batches))
    _, batches = min(cuts)
    return batches


def ran_out(error):
    """Has the device no memory left? A CPU says so by a mere RuntimeError."""
    words = "out of memory|allocate memory|create a primitive|start new thread"
    return re.search(words, str(error))


@contextmanager
def memory_may_run_out(divisible):
    """If the device runs out of memory inside the block, what stands behind the block does the same
    in smaller pieces: there no error holds on to the tensors any more. What is not `divisible`
    raises its error."""
    try:
        yield
    except RuntimeError as error:
        if not ran_out(error) or not divisible:
            raise


def halved_if_memory_runs_out(sample):
    """A decorator: where the device runs out of memory each half of the rows is sampled alone. The
    tokens are the same, since each row has uniforms of its own."""

    def sample_or_halve(model, prompts, uniforms, *settings):
        with memory_may_run_out(len(prompts) > 1):
            return sample(model, prompts, uniforms, *settings)
        half = len(prompts) // 2
        first = sample_or_halve(model, prompts[:half], uniforms[:half], *settings)
        return first + sample_or_halve(model, prompts[half:], uniforms[half:], *settings)

    return sample_or_halve


def in_micro_batches(add_gradient):
    """A decorator: the samples come in micro-batches, which give a list of results; where the
    device runs out of memory the gradient is computed anew, in micro-batches of half the size."""

    def add_or_retry(model, samples, *settings, parts=1):
        cuts = micro_batches(model, samples, parts)
        batches = [[samples[index] for index in indices] for indices in cuts]
        with memory_may_run_out(len(batches) < len(samples)):
            return [add_gradient(model, batch, *settings) for batch in batches]
        model.zero_grad()
        return add_or_retry(model, samples, *settings, parts=2 * parts)

    return add_or_retry
