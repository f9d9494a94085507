"""Tests of details/policy.py: loading, heads, text to tokens and back."""

import copy
import math
import re
import time
from unittest import mock

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import rollout
from critique import correct_prompt, critique_prompt
from details import policy
from rollout import Sample, Sampler, encode_chat, generate, load_policy
from tests.helpers import SEVEN, base, box, fails, patch, rows_of, saved, tiny


def toy_copy():
    """A copy of the toy that may be changed: model, tokenizer."""
    return copy.deepcopy(base())


def test_context_ends_where_all_positions_would_turn_anew():
    """With LongRoPE cached keys no longer fit once a sequence is longer than in pretraining."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = tiny("Phi3", original_max_position_embeddings=16, rope_parameters=rope)
    assert policy.context_length(model) == 16


def test_stop_set_is_the_union(tmp_path):
    """EOS of config, generation config and tokenizer, and a template's own end of turn. Other
    settings of generation are dropped: with a repetition penalty model.generate would sample
    another policy than the one trained."""
    model, tokenizer = toy_copy()
    model.config.eos_token_id = 7
    model.generation_config.update(eos_token_id=[11, 12], repetition_penalty=2.0)
    tokenizer.chat_template = (
        "{% for m in messages %}<|user|>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %} ok<|assistant|><|user|>{% endif %}{% endfor %}"
    )
    loaded, _ = load_policy(saved(tmp_path, model, tokenizer), "cpu")
    end_of_turn = tokenizer.convert_tokens_to_ids("<|assistant|>")
    stops = {7, 11, 12, tokenizer.eos_token_id, end_of_turn}
    assert loaded.generation_config.eos_token_id == sorted(stops)
    assert loaded.generation_config.repetition_penalty in (None, 1.0)


def refused(words, folder, model, tokenizer, **options):
    """A saved model that must not load."""
    model.save_pretrained(saved(folder, model, tokenizer), **options)
    fails(words, load_policy, folder, "cpu")


def test_models_that_would_be_something_else_are_refused(tmp_path):
    """The library would fill missing weights at random and drop unknown ones. A tokenizer that
    gives ids for which the model has no embedding is another model's, unless no text has them, as
    an image's. Without an EOS no completion could ever end; one that only the model names is taken
    out of contents, too."""
    weights = dict(base()[0].state_dict())
    more = weights | {"model.extra.weight": torch.ones(3)}
    refused("unexpected keys|model.extra.weight", tmp_path, *base(), state_dict=more)
    del weights["model.norm.weight"]
    refused("missing keys|model.norm.weight", tmp_path, *base(), state_dict=weights)
    model, tokenizer = toy_copy()
    tokenizer.add_tokens("<image>", special_tokens=True)
    load_policy(saved(tmp_path, model, tokenizer), "cpu")
    tokenizer.chat_template += "<image>"
    refused("389 tokens and 388", tmp_path, model, tokenizer)
    tokenizer.add_tokens("<tool>")
    refused("390 tokens and 388", tmp_path, model, tokenizer)
    model, tokenizer = toy_copy()
    for config in (model.config, model.generation_config, tokenizer):
        config.eos_token_id = None
    tokenizer.chat_template = None
    refused("no EOS", tmp_path / "endless", model, tokenizer)
    tokenizer.add_tokens("[END]")
    model.resize_token_embeddings(389)
    model.config.eos_token_id = 388
    _, loaded = load_policy(saved(tmp_path / "endless", model, tokenizer), "cpu")
    assert 388 not in encode_chat(loaded, [{"role": "user", "content": "[END]"}])


def test_folders_that_are_no_policy_are_refused(tmp_path):
    """An adapter, a folder without a tokenizer, weights that are not finite: one line that names
    it."""
    (tmp_path / "adapter_config.json").write_text("{}")
    fails("an adapter|merge", load_policy, tmp_path, "cpu")
    base()[0].save_pretrained(tmp_path / "untold")
    fails("cannot load model|untold|tokenizer", load_policy, tmp_path / "untold", "cpu")
    model, _ = toy_copy()
    model.model.norm.weight.data[3] = math.nan
    fails("model.norm.weight|not finite", load_policy, saved(tmp_path / "nan", model), "cpu")


def test_saved_policy_is_a_hugging_face_folder(tmp_path):
    """Saved, loaded by transformers alone: model.generate gives the sampler's greedy tokens."""
    policy.save_policy(*base(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = encode_chat(tokenizer, critique_prompt("Compute 3*4+5-1 modulo 10.", "3*4=2"))
    theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64)
    (ours,) = generate(base()[0], [ids], max_new_tokens=64, temperature=0)
    assert ours.prompt + ours.tokens == theirs[0].tolist()
    assert ours.stopped


def prompt_of(template, chat):
    """A conversation, or a question, through another template and back into text."""
    _, tokenizer = toy_copy()
    tokenizer.add_tokens(["<|im_start|>", "  "])
    tokenizer.pad_token = ""
    tokenizer.chat_template = template
    if isinstance(chat, str):
        chat = [{"role": "user", "content": chat}]
    return tokenizer.decode(encode_chat(tokenizer, chat))


# The answer that is to be corrected spells out two marks of turns.
QUOTING = correct_prompt("Compute 1+2 modulo 10.", box(3) + "<|end|><|assistant|>hm")


def test_chat_template():
    """A conversation stands as its template writes it, up to where the assistant goes on; marks of
    turns that a response spells out are replaced."""
    text = prompt_of(base()[1].chat_template, QUOTING)
    assert text.endswith("<|assistant|>")
    assert box(3) + "\ufffd\ufffdhm<|end|>" in text


def test_a_tokenizer_without_a_chat_template():
    """A plain template stands in."""
    text = prompt_of(None, QUOTING)
    assert text.startswith("User:\nCompute")
    assert text.count("<|end|>") == 1
    assert text.endswith("corrected. Put the final answer in \\boxed{}.\n\nAssistant:\n")


def test_a_template_writes_bos_once():
    """The tokenizer adds no second one."""
    _, tokenizer = toy_copy()
    tokenizer.bos_token = "<|user|>"
    tokenizer.chat_template = "<|user|>{{ messages[0]['content'] }}"
    assert encode_chat(tokenizer, QUOTING).count(tokenizer.bos_token_id) == 1


def test_errors_of_a_template_are_one_line():
    """A template is a program and may raise anything, in any characters."""
    error = "{{ raise_exception('no\nsys\x1btem') }}"
    fails(r"chat template|no sys\x1btem", prompt_of, error, "hello")


def test_the_template_that_is_used():
    """Of several the one that is named `default`; those that know a thinking mode are asked for
    none."""
    template = "{% if enable_thinking is defined %}thinking {{ enable_thinking }}{% endif %}"
    assert prompt_of({"default": template, "tools": "{{ 1/0 }}"}, "hello") == "thinking False"


def test_the_date_is_in_no_prompt():
    """A template that writes the date, with its microseconds, writes the same one always."""
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y %f') }}{% endif %}"
    (text,) = {prompt_of(dated + " {{ messages[0].content }}", "hello") for _ in range(3)}
    assert re.search(r"\d\d\d\d.* hello$", text)


TEMPLATES = {
    "LLAMA": "{% for m in messages %}[INST] {{ m.content }} [/INST]\n{% endfor %}",
    "HASHES": "Be brief.\n{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}",
    "BARS": "{% for m in messages %}<|end|>{{ m.role }}\n<|human|>{{ m.content }}{% endfor %}",
    "CHATML": "{% for m in messages %}<|im_start|>{{ m.role }}\n  {{ m.content }}\n{% endfor %}",
    "WORDS": "{% for m in messages %}User: {{ m.content }}\n## So\nA:\n{% endfor %}",
}

# Template, what a message holds, what is left of it; ? is what replaces a mark.
MARKS = """
LLAMA -> a [INST] b[/INST] c -> a ? b? c
LLAMA -> [IN[INST]ST] x -> [IN?ST] x
LLAMA -> user [INS T] assistant -> user [INS T] assistant
HASHES -> ### user:### assistant: the user: 5 Be brief. -> ?? the user: 5 Be brief.
BARS -> the user<|human|> and an assistant -> the user? and an assistant
CHATML -> 1+2  a<|im_start|>system -> 1+2  a?system
WORDS -> USA: 7 A: NonUser: 9, ## Sort User: 9, ## So. -> USA: 7 A: NonUser: 9, ## Sort ? 9, ?.
BARS -> a<|e<|end|>nd|>b<|hum<|end|>an|>c -> a<|e?nd|>b<|hum?an|>c
"""


def test_marks_of_turns_are_replaced_in_contents():
    """Special tokens and what a template writes between contents: added tokens, and markers where
    they stand whole; no mere words, no short ones, no blanks."""
    for name, text, left in rows_of(MARKS):
        prompt = prompt_of(TEMPLATES[name], f"START{text}STOP")
        found = prompt.partition("START")[2].rpartition("STOP")[0]
        assert found == left.replace("?", "\ufffd"), (name, text)


def test_marks_of_turns_take_linear_time():
    """60 kB of marks inside marks leave none, in less than a third of a second."""
    nested = "<|e" * 8600 + "<|end|>" + "nd|>" * 8600
    tokenizer = base()[1]
    start = time.process_time()
    ids = encode_chat(tokenizer, [{"role": "user", "content": nested}])
    assert time.process_time() - start < 0.3
    assert ids.count(tokenizer.eos_token_id) == 0


def test_stop_tokens_that_stand_elsewhere():
    """A special token that the tokenizer does not list as one of its own still ends a turn; so does
    the EOS of multimodal models, which is in the configuration of their text."""
    model, tokenizer = toy_copy()
    tokenizer.add_tokens([transformers.AddedToken("<|eot_id|>", special=True)])
    turn = "{% for m in messages %}<|user|>{{ m.content }}<|eot_id|>{% endfor %}"
    tokenizer.chat_template = turn + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    end_of_turn = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert end_of_turn in policy.stop_set(model, tokenizer)
    model = mock.Mock(generation_config=None)
    model.config.get_text_config.return_value.eos_token_id = 7
    assert 7 in policy.stop_set(model, tokenizer)


def read(model, tokenizer, prompt, text, stopped=True):
    """What is read in a completion, whether it ended, and whether inside its thinking."""
    tokens = tokenizer(text).input_ids + [max(policy.stop_set(model, tokenizer))] * stopped
    drawn = Sample(tokenizer(prompt).input_ids, tokens, [], stopped)
    with patch(rollout, "generate", return_value=[drawn]):
        (sample,) = rollout.respond(Sampler(model, tokenizer, 64), [SEVEN], 1, seed=0)
    return sample.text, sample.stopped, sample.unclosed


# The end of a prompt, a completion, what is read in it, and whether it ended.
THINKING = """
hm -> <think>1+1</think> 2 -> 2 -> ended
hm<think>  -> 1+1</think>2 -> 2 -> ended
hm -> <think></think><|user|>2 -> 2 -> ended
hm -> <think>1+1 -> <think>1+1 -> unclosed
hm<think>  -> 1+1 -> 1+1 -> unclosed
"""


def test_an_answer_stands_behind_the_thinking():
    """Of thinking that is never closed nothing is read, even where the prompt opened it; it counts
    as truncated only if it was. The marks may be ordinary text, added tokens, special tokens."""
    for special in (None, False, True):
        model, tokenizer = toy_copy()
        if special is not None:
            tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
        for prompt, text, left, what in rows_of(THINKING):
            ended = what == "ended"
            found = read(model, tokenizer, prompt, text)
            assert found == (left, ended, not ended), (special, text)
        assert read(model, tokenizer, "<think>", "1", stopped=False) == ("1", False, False)


def test_a_stop_token_is_no_text():
    """One that only the generation config names may be an ordinary token."""
    model, tokenizer = toy_copy()
    tokenizer.add_tokens("<|im_end|>")
    model.generation_config.eos_token_id = tokenizer("<|im_end|>").input_ids
    assert read(model, tokenizer, "", "5") == ("5", True, False)


def test_models_without_a_key_value_cache_are_refused(tmp_path):
    """Mamba keeps another state: one line at load."""
    folder = saved(tmp_path / "mamba", tiny("Mamba", vocab_size=400))
    fails("mamba|key-value cache", load_policy, folder, "cpu")


def test_logits_that_do_not_come_from_the_states_are_refused():
    """Here they depend on whether ids are given."""
    model = tiny("Llama")
    model.register_forward_hook(lambda model, ids, output: output.logits.add_(len(ids)) and None)
    fails("last hidden states", generate, model, [[5]])
