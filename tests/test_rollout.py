"""Tests of rollout.py: the sampler, and the log-probs that the learner finds."""

import functools
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

import rollout
from critique import solve_prompt
from details import fast, policy
from rollout import Sample, encode_chat, generate, load_policy, logprobs
from tests.helpers import (
    KINDS,
    TOY,
    close,
    fails,
    gradient_of,
    model_of,
    patch,
    plain_distributions,
    plain_logprobs,
    ragged,
    same_gradient,
    sharing,
    tiny,
    toy_sampler,
)

# Temperatures, and from how many numbers on a weight is packed: with 32 nearly all of them are,
# with 65536 none.
WAYS = [(1.0, 32), (0.7, 1 << 16), (0.0, 32)]


@functools.lru_cache
def samples_of(kind, temperature, large):
    """Samples that end at different lengths."""
    with patch(fast, "LARGE", large):
        samples = generate(
            model_of(kind),
            ragged(),
            n=3,
            max_new_tokens=25,
            temperature=temperature,
            stop=range(20),
            seed=3,
        )
    assert len({len(s.tokens) for s in samples}) > 1
    return samples


def agree(model, samples, temperature=1.0, tolerance=2e-4):
    """What the sampler recorded is what the learner finds: one log-prob for each token."""
    for s, found in zip(samples, logprobs(model, samples, temperature)):
        assert len(s.tokens) == len(s.logprobs)
        close(found.detach(), s.logprobs, tolerance)


def test_greedy_tokens_equal_model_generate():
    """At temperature 0 the sampler gives the tokens that the library's own generation gives."""
    prompts = ragged()
    ids, mask = fast.left_pad(prompts, "cpu")
    for kind in KINDS:
        model = model_of(kind)
        rows = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=[2, 5],
            pad_token_id=0,
        )
        samples = generate(
            model,
            prompts,
            max_new_tokens=40,
            temperature=0,
            stop=(2, 5),
        )
        rows = rows[:, ids.shape[1] :].tolist()
        for s, row in zip(samples, rows):
            size = len(s.tokens)
            assert s.tokens == row[:size], kind
            assert s.stopped == (row[size - 1] in (2, 5))
            assert s.stopped or size == 40


def test_sampled_logprobs_equal_teacher_forcing():
    """The sampler records what the learner finds, and what the model says of the same tokens in one
    pass without any cache; of greedy tokens the log-probs at temperature 1."""
    for kind in KINDS:
        for temperature, large in WAYS:
            samples = samples_of(kind, temperature, large)
            agree(model_of(kind), samples, temperature)
            for s in samples[:3]:
                close(plain_logprobs(s, temperature, model_of(kind)), s.logprobs, 2e-4)


def test_any_model_can_be_sampled_and_scored():
    """A model that `load_policy` did not make works at once: without its dropout, for as long as
    that takes, or in bf16."""
    for kind in ("Llama", "GPT2", "Granite"):
        model = tiny(kind).train()
        agree(model, generate(model, ragged(), max_new_tokens=12, stop=(2, 5), seed=1))
        assert model.training
    model = AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.bfloat16)
    agree(model, generate(model, [[5, 6, 7], [8]], 2, 10), tolerance=0.2)


def test_choosing_at_the_edges():
    """The smallest and the largest random number, too, choose a token that is possible."""
    logits = torch.tensor([[0.0, 0.3, 0.7, 0.0]] * 4).log()
    uniforms = torch.tensor([0.0, 0.29, 0.31, 1 - 2**-24], dtype=torch.float64)
    tokens, logprob = rollout.choose(logits, uniforms, 1.0)
    assert tokens.tolist() == [1, 1, 2, 2]
    close(logprob.exp(), [0.3, 0.3, 0.7, 0.7])


def test_pad_token_is_of_no_account():
    """A pad token that equals EOS, or that is sampled, changes nothing: masks go by length."""
    model = sharing("Llama")
    prompts = [[0, 0, 5], [2, 9], [0], [7, 8, 9, 10]]  # token 0 is what rows are padded with
    for pad in (2, 0):
        model.config.pad_token_id = pad
        model.generation_config.pad_token_id = pad
        samples = generate(
            model,
            prompts,
            n=200,
            max_new_tokens=12,
            stop=(2,),
            seed=4,
        )
        agree(model, samples)
        assert any(0 in s.tokens for s in samples)
        assert any(s.stopped for s in samples)


def test_each_row_has_its_own_random_numbers():
    """Row i's j-th token is where the j-th number of row i falls in the cumulative distribution
    that the model gives after all tokens before, at temperature 1 and below."""
    generator = torch.Generator().manual_seed(3)
    uniforms = torch.rand(24, 25, generator=generator, dtype=torch.float64)
    for temperature, large in WAYS[:2]:
        for row, s in enumerate(samples_of("Llama", temperature, large)):
            probs = plain_distributions(s, temperature, model_of("Llama")).exp()
            for now, uniform, token in zip(probs, uniforms[row], s.tokens):
                below = now[:token].sum()
                assert below - 1e-4 < uniform < below + now[token] + 1e-4


def test_what_is_computed():
    """Three prompts, two of them equal, are two rows in the prefill, then each sample is a row, in
    which one token is fed at a time. Rows that have ended leave, a few at a time: of those that are
    computed, at most a tenth has ended."""
    model = model_of("Llama")
    forward = mock.Mock(wraps=model.base_model.forward)
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7]]
    with patch(model.base_model, "forward", forward):
        samples = generate(model, prompts, n=20, max_new_tokens=30, stop=range(2, 20))
    shapes = [tuple(call.args[0].shape) for call in forward.call_args_list]
    assert shapes[0] == (2, 3)
    rows = [count for count, _ in shapes]
    assert rows[1] > 2 * rows[-1]
    for t in range(1, len(rows)):
        alive = sum(len(s.tokens) > t for s in samples)
        assert alive <= rows[t] <= alive / 0.9 + 1
        assert shapes[t][1] == 1


def test_what_cannot_be_sampled_is_refused():
    """A prompt that is empty, or as long as the context, is named by its index. A count of no
    samples and a temperature below 0 mean nothing."""
    model = model_of("Llama")
    fails("prompt 1|128", generate, model, [[5], [5] * 128])
    fails("prompt 0|0 tokens", generate, model, [[]])
    fails("n, max_new_tokens >= 1", generate, model, [[5]], n=0)
    fails("temperature", generate, model, [[5]], temperature=-1)


def test_completions_are_truncated_at_the_end_of_the_context():
    """A long prompt leaves room for 8 tokens, beside others that have room for all."""
    for kind in ("Llama", "GPT2"):
        model = model_of(kind)
        prompts = [[5] * 3] * 30 + [[5] * 120]
        samples = generate(
            model,
            prompts,
            max_new_tokens=20,
            temperature=0,
            stop=(),
        )
        assert len(samples[0].tokens) == 20
        assert len(samples[-1].tokens) == 8
        agree(model, samples)


def test_a_chat_without_room_gives_samples_without_tokens():
    """Where text is sampled, a prompt that is too long stops nothing: the others are sampled as if
    it were not there."""
    toy = toy_sampler()
    chats = [solve_prompt("9+" * 300 + "9"), solve_prompt("Compute 1+2 modulo 10.")]
    samples = toy.complete(chats, 2, seed=0)
    empty = Sample(encode_chat(toy.tokenizer, chats[0]), [], [], stopped=False)
    assert samples[:2] == [empty] * 2
    assert samples[2:] == toy.complete(chats[1:], 2, seed=0)
    assert samples[2].tokens


def test_gradients_equal_those_of_a_plain_pass():
    """With logits in slices of 5 tokens that backward computes again. A plain head is the output
    matrix alone; behind others stands more."""
    for kind in KINDS:
        model = model_of(kind)
        more = kind in ("Gemma2", "GraniteMoe")
        assert model.logits_head is (policy.whole_head if more else policy.plain_head)
        samples = samples_of(kind, *WAYS[1])[::4]
        with patch(rollout, "LOGITS", 97 * 5):
            found = logprobs(model, samples, 0.7)
        gradients = []
        for rows in (found, [plain_logprobs(s, 0.7, model) for s in samples]):
            gradients.append(gradient_of(torch.cat(rows).mean(), model))
        same_gradient(*gradients)


def mean_away(samples, found):
    """The mean |log ratio| of log-probs that were found for the tokens of samples."""
    drawn = torch.cat([torch.tensor(s.logprobs) for s in samples])
    return (torch.cat(found) - drawn).abs().mean()


def test_bf16_sampler_and_learner_compute_alike():
    """The weights are fp32, and both compute in bf16; what is sampled and what is scored differ by
    rounding only, where they share prompts as on a GPU."""
    model, _ = load_policy("toy", "cpu", "bf16")
    assert not fast.shares_prompts(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    computed = []
    layer = model.model.layers[1].mlp.down_proj
    layer.register_forward_hook(lambda layer, args, result: computed.append(result.dtype))
    with patch(rollout, "shares_prompts", return_value=True):
        samples = generate(model, ragged(), 2, 40)
    assert 0 < mean_away(samples, logprobs(model, samples)) < 0.02
    assert set(computed) == {torch.bfloat16}


def test_bf16_logprobs_of_all_kinds():
    """Those of the sampler, of the learner and of a plain pass in bf16 differ by rounding only."""
    for kind in KINDS:
        model = model_of(kind, torch.bfloat16)
        samples = generate(model, ragged(), max_new_tokens=20, stop=())
        with patch(fast, "LARGE", 32):
            samples += generate(model, ragged(), max_new_tokens=20, stop=())
        assert mean_away(samples, logprobs(model, samples)) < 0.02, kind
        with policy.autocast(model):
            plain = [plain_logprobs(s, model=model) for s in samples]
        assert mean_away(samples, plain) < 0.02, kind


def test_every_token_of_a_large_vocabulary_can_be_drawn():
    """A top token of 0.9 before 151,935 others: a random number just inside a token's share draws
    that token. In fp32 the shares would be rounded to each other's edges."""
    logits = torch.full([151_936], -14.0)
    logits[0] = 0.0
    weights = logits.exp().double()
    total = weights.cumsum(0)
    tokens = torch.arange(1, len(logits), 9970)
    uniforms = (total[tokens] - 0.99 * weights[1]) / total[-1]
    drawn, _ = rollout.choose(logits.repeat(len(tokens), 1), uniforms, 1.0)
    assert drawn.tolist() == tokens.tolist()
