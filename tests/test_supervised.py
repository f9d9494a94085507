"""Tests of details/supervised.py: demonstrations, supervised learning, the cold start."""

from unittest import mock

import torch

from critique import solve_prompt
from details import memory, supervised
from details.supervised import demonstration
from rollout import encode_chat
from tests.helpers import (
    Recorder,
    arguments,
    base,
    box,
    close,
    fails,
    gradient_of,
    patch,
    plain_logprobs,
    printed_by,
    same_gradient,
)


def demonstrations(*texts):
    """Two texts for each prompt."""
    samples = []
    for index, text in enumerate(texts):
        chat = solve_prompt(f"Compute 1+{index // 2} modulo 10.")
        samples.append(demonstration(base()[1], chat, text))
    return samples


def plain_loss(samples):
    """The mean negative log-prob of the tokens, by plain passes."""
    return -torch.cat([plain_logprobs(sample) for sample in samples]).mean()


def imitated(batches, grad_clip=1e9):
    """(metrics, the gradients of all optimizer steps) of supervised learning on the toy."""
    recorder = Recorder()
    with patch(supervised, "GRAD_CLIP", grad_clip):
        metrics = supervised.imitate(base()[0], recorder, batches)
    return metrics, recorder.gradients


def test_demonstration_by_hand():
    """The chat's tokens as the prompt, the text's and EOS as the completion, and no log-probs."""
    _, tokenizer = base()
    (shown,) = demonstrations("1+1=2")
    chat = solve_prompt("Compute 1+0 modulo 10.")
    assert shown.prompt == encode_chat(tokenizer, chat)
    assert tokenizer.decode(shown.tokens) == "1+1=2" + tokenizer.eos_token
    assert (shown.text, shown.logprobs, shown.stopped) == ("1+1=2", [], True)


def test_imitation_has_the_gradient_of_the_negative_log_prob():
    """Each optimizer step has that of its batch, in one micro-batch or in several; the loss is the
    mean over the tokens of all batches."""
    samples = demonstrations("1+2=3", "3*4=2\n" + box(2), "5", "1")
    batches = [samples[:3], samples[3:]]
    expected = [gradient_of(plain_loss(batch)) for batch in batches]
    for room in (1, 1 << 40):  # with little memory each sample is a micro-batch
        with patch(memory, "memory", return_value=room):
            metrics, seen = imitated(batches)
        assert metrics["updates"] == 2
        same_gradient(seen[0], expected[0])
        same_gradient(seen[1], expected[1])
        close(metrics["loss"], plain_loss(samples).item(), 1e-5)
    assert imitated([]) == ({}, []), "nothing to imitate"
    # Clipped to a length of GRAD_CLIP; the metric is the norm before.
    metrics, (seen,) = imitated(batches[:1], grad_clip=0.01)
    norm = expected[0].norm()
    same_gradient(seen, 0.01 * expected[0] / norm)
    close(metrics["grad_norm"] / norm, 1, 1e-4)


def test_imitation_with_a_gradient_that_is_not_finite():
    """It ends before the weights are moved."""
    model, _ = base()
    infinite = next(model.parameters()).flatten()[:1] * torch.inf
    optimizer = mock.Mock()
    with patch(supervised, "batch_logprobs", return_value=[infinite]):
        batches = [demonstrations("1")]
        fails("gradient norm|rate", supervised.imitate, model, optimizer, batches)
    assert not optimizer.step.called


def test_cold_start_warms_up_and_decays():
    """The learning rate rises over a tenth of the steps, then falls to 0 in a straight line. Each
    pass learns every demonstration, without weight decay."""
    rates = []
    learned = []

    def note(model, optimizer, batches):
        [group] = optimizer.param_groups
        rates.append(group["lr"])
        assert group["weight_decay"] == 0
        learned.extend(*batches)
        return {"loss": 1.0}

    args = arguments("--cold-start-lr 0.1")
    with patch(supervised, "imitate", note):
        samples = list(range(640))  # what they hold does not matter here
        printed_by(lambda _: supervised.cold_start(args, base()[0], samples))
    assert len(rates) == 60  # 3 passes of 20 batches of 32
    assert sorted(learned) == sorted(samples * 3)
    close(rates[0], 0.1 / 6)
    close(rates[5:], [0.1 * (1 - step / 60) for step in range(5, 60)])
