"""Tests of details/fast.py: prompts that rows share, packed weights."""

import re
from unittest import mock

import torch

import rollout
from details import fast
from rollout import generate, load_policy
from tests.helpers import KINDS, fails, model_of, patch, printed_by, sharing


def is_packed(model):
    """Has any layer a forward of its own?"""
    return any("forward" in vars(layer) for layer in model.modules())


def test_large_weights_are_packed_while_sampling():
    """A CPU multiplies with the packed copies of large weights where there are many rows;
    afterwards there are none."""
    for kind in KINDS:
        model = model_of(kind)
        for many in (1, 2):
            product = mock.Mock(wraps=fast.times_packed)
            with mock.patch.multiple(fast, LARGE=32, MANY=many, times_packed=product):
                generate(model, [[5, 6]], max_new_tokens=2)
            expected = many == 1 and torch.backends.mkldnn.is_available()
            assert product.called == expected, kind
            assert not is_packed(model)


def set_up(kind, dtype=torch.float32):
    """The attention that `settle_attention` leaves a model with, and what it prints."""
    models = []
    printed = printed_by(lambda _: models.append(sharing(kind, dtype)))
    return models[0].config._attn_implementation, printed


def test_models_that_agree_share_prompts():
    """Where the log-probs are those of the library's attention, prompts are shared, and nothing is
    said about it. Where the library's is not `sdpa` there is nothing to compare with (of Gemma2
    that depends on its version). Where they disagree, one line names the model and by how much it
    would be wrong: also one that draws other tokens in bf16 from the first on."""
    others = {"Bloom": "eager", "DiffLlama": "sdpa"}
    note = r"note: DiffLlama: .* \(mean \|log ratio\| .*\)\n"
    for kind in KINDS:
        attention, printed = set_up(kind)
        if kind != "Gemma2":
            assert attention == others.get(kind, "shared_prompts")
        assert re.fullmatch(note if attention == "sdpa" else "", printed)
    _, printed = set_up("DiffLlama", torch.bfloat16)
    assert re.fullmatch(note, printed)


def test_models_whose_attention_raises_keep_the_librarys():
    """One line names the model and the error."""
    with patch(fast, "times_prompts", side_effect=RuntimeError("no such\nshape")):
        attention, printed = set_up("Llama")
    assert attention == "sdpa"
    assert re.fullmatch(r"note: Llama: .* \(no such shape\)\n", printed)


def test_a_sampler_that_is_not_the_learner_is_refused():
    """Log-probs that are half a nat apart would be another policy's."""
    with patch(rollout, "sampling_error", return_value=(0.5, "half a nat")):
        fails("sampling with|half a nat", load_policy, "toy", "cpu")
