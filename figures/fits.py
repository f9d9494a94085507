"""What a run needs of memory at its peak, by arithmetic: a run that cannot fit is refused before a
model is loaded. And a table of which models fit which GPU:

    python -m figures.fits

Tests hold the arithmetic against a measured peak on a CPU. No model is loaded: of each only the
sizes are needed.
"""

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from details.data import run_command
from details.errors import InputError
from details.flags import largest_kl, train_flags
from details.lora import add_adapters
from details.memory import LOGITS, PROGRAM, memory, memory_of, standing_bytes, token_bytes
from details.policy import TOY, compute_dtype, device_of, trained_weights


def check_memory(args):
    """Say what the run needs of memory at its peak, and refuse what cannot fit, before a model is
    loaded."""
    try:
        path = TOY if args.model == "toy" else args.model
        model = without_weights(AutoConfig.from_pretrained(path, trust_remote_code=False))
        device = device_of(args.device)
        there = memory_of(device)
    except Exception:  # of a folder or a device that loading will name
        return
    needed = needed_memory(args, model, device, there)
    total = sum(needed.values())
    parts = [f"{what} {size / 1e9:.1f}" for what, size in needed.items()]
    line = f"{total / 1e9:.1f} of {there / 1e9:.1f} GB of memory: {'; '.join(parts)}"
    if total > there:
        raise InputError(
            f"--model {args.model} would need {line}; "
            "take a smaller one, --lora 16, no KL, or scale/ for several GPUs"
        )
    print(f"needs {line}")


def without_weights(config):
    """The model as a shape: its parameters have sizes and take no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )


def needed_memory(args, model, device, there):
    """{what: bytes} that a run needs of the memory that is `there`. model: without weights.
    Sampling needs no more than learning: in place of the gradients it has packed weights."""
    model.compute_dtype = compute_dtype(device, args.precision)
    if args.lora:
        add_adapters(model, args.lora, args.seed)
    trained = sum(weight.numel() for weight in trained_weights(model).values())
    config = model.config.get_text_config()
    batch = memory(model)
    needed = {
        "weights, gradients, optimizer": standing_bytes(model),
        "reference": 4 * trained * (largest_kl(args) > 0),
        # What a batch may have counts what matrices read and write, and not what lies between.
        "batches": 2 * batch,
        "logits": 16 * min(LOGITS, config.vocab_size * batch / token_bytes(model)),
        "program": PROGRAM,
    }
    if device.type == "cuda":
        needed["program"] = 890 << 20
        # Batches are cut until they fit. One completion is the least: a critique, whose prompt
        # holds a response.
        tokens = 2 * args.max_new_tokens
        needed["batches"] = 2 * tokens * token_bytes(model)
        if sum(needed.values()) > there:
            # Recomputed: one block's activations, and what goes into each of them.
            needed["batches"] /= config.num_hidden_layers
            needed["batches"] += 4 * tokens * config.num_hidden_layers * config.hidden_size
    return needed


# -------------------------------------------------------------------------------------- the table

SIZES = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
MODELS = {  # {name: (kind, SIZES, vocabulary, is the head the embedding?)}
    "Qwen2.5-0.5B": ("qwen2", (896, 4864, 24, 14, 2), 151_936, True),
    "Qwen2.5-1.5B": ("qwen2", (1536, 8960, 28, 12, 2), 151_936, True),
    "Qwen2.5-3B": ("qwen2", (2048, 11008, 36, 16, 2), 151_936, True),
    "Qwen2.5-7B": ("qwen2", (3584, 18944, 28, 28, 4), 152_064, False),
    "Llama-3.1-8B": ("llama", (4096, 14336, 32, 32, 8), 128_256, False),
}
GPUS = (8, 16, 24, 80)  # GiB
WAYS = {
    "all weights": "",
    "all weights, --kl 0": "--kl 0",
    "--lora 16": "--lora 16",
}


def gigabytes(name, flags, there):
    """What a run needs on a GPU of `there` bytes."""
    kind, sizes, vocabulary, tied = MODELS[name]
    config = AutoConfig.for_model(
        kind,
        **dict(zip(SIZES.split(), sizes)),
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )
    args = train_flags(["--model", name, *flags.split()], ["gc-rl"])
    return sum(needed_memory(args, without_weights(config), torch.device("cuda"), there).values())


def main():
    heads = ["model", "trained", *(f"{size} GB" for size in GPUS)]
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for name in MODELS:
        for title, flags in WAYS.items():
            cells = []
            for size in GPUS:
                there = int(0.98 * (size << 30))  # the rest is not to be had
                needed = gigabytes(name, flags, there)
                fits = "yes" if needed < there else "no"
                cells.append(f"{fits}, {needed / (1 << 30):.1f}")
            print(f"| {' | '.join([name, title, *cells])} |")


if __name__ == "__main__":
    run_command(main)
