#!/usr/bin/env bash
# The runs behind the README's tables: seeds 0 to 3 of each method on the toy, two at a time on one
# thread each, then the table and the picture. A quarter of an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
for seed in 0 1 2 3; do
  for method in gc-rl g-rl c-rl score multi-turn; do
    echo "--method $method --seed $seed --out runs/$method-$seed"
  done
done | OMP_NUM_THREADS=1 xargs -P 2 -L 1 python train.py
python -m figures.compare runs/{gc-rl,g-rl,c-rl,score,multi-turn}-? --out figures/methods.svg
