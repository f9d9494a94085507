"""The tests: `python test_all.py [NAME ...]` runs all of them, or those whose names contain a NAME;
pytest finds them too. `--long` runs the long ones instead: kills, fuzz, memory; half an hour.

Values are worked out by hand or come from an independent path: `model.generate` and plain forward
passes against the sampler, autograd against closed forms, an undisturbed run against one that was
killed. No network and no file outside the repository is needed.
"""

import contextlib
import copy
import functools
import io
import json
import math
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import critique
import reward
import rollout
import sample
import train
from critique import correct, judgement, solve
from figures import chart, compare, votes
from reward import InputError, Pair, PairCache, Problem, from_pair, from_problem, is_correct
from reward import advantages as relative
from rollout import Sample, encode_chat, generate, load_policy, logprobs
from sample import Episode, Policy
from toy import make

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much on a busy machine
patch = mock.patch.object
box = r"\boxed{{{}}}".format
ON_TOY = f"--device cpu --eval-data {rollout.TOY}/held_out.jsonl --exam {rollout.TOY}/exam.jsonl"
STUB, CUT = (Sample([1], [1], [0.0], stopped) for stopped in (True, False))

# ---------------------------------------------------------------------------------------- helpers


def close(a, b, tolerance=1e-6):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    assert a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=tolerance), f"{a} is not {b}"


def fails(words, call, *args, kind=InputError, **how):
    """The call must raise an error or exit with one: one line that has all of `words`, cut at |."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call(*args, **how)
    except (kind, SystemExit) as error:
        message = str(error)
        assert message not in ("", "0", "None") and "\n" not in message, repr(message)
        assert all(word in message for word in words.split("|")), f"{words!r}: {message!r}"
        return error
    raise AssertionError(f"no error that names {words!r}")


def tiny(kind):
    """A random decoder with 97 tokens; small windows, so that they matter."""
    torch.manual_seed(0)
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    shape |= dict(num_key_value_heads=2, max_position_embeddings=128)
    special = {"Granite": dict(logits_scaling=2.0), "Gemma2": dict(sliding_window=8)}
    special |= {"Mistral": dict(sliding_window=8), "Qwen3": dict(head_dim=8)}
    layers = ["sliding_attention", "full_attention"] * 2
    special["Gemma3"] = dict(head_dim=8, sliding_window=8, layer_types=layers, num_hidden_layers=4)
    shape |= special.get(kind, {}) | dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = getattr(transformers, kind.replace("Gemma3", "Gemma3Text") + "Config")
    model = AutoModelForCausalLM.from_config(config(vocab_size=97, **shape)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=p.mean().item(), std=0.3 if p.dim() > 1 else 0.1)
    model.get_input_embeddings().weight.data[0] = 0.0  # as that of a padding token may be
    rollout.prepare(model)
    return model


def ragged(count=7, longest=30):
    """Prompts of different lengths, two of them equal."""
    rng = random.Random(1)
    lengths = [rng.randrange(1, longest) for _ in range(count)]
    prompts = [[rng.randrange(3, 97) for _ in range(length)] for length in lengths]
    return prompts + [prompts[0]]


@functools.lru_cache
def base():
    return load_policy("toy", "cpu")


def toy_policy(limit=64, temperature=1.0):
    return Policy(*base(), limit, temperature)


def problems(count, seed=0, held_out=False):
    return make.problems(count, random.Random(seed), held_out)


def solved(problem):
    return make.written(make.Teacher().solve(problem.question.split()[1]))


def static_pairs(asked):
    return [Pair(p, text, text != box("x")) for p in asked for text in (solved(p), box("x"))]


def write(path, rows):
    """A JSONL file of dicts, problems or pairs."""
    to_row = {Problem: from_problem, Pair: from_pair, dict: dict, list: list}
    reward.write_jsonl(path, [to_row[type(row)](row) for row in rows])
    return path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def printed_by(main, text="", *more):
    """Call a command line in this process; what it printed."""
    printed, numbers = io.StringIO(), (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            main([*text.split(), *map(str, more)])
    finally:
        for number, handler in zip(numbers, handlers):
            signal.signal(number, handler)
    return printed.getvalue()


def trained(out, text, *more):
    """Run train.py; the rows of metrics.jsonl, and what was printed."""
    printed = printed_by(train.main, ON_TOY + " --out", out, *text.split(), *more)
    return lines(out / "metrics.jsonl"), printed


def used(text, *more):
    return printed_by(sample.main, "--device cpu " + text, *more)


def arguments(text):
    return train.parse_args(text.split())


# ---------------------------------------------------------------------------------------- rollout

KINDS = ["Llama", "Qwen2", "Qwen3", "Mistral", "Gemma3", "GPT2", "Phi"]
KINDS += ["Gemma2", "Granite", "Bloom", "DiffLlama"]  # behind the head, or in attention, another


def test_greedy_tokens_equal_model_generate():
    for kind in KINDS:
        model, prompts = tiny(kind), ragged()
        ids, mask = rollout.left_pad(prompts, "cpu")
        how = dict(do_sample=False, max_new_tokens=40, eos_token_id=[2, 5], pad_token_id=0)
        theirs = model.generate(ids, attention_mask=mask, **how)[:, ids.shape[1] :].tolist()
        ours = generate(model, prompts, max_new_tokens=40, temperature=0, stop=(2, 5))
        for s, row, prompt in zip(ours, theirs, prompts):
            end = next((i + 1 for i, token in enumerate(row) if token in (2, 5)), 40)
            assert s.tokens == row[:end], (kind, s.tokens, row)
            assert s.prompt == prompt and s.stopped == (s.tokens[-1] in (2, 5))


def test_sampled_logprobs_equal_teacher_forcing_and_a_plain_forward_pass():
    for kind in KINDS:
        model = tiny(kind)
        # greedy tokens get the model's own log-probs; with weights of more than 32 numbers packed
        for temperature, large in ((1.0, 32), (0.7, 1 << 16), (0.0, 32)):
            how = dict(n=3, max_new_tokens=25, stop=range(20), seed=3, temperature=temperature)
            product = mock.Mock(wraps=rollout.times_packed)
            with mock.patch.multiple(rollout, LARGE=large, times_packed=product):
                samples = generate(model, ragged(), **how)
            assert product.called == (large == 32 and torch.backends.mkldnn.is_available())
            assert not any("forward" in vars(layer) for layer in model.modules()), "all undone"
            assert len({len(s.tokens) for s in samples}) > 1, "rows must end at different lengths"
            for s, scored in zip(samples, logprobs(model, samples, temperature)):
                assert len(s.tokens) == len(s.logprobs) == len(scored)
                close(scored.detach(), s.logprobs, 2e-4)
            for s in samples[:3]:
                logits = model(torch.tensor([s.prompt + s.tokens])).logits[0, len(s.prompt) - 1 :]
                plain = (logits / (temperature or 1.0)).log_softmax(-1).detach()
                close(plain[range(len(s.tokens)), s.tokens], s.logprobs, 2e-4)


def test_sampling_follows_the_distribution():
    model, prompt = tiny("Qwen2"), [5, 6, 7]

    def check(drawn, ids, temperature=1.0):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        probs, n = (logits / temperature).softmax(-1), len(drawn)
        away = (torch.bincount(torch.tensor(drawn), minlength=97) - n * probs).abs()
        assert (away / (n * probs * (1 - probs) + 1).sqrt()).max() < 5, "standard deviations"

    for temperature in (1.0, 0.5):
        how = dict(max_new_tokens=1, seed=5, temperature=temperature)
        samples = generate(model, [prompt], n=20000, **how)
        check([s.tokens[0] for s in samples], prompt, temperature)
    samples = generate(model, [prompt], n=20000, max_new_tokens=2, seed=6, stop=())
    both = [s.tokens for s in samples]  # the second token is drawn afresh, given the first
    common = max(range(97), key=[a for a, _ in both].count)
    check([b for a, b in both if a == common], [*prompt, common])


def test_choosing_a_token_by_hand():
    def choose(probs, noise, temperature):
        logits = torch.tensor([probs] * len(noise)).log()
        space = torch.empty_like(logits)
        token, logp = rollout.choose(logits, torch.tensor(noise), temperature, space)
        return token.tolist(), logp.exp()

    tempered = [p / 0.345 for p in (0.25, 0.0625, 0.0225, 0.01)]
    token, probs = choose([0.5, 0.25, 0.15, 0.1], [0.5, 0.8, 0.95, 0.99], 0.5)
    assert token == [0, 1, 2, 3]
    close(probs, tempered)
    token, probs = choose([0.15, 0.5, 0.25, 0.1], [0.99], 0.0)
    assert token == [1] and abs(probs - 0.5) < 1e-6, "greedy: the log-prob at temperature 1"
    noise = [0.0, 0.29, 0.31, 1 - 2**-24]  # the smallest and the largest, too
    token, probs = choose([0.0, 0.3, 0.7, 0.0], noise, 1.0)
    assert token == [1, 1, 2, 2]
    close(probs, [0.3, 0.3, 0.7, 0.7])


def test_pad_token_is_of_no_account():
    """A pad token that equals EOS, or that is sampled, changes nothing: masks go by length."""
    model = tiny("Llama")
    prompts = [[0, 0, 5], [2, 9], [0], [7, 8, 9, 10]]  # token 0 is what rows are padded with
    for pad in (2, 0):
        model.config.pad_token_id = model.generation_config.pad_token_id = pad
        samples = generate(model, prompts, n=200, max_new_tokens=12, stop=(2,), seed=4)
        assert any(0 in s.tokens for s in samples) and any(s.tokens[-1] == 2 for s in samples)
        for s, scored in zip(samples, logprobs(model, samples)):
            assert s.stopped == (s.tokens[-1] == 2) and 2 not in s.tokens[:-1]
            assert len(s.tokens) == 12 or s.stopped
            close(scored.detach(), s.logprobs, 2e-4)


def test_seed_and_parts():
    """A seed gives the same tokens, in parts too, as memory or an error forces them."""
    model, prompts, sizes, tried, real = tiny("Mistral"), ragged(), [], [], rollout.sample_rows

    def small_device(room, model, prompts, *rest):
        tried.append(len(prompts))
        if len(prompts) > room:
            raise torch.OutOfMemoryError("a small device")
        return real(model, prompts, *rest)

    def tokens(seed=9, bar=None):
        samples = generate(model, prompts, 4, 20, stop=(2, 5), seed=seed, bar=bar)
        assert [s.prompt for s in samples] == [p for p in prompts for _ in range(4)]
        return [s.tokens for s in samples]

    whole = tokens()
    assert whole == tokens() != tokens(10) and whole[0] != whole[1]
    with patch(rollout, "rows_that_fit", lambda model, length, n: 7):
        assert whole == tokens(bar=mock.Mock(update=sizes.append)) and sizes == [7, 7, 7, 7, 4]
    with patch(rollout, "sample_rows", functools.partial(small_device, 5)):
        assert whole == tokens() and tried[:4] == [32, 16, 8, 4]
    with mock.patch.multiple(rollout, LARGE=0, sample_rows=functools.partial(small_device, 0)):
        fails("a small device", tokens, kind=torch.OutOfMemoryError)
    assert not any("forward" in vars(layer) for layer in model.modules()), "no weight stays packed"


def test_sizes_of_batches_by_hand():
    """3 layers of keys and values of 2 heads of 8 fp32 are 384 bytes a token, 8 times a hidden
    state of 32 are 1024, shared by 2 rows; 97 tokens of vocabulary, 16 bytes each."""
    model, row = tiny("Llama"), 100 * (384 + 512) + 16 * 97
    with patch(rollout, "CPU_BYTES", 1):
        assert rollout.memory(model) == 8 * sum(p.numel() for p in model.parameters())
    for memory, rows in ((5 * row, 5), (5 * row - 1, 4), (10, 1)):
        with patch(rollout, "memory", return_value=memory):
            assert rollout.rows_that_fit(model, 100, 2) == rows
    # What goes into and comes out of 7 matrices a layer, in fp32: q, o 32 + 32, k, v 32 + 16, and
    # 32 + 48 three times.
    token = 3 * (2 * 64 + 2 * 48 + 3 * 80) * 4
    samples = [Sample([1] * p, [1] * t, [], True) for p, t in [(9, 3), (2, 8), (4, 4), (2, 1)] * 5]
    for tokens, most, parts in ((40, 40, 1), (80, 40, 2), (10**6, 10**6, 1), (5, 5, 1)):
        with patch(rollout, "memory", return_value=tokens * token):
            cuts = rollout.micro_batches(model, samples, parts)
        assert sorted(sum(cuts, [])) == list(range(20))
        assert len(cuts) <= {40: 4, 10**6: 1, 5: 17}[most]
        for part in (part for part in cuts if len(part) > 1):
            wide = len(part) * max(len(samples[i].tokens) for i in part)
            deep = [len(prompt) for prompt in {tuple(samples[i].prompt) for i in part}]
            assert max(deep) * len(deep) + wide <= most


def test_what_the_model_is_shown():
    """Each distinct prompt is prefilled once; rows that have ended leave, a few at a time."""
    model, seen = tiny("Llama"), []

    def look(module, args, how):
        seen.append(tuple(args[0].shape))

    model.base_model.register_forward_pre_hook(look, with_kwargs=True)
    generate(model, [[5, 6, 7], [8, 9], [5, 6, 7]], n=4, max_new_tokens=6, stop=())
    assert seen == [(2, 3)] + [(12, 1)] * 5, seen
    seen.clear()
    samples = generate(model, [[5, 6]], n=60, max_new_tokens=30, stop=tuple(range(2, 20)))
    rows, alive = [n for n, _ in seen], [sum(len(s.tokens) > t for s in samples) for t in range(30)]
    assert len(samples) == 60 and rows[0] == 1 and rows[1] > 2 * rows[-1], rows
    assert all(a <= r <= a / 0.9 + 1 for r, a in zip(rows[1:], alive[1:])), (rows, alive)


def test_context_limits():
    for model in map(tiny, ("Llama", "GPT2")):
        fails("prompt 1|128", generate, model, [[5]] + [[5] * 128])
        fails("prompt 0|0 tokens", generate, model, [[]])
        how = dict(max_new_tokens=20, stop=(), temperature=0)
        short, *_, long = generate(model, [[5] * 3] * 30 + [[5] * 120], **how)
        assert len(short.tokens) == 20 and len(long.tokens) == 8 and not long.stopped
        close(logprobs(model, [short, long])[1].detach(), long.logprobs, 2e-4)
    fails("n, max_new_tokens >= 1", generate, model, [[5]], n=0)
    fails("temperature", generate, model, [[5]], temperature=-1)
    # where text is sampled, a prompt that leaves no room gives samples without tokens
    chats = [solve(question) for question in ("9+" * 300 + "9", "Compute 1+2 modulo 10.")]
    done = sample.complete(toy_policy(), chats, 2, 0)
    assert [(s.tokens == [], s.stopped, text) for s, text in done[:2]] == [(True, False, "")] * 2
    assert done[2:] == sample.complete(toy_policy(), chats[1:], 2, 0) and done[2][0].tokens


def test_shared_cache_by_hand():
    """Attention over prompts held once and rows' own tokens is that over copies, as rows leave."""
    torch.manual_seed(0)
    cache, model = rollout.SharedLayer(9), tiny("Llama")
    prompts = [torch.randn(3, 2, 5, 4) for _ in range(2)]  # 3 prompts, 2 heads of 4
    cache.update(*prompts)
    owner = torch.tensor([0, 0, 1, 2, 2, 2])
    cache.batch_select_indices(owner)
    held = [x[owner] for x in prompts]
    hidden = torch.tensor([2, 0, 1])  # left padding of the prompts
    for step in range(9):
        if step in (3, 6):
            kept = torch.tensor([1, 3, 5] if step == 3 else [2])
            cache.batch_select_indices(kept)
            owner, held = owner[kept], [x[kept] for x in held]
        new = [torch.randn(len(owner), 2, 1, 4) for _ in range(2)]
        held = [torch.cat([old, x], 2) for old, x in zip(held, new)]
        length = 5 + step + 1
        assert cache.get_seq_length() == length - 1
        keys, values = cache.update(*new)
        query = torch.randn(len(owner), 4, 1, 4)  # 4 query heads: two read each head
        mask = (torch.arange(length) >= hidden[owner][:, None])[:, None, None]
        ours, _ = rollout.attend(model, query, keys, values, mask)
        wide = [x.repeat_interleave(2, 1) for x in held]
        theirs = torch.nn.functional.scaled_dot_product_attention(query, *wide, attn_mask=mask)
        close(ours, theirs.transpose(1, 2), 1e-6)


def test_autocast():
    """Under bf16 arithmetic the weights are fp32, the cache bf16, the logits a product in fp32;
    the same with weights packed, where the CPU has bf16."""
    (model, tokenizer), seen = load_policy("toy", "cpu", "bf16"), set()
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    def look(module, args, how, out):
        seen.update((x.keys.dtype, x.values.dtype) for x in how[model.cache_key].layers)

    hook = model.base_model.register_forward_hook(look, with_kwargs=True)
    prompts = [encode_chat(tokenizer, solve(p.question)) for p in problems(8)]
    samples = generate(model, prompts, 2, 40)
    with patch(rollout, "LARGE", 32):
        samples += generate(model, prompts, 2, 40)
    hook.remove()
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    drawn = torch.tensor([p for s in samples for p in s.logprobs])
    away = (torch.cat(logprobs(model, samples)) - drawn).abs().mean()
    assert 0 < away < 0.02, "sampler and learner compute alike"
    hidden, head = torch.randn(2, 128, dtype=torch.bfloat16), model.get_output_embeddings()
    with patch(rollout, "LARGE", 32), rollout.packed(model), rollout.autocast(model):
        logits = rollout.to_logits(model, hidden)
    close(logits.detach(), (hidden.float() @ head.weight.T).detach(), 1e-5)


def refused(words, folder, model=None, tokenizer=None, **options):
    """A folder with the toy, its parts replaced, must not load."""
    rollout.save_policy(model or base()[0], tokenizer or base()[1], folder)
    (model or base()[0]).save_pretrained(folder, **options)
    fails(words, load_policy, folder, "cpu")


def test_stop_set_is_the_union(tmp_path):
    """EOS of config, generation config and tokenizer, and a template's own end of turn."""
    model, tokenizer = copy.deepcopy(base())
    model.config.eos_token_id = 7
    settings = dict(eos_token_id=[11, 12], repetition_penalty=2.0, max_new_tokens=33)
    model.generation_config = transformers.GenerationConfig(**settings)
    turn = "{% for m in messages %}<|user|>{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    tokenizer.chat_template = turn + " ok<|assistant|><|user|>{% endif %}{% endfor %}"
    rollout.save_policy(model, tokenizer, tmp_path)
    loaded, _ = load_policy(tmp_path, "cpu")
    stops, end_of_turn = loaded.generation_config.eos_token_id, "<|assistant|>"
    ids = 7, 11, 12, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(end_of_turn)
    assert stops == sorted(ids) and len(set(ids)) == 5
    assert loaded.generation_config.repetition_penalty in (None, 1.0)
    assert loaded.generation_config.max_new_tokens == 33, "what a run has left for sample.py"
    done = generate(loaded, [[20, 21]], n=50, max_new_tokens=60)
    assert any(s.stopped for s in done)
    assert all(s.stopped == (s.tokens[-1] in stops) for s in done)


def test_models_that_cannot_be_trained_are_refused(tmp_path):
    weights, name = base()[0].state_dict(), "model.norm.weight"
    norm = {key: w for key, w in weights.items() if key != name}
    refused(f"missing keys|{name}", tmp_path / "a", state_dict=norm)
    extra = weights | {"model.extra.weight": torch.ones(3)}
    refused("unexpected keys|model.extra.weight", tmp_path / "b", state_dict=extra)
    model, tokenizer = copy.deepcopy(base())
    model.resize_token_embeddings(300)
    refused(f"{len(tokenizer)}|300", tmp_path / "c", model)
    model, _ = copy.deepcopy(base())
    for config in (model.config, model.generation_config, tokenizer):
        config.eos_token_id = None
    tokenizer.chat_template = None
    refused("no EOS", tmp_path / "d", model, tokenizer)
    base()[0].save_pretrained(tmp_path / "e")
    fails("cannot load model", load_policy, tmp_path / "e", "cpu")
    fails("cannot load model|none", load_policy, tmp_path / "none", "cpu")
    fails("nonsense", load_policy, "toy", "nonsense")


def test_saved_policy_is_a_hugging_face_folder(tmp_path):
    """Saved, loaded by transformers alone: model.generate gives the sampler's greedy tokens."""
    rollout.save_policy(*base(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer, question = AutoTokenizer.from_pretrained(tmp_path), "Compute 3*4+5-1 modulo 10."
    for chat in (solve(question), critique.critique(question, "3*4=2\n2+5=7\n7-1=6\n" + box(6))):
        ids = encode_chat(tokenizer, chat)
        theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
        (ours,) = generate(base()[0], [ids], max_new_tokens=64, temperature=0)
        assert ours.prompt + ours.tokens == theirs[0].tolist() and ours.stopped
    printed = printed_by(lambda folder: rollout.main(*folder), "", tmp_path)
    assert "as model.generate: True" in printed


# ------------------------------------------------------------------------------------- chat prompts


def prompt_of(template, chat):
    """A conversation through another template and back into text."""
    tokenizer = copy.deepcopy(base()[1])
    tokenizer.chat_template = template
    chat = [{"role": "user", "content": chat}] if isinstance(chat, str) else chat
    return tokenizer.decode(encode_chat(tokenizer, chat))


def test_chat_template_and_plain_fallback():
    tokenizer = copy.deepcopy(base()[1])
    chat = correct("Compute 1+2 modulo 10.", box(3) + "<|end|><|assistant|>hm")
    text = prompt_of(tokenizer.chat_template, chat)
    assert text.count("<|end|>") == 1 and text.count("<|assistant|>") == 2
    assert text.endswith("<|assistant|>") and box(3) + "\ufffd\ufffdhm<|end|>" in text
    text = prompt_of(None, chat)
    assert text.startswith("User:\nCompute") and text.count("<|end|>") == 1
    assert text.endswith("corrected. Put the final answer in \\boxed{}.\n\nAssistant:\n")
    tokenizer.bos_token = "<|user|>"
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}"
    assert encode_chat(tokenizer, chat).count(tokenizer.bos_token_id) == 1


def test_chat_templates_of_others():
    """Errors are one line; thinking is off."""
    fails("chat template|no system", prompt_of, "{{ raise_exception('no\nsystem') }}", "hello")
    fails("chat template|zero", prompt_of, "{{ 1/0 }}", "hello")
    thinking = "{% if enable_thinking is defined %}thinking {{ enable_thinking }}{% endif %}"
    assert prompt_of(thinking, "hello") == "thinking False"


def test_the_date_is_in_no_prompt():
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %f') }}{% endif %}"
    texts = {prompt_of(dated + " {{ messages[0].content }}", "hello") for _ in range(3)}
    assert len(texts) == 1 and re.search(r"\d\d\d\d.* hello$", texts.pop())


def test_marks_of_turns_are_taken_out_of_contents():
    llama = "{% for m in messages %}[INST] {{ m.content }} [/INST]\n{% endfor %}"
    hashes = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
    bars = "{% for m in messages %}<|end|>{{ m.role }}\n<|human|>{{ m.content }}{% endfor %}"
    for template, text, left in [
        (llama, "a [INST] b[/INST] c", "a ? b? c"),
        (llama, "[IN[INST]ST] x", "[IN?ST] x"),
        (llama, "user [INS T] assistant", "user [INS T] assistant"),
        (hashes, "### user:### assistant: the user: 5", "?? the user: 5"),
        (bars, "the user<|human|> and an assistant", "the user? and an assistant"),
        (bars, "a<|e<|end|>nd|>b<|hum<|end|>an|>c", "a<|e?nd|>b<|hum?an|>c"),
    ]:
        found = prompt_of(template, f"START{text}STOP").partition("START")[2].rpartition("STOP")[0]
        assert found == left.replace("?", "\ufffd"), (template, text, found)
    nested, tokenizer = "<|e" * 8600 + "<|end|>" + "nd|>" * 8600, base()[1]
    start = time.process_time()
    ids = encode_chat(tokenizer, [{"role": "user", "content": nested}])
    assert ids.count(tokenizer.eos_token_id) == 0
    assert time.process_time() - start < 0.3, "60 kB of marks inside marks must take linear time"


# --------------------------------------------------------------------------------------- critique

RIGHT = r"""Conclusion: right|**Conclusion:** right|**Conclusion: right**|Conclusion: \boxed{right}
Conclusion: `right`!|Conclusion: wrong ... so¶Conclusion:  right   ¶¶Thanks|Conclusion: _right_
Conclusion: maybe¶Conclusion: right|Conclusion: right¶Conclusion: maybe|- Conclusion: RIGHT
**Conclusion:** Right. [END]|Conclusion: right <end>|hm¶  ## Conclusion¶¶right¶"""
WRONG = r"""Conclusion: wrong|conclusion:WRONG.|Conclusion - \boxed{\text{Wrong}}
# Conclusion:¶wrong|Conclusion: right¶Conclusion: wrong|Conclusion: wrong¶¶Right answer: 5
8*9=5:2¶Conclusion: wrong|Conclusion: wrong¶> Conclusion: right|Conclusion: wrong¶"Conclusion:right"
Conclusion: wrong. [/end]"""
NEITHER = r"""|right|Conclusion: unclear|Conclusion: not right|Conclusion: rightly so|Conclusion:
Conclusion: right or wrong|Conclusion: right / wrong|Conclusion: **right** or **wrong**
Conclusion: right, or wrong|Conclusion: right-or-wrong|In conclusion, it went right
The conclusion is: wrong|Conclusion: the solution is right.|## Conclusion¶wrong, since 3*4 is 12
> Conclusion: right|"Conclusion: right"|Conclusion: wrong (right answer: 5)|So, conclusion: right"""


def test_judgement_table():
    for table, expected in ((RIGHT, True), (WRONG, False), (NEITHER, None)):
        for text in re.split("[|\n]", table):
            assert judgement(text.replace("¶", "\n")) is expected, (text, expected)
            assert judgement(text.replace("¶", "\r\n") + "\r\n") is expected, text
    assert judgement("Conclusion: right|wrong") is None
    start = time.process_time()
    for hostile in ("conclusion", "conclusion ", "conclusion:" + "*" * 99, "conclusion: right [ "):
        judgement(hostile * 50_000)
    assert time.process_time() - start < 2, "reading a judgement must take linear time"


def run_critique(*argv):
    """`python critique.py` on the command line; what it printed."""
    with patch(sys, "argv", ["critique.py", *map(str, argv)]):
        return printed_by(lambda _: runpy.run_path(critique.__file__, run_name="__main__"))


def test_prompts():
    question, response, check = "How many {x}?", "It is \\boxed{5} {", "Conclusion: wrong {"
    (asked,) = solve(question)
    assert question in asked["content"] and "\\boxed{}." in asked["content"]
    (asked,) = critique.critique(question, response)
    assert asked["role"] == "user", "the response is somebody's text"
    parts = question, response, "Conclusion: right", "Conclusion: wrong"
    assert all(part in asked["content"] for part in parts)
    for text in (None, check):
        chat = correct(question, response, text)
        assert [m["role"] for m in chat] == ["user", "assistant", "user"]
        assert chat[:1] == solve(question) and chat[1]["content"] == response
        assert "\\boxed{}." in chat[2]["content"] and (check in chat[2]["content"]) == bool(text)


def test_demonstrations(tmp_path):
    def load(*rows, held_out=()):
        return critique.load_demonstrations(write(tmp_path / "shown.jsonl", rows), held_out)

    q, r = {"question": "q", "response": "r"}, {"critique": "no\nConclusion: wrong"}
    example, criticised = (solve("q"), "r"), (critique.critique("q", "r"), r["critique"])
    assert load(q) == load(q | {"label": "right"}) == load(q | {"label": True}) == ([example], 0)
    assert load(q | r) == ([criticised], 0), "a wrong response is no demonstration of solving"
    good = q | {"critique": "Conclusion: right", "label": "right"}
    examples, dropped = load(good, q | r | {"label": False})
    assert len(examples) == 3 and example in examples and criticised in examples and not dropped
    other = {"question": "p", "response": "s"}
    assert load(other, q, q, held_out={"q"}) == ([(solve("p"), "s")], 2)
    fails("jsonl:2|contradicts", load, q, q | r | {"label": "right"})
    fails("jsonl:2|Conclusion", load, q, q | {"critique": "hm"})
    for odd in ("maybe", 0, 1, []):
        fails(f"jsonl:2|label|{odd}", load, q, q | {"label": odd})
    fails("jsonl:2|response", load, q, {"question": "q"})
    fails("jsonl:2|object", load, q, [1])
    fails("no demonstration", load, q | {"label": "wrong"})
    fails("no demonstration|held out", load, q, held_out={"q"})


WORK = """In May she sold 48/2 = $<<48/2=24>>24.
That makes 48+24 = <<48+24=72>>72 and 72*.5 = <<72*.5=36>>36.
#### 36"""
BROKEN = """In May she sold 48/2 = $26.
That makes 48+26 = 74 and 74*.5 = 37.
The answer is \\boxed{37}."""


def test_demonstrations_from_worked_solutions(tmp_path):
    assert critique.calculate("2+3*4-6/4", {}) == 12.5 == critique.calculate("2.5*(3-1)", {3: 6})
    for wrong in ("2**9", "1/0", "", "f(2)", "(", "2;3"):
        fails("no arithmetic", critique.calculate, wrong, {}, kind=ValueError)
    seen, checks = set(), "48/2 = 24: ok\n48+24 = 72: ok\n72*.5 = 36: ok\nConclusion: right"
    for seed in range(40):
        good, bad = critique.demonstrate(Problem("48 clips?", WORK), random.Random(seed))
        assert good["critique"] == checks and "<<" not in good["response"] + bad["response"]
        assert is_correct(good["response"], WORK) and not is_correct(bad["response"], WORK)
        assert [judgement(row["critique"]) for row in (good, bad)] == [True, False]
        assert [row["label"] for row in (good, bad)] == ["right", "wrong"]
        seen.add((bad["response"], bad["critique"].split("\n")[0]))
    assert (BROKEN, "48/2 = 24: no, the solution has 26") in seen and len(seen) > 10
    again = "400*3/5 = <<400*3/5=240>>240\n400-240 = <<400-240=160>>160\n"
    again += "240+160 = <<240+160=400>>400\n#### 400"
    tried = 0
    for seed in range(20):  # what stands before the broken step is called ok: it must be true
        with contextlib.suppress(ValueError):  # 240 broken: the sum is 400 all the same
            _, bad = critique.demonstrate(Problem("q", again), random.Random(seed))
            checks, work = bad["critique"].split("\n"), bad["response"].split("\n")
            for check, line in zip(checks[: [": no" in c for c in checks].index(True)], work):
                assert check == line.strip() + ": ok", (check, line)
                tried += 1
    assert tried > 5
    twice = "2*5 = <<2*5=10>>10\n5*2 = <<5*2=10>>10\nor <<100*(10+10)=2000>>2,000, so\n#### 2000"
    for seed in range(20):
        with contextlib.suppress(ValueError):  # the first 10 broken, the second not
            _, bad = critique.demonstrate(Problem("q", twice), random.Random(seed))
            assert "\n5*2 = 10: ok" not in bad["critique"] or "2*5 = 10: ok" in bad["critique"]
            assert ", so" in bad["response"] and "2,000" not in bad["response"], "tell-tale signs"
    for answer in ("none #### 3", "5-20 = <<5-20=-15>>-15\n#### -15", "<<1/3=0.33>>0.33 #### 0.33"):
        fails("", critique.demonstrate, Problem("q", answer), random.Random(0), kind=ValueError)
    rows = [Problem(f"{i} clips?", WORK if i else "#### 3") for i in range(20)]
    (tmp_path / "made").write_text(run_critique(write(tmp_path / "data", rows)))
    examples, _ = critique.load_demonstrations(tmp_path / "made")
    assert len(examples) == 19 * 3, "a right response and two critiques each"
    fails("none.jsonl", run_critique, tmp_path / "none.jsonl")


# ----------------------------------------------------------------------------------------- reward

# reference == responses that are right, reference != responses that are not; ¶ is a new line
ANSWERS = r"""So. #### yes == \boxed{yes} | the answer is Yes. ;; So. #### yes != \boxed{no} | yes
42 == \boxed{42} | \boxed{41} no, \boxed{42} | it is 42. | the answer is **42**
42 == #### Step 2: add¶The answer is 42. | \boxed{42.0} | Answer: 42 | #### 42 | **Answer:** 42
42 == The answer is:¶42 ;; 42 != \boxed{42} no, \boxed{41} | | no number | 42: 41 | \boxed{x}, 42
blah <<6*7=42>> #### 42 == #### 42 | \boxed{42} ;; #### 1200 == #### 1,200 miles | \boxed{1200}
5 == \boxed{\boxed{5}} | \boxed {5} | \boxed{\text{about }\{5\}} | \boxed{5} and \boxed{6 | 10-5
5 == The answer is $5.00. | The answer is 5 apples, not 6. | \boxed{x = 5} | \boxed{5\!\!} | 5.
5 == \boxed{\;5~} | \boxed{5 m} | \boxed{5 \text{ boys}} | \boxed{5\text{ cm}} | x=5
5 != \boxed{5x+1} | \boxed{5-x} | \boxed{x\neq 5} | \boxed{x=\pm 5} | \boxed{5!} | -5 | \boxed{5y}
so \boxed{5} == \boxed{5} ;; 0 == -0 | 0.0 ;; 0 != | \boxed{} | \boxed{1/0} | \boxed{\frac{1}{0}}
7 == Answer: 7 | The answer is 3 + 4 = 7. | 007 | +7 | 7\% ;; 6 == The answer isn't 5, it is 6
20 == 10 apples, 20 pears ;; 70000 == 70,000 dollars ;; 1000 == \boxed{1{,}000} | 1,000
1,000 == \boxed{1\,000} ;; 1000000 == 1,000,000 ;; 1234.5 == \boxed{\$1,234.50}
0.5 == \boxed{\frac{1}{2}} | \boxed{\frac12} | \boxed{.5} | 1/2 ;; 0.5 != \boxed{50\%} | \boxed{5}
3.2 == costs £3.20 ;; 12 == so €12. | \boxed{12\ \mathrm{hours}} ;; 25 == \boxed{25\text{ cm}^2}
60 == \boxed{60 \text{ km/h}} ;; 90 == \boxed{90^\circ} ;; 9 != \boxed{9**9**9} ;; 99 != 9**9
3/4 == \boxed{\dfrac{3}{4}} | \boxed{0.75} | 75/100 ;; 1.5 == \boxed{1\frac{1}{2}} | 1 1/2
3/2 == \boxed{1 1/2} ;; 3.5 == about $\frac{7}{2}$ of it | 3.50 ;; 2.5 == \boxed{\tfrac{10}{4}}
1/2 == \boxed{\left( \frac { 1 } { 2 } \right)} | \boxed{2/4} | .5 | #### .5 ;; 0.3333333333 != 1/3
1/10 == 0.1 ;; -0.5 == \boxed{-\frac{1}{2}} ;; -1/2 == \boxed{\frac{-1}{2}} ;; 50 == \boxed{50\%}
-5 == \boxed{ - \, 5 } | −5 | -$5 | $-5 ;; -5 != 10-5 | 5 ;; (1,2) == \boxed{(1, 2)} ;; 50 == 50%
(1,2) != \boxed{(1,3)} ;; x + 1 == \boxed{x+1} ;; x+2 != \boxed{x+1} ;; red != blue | \boxed{blue}
Blue == The answer is blue. | \boxed{\text{blue}} ;; \sqrt{2} != \boxed{2} | \sqrt2 is it
\sqrt{2} == \boxed{\sqrt{2}} | \boxed{\sqrt2} ;; \frac{\pi}{4} != \boxed{4} | answer: \frac{\pi}{3}
4 != Answer: $\frac{\pi}{4}$ ;; 3\pi != \boxed{3} ;; (-\infty,5] != \boxed{5} ;; 2x != \boxed{2y}
2x == \boxed{2x} ;; 2 != \boxed{n/2} | \boxed{\frac{x}{2}} ;; text #### != \boxed{}
\frac{1}{2x} != \boxed{\frac{12}{x}} ;; x^{23} != \boxed{x^{2}3} ;; x^{23} == \boxed{x^{23}}
x^2 == \boxed{x^{2}} ;; 1 != answer: 1e9 | \boxed{10} ;; 1000000000 == answer: 1e9
\frac{\pi}{4} == \boxed{\dfrac{\pi}{4}} | \boxed{\tfrac{\pi}{4}} | \boxed{\frac\pi4}
B == \boxed{(B)} | \boxed{B} | The answer is (B). ;; (B) == \boxed{B} | \boxed{(b)}
0.75 == x=\frac{-3}{-4} ;; 387420489 != 9**9**9 ;; $ != The answer is .
300000 == \boxed{3\times 10^5} | \boxed{3 \cdot 10^{5}} ;; 3 != \boxed{3 \times 10^5}"""


def test_is_correct_table():
    for row in re.split("\n| ;; ", ANSWERS):
        answer, responses = re.split(" [=!]=", row)
        for response in responses.split(" |"):
            response = response.strip().replace("¶", "\n")
            given = response, answer, reward.final_answer(response)
            assert is_correct(response, answer) is (" == " in row), given


def test_hostile_text_takes_linear_time():
    texts = ["9", "{", "\\boxed{", "\\frac{", "#", "1,111", "1/", "-", "####1", "\\text{", "^", "="]
    texts += [" ", "1 ", "answer is ", "\\frac{1} ", "1 1/", "9e9", "5 \\times 10^"]
    texts = [text * (10**6 // len(text)) for text in texts]
    texts += ["\\boxed{" + "9" * 10**6 + "}", "the answer is " + "9" * 10**6, "9**9**9"]
    texts += ["\\boxed{" + "{" * 10**6, "\\frac" + " " * 10**6, "5" + " " * 10**6 + "/"]
    for text in texts:
        start = time.process_time()
        assert not is_correct(text, "8")
        is_correct("8", text)
        assert time.process_time() - start < 2, f"{text[:20]!r}..."


PIECES = "Conclusion: right|\\boxed{|}|{|\\frac|####|answer is |**|1,234|-|.5|/|\n|\r\n|\ufeff|"
PIECES += "\x1b[2J|\x00|\u2028|'|[|]|(|)|$|%|^|_|\\text{|e9|1e999|\U0001f600|\u0663|\ud800|nan|\\|"
PIECES += "null|:|,|{}"
PIECES = [*PIECES.split("|"), "|", '"', '{"question": "1+1", "answer": "2"}', '{"answer": []}']


def fuzz(folder, count):
    """Random texts of up to 10 kB: no exception but InputError, none over 50 ms of processor time
    (best of three)."""
    rng, path = random.Random(0), folder / "fuzz.jsonl"

    def read(text):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with contextlib.suppress(InputError):
            reward.read_jsonl(path, reward.to_problem)

    for _ in range(count):
        text, limit = "", rng.choice((30, 300, 3000, 10000))
        while len(text) < limit:
            text += rng.choice(PIECES) * rng.choice((1, 1, 1, 3, 300))
        text = text[:limit]
        for work in (judgement, read, lambda x: is_correct(x, "7"), lambda x: is_correct("7", x)):
            spent = []
            while not spent or (spent[-1] > 0.05 and len(spent) < 3):
                start = time.process_time()
                work(text)
                spent.append(time.process_time() - start)
            assert min(spent) < 0.05, (work, min(spent), text[:99])


def test_fuzz(tmp_path):
    fuzz(tmp_path, 1000)


def long_fuzz(tmp_path):
    fuzz(tmp_path, 100_000)


def test_equations_1_to_6():
    assert [reward.response_reward(box(x), "7") for x in (7, 8)] == [1, 0]  # eq. 1
    for judged, right in [(True, True), (False, False), (True, False), (False, True)]:
        earned = 0.7 if judged == right else 0
        assert reward.critique_reward(judged, right) == earned  # eq. 2
    for right, accuracy, earned in ((True, 0.25, 1.4), (False, 0.3, 0.5)):  # eq. 3
        close(reward.reweighted_reward(right, right, accuracy), earned)
        for judged in (not right, None):
            assert reward.reweighted_reward(judged, right, accuracy) == 0
            assert reward.critique_reward(judged, right) == 0
    refined = [True, False, True, True]
    close([reward.denoising_reward(call, refined) for call in (True, False)], [0.075, 0.525])  # 4
    assert reward.denoising_reward(None, refined) == reward.denoising_reward(False, [False]) == 0
    assert [reward.critique_reward(r, r, 0.6, 0.8) for r in (True, False)] == [0.6, 0.8]  # eq. 5
    assert [reward.critique_reward(r, r, 0.8, 0.6) for r in (True, False)] == [0.8, 0.6]  # eq. 6
    outcomes = ((0, 0), (0, 1), (1, 0), (1, 1))
    assert [reward.shaped_reward(a, b, 10) for a, b in outcomes] == [0, 11, -10, 1]  # SCoRe
    for a in (0.1, 0.5, 0.9):  # a perfect critic earns 0.35 from each label: eq. 3 balances them
        close(a * reward.reweighted_reward(True, True, a), 0.35)
        close((1 - a) * reward.reweighted_reward(False, False, a), 0.35)


def test_filter_and_cache():
    rng, asked = random.Random(0), [Problem(f"q{i}", "1") for i in range(50)]
    groups = [[Pair(p, f"{j}", rng.random() < 0.3) for j in range(5)] for p in asked] + [[]]
    kept, everything = reward.filter_pairs(groups, rng), sum(groups, [])
    mixed = [g for g in groups if len({p.right for p in g}) == 2]
    assert 0 < len(mixed) < 50 and [p.right for p in kept] == [True, False] * len(mixed)
    assert [p.problem for p in kept] == [g[0].problem for g in mixed for _ in range(2)]
    assert all(p in everything for p in kept)
    draws = {tuple(reward.filter_pairs(mixed[:1], random.Random(s))) for s in range(40)}
    assert len(draws) > 1, "drawn at random"
    cache = PairCache(maxlen=20)
    cache.extend(kept[:12])
    drawn = cache.draw(5, rng)
    assert len(set(drawn)) == 5 and len(cache) == 7
    assert set(drawn) | set(cache) == set(kept[:12])
    assert set(cache.draw(100, rng)) == set(kept[:12]) - set(drawn)
    assert len(cache) == 0 and cache.draw(3, rng) == []
    cache.extend([Pair(asked[0], str(i), True) for i in range(25)])
    assert len(cache) == 20 and cache[0].response == "5", "the oldest leave first"


def test_advantages_by_hand():
    close(relative([1, 0, 0, 1], [0] * 4), [1, -1, -1, 1], 1e-5)
    close(relative([1, 0, 0, 0], [0] * 4), torch.tensor([3, -1, -1, -1]) / math.sqrt(3), 1e-5)
    close(relative([1, 0, 0, 0], [0] * 4, std=False), [0.75, -0.25, -0.25, -0.25])
    close(relative([1, 5, 0, 7], ["a", "b", "a", "b"], std=False), [0.5, -1, -0.5, 1])
    assert relative([0.7] * 7 + [1.1], [0] * 7 + [1]).tolist() == [0.0] * 8, "exact zeros"
    assert relative([], []).shape == (0,)
    # The open point of the paper: divided by the deviation, one pair's critiques have the same
    # advantages under eqs. 2 and 5; over a batch, or without the division, they differ.
    calls, right = [True, False, True, True, True, False, False, True], [True] * 4 + [False] * 4
    eq2 = [reward.critique_reward(c, r) for c, r in zip(calls, right)]
    eq5 = [reward.critique_reward(c, r, 0.6, 0.8) for c, r in zip(calls, right)]
    for groups, std, differ in (("pppprrrr", 1, 0), ("bbbbbbbb", 1, 1), ("pppprrrr", 0, 1)):
        away = relative(eq2, groups, std) - relative(eq5, groups, std)
        assert (away.abs().max() > 0.01) == differ, (groups, std)


BAD_ROWS = r"""data.jsonl => {oops}|{"question": "x", "answer": "$"}|[1]
answer => {"question": "x"}|{"question": "x", "answer": null}|{"question": "x", "answer": true}
question => {"answer": "x"}|{"question": " ", "answer": "x"}|{"question": 5, "answer": "x"}
surrogates => {"question": "a\ud800", "answer": "x"}"""


def test_data_files(tmp_path):
    path = tmp_path / "data.jsonl"

    def load(data):
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return [(p.question, p.answer) for p in reward.load_problems(path)]

    good = '{"question": "1+1?", "answer": "so #### 2"}\n\n'
    good += '{"question": "2+2\u2028?", "answer": 4}\n'
    found = [("1+1?", "so #### 2"), ("2+2\u2028?", "4")]
    assert load(good) == load("\ufeff" + good.replace("\n", "\r\n")) == found
    for row in BAD_ROWS.split("\n"):
        words, bad = row.split(" => ")
        for text in bad.split("|"):
            fails("data.jsonl:4:|" + words, load, f"{good}{text}\n")
    fails("data.jsonl:4:", load, good + "[" * 10**5)
    fails("data.jsonl:4:|utf-8", load, good.encode() + b'{"question": "\xff", "answer": "1"}\n')
    fails("data.jsonl:1:", load, b"\xff\xfe\x00")
    fails("data.jsonl|empty", load, "\n \n")
    fails("none.jsonl|No such file", reward.load_problems, tmp_path / "none.jsonl", kind=OSError)
    fails(str(tmp_path), reward.load_problems, tmp_path, kind=OSError)
    pair = Pair(Problem("q", "1"), "r", True)
    assert reward.to_pair(from_pair(pair)) == pair
    write(path, [pair, from_pair(pair) | {"label": "right"}])
    fails("data.jsonl:2|label", reward.read_jsonl, path, reward.to_pair)


def test_what_is_held_out(tmp_path):
    for name, questions in (("data", "abcdeb" * 5), ("other", "bxyz"), ("same", "abcde")):
        write(tmp_path / name, [Problem(q, "1") for q in questions])

    def split(data, other=None, size=None):
        parts = reward.load_split(tmp_path / data, other and tmp_path / other, size)
        return tuple("".join(p.question for p in part) for part in parts)

    assert split("data") == ("ac" * 5, "deb")
    assert split("data", "other") == ("acde" * 5, "bxyz")
    assert split("other", "data", 1) == ("bxyz", "a"), "what is beyond --eval-size is not held out"
    fails("no problem is left", split, "data", "same")


def test_gsm8k_comes_from_the_cache_or_fails_clearly(tmp_path):
    hub, out = patch(torch.hub, "get_dir", lambda: str(tmp_path)), tmp_path / "out"
    with hub, patch(reward, "GSM8K", "http://127.0.0.1:9/"):
        fails("gsm8k|cannot download", train.main, ["--model", "x", "--out", str(out)])
        assert not list(tmp_path.rglob("*.jsonl")) and not out.exists()
        for split in ("train", "test"):
            write(tmp_path / f"gsm8k/{split}.jsonl", [Problem(split, "<<1+1=2>>\n#### 2")])
        parts = reward.load_split("gsm8k")
    assert [[p.question for p in part] for part in parts] == [["train"], ["test"]]
    assert is_correct("2", parts[1][0].answer)


# -------------------------------------------------------------------------------- loss and update


def test_grpo_loss_by_hand():
    old, mask = torch.zeros(2, 2), torch.tensor([[1, 1], [1, 0]])
    new = torch.tensor([[1.5, 0.9], [0.7, math.nan]]).log()  # ratios; masked may be anything
    advantage = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    # min(1.5, 1.2) = 1.2, min(0.9, 0.9) = 0.9, min(0.7 * -2, 0.8 * -2) = -1.6; three tokens
    loss, clipped, k3 = train.grpo_loss(new, old, advantage, mask)
    close(loss, -(1.2 + 0.9 - 1.6) / 3)
    assert clipped.tolist() == [[True, False], [True, False]] and not k3.any()
    loss, clipped, _ = train.grpo_loss(new, old, advantage, mask, clip=0.6)
    close(loss, -(1.5 + 0.9 - 1.4) / 3)
    assert not clipped.any()
    ref = torch.tensor([[1.5, 1.8], [1.4, 9.0]]).log()  # ref/new = 1, 2, 2
    one = 1 - math.log(2)  # k3 of 2
    for kl, share in ((0.5, 2), (torch.tensor([[0.5], [0.0]]), 1)):  # of the second row no KL
        loss, _, k3 = train.grpo_loss(new, old, advantage, mask, ref_logprobs=ref, kl=kl)
        close(loss, (-(1.2 + 0.9 - 1.6) + 0.5 * share * one) / 3)
        close(k3, [[0, one], [one, 0]])
    assert train.grpo_loss(new, old, advantage, torch.zeros(2, 2))[0] == 0


def test_grpo_gradient_in_closed_form():
    old, ref = torch.randn(3, 4), torch.randn(3, 4)
    advantage = torch.tensor([[1.0], [-0.5], [2.0]]).expand(3, 4)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    new = old.clone().requires_grad_()  # on policy: d/dlogp = -A / N
    train.grpo_loss(new, old, advantage, mask)[0].backward()
    close(new.grad, -advantage * mask / 7)
    new = (old + torch.tensor([[0.5, -0.5, 0.1, -0.1]] * 3)).requires_grad_()
    train.grpo_loss(new, old, advantage, mask, 0.2, ref_logprobs=ref, kl=0.3)[0].backward()
    ratio = (new - old).exp().detach()  # beyond the clip the policy term has no gradient
    active = torch.where(advantage > 0, ratio < 1.2, ratio > 0.8)
    expected = -advantage * ratio * active + 0.3 * (1 - (ref - new).exp().detach())
    close(new.grad, expected * mask / 7)


def gradient(loss=None):
    """That of a loss, or what the toy's parameters hold."""
    if loss is not None:
        base()[0].zero_grad()
        loss.backward()
    found = torch.cat([p.grad.flatten() for p in base()[0].parameters()])
    base()[0].zero_grad()
    return found


def gradient_of(episodes, temperature=1.0):
    """The gradient of GRPO's loss, unclipped, by plain passes: an independent path."""
    loss = 0.0
    for s, advantage in ((e.sample, e.advantage) for e in episodes):
        logits = base()[0](torch.tensor([s.prompt + s.tokens])).logits[0, len(s.prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1)[range(len(s.tokens)), s.tokens]
        loss = loss - (advantage * (logp - torch.tensor(s.logprobs)).exp()).sum()
    return gradient(loss / sum(len(e.sample.tokens) for e in episodes))


def episodes_of(n=6, count=4, temperature=1.0):
    """Episodes of a real rollout of the toy with made-up advantages, some of them 0."""
    done = sample.respond(toy_policy(temperature=temperature), problems(count, 3), n, 1)
    for i, e in enumerate(done):
        e.advantage = [1.0, -0.5, 0.0, 2.0][i % 4]
    return done


def recording():
    """An optimizer that keeps the gradients in `seen` and moves nothing."""
    optimizer = torch.optim.SGD(base()[0].parameters(), lr=1.0)
    optimizer.seen = []
    optimizer.step = lambda: optimizer.seen.append(gradient())
    return optimizer


def updated(episodes, updates=1, clip_norm=1e9, **options):
    """(metrics, the gradients of all optimizer steps) of train.update on the toy."""
    recorder = recording()
    with patch(train, "GRAD_CLIP", clip_norm):
        how = recorder, episodes, updates, random.Random(0)
        return train.update(base()[0], *how, **options), recorder.seen


def micro(tokens):
    """Micro-batches of the toy of so many tokens."""
    each = 4 * 2 * (4 * 256 + 3 * 512)  # bytes: 7 matrices in 2 layers
    return patch(rollout, "memory", return_value=tokens * each)


def test_update_has_the_gradient_of_the_loss():
    """Micro-batches, skipped episodes and several optimizer steps; sampler and learner agree."""
    for temperature in (1.0, 0.7):
        episodes = episodes_of(temperature=temperature)
        expected = gradient_of(episodes, temperature)
        with micro(200), patch(rollout, "LOGITS", 388 * 30):  # logits in slices, too
            metrics, (seen,) = updated(episodes, temperature=temperature)
            assert len(list(rollout.micro_batches(base()[0], [e.sample for e in episodes]))) > 3
        close(seen, expected, 1e-5)
        assert metrics["ratio/max_log"] < 1e-3 and metrics["ratio/clipped"] == 0
        close(metrics["grad_norm"], expected.norm(), 1e-4)
        assert not any("kl" in name or "loss" in name for name in metrics)
    assert updated(episodes)[0]["ratio/max_log"] > 0.1, "scored at another temperature"
    _, (seen,) = updated(episodes, clip_norm=0.01, temperature=0.7)
    close(seen, 0.01 * expected / expected.norm(), 1e-6)
    episodes = [e for e in episodes_of() if e.advantage]
    with patch(train, "accumulate", wraps=train.accumulate) as spy:
        _, seen = updated(episodes, 2)
    parts = [call.args[1] for call in spy.call_args_list]
    for ours, part in zip(seen, parts):
        close(ours, gradient_of(part), 1e-5)
    assert len(seen) == 2 and sorted(map(id, sum(parts, []))) == sorted(map(id, episodes))
    assert len(updated(episodes[::5], 8)[1]) == len({tuple(e.sample.prompt) for e in episodes[::5]})
    old = episodes[0].sample.logprobs  # as after a first step that has moved the policy
    episodes[0].sample.logprobs = [value - 0.5 for value in old]
    metrics, _ = updated(episodes[:1])
    names = "ratio/clipped", "ratio/max_log", "ratio/mean_log"
    close([metrics[name] for name in names], [1.0, 0.5, 0.5], 1e-3)
    assert updated(episodes[:1], clip=0.9)[0]["ratio/clipped"] == 0


def test_kl_to_the_reference():
    """At the reference k3 and its gradient vanish; away from it the weight of each counts."""
    episodes, other = episodes_of(), copy.deepcopy(base()[0])
    for p in other.parameters():
        p.data += 0.005 * torch.randn_like(p)
    samples, episodes[0].role = [e.sample for e in episodes], "attempt 1"
    ours, theirs = (logprobs(model, samples) for model in (base()[0], other))
    k3 = [((b - a).exp() - (b - a) - 1) for a, b in zip(ours, theirs)]
    means = k3[0].mean().item(), torch.cat(k3[1:]).mean().item()
    expected = gradient(torch.cat(k3).mean())
    for weight in (1.0, 2.0):
        for e in episodes:
            e.advantage, e.kl = 0.0, weight
        metrics, (seen,) = updated(episodes, reference=base()[0])
        assert seen.abs().max() < 1e-5 and metrics.get("kl/response", 0) < 1e-9
        metrics, (seen,) = updated(episodes, reference=other)
        close(seen, weight * expected, 1e-4)
        close([metrics["kl/attempt 1"], metrics["kl/response"]], means, 1e-4)
    real, rows = train.score_rows, {id(s): row.detach() for s, row in zip(samples, ours)}

    def far(model, samples, temperature):  # a reference that thinks e^9 times better of one token
        if model is not other:
            return real(model, samples, temperature)
        return [rows[id(s)] + 9.0 * (torch.arange(len(rows[id(s)])) == 0) for s in samples]

    with patch(train, "score_rows", far):
        metrics, _ = updated(episodes, reference=other)
    tokens, length = sum(len(s.tokens) for s in samples[1:]), len(samples[0].tokens)
    bounded = math.exp(train.MAX_AWAY) - train.MAX_AWAY - 1  # not e^9: one token must not rule
    close(metrics["kl/attempt 1"], bounded / length, 1e-3)
    close(metrics["kl/response"], bounded * len(samples[1:]) / tokens, 1e-3)


def test_supervised_learning_is_the_same_update():
    """Given texts with advantage 1: the gradient of the plain mean negative log-prob."""
    (model, tokenizer), texts = base(), ["1+2=3", "3*4=2\n" + box(2), "5", "1"]
    chats = [solve(f"Compute 1+{i} modulo 10.") for i in (1, 2, 3, 3)]
    given = [rollout.demonstration(tokenizer, chat, text) for chat, text in zip(chats, texts)]
    total = 0.0
    for s, chat, text in zip(given, chats, texts):
        assert s.prompt == encode_chat(tokenizer, chat) and s.logprobs == []
        assert s.tokens[-1] == tokenizer.eos_token_id and tokenizer.decode(s.tokens[:-1]) == text
        logits = model(torch.tensor([s.prompt + s.tokens])).logits[0, len(s.prompt) - 1 : -1]
        target = torch.tensor(s.tokens)
        total = total + torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    mean = total / sum(len(s.tokens) for s in given)
    with micro(60):
        metrics, (seen,) = updated([Episode(s, "", "given", None, advantage=1.0) for s in given])
    close(metrics["loss"], mean.item(), 1e-5)
    close(seen, gradient(mean), 1e-5)
    assert metrics["ratio/max_log"] == 0


def test_learner_out_of_memory_and_not_finite():
    """Smaller micro-batches give the same gradient; nan stops the run and names its episode."""
    episodes, real = episodes_of(), train.score_rows

    def small_device(model, samples, temperature):
        if len(samples) > 5:
            raise torch.OutOfMemoryError("pretended")
        return real(model, samples, temperature)

    _, (expected,) = updated(episodes)
    with patch(train, "score_rows", small_device), micro(600):
        _, (seen,) = updated(episodes)
    close(seen, expected, 1e-5)
    episodes[9].sample.logprobs[0] = math.nan
    error = fails("gradient norm is nan", updated, episodes, kind=FloatingPointError)
    assert error.episode is episodes[9]
    base()[0].zero_grad()
    few = episodes_of()[:4]  # far below a micro-batch's size: it is halved until one row is left

    def one_row(model, samples, temperature):
        if len(samples) > 1:
            raise torch.OutOfMemoryError("pretended")
        return real(model, samples, temperature)

    _, (expected,) = updated(few)
    with patch(train, "score_rows", one_row):
        _, (seen,) = updated(few)
    close(seen, expected, 1e-5)


# ---------------------------------------------------------------------------------------- recipes


def test_tables_by_hand():
    calls, right = [True, True, False, None, False, True], [True, False, False, True, True, True]
    table, names = sample.judge_table(calls, right), "accuracy p1 p2 precision recall unreadable"
    values = 3 / 6, 2 / 4, 1 / 2, 2 / 3, 2 / 4, 1 / 6
    assert table == dict(zip(names.split(" "), values))
    empty = sample.judge_table([None], [False])
    assert empty["precision"] is empty["p1"] is empty["recall"] is None and empty["p2"] == 0

    def attempts(*rows, second=STUB):
        """Rows of first text, right?, second text, right?"""
        a = [Episode(STUB, text, "attempt 1", None, r) for text, r, _, _ in rows]
        b = [Episode(second, text, "attempt 2", None, r) for _, _, text, r in rows]
        return sample.attempts_table(a, b)

    one, two, half = map(box, (1, 2, 0.5))
    rows = [(one, 1, one, 1), (one, 1, two, 0), (two, 0, one, 1), (half, 0, one, 1)]
    rows.append((half, 0, "so " + box("1/2"), 0))
    table, names = attempts(*rows), "t1 t2 delta i_to_c c_to_i unchanged kept truncated"
    close([table[name] for name in names.split(" ")], [0.4, 0.6, 0.2, 0.4, 0.2, 0.2, 1 / 3, 0])
    table = attempts(*rows, second=CUT)
    assert table["kept"] == 0 and table["truncated"] == 0.5, "what was cut has no answer to keep"
    assert attempts(("no answer", 0, "no answer", 0))["kept"] == 0, "none is given"
    assert attempts((one, 1, two, 0))["kept"] is None, "no first answer is wrong"
    # nor is what was cut right, whatever it says so far
    problem = Problem("1+1?", "2")
    assert sample.outcome(STUB, "2", problem) == 1 and sample.outcome(CUT, "2", problem) == 0
    done = [(CUT, "Conclusion: right"), (STUB, "Conclusion: right")]
    with patch(sample, "complete", lambda *args: done):
        judged = [e.judged for e in sample.criticise(None, [Pair(problem, "2", True)], 2, 0)]
    assert judged == [None, True]


def test_two_attempts_and_evaluation_by_an_independent_path():
    asked, tokenizer = problems(12, 6), base()[1]

    def answers(chats):
        prompts = [encode_chat(tokenizer, chat) for chat in chats]
        samples = generate(base()[0], prompts, max_new_tokens=64, temperature=0)
        return [tokenizer.decode(s.tokens[:-1]) for s in samples]

    exam = sample.sample_pairs(toy_policy(), problems(40, 7), 8, 12, 0)
    assert [p.right for p in exam] == [True, False] * 6
    assert all(p.right == is_correct(p.response, p.problem.answer) for p in exam)
    first = answers([solve(p.question) for p in asked])
    second = answers([correct(p.question, text) for p, text in zip(asked, first)])
    t1, t2 = (sum(map(is_correct, x, [p.answer for p in asked])) for x in (first, second))
    checks = answers([critique.critique(p.problem.question, p.response) for p in exam])
    agree = sum(judgement(text) is pair.right for text, pair in zip(checks, exam))
    numbers = sample.evaluate(toy_policy(), asked, exam)
    names = ["eval/" + name for name in ("generation", "t1", "t2", "critique", "size", "pairs")]
    close([numbers[name] for name in names], [t1 / 12, t1 / 12, t2 / 12, agree / 12, 12, 12])
    assert t1 in range(1, 12) and agree > 0
    # the second attempt goes on with the real conversation
    first, second, table = sample.two_attempts(toy_policy(), asked[:3], 2, 5)
    assert [e.problem for e in first] == [p for p in asked[:3] for _ in range(2)]
    for a, b in zip(first, second):
        assert b.problem == a.problem and (a.role, b.role) == ("attempt 1", "attempt 2")
        assert b.sample.prompt == encode_chat(tokenizer, correct(a.problem.question, a.text))
        assert b.reward == is_correct(b.text, b.problem.answer)
    assert table == sample.attempts_table(first, second)


def test_gcrl_recipes():
    policy, asked, flags = toy_policy(), problems(8, 8), " --n 4 --questions 8 --pairs 6"

    def step(method, cache, static=()):
        args = arguments("--method " + method + flags)
        episodes, metrics = train.gcrl(args, policy, 1, asked, cache, list(static))
        return episodes, metrics, [e.role for e in episodes]

    cache = PairCache(maxlen=100)
    episodes, metrics, roles = step("g-rl", cache)
    assert roles == ["response"] * 32 and not len(cache)
    assert metrics["response/accuracy"] == sum(e.reward for e in episodes) / 32
    assert [e.problem for e in episodes] == [p for p in asked for _ in range(4)]
    episodes, metrics, roles = step("gc-rl --kl 0.5", cache)
    critiques, count = episodes[32:], metrics["critique/pairs"]
    assert roles == ["response"] * 32 + ["critique"] * 4 * count
    assert all(e.kl == 0.5 for e in episodes) and {e.reward for e in critiques} == {0.0, 0.7}
    right = [sum(e.reward for e in episodes[i : i + 4]) for i in range(0, 32, 4)]
    assert count + len(cache) == 2 * sum(0 < r < 4 for r in right) and 2 < count <= 6
    assert metrics["critique/reward"] == sum(e.reward for e in critiques) / len(critiques)
    assert len({e.group for e in episodes[:32]}) == 8 and len({e.group for e in critiques}) == count
    cache = PairCache(maxlen=100)
    for left in (2, 4):  # pairs are drawn without replacement, then comes another pass
        _, metrics, roles = step("c-rl", cache, static_pairs(asked[:4]))
        assert roles == ["critique"] * 24 and len(cache) == left
        assert "response/accuracy" not in metrics
    _, metrics, roles = step("c-rl --critique-data dynamic", PairCache(maxlen=100))
    assert set(roles) == {"critique"} and "response/accuracy" in metrics
    # without the filter any two responses of a question go to the critic, never a cut one
    answered = [Episode(STUB, str(i), "response", asked[i // 4], float(i < 4)) for i in range(8)]
    answered += [Episode(CUT, "cut", "response", asked[2], 0.0) for _ in range(4)]
    for balance, pairs in (("filter", 0), ("none", 4), ("reweight", 4)):
        drawn = sample.draw_pairs(answered, 4, balance, random.Random(0))
        assert len({p.response for p in drawn} - {"cut"}) == pairs == len(drawn)
        assert all(p.right == (p.problem == asked[0]) and p.accuracy == 0.5 for p in drawn)
    # with whom a reward is compared
    prompts = ("q", "r"), ("q", "c", "a"), ("q", "c", "b"), ("p", "r")
    for group, size in (("prompt", 4), ("question", 2), ("batch", 1)):
        args = arguments(f"--group {group}")
        assert len({train.group_key(args, *prompt) for prompt in prompts}) == size


def test_rewards_of_critiques_by_flag():
    """Each pair is judged right, wrong, and not readably; every flag reaches the rewards."""
    problem = Problem("q", "7")
    pairs = [Pair(problem, box(7), True, 0.2), Pair(problem, box(8), False, 0.2)]

    def refine(policy, chats, n, seed):
        assert n == 2 and chats == [correct("q", p.response, c) for p in pairs for c in "+-"]
        return [(STUB, box(7)), (STUB, box(9))] * 4

    for text, expected in [
        ("", [0.7, 0, 0, 0, 0.7, 0]),
        ("--reward-right 0.6 --reward-wrong 0.8", [0.6, 0, 0, 0, 0.8, 0]),
        ("--balance reweight", [0.35 / 0.2, 0, 0, 0, 0.35 / 0.8, 0]),
        ("--denoise 2", [0.75, 0.35, 0, 0.05, 1.05, 0]),  # eq. 4 with k/m = 1/2
    ]:
        calls, metrics = zip("+-?" * 2, (True, False, None) * 2), {}
        done = [Episode(STUB, c, "critique", problem, judged=call) for c, call in calls]
        with patch(sample, "complete", refine):
            asked = [pair for pair in pairs for _ in range(3)]
            train.reward_critiques(arguments(text), None, done, asked, 0, metrics)
        close([e.reward for e in done], expected)
        assert len({e.group for e in done}) == 2 and metrics["critique/accuracy"] == 1 / 3
        assert metrics.get("refined/accuracy") == (0.5 if "denoise" in text else None)


def test_score_stages_by_hand():
    policy, (problem,) = toy_policy(), problems(1, 4)
    done = sample.complete(policy, [solve(problem.question)], 8, 1)

    def attempts(*_):  # outcomes (r1, r2) = (0,0), (0,1), (1,0), (1,1); real tokens, to be learned
        made = [Episode(*d, "", problem, float(r)) for d, r in zip(done, "00110101")]
        for i, e in enumerate(made):
            e.role = f"attempt {1 + i // 4}"
        return made[:4], made[4:], {"t1": 0.5}

    half, flags = [-0.5, -0.5, 0.5, 0.5], " --n 4 --beta1 0.01 --beta2 0.1 --steps 2 --updates 1"
    one, paid = [-0.5, 0.5] * 2, [-0.5, 10.5, -10.5, 0.5]
    for method, step, kl, rewards, advantages in [
        ("score --stage1-steps 1", 1, 0.11, [0, 0, 0, 0, 0, 1, 0, 1], [0] * 4 + one),
        ("score --stage1-steps 1", 2, 0.01, [0, 0, 1, 1, 0, 11, -10, 1], half + paid),
        ("score --stage1-steps 1 --alpha 0", 2, 0.01, [0, 0, 1, 1, 0, 1, 0, 1], half + one),
        ("multi-turn", 1, 0.01, [0, 0, 1, 1, 0, 1, 0, 1], half + one),
    ]:
        args, recorder = arguments("--method " + method + flags), recording()
        with patch(sample, "two_attempts", attempts):
            episodes, metrics = train.score(args, policy, step, [problem])
        assert metrics["stage"] == (1 if kl > 0.1 else 2)
        close([e.reward for e in episodes], rewards)
        close([e.kl for e in episodes], [kl] * 4 + [0.01] * 4)
        with patch(train, "GRAD_CLIP", 1e9):
            metrics = train.learn(args, policy, recorder, None, episodes, step)
        close([e.advantage for e in episodes], advantages)  # each attempt has its own baseline
        close(recorder.seen[0], gradient_of(episodes), 1e-5)
        assert metrics["groups/no_spread"] == (0.5 if kl > 0.1 else 0)


def test_learning_metrics_by_hand():
    args, recorder, rates = arguments("--lr 0.3 --updates 1"), recording(), []
    episodes = episodes_of(4, 2)
    for i, e in enumerate(episodes):
        e.group, e.reward, e.role = i // 2, float(i in (0, 2, 3)), "ab"[i // 6]
    episodes[1].sample.stopped = False
    for step in (1, 2, 3, 4):
        metrics = train.learn(args, toy_policy(), recorder, None, episodes, step)
        rates.append(recorder.param_groups[0]["lr"])
    close(rates, [0.1, 0.2, 0.3, 0.3])  # a warm-up of three steps
    nats = sum(sum(e.sample.logprobs) for e in episodes)
    size = [len(e.sample.tokens) for e in episodes]
    keys = "groups/no_spread", "truncated", "entropy", "length/a", "length/b"
    values = [3 / 4, 1 / 8, -nats / sum(size), sum(size[:6]) / 6, sum(size[6:]) / 2]
    close([metrics[key] for key in keys], values)
    close([e.advantage for e in episodes], [1, -1] + [0] * 6, 1e-5)


def test_supervised_recipes_keep_what_they_should():
    policy, asked, star = toy_policy(), problems(6, 8), arguments("--method star --n 8")
    kept, metrics = train.star(star, policy, 1, asked)
    assert kept and all(is_correct(e.text, e.problem.answer) for e in kept)
    roles = [e.role for e in kept]
    assert metrics["traces"] == roles.count("attempt 2") > roles.count("attempt 1") > 0
    # a right first attempt whose second is wrong is no trace
    right = (1, 0, 1, 0), (0, 1, 1, 0)
    made = [[Episode(STUB, str(i), "", None, r) for i, r in enumerate(x)] for x in right]
    with patch(sample, "two_attempts", lambda *args: (*made, {})):
        kept, metrics = train.star(star, policy, 1, [])
    assert [e.text for e in kept] == ["1", "2", "2"] and metrics["traces"] == 2
    kept, metrics = train.star(star, toy_policy(4), 1, asked)
    assert not kept and metrics["truncated"] == 1
    args = arguments("--method pair-sft --pairs 3")
    kept, metrics = train.pair_sft(args, policy, 1, asked, None, static_pairs(asked))
    assert len(kept) == metrics["traces"] == 3 == len({e.problem for e in kept})
    for e in kept:
        chat = correct(e.problem.question, box("x"))
        assert e.sample == rollout.demonstration(base()[1], chat, solved(e.problem))


# ------------------------------------------------------------------------------------- whole runs

EVERY = "generation critique critique_precision critique_recall t1 t2 delta i_to_c c_to_i size kept"


def test_reward_rises_in_every_method(tmp_path):
    """A few problems again and again: what each method trains must get better on them."""
    text = "--method {} --questions {} --steps 6 --n 8 --updates 2 --eval-size 4 --lr 4e-4"
    for method, count, keys in [
        ("g-rl", 16, ["response/accuracy"]),
        ("c-rl", 16, ["critique/accuracy"]),
        ("gc-rl", 16, ["response/accuracy"]),
        ("score", 8, ["t2"]),
        ("multi-turn", 8, ["t1", "t2"]),
        ("star", 8, ["t1"]),
        ("pair-sft", 8, []),
    ]:
        out, data = tmp_path / method, write(tmp_path / "data", problems(count, 3))
        with patch(train, "STATIC_QUESTIONS", count):
            (start, *rows), _ = trained(out, text.format(method, count), "--data", data)
        for key in keys:
            before, after = rows[0][key], (rows[-2][key] + rows[-1][key]) / 2
            assert after > before + 0.05, f"{method}: {key} went from {before:.2f} to {after:.2f}"
        losses = [row["loss"] for row in rows if "loss" in row]
        assert len(losses) == 6 * (method in train.SUPERVISED)
        assert method != "pair-sft" or losses[-1] < 0.7 * losses[0], losses
        for row in rows:
            assert row["ratio/max_log"] < 1e-3, f"{method} step {row['step']}"
            assert row["skipped"] == 0 and row["seconds/sample"] > 0 < row["seconds/update"]
        if method == "score":
            stages = [row["stage"] for row in rows]
            assert stages == [1, 1, 1, 2, 2, 2], "Stage I is half of 6 steps"
            assert max(row["kl/attempt 1"] for row in rows) > 0
        assert [row["step"] for row in (start, *rows)] == list(range(7))
        assert all("eval/" + name in row for row in (start, rows[-1]) for name in EVERY.split())
        model = AutoModelForCausalLM.from_pretrained(out)
        weights = zip(model.parameters(), base()[0].parameters())
        assert any(not torch.equal(a, b) for a, b in weights)


SHORT = "--steps 5 --eval-every 3 --questions 3 --n 4 --updates 1 --eval-size 2 --pairs 1 --kl 0.01"


def same_runs(rows, expected, *folders):
    """The same metrics but for times and speeds, the same texts, the same weights."""
    timed = re.compile("second|tokens/s|memory")
    a, b = ([{k: r[k] for k in r if not timed.search(k)} for r in x] for x in (rows, expected))
    for x, y in zip(a, b):
        assert x == y, {key: (x.get(key), y.get(key)) for key in x | y if x.get(key) != y.get(key)}
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5]
    a, b = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    assert all(torch.equal(a[name], b[name]) for name in b)
    for name in ("samples", "train", "held_out", "exam"):
        a, b = ((folder / f"{name}.jsonl").read_bytes() for folder in folders)
        assert a == b and a


def raises(error):
    return mock.Mock(side_effect=error)


def test_interruptions(tmp_path):
    """Signals finish their step; after errors in a recipe, in an evaluation, in an update the last
    checkpoint is whole; the run goes on as if nothing had been."""
    whole, _ = trained(tmp_path / "whole", SHORT)
    run, real, learn = tmp_path / "run", train.reward_critiques, train.learn

    def within(steps, action):
        """The action is taken in the recipe of the so many-th step."""
        actions = iter([lambda: None] * (steps - 1) + [action])
        return patch(train, "reward_critiques", lambda *args: (next(actions)(), real(*args)))

    def signals(*numbers):
        return lambda: [os.kill(os.getpid(), number) for number in numbers]

    def poisoned(args, policy, optimizer, reference, episodes, step):
        episodes[3].sample.logprobs[0] = math.nan
        return learn(args, policy, optimizer, reference, episodes, step)

    for disturbance, outcome, step in [
        (within(1, signals(signal.SIGINT, signal.SIGTERM)), "143", 1),  # the second leaves at once
        (within(1, signals(signal.SIGTERM)), "143", 2),
        (within(1, signals(signal.SIGINT)), "130", 3),
        (patch(sample, "evaluate", raises(OverflowError("too good"))), "too good", 3),
        (within(2, raises(ZeroDivisionError("out of luck"))), "out of luck", 4),
        (within(1, raises(InputError("prompt 7"))), "error: prompt 7", 4),
        (patch(train, "learn", poisoned), "gradient norm", 4),
    ]:
        with disturbance:
            fails(outcome, trained, run, SHORT + " --resume", kind=ArithmeticError)
        assert torch.load(run / "resume.pt", weights_only=True)["step"] == step, outcome
        assert not (run / "model.safetensors").exists()
    assert len(lines(run / "not_finite.jsonl")) == 1
    same_runs(trained(run, SHORT + " --resume")[0], whole, run, tmp_path / "whole")


def test_killed_while_saving(tmp_path):
    """Killed at each checkpoint, half-way through the file and before its renaming: --resume gives
    the run that nothing happened to."""
    rows = [{"question": p.question, "response": solved(p)} for p in problems(16, 2)]
    shown = "--cold-start", write(tmp_path / "shown", rows), "--cold-start-lr", 1e-4

    def half_written(state, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    for method, flags in (("gc-rl", shown), ("score", ())):
        text, run = f"--method {method} {SHORT}", tmp_path / f"{method} killed"
        whole, printed = trained(tmp_path / method, text, *flags)
        assert ("cold start" in printed) == (method == "gc-rl")
        assert whole[1].get("kl/response", 0) < 1e-6, "the reference is the policy of step 0"
        for attempt in range(8):  # four checkpoints: at the start, after steps 0, 3, 5
            name, module = (("save", torch), ("replace", os))[attempt % 2]
            real, spared = getattr(module, name), [attempt % 2 == 0 < attempt]

            def dies(*args, name=name, real=real, spared=spared):
                if str(args[-1]).endswith("jsonl") or (spared and spared.pop()):
                    return real(*args)
                half_written(*args) if name == "save" else raises(KeyboardInterrupt)()

            with patch(module, name, dies):
                fails("130", trained, run, text + " --resume", *flags)
            assert (run / "resume.pt.partial").exists()
            assert (run / "resume.pt").exists() == (attempt > 1)
        same_runs(trained(run, text + " --resume", *flags)[0], whole, run, tmp_path / method)


COUNTED = """
import os, sys, torch, train
torch.set_num_threads(1)
count = int(sys.argv.pop(1))
spared = iter([True] * (count - 1) + [False] * (count > 0))
def counted(real):
    return lambda *args: real(*args) if next(spared, True) else os.kill(os.getpid(), 9)
torch.save, os.fsync, os.replace = map(counted, (torch.save, os.fsync, os.replace))
train.main()
"""


def kills(folder, method, moments, writes, *flags):
    """SIGKILL to real runs: at `moments` spread over the run, then at each write and rename, the
    first `writes` of them; each then goes on, and gives what the whole run gave."""
    words = f"{ON_TOY} --method {method} {SHORT}".split() + list(map(str, flags))

    def run(out, limit=None, count=0):
        command = [sys.executable, "-c", COUNTED, str(count), *words, "--out", str(out), "--resume"]
        with contextlib.suppress(subprocess.TimeoutExpired):  # it then sends SIGKILL
            return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=limit).returncode
        return -signal.SIGKILL

    begin = time.time()
    assert run(folder / "whole") == 0
    length, whole = time.time() - begin, lines(folder / "whole" / "metrics.jsonl")
    cases = [(length * (i + 1) / (moments + 1), 0) for i in range(moments)]
    cases += [(None, count) for count in range(1, 1 + writes)]
    for number, case in enumerate(cases):
        out = folder / str(number)
        if run(out, *case) == 0 and case[1]:
            break  # it has fewer writes
        assert run(out) == 0, case
        same_runs(lines(out / "metrics.jsonl"), whole, out, folder / "whole")
    print(f"{method} {flags[:1]}: {number} or {number + 1} kills, all runs alike", flush=True)


def test_killed_for_real(tmp_path):
    kills(tmp_path, "gc-rl", 1, 0)


def long_kills(tmp_path):
    rows = [{"question": p.question, "response": solved(p)} for p in problems(16, 2)]
    shown = "--cold-start", write(tmp_path / "shown", rows), "--cold-start-lr", 1e-4
    for i, (method, flags) in enumerate((("gc-rl", ()), ("score", ()), ("gc-rl", shown))):
        kills(tmp_path / str(i), method, 20, 99, *flags)


def long_memory(tmp_path):
    """200 steps of GC-RL need no more memory than 20."""
    pages, real = [], train.show_step

    def look(row, steps):
        pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        real(row, steps)

    with patch(train, "show_step", look):
        trained(tmp_path / "out", "--steps 200 --eval-every 100 --eval-size 16")
    print(f"resident memory at step 20 {pages[20] >> 8} MiB, at step 200 {pages[200] >> 8} MiB")
    assert pages[200] < 1.05 * pages[20]


def test_run_folders(tmp_path):
    """What --out holds decides whether a run begins, goes on, or is refused and left alone."""
    run, data = tmp_path / "run", write(tmp_path / "data", problems(12, 3))

    def go(text, out=run):
        flags = "--method score --questions 2 --n 2 --eval-size 4 --steps "
        return trained(out, flags + text, "--data", data)

    (tmp_path / "file").touch()
    for name in ("start", "resume.pt.partial", "notes.txt"):
        (tmp_path / "other" / name).mkdir(parents=True)
    for text in ("1", "1 --resume"):
        fails("other|name another folder", go, text, tmp_path / "other")
        fails("file|name another folder", go, text, tmp_path / "file")
    assert len(list(tmp_path.glob("other/*"))) == 3
    (run / "start").mkdir(parents=True)
    for name in ("start/model.safetensors", "resume.pt.partial"):
        (run / name).write_bytes(b"half")
    assert [row["step"] for row in go("1")[0]] == [0, 1]
    fails("holds a run|--resume", go, "2")
    fails("--seed 0, not 5", go, "2 --resume --seed 5")
    fails("--steps 1, not 0", go, "0 --resume")
    write(data, problems(12, 4))  # a run goes on with the problems that it began with
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "left over": "from a step behind the checkpoint"}\n')
    rows, _ = go("4 --resume --eval-every 7")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4] and "eval/t1" in rows[4]
    assert {row["stage"] for row in rows[1:]} == {2}, "Stage I is half of the one step asked first"
    (run / "model.safetensors").unlink()
    again, printed = go("4 --resume")
    assert again == rows and "start" in printed and "end" in printed
    assert AutoModelForCausalLM.from_pretrained(run)
    assert [len(lines(run / f"{name}.jsonl")) for name in ("held_out", "exam")] == [4, 4]
    assert reward.load_problems(run / "train.jsonl") == problems(12, 3)
    (run / "resume.pt").write_bytes(b"half")
    fails("resume.pt cannot be read", go, "2 --resume")
    torch.save({"format": 0}, run / "resume.pt")
    fails("resume.pt cannot be read|of another version", go, "2 --resume")
    with patch(os, "replace", raises(OSError("no space left"))):
        fails("no space left", go, "1", tmp_path / "full")


def test_what_a_step_writes(tmp_path):
    """Prompts that do not fit are skipped and counted; texts for a person to read."""
    flags = "--method g-rl --questions 3 --n 3 --steps 2 --eval-size 2 --max-new-tokens 3 --data"
    data = write(tmp_path / "data", [*problems(2), Problem("9+" * 300, "9")])
    run, how = tmp_path / "run", (flags, data)
    fails("context|9+9+9", trained, run, *how)
    assert not run.exists()
    with patch(sample, "check_lengths", lambda *args: None):
        rows, printed = trained(run, *how)
    assert [row["skipped"] for row in rows[1:]] == [3, 3] and rows[1]["tokens"] == 18
    assert rows[1]["truncated"] == 1 and "--max-new-tokens" in printed and "--- response" in printed
    texts = lines(run / "samples.jsonl")
    assert [row["step"] for row in texts] == [1] * 3 + [2] * 3
    assert all(row["reward"] == 0 and row["prompt"] and not row["stopped"] for row in texts)


def test_order_of_the_problems():
    asked = [train.batch_of(list("abcde"), step, 0, 3) for step in range(1, 11)]
    passes = ["".join(sum(asked, []))[i : i + 5] for i in range(0, 30, 5)]
    assert all(sorted(part) == list("abcde") for part in passes) and len(set(passes)) > 2
    assert len(train.batch_of(list("ab"), 1, 0, 7)) == 7 and len(asked[0]) == 3


def test_flags():
    toy, real, plain = map(arguments, ("", "--model x --method c-rl", "--method multi-turn"))
    assert (toy.steps, toy.lr, toy.kl, toy.n, toy.pairs) == (20, 1e-4, 0.0, 8, 64)
    assert (real.steps, real.lr, real.kl, real.beta2, real.data) == (200, 1e-6, 1e-3, 0.1, "gsm8k")
    assert real.critique_data == "static" and toy.critique_data == "dynamic"
    assert plain.no_std and not toy.no_std and plain.alpha == plain.stage1_steps == 0
    own = arguments("--data mine.jsonl")  # the toy's files go together
    assert (own.data, own.eval_data, own.exam, own.steps) == ("mine.jsonl", None, None, 20)
    for flags, noted in (("", 0), ("--reward-right 0.6", 1), ("--balance reweight", 1)):
        assert ("cancel" in printed_by(train.parse_args, flags)) == noted, flags


REFUSED = """--method grpo => --method|grpo;--frobnicate => --frobnicate;--n 1 => --n 1
--data @long --eval-data @long --model @no => no problem is left
--data @long --eval-data @empty => empty.jsonl
--data @long --eval-data @good --model @no => cannot load model|no.jsonl;--data @no => no.jsonl
--data @bad => bad.jsonl:2|answer;--cold-start @bad => bad.jsonl:1|response
--cold-start @long => --cold-start|context;--exam @bad => bad.jsonl:1;--steps -1 => --steps -1
--lr 0 => --lr;--temperature 0 => --temperature;--max-new-tokens 500 => context|500
--method score --steps 3 --stage1-steps 5 => --stage1-steps 5|3;--device nonsense => nonsense
--steps many => --steps|many;--kl nan => --kl;--pairs 0 => --pairs 0"""
UNUSED = """ => --help;--model @no 1+1? => cannot load model;--model @no --eval => held_out|--data
--eval --data @bad => bad.jsonl:2;--vote --data @long => context|9+9+9;--eval --size 0 => --size 0
--vote --n 4 --critiques 4 => --critiques 4|--n 4;--vote --n 1 => --n 1;--n 0 q => --n 0
--eval --exam @long => long.jsonl:1|label"""


def test_bad_input_is_one_line_and_touches_nothing(tmp_path):
    kinds = "empty", "bad", "long", "good", "no"
    names = {f"@{kind}": tmp_path / f"{kind}.jsonl" for kind in kinds}
    write(names["@good"], problems(3))
    names["@empty"].touch()
    names["@bad"].write_text('{"question": "x", "answer": "1"}\n{"question": "x"}\n')
    write(names["@long"], [{"question": "9+" * 220 + "9", "answer": "9", "response": "9" * 600}])
    for table, call in ((REFUSED, functools.partial(trained, tmp_path / "out")), (UNUSED, used)):
        for case in re.split("[;\n]", table):
            flags, words = case.split(" => ")
            fails(words, call, "", *[names.get(word, word) for word in flags.split()])
            assert not (tmp_path / "out").exists(), "written before the input is known to be good"
    fails("context", used, "x" * 5000)


def test_what_is_held_out_is_not_learned(tmp_path):
    """Demonstrations of held-out questions, and exam pairs on training questions, are left out."""
    asked, out = problems(20, 3), tmp_path / "run"
    rows = [{"question": p.question, "response": solved(p)} for p in asked]
    rows = [row | {"critique": "Conclusion: right"} for row in rows]
    exam = write(tmp_path / "exam", static_pairs(asked[10:16]))
    files = "--data", write(tmp_path / "data", asked[:12]), "--eval-data", tmp_path / "rest"
    write(tmp_path / "rest", asked[16:])
    flags = "--steps 0 --eval-size 8 --cold-start-lr 3e-4"
    with patch(train, "COLD_START", (12, 8)):
        shown = "--cold-start", write(tmp_path / "shown", rows), "--exam", exam
        rows, printed = trained(out, flags, *files, *shown)
    (told,) = (line for line in printed.splitlines() if "demonstrations" in line)
    assert "held out" in told and " 8 " in told, "four problems held out, four in the exam"
    (told,) = (line for line in printed.splitlines() if "pairs" in line and str(exam) in line)
    assert " 4 " in told
    examined = {row["question"] for row in lines(out / "exam.jsonl")}
    assert examined == {p.question for p in asked[12:16]} and rows[0]["eval/pairs"] == 8
    losses = [float(loss) for loss in re.findall(r"cold start .*loss ([\d.]+)", printed)]
    assert len(losses) > 2 and losses[-1] < losses[0], losses
    # without --exam it is sampled from the starting policy, the same whatever the method
    flags = f"--model {rollout.TOY} --steps 0 --max-new-tokens 64 --eval-size 20 --method "
    exams = []
    write(tmp_path / "rest", problems(60, 9))
    for method in ("g-rl", "c-rl"):
        trained(tmp_path / method, flags + method, *files)
        exams.append(lines(tmp_path / method / "exam.jsonl"))
    assert exams[0] == exams[1] and [row["label"] for row in exams[0]] == [True, False] * 10
    words = ["g-rl", "c-rl", "held out: t2"]
    draw(compare, tmp_path / "c.svg", words, tmp_path / "g-rl", tmp_path / "c-rl")


# -------------------------------------------------------------------------------------- sample.py


def test_majority_vote():
    x, y, z, half = map(box, (1, 2, 3, 0.5))
    for texts, weights, elected in [
        ([x, box("2/4"), half, z], None, 1),  # 1/2 and 0.5 are one answer
        ([x, y, y, x], None, 0),  # a tie goes to the answer that came first
        (["hm", "", z], None, 2),
        (["hm", ""], None, None),
        ([], None, None),
        ([x, x, y], [0.2, 0.3, 0.6], 2),
        ([x, y, y], [0.0] * 3, 1),  # no critique calls any right: a plain vote
        ([box("x+1"), box("x + 1"), box("y")], None, 0),
        (["", x, y, y], [1, 0, 0, 0], 2),  # what cannot be read has no vote to weigh
    ]:
        assert sample.majority_vote(texts, weights) == elected, (texts, weights)


def test_votes_at_equal_budgets():
    problem, answers = Problem("1+1?", "2"), [box(x) for x in (3, 2, 3, 2)]  # in this order

    def complete(policy, chats, n, seed, show):
        assert len(chats) == 2 and n == 1, "half of the budget of 4 is answers"
        if show == "corrections":  # right, then wrong
            return [(STUB, box(2)), (STUB, box(3))]
        return [(STUB, "Conclusion: " + ("right" if a == box(2) else "wrong")) for a in answers[:2]]

    def respond(policy, asked, n, seed, show):
        return [Episode(STUB, text, "response", problem) for text in answers[:n]]

    with mock.patch.multiple(sample, complete=complete, respond=respond):
        table = sample.vote(None, [problem], [2, 4], 1, 0)
    assert table["vote/parallel"] == {2: 0, 4: 0}, "3 and 2 tie and 3 came first"
    assert table["vote/parallel, corrected"] == {2: 1, 4: 1}, "2 came first"
    assert table["vote/critique-weighted"] == {2: 0, 4: 1}, "called wrong, 3 wins alone only"


def test_sample_on_the_command_line(tmp_path):
    text = used("--n 3", "Compute 9-7*2-5 modulo 10.")
    assert [text.count(word) for word in ("ANSWER", "CRITIQUE", "CORRECTED")] == [1, 3, 2]
    assert "boxed" in text and sample.printable("a\x1b[2J\n") == "a\\x1b[2J\n"
    run, asked = tmp_path / "run", problems(12, 3)
    flags = "--steps 1 --questions 4 --n 4 --eval-size 16 --data"
    rows, _ = trained(run, flags, write(tmp_path / "data", asked))
    # the run's own held-out problems, exam and limit
    numbers = json.loads(used("--eval --json --model", run).splitlines()[-1])
    (run / "exam.jsonl").write_text("")
    assert "critique_p1" in used("--eval --size 4 --model", run), "an exam without a pair"
    assert numbers == {key: value for key, value in rows[-1].items() if key.startswith("eval/")}
    both = write(tmp_path / "both", asked[:2] + problems(3, 8))
    assert '"eval/size": 4' in used("--eval --json --size 4 --model", run, "--data", both)
    for flags, budgets, weighted in (("--n 4 --critiques 3", "24", "4"), ("--n 6", "246", "246")):
        text = used("--vote --json --size 8 " + flags)
        numbers = json.loads(text.splitlines()[-1])
        assert all(0 <= numbers.pop("greedy/" + attempt) <= 1 for attempt in ("t1", "t2"))
        names = ["vote/parallel", "vote/parallel, corrected", "vote/critique-weighted"]
        found = {way: "".join(row) for way, row in numbers.items()}
        assert found == dict(zip(names, (budgets, budgets, weighted)))
    (tmp_path / "votes.json").write_text(text)
    draw(votes, tmp_path / "votes.svg", ["critique-weighted"], tmp_path / "votes.json")


# ---------------------------------------------------------------------------------------- figures


def draw(program, picture, words, *args):
    """What a program of figures/ printed; its picture must be well-formed, and hold the words."""
    printed = printed_by(program.main, "--out", picture, *args)
    root = ElementTree.parse(picture).getroot()
    assert root.tag.endswith("svg") and all(word in "".join(root.itertext()) for word in words)
    assert "nan" not in (picture.read_text() + printed).lower()
    return printed


def test_charts_by_hand():
    for low, high, count, whole, expected in [
        (0, 1, 5, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.43, 0.98, 5, False, [0.4, 0.6, 0.8, 1]),
        (0, 20, 7, True, [0, 5, 10, 15, 20]),
        (0, 2, 7, True, [0, 1, 2]),
        (1, 1, 5, False, [0.98, 1]),  # a flat line: never beyond 1
        (0, 0, 5, False, [0, 0.2]),
    ]:
        close(chart.ticks(low, high, count, whole), expected)
    assert chart.band([[(0, 1.0), (1, 3.0)], [(0, 2.0)], []]) == [(0, 1.5, 1.0, 2.0)]


def test_comparison(tmp_path):
    runs, picture = [tmp_path / name for name in ("gc-rl-0", "gc-rl-1", "a&b")], tmp_path / "c.svg"
    for i, run in enumerate(runs):
        run.mkdir()
        start = {"step": 0, "eval/generation": 0.25, "eval/t2": None}
        end = {"step": 1, "t1": 0.5, "eval/generation": 0.5 + i / 4, "eval/t2": math.nan}
        write(run / "metrics.jsonl", [start, end, [1]])
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"step": 1e999}\n{"step": "2", "t1": 1}\n{"step": 2, "cut in')
    words = ["gc-rl-*, 2 seeds", "a&b", "held out: generation", "in training: t1"]
    printed = draw(compare, picture, words, "--json", *runs)
    table = [re.split("  +", line) for line in printed.splitlines()]
    assert ["last evaluation", "start", "gc-rl-0", "gc-rl-1", "a&b"] in table
    assert ["eval/generation", "0.250", "0.500", "0.750", "1.000"] in table
    assert ["eval/t2", "-", "-", "-", "-"] in table
    assert ["eval/generation", "0.625 (0.500 to 0.750)", "1.000"] in table
    assert json.loads(printed.splitlines()[-1])[str(runs[1])]["eval/generation"] == 0.75
    picture.write_text("a text of mine")
    fails("c.svg", printed_by, compare.main, "--out", picture, runs[0])  # is not written over
    assert picture.read_text() == "a text of mine"
    out = "--out", tmp_path / "d.svg"
    fails("no/metrics.jsonl", printed_by, compare.main, "", *out, tmp_path / "no", kind=OSError)
    fails("metrics.jsonl|no JSON", printed_by, votes.main, "", *out, run / "metrics.jsonl")
    fails("FILE.json", printed_by, votes.main, "", *out)
    assert not (tmp_path / "d.svg").exists()


# -------------------------------------------------------------------------------------------- toy


def test_toy_problems_and_teacher():
    rng = random.Random(0)
    for p in problems(300):
        expression = p.question.split()[1]
        steps = make.Teacher().solve(expression)
        assert p.answer == str(eval(expression) % 10) == str(steps[-1][3])  # by Python's rules
        assert is_correct(solved(p), p.answer)
        check = make.Teacher().criticise(steps)
        assert judgement(check) is True and check.count("ok") == 3
    check = make.Teacher().criticise([(8, "*", 9, 5), (5, "-", 1, 4)])
    assert check == "8*9=5:2 no\n5-1=4:4 ok\nConclusion: wrong"
    held_out = {p.question for p in problems(512, 2, held_out=True)}
    assert len(held_out) == 512 and not held_out & {p.question for p in problems(3000)}
    facts = [(a, op, b) for a in range(10) for op in "+-*" for b in range(10)]
    sure, shaky = make.Teacher(), make.Teacher(1.0, rng)
    wrong = [fact for fact in facts if sure.recall(*fact) != shaky.recall(*fact)]
    blind = make.Teacher(0.0, rng, make.BLIND)  # 33 of these facts are never right in solving
    assert len(wrong) == 78 and sum(blind.recall(*f) != sure.recall(*f) for f in wrong) == 33
    for _ in range(500):
        messages, text = make.demonstrate(rng)
        assert not any(q in m["content"] for q in held_out for m in messages)
        assert "Conclusion" not in text or judgement(text) is not None
        given = rollout.demonstration(base()[1], messages, text)
        assert base()[1].decode(given.tokens[:-1]) == text and len(given.prompt) < 256


def test_toy_files(tmp_path):
    """The committed files are those that toy/make.py writes; its model is right half the time."""
    held_out, exam = problems(make.HELD_OUT, 2, True), rollout.TOY / "exam.jsonl"
    assert reward.load_problems(rollout.TOY / "train.jsonl") == problems(make.TRAIN, 1)
    assert reward.load_problems(rollout.TOY / "held_out.jsonl") == held_out
    exam = reward.read_jsonl(exam, reward.to_pair)
    assert [p.right for p in exam] == [True, False] * (make.EXAM // 2)
    assert all(p.right == is_correct(p.response, p.problem.answer) for p in exam)
    asked = {p.question for p in problems(2 * make.EXAM, 3, True)}
    assert {p.problem.question for p in exam} <= asked
    numbers = sample.evaluate(toy_policy(), held_out[:96], exam[:96])
    assert all(0.3 < numbers["eval/" + name] < 0.8 for name in ("generation", "critique")), numbers
    with mock.patch.multiple(make, STEPS=3, BATCH=8, HELD_OUT=6, EXAM=4):
        assert "wrote" in printed_by(lambda folder: make.make(*folder), "", tmp_path)
    model, tokenizer = load_policy(tmp_path, "cpu")
    assert model.num_parameters() == base()[0].num_parameters()
    assert tokenizer.chat_template == base()[1].chat_template and len(tokenizer) == len(base()[1])


# ------------------------------------------------------------------------------------------- main


def main(names):
    passed = failed = 0
    kind = "long_" if "--long" in names else "test_"
    names = set(names) - {"--long"}
    for name, test in list(globals().items()):
        if not name.startswith(kind) or (names and not any(part in name for part in names)):
            continue
        start = time.time()
        try:
            with tempfile.TemporaryDirectory() as folder:
                test(*[Path(folder)] * test.__code__.co_argcount)
            passed += 1
            print(f"ok    {name} ({time.time() - start:.1f} s)", flush=True)
        except (Exception, SystemExit):
            failed += 1
            print(f"FAIL  {name}\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
