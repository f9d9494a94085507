"""Which models fit which GPU, with all weights trained and with adapters: a table, by arithmetic.

    python -m figures.fits

The arithmetic is that by which a run refuses what cannot fit (details/memory.py); tests hold it
against a measured peak on a CPU. No model is loaded: of each only the sizes are needed.
"""

from details import threads  # noqa: F401  # isort: skip (before torch)

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import train
from details.data import run_command
from details.flags import train_flags
from details.memory import needed_memory
from figures.real import print_table

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
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    args = train_flags(["--model", name, *flags.split()], list(train.METHODS))
    return sum(needed_memory(args, model, torch.device("cuda"), there).values())


def main():
    rows = []
    for name in MODELS:
        for title, flags in WAYS.items():
            cells = []
            for size in GPUS:
                there = int(0.98 * (size << 30))  # the rest is not to be had
                needed = gigabytes(name, flags, there)
                fits = "yes" if needed < there else "no"
                cells.append(f"{fits}, {needed / (1 << 30):.1f}")
            rows.append([name, title, *cells])
    print_table(["model", "trained", *(f"{size} GB" for size in GPUS)], rows)


if __name__ == "__main__":
    run_command(main)
