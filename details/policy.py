"""A Hugging Face folder as a policy: loading, stop tokens, chat templates, text to tokens and back.

`rollout.load_policy` is the way in; it adds a check of the sampler.
"""

import functools
import re
from contextlib import contextmanager, suppress
from pathlib import Path

from details.lora import merged_weights, save_adapters  # isort: skip (before torch)

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_outputs import MoeModelOutputWithPast

from details.errors import InputError, one_line

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TOY = Path(__file__).parent.parent / "toy"


def load_folder(name, device, precision):
    """Load a model and its tokenizer; see `rollout.load_policy`. Raises InputError."""
    path = TOY if name == "toy" else name
    if (Path(path) / "adapter_config.json").exists():
        raise InputError(f"model {name}: an adapter; merge it into its base model first")
    try:
        device = device_of(device)
        model, report = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model.to(device)
        refuse_unusable(model, report, tokenizer)
        stops = stop_set(model, tokenizer)
    except Exception as error:  # whatever the library makes of a broken folder
        hint = "" if Path(path).exists() else " (there is no folder of that name)"
        raise InputError(
            f"cannot load model {name} on device {device}{hint}: {one_line(error)}"
        ) from error
    if not stops:
        raise InputError(f"model {name}: no EOS token, so no completion could ever end")
    if tokenizer.eos_token_id is None:  # demonstrations end with it
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stops[0])
    model.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
    )
    model.compute_dtype = compute_dtype(device, precision)
    return model, tokenizer


def device_of(name):
    """The device of that name; without a name CUDA where there is one, else the CPU."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def compute_dtype(device, precision):
    """The dtype that `precision` names; without a name bf16 on CUDA, else fp32."""
    bf16 = precision == "bf16" if precision else device.type == "cuda"
    return torch.bfloat16 if bf16 else torch.float32


def refuse_unusable(model, report, tokenizer):
    """Raise InputError for weights and a vocabulary that cannot be trained."""
    for kind, keys in report.items():
        if keys:  # the library would fill them at random, or drop them
            raise InputError(f"{kind.replace('_', ' ')}: {keys}")
    for key, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise InputError(f"{key} holds numbers that are not finite")
    # Special tokens are taken out of contents: Gemma-3's for images has no embedding in models of
    # text alone. Those of the template must have one.
    used = set(range(len(tokenizer))).difference(special_tokens(tokenizer))
    known = 1 + max(used.union(tokenizer(render(tokenizer, PROBE)).input_ids))
    embeddings = model.get_input_embeddings().num_embeddings
    if known > embeddings:
        raise InputError(f"{known} tokens and {embeddings} embeddings")


def stop_set(model, tokenizer):
    """The sorted ids that end a completion: EOS of the config, of the generation config and of the
    tokenizer, and the special token behind an assistant's turn in the chat template. A chat model
    often names its end of turn in one of the four only."""
    stops = set()
    for config in (model.config.get_text_config(), model.generation_config, tokenizer):
        eos = getattr(config, "eos_token_id", None)
        if isinstance(eos, int):
            eos = [eos]
        stops.update(eos or [])
    with suppress(InputError):  # a template that wants more than these two turns
        *_, behind = render(tokenizer, PROBE[:2]).rpartition(MARK)
        ids = tokenizer(behind, add_special_tokens=False).input_ids
        special = [i for i in ids if i in special_tokens(tokenizer)]
        stops.update(special[:1])
    return sorted(stops)


@functools.lru_cache
def special_tokens(tokenizer):
    """{id: text} of all special tokens. Some chat models' end of turn is one of the added tokens
    only: Llama-3's <|eot_id|>, Phi-3's <|end|>."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: token.content for i, token in added if token.special}


def trained_weights(model):
    """{name: weight} of what is trained: all weights, or the adapters alone."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_policy(model, tokenizer, folder):
    """Write `folder` so that `AutoModelForCausalLM.from_pretrained(folder)` loads it; of a model
    with adapters these beside it."""
    plain = None
    try:
        if hasattr(model, "lora_rank"):
            plain = merged_weights(model)
            save_adapters(model, Path(folder) / "adapter")
        model.save_pretrained(folder, state_dict=plain)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # safetensors has errors of its own for a full disk
        raise InputError(f"{folder}: the model cannot be written: {one_line(error)}") from error


# ------------------------------------------------------------------------- how a model is called


def dtype_of(model):
    """The dtype of a model's forward passes, for which the policy was loaded: bf16 is torch's
    autocast, the weights are fp32. Of a model that was not loaded here, its own."""
    return getattr(model, "compute_dtype", model.dtype)


@contextmanager
def autocast(model):
    """Inside the block, in sampling and in learning alike, a model computes in its compute dtype
    and without dropout, which would make another policy of it."""
    training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, dtype_of(model), dtype_of(model) != torch.float32):
            yield
    finally:
        model.train(training)


def to_logits(model, states):
    """Logits, fp32 [rows, vocabulary], of the last hidden states [rows, width]. They are computed
    in fp32 under autocast too: bf16 would double the distance between what sampler and learner take
    for a log-prob."""
    with torch.autocast(states.device.type, enabled=False):
        if not hasattr(model, "logits_head"):
            model.logits_head = find_head(model)
        return model.logits_head(model, states.to(model.dtype)).float()


@torch.no_grad()
def find_head(model):
    """The first of the heads that finds the model's own logits. Raises InputError for a model whose
    logits do not come from its last hidden states."""
    ids = torch.arange(8, device=model.device)[None]
    for head in (plain_head, whole_head):
        with suppress(Exception):  # a model that is built otherwise
            states = model.base_model(ids).last_hidden_state[0]
            if torch.equal(head(model, states), model(ids).logits[0]):
                return head
    raise InputError("its logits do not come from its last hidden states")


def plain_head(model, states):
    return model.get_output_embeddings()(states)


def whole_head(model, states):
    """Of a model that does more behind its head, such as a soft cap: all that its forward does
    behind its layers, in whose place the states are returned."""
    base = model.base_model
    base.forward = lambda *_, **__: MoeModelOutputWithPast(last_hidden_state=states[None])
    try:
        return model(inputs_embeds=states[None]).logits[0]
    finally:
        del base.forward


def context_length(model):
    """The longest sequence in tokens that the model's positions allow."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # a longer sequence turns all of its positions anew
        return rope["original_max_position_embeddings"]
    return getattr(config, "max_position_embeddings", None) or 1 << 30


# -------------------------------------------------------------------------- text to tokens, back

# A conversation whose contents are easily found again in the text that a template makes of it.
MARK = "\u2460probe\u2461"
PROBE = [{"role": role, "content": MARK} for role in ("user", "assistant", "user")]

# For a tokenizer without a chat template.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize }}:\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)

# Some templates write the date: a prompt must be the same tomorrow.
FIXED_DATE = "{% macro strftime_now(form) %}01 Jan 2026{% endmacro %}"


def render(tokenizer, messages):
    """A conversation as text, through the chat template; a plain one where there is none. Behind a
    user's turn the assistant is to go on."""
    try:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] == "user",
            chat_template=FIXED_DATE + template,
            enable_thinking=False,  # for the templates that know it
        )
    except Exception as error:  # a template is a program and may raise anything
        raise InputError(f"the chat template: {one_line(error)}") from error


@functools.lru_cache
def turn_marks(tokenizer):
    """A pattern that finds any text that marks a turn: the special tokens, and what the template
    writes between contents.

    Of the latter all added tokens, and markers such as `[INST]` or `### User:` where they stand
    whole, but no mere words, as the `user` behind a special token, and none as short as `A:`.
    """
    between = "\n".join(render(tokenizer, PROBE).split(MARK)[1:])
    added = tokenizer.added_tokens_decoder.values()
    tokens = [token.content for token in added if token.special or token.content in between]
    pieces = map(str.strip, re.split(either(tokens) + "|\n", between))
    markers = [p for p in pieces if len(p) > 3 and not p.replace(" ", "").isalnum()]
    # Not in the middle of a word, unlike tokens, which a tokenizer finds there too.
    return re.compile(rf"{either(tokens)}|(?!\B\w)(?:{either(markers)})(?<!\w\B)")


def either(texts):
    """A pattern for any of the texts that are not blank, the longest first; of none it finds
    nothing."""
    texts = sorted(filter(str.strip, texts), key=len, reverse=True)
    return "|".join(map(re.escape, texts)) or "(?!)"


def encode_chat(tokenizer, messages):
    """Token ids of a conversation [{"role", "content"}, ...] up to where the assistant is to go on.

    Marks of turns that are spelled out in the contents are replaced: a response is quoted in the
    critique's prompt, and a policy that writes `<|im_end|>` letter by letter must not be able to
    close its own quotation. Raises InputError where the chat template raises anything.
    """
    marks = turn_marks(tokenizer)
    # Not taken out: what stands before and behind a mark could make a new one.
    clean = [m | {"content": marks.sub("\ufffd", m["content"])} for m in messages]
    text = render(tokenizer, clean)  # with its own BOS
    return tokenizer(text, add_special_tokens=False).input_ids


def decode(tokenizer, sample):
    """(text, whether it has ended) of a Sample: without special tokens, the stop token, surrounding
    white space and what stands before `</think>`. Prompts ask for no thinking; some models think
    all the same. Thinking that is never closed has no answer behind it: it has not ended."""
    special = special_tokens(tokenizer)
    # The marks of thinking may be special tokens too.
    shown = (None, "<think>", "</think>")
    tokens = sample.tokens[:-1] if sample.stopped else sample.tokens
    tokens = [i for i in tokens if special.get(i) in shown]
    text = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    _, closed, text = text.rpartition("</think>")
    # Some templates open the thinking at the end of the prompt.
    opened = tokenizer.decode(sample.prompt[-16:]).rstrip().endswith("<think>")
    thinking = "<think>" in text or (opened and not closed)
    return text.strip(), sample.stopped and not thinking
