"""Supervised learning, a plain negative log-likelihood; it uses the log-probs of `rollout`.

The cold start learns demonstrations before RL; STaR and Pair-SFT learn conversations as they stand
in place of RL's update.
"""

import math

from details.data import batch_of, mean  # isort: skip (before torch)
import torch
from tqdm import tqdm

from details.errors import InputError
from details.log import BAR_OFF, say
from details.memory import in_micro_batches
from details.policy import encode_chat
from rollout import Sample, batch_logprobs

COLD_START_PASSES = 3  # over the demonstrations
COLD_START_BATCH = 32  # demonstrations an optimizer step
GRAD_CLIP = 1.0  # largest gradient norm


def demonstration(tokenizer, messages, text):
    """A given text as a Sample without log-probs: its tokens and the EOS that ends a turn."""
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    tokens.append(tokenizer.eos_token_id)
    return Sample(encode_chat(tokenizer, messages), tokens, [], stopped=True, text=text)


def imitate(model, optimizer, batches):
    """Make the samples' tokens likelier, a batch an optimizer step. Returns metrics: the loss is
    the mean negative log-prob, in nats a token."""
    losses = []
    norms = []
    tokens = 0
    for batch in batches:
        token_count = sum(len(sample.tokens) for sample in batch)
        tokens += token_count
        losses += add_gradient(model, batch, token_count)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP))
        if not math.isfinite(norm):
            raise InputError(f"the gradient norm is {norm}; a smaller learning rate may help")
        optimizer.step()
        optimizer.zero_grad()
        norms.append(norm)
    if not batches:
        return {}
    return {"updates": len(norms), "grad_norm": mean(norms), "loss": sum(losses) / tokens}


@in_micro_batches
def add_gradient(model, batch, token_count):
    """Add the gradient of the mean negative log-prob of a mini-batch of `token_count` tokens to
    the model's, of which `batch` is a part; returns the part's sum."""
    logprobs = torch.cat(batch_logprobs(model, batch, 1.0))
    # The loss is the mean over this micro-batch; its share in the mean over the mini-batch:
    loss = -logprobs.mean()
    (loss * (len(logprobs) / token_count)).backward()
    return -logprobs.sum().item()


def cold_start(args, model, samples):
    """Learn demonstrations before RL: a short warm-up, then linear decay."""
    steps = math.ceil(COLD_START_PASSES * len(samples) / COLD_START_BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    for step in tqdm(range(1, steps + 1), "cold start", disable=BAR_OFF):
        batch = batch_of(samples, step, args.seed, COLD_START_BATCH)
        rate = min(1, step / (0.1 * steps)) * (1 - (step - 1) / steps)
        optimizer.param_groups[0]["lr"] = args.cold_start_lr * rate
        loss = imitate(model, optimizer, [batch])["loss"]
        if step == 1 or step % max(1, steps // 10) == 0:
            say(f"cold start {step}/{steps}: loss {loss:.3f} nats per token")
