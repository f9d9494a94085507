"""Use a policy: answer and criticise one question, evaluate on a file, compare runs, vote at inference.

    python sample.py --model out "Compute 9-7*2-5 modulo 10."           answer, critiques, corrected answer
    python sample.py --model out --data FILE.jsonl --eval --json        evaluation; the last line is one JSON object
    python sample.py --compare out runs/g-rl runs/c-rl                  a table of runs, and their curves as an SVG
    python sample.py --model out --vote                                 answers by vote at equal budgets, and an SVG
"""
import argparse
import json
import sys
from html import escape
from pathlib import Path

from critique import correct, critique, judgement, solve
from reward import Pair, PairCache, Problem, answer_key, load_problems, read_jsonl, text_field, toy_problems
from rollout import InputError, encode_chat, context_length, load_policy
from train import (Run, check_lengths, complete, ends_right, evaluate, fetch_gsm8k, mean, parse_args, read_metrics, respond,
                   sample_pairs, seed_of, show_evaluations, two_attempts)

COLOURS = ["#2a6fbb", "#d1495b", "#3b8c5a", "#8a5fb0", "#c98a1b", "#5b6770"]


# ------------------------------------------------------------------------------------------------------- pictures

def line_charts(path, charts, title):
    """Write an SVG of line charts, three in a row: charts [(title, x label, {series: [(x, y), ...]}), ...]; empty ones are
    left out."""
    charts = [(name, label, {s: p for s, p in series.items() if p}) for name, label, series in charts]
    charts = [chart for chart in charts if chart[2]]
    names = list(dict.fromkeys(name for _, _, series in charts for name in series))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    wide, high, left, head = 300, 210, 52, 60
    parts = [f'<text x="16" y="24" font-size="15" font-weight="600">{escape(title)}</text>']
    x = 16
    for name in names:              # the legend: one line for all charts
        parts.append(f'<rect x="{x}" y="35" width="14" height="3" fill="{colour[name]}"/>'
                     f'<text x="{x + 19}" y="41">{escape(name)}</text>')
        x += 36 + 7 * len(name)
    for i, (name, label, series) in enumerate(charts):
        points = [p for line in series.values() for p in line]
        low_x, high_x = min(p[0] for p in points), max(p[0] for p in points)
        low, peak = min(p[1] for p in points), max(p[1] for p in points)
        room = max(peak - low, 0.02) * 0.08
        low, peak, start, top = low - room, peak + room, i % 3 * (wide + 70) + left, head + i // 3 * (high + 84)

        def place(point, low_x=low_x, high_x=high_x, low=low, peak=peak, start=start, top=top):
            return (start + wide * (point[0] - low_x) / ((high_x - low_x) or 1),
                    top + 24 + high * (peak - point[1]) / (peak - low))
        parts.append(f'<text x="{start}" y="{top + 10}" font-weight="600">{escape(name)}</text>')
        for k in range(5):
            y = low + (peak - low) * k / 4
            row = place((low_x, y))[1]
            parts.append(f'<line x1="{start}" x2="{start + wide}" y1="{row:.1f}" y2="{row:.1f}" stroke="#dddddd"/>'
                         f'<text x="{start - 6}" y="{row + 4:.1f}" text-anchor="end" fill="#555555">{y:.2f}</text>')
        for tick in sorted({low_x, (low_x + high_x) // 2, high_x}):
            parts.append(f'<text x="{place((tick, low))[0]:.1f}" y="{top + high + 42}" text-anchor="middle" '
                         f'fill="#555555">{tick:g}</text>')
        parts.append(f'<text x="{start + wide / 2}" y="{top + high + 60}" text-anchor="middle" '
                     f'fill="#555555">{escape(label)}</text>')
        for series_name, line in series.items():
            dots = [place(point) for point in sorted(line)]
            parts.append(f'<polyline fill="none" stroke="{colour[series_name]}" stroke-width="2" points="'
                         + " ".join(f"{a:.1f},{b:.1f}" for a, b in dots) + '"/>')
            if len(dots) <= 12:
                parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour[series_name]}"/>' for a, b in dots]
    width, height = max(min(3, len(charts)) * (wide + 70) + 16, x), head + -(-len(charts) // 3) * (high + 84)
    opening = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
               'font-size="12"><rect width="100%" height="100%" fill="white"/>')
    Path(path).write_text(opening + "\n".join(parts) + "</svg>\n", encoding="utf-8")
    print(f"picture: {path}")


# ---------------------------------------------------------------------------------------------------- one question

def show_question(run, question, count):
    """Print an answer, several critiques with their judgements, and the corrected answers with and without a critique."""
    if len(encode_chat(run.tokenizer, solve(question))) >= context_length(run.model):
        raise InputError(f"the question does not fit the model's context of {context_length(run.model)} tokens")
    (_, answer), = complete(run, [solve(question)], 1, 0, 0.0)
    print(f"QUESTION\n{question}\n\nANSWER\n{answer}")
    critiques = [text for _, text in complete(run, [critique(question, answer)], count, run.args.seed)]
    names = {True: "right", False: "wrong", None: "no judgement that can be read"}
    for i, text in enumerate(critiques, 1):
        print(f"\nCRITIQUE {i}: {names[judgement(text)]}\n{text}")
    (_, second), = complete(run, [correct(question, answer)], 1, 0, 0.0)
    (_, refined), = complete(run, [correct(question, answer, critiques[0])], 1, 0, 0.0)
    print(f"\nCORRECTED, with critique 1\n{refined}\n\nCORRECTED, without a hint\n{second}")


# ------------------------------------------------------------------------------------------------------ evaluation

def load_exam(path):
    """Critique pairs from a JSONL file with question, answer, response and label (OUT/eval_pairs.jsonl)."""
    def check(row):
        if not isinstance(row.get("label"), bool):
            raise ValueError("label must be true or false")
        return Pair(Problem(text_field(row, "question"), text_field(row, "answer")), text_field(row, "response"), row["label"])
    return read_jsonl(path, check)


def compare(folders, picture):
    """A table of the last evaluation of several runs beside the first one's start, and their curves."""
    runs, columns = {str(folder): read_metrics(Path(folder) / "metrics.jsonl") for folder in folders}, {}
    for name, rows in runs.items():
        evaluated = [row for row in rows if "eval/generation" in row]
        if not evaluated:
            raise InputError(f"{name}: metrics.jsonl holds no evaluation")
        columns |= {"start": columns.get("start", evaluated[0]), name: evaluated[-1]}
    show_evaluations("runs, at their last evaluation", columns)
    charts = []
    for key, title in [("eval/generation", "greedy accuracy"), ("eval/critique", "critique accuracy"),
                       ("eval/delta", "second attempt - first"), ("t2", "in training: second attempts right"),
                       ("delta", "in training: second attempt - first"), ("kept", "in training: wrong answers given again")]:
        charts.append((title, "step", {name: [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                                       for name, rows in runs.items()}))
    line_charts(picture, charts, "Held-out problems, greedy; and what was sampled in training")
    return columns


# ----------------------------------------------------------------------------------------------------------- votes

def majority_vote(responses, weights=None):
    """The index of the response that the vote elects, None if no answer can be read.

    Answers are counted by `answer_key`, each with its weight (1 by default); unreadable ones have no vote. Of equals the
    one that came first wins; where all weights are 0 everybody votes with weight 1.
    """
    keys = [answer_key(response) for response in responses]
    if weights is None or not any(weight for key, weight in zip(keys, weights) if key is not None):
        weights = [1.0] * len(keys)
    votes, first = {}, {}
    for i, (key, weight) in enumerate(zip(keys, weights)):
        if key is not None:
            votes[key] = votes.get(key, 0.0) + weight
            first.setdefault(key, i)
    return first[max(votes, key=votes.get)] if votes else None        # max takes the first of equals


def vote(run, problems, budgets, critiques, picture):
    """Accuracy by three ways to spend k samples a problem, each by majority vote: k answers; k/2 answers, each corrected
    once; k/(1 + m) answers, each weighted by the share of its m critiques that call it right. One sampling serves all
    budgets: smaller ones use the first answers of the larger ones."""
    most, seed = max(budgets), run.args.seed
    answers = respond(run, problems, most, seed_of(seed, "vote"), show="answers")
    groups = [answers[i:i + most] for i in range(0, len(answers), most)]

    def follow(prompt, n, title):
        """n completions of prompt(question, answer) for as many answers to each problem as the largest budget pays for:
        for each problem a list with the (Sample, text) of each of its answers."""
        each = most // (1 + n)
        chats = [prompt(e.problem.question, e.text) for group in groups for e in group[:each]]
        done = complete(run, chats, n, seed_of(seed, "vote", title), show=title)
        rows = [done[i:i + n] for i in range(0, len(done), n)]
        return [rows[i:i + each] for i in range(0, len(rows), each)]
    second, checks = follow(correct, 1, "corrections"), follow(critique, critiques, "critiques")

    ballots = {                 # name: what a vote costs in samples, and for each problem its votes (sample, text, weight)
        "parallel": (1, [[(e.sample, e.text, 1.0) for e in group] for group in groups]),
        "parallel, corrected": (2, [[(*row[0], 1.0) for row in rows] for rows in second]),
        "critique-weighted": (1 + critiques, [
            [(e.sample, e.text, mean(check.stopped and judgement(text) is True for check, text in row))
             for e, row in zip(group, rows)] for group, rows in zip(groups, checks)])}

    def right(votes, problem):
        elected = majority_vote([text if sample.stopped else "" for sample, text, _ in votes], [weight for *_, weight in votes])
        return elected is not None and ends_right(*votes[elected][:2], problem) == 1

    table = {name: [(k, mean(right(votes[:k // cost], problem) for votes, problem in zip(cast, problems)))
                    for k in budgets if k >= cost] for name, (cost, cast) in ballots.items()}
    *_, greedy = two_attempts(run, problems, 1, 0, temperature=0.0, show="greedy")
    print(f"\none greedy answer {greedy['t1']:.3f}, corrected once {greedy['t2']:.3f}; below, samples at temperature "
          f"{run.args.temperature:g}; the standard error is up to {0.5 / len(problems) ** 0.5:.3f}")
    print(f"{f'accuracy by vote, {len(problems)} problems':40}" + "".join(f"  k={k:<4}" for k in budgets))
    for name, line in table.items():
        print(f"{name:40}" + "".join(f"  {dict(line)[k]:.3f} " if k in dict(line) else f"{'-':>7} " for k in budgets))
    line_charts(picture, [("accuracy by vote", "samples per problem", table)], "Self-correction at inference")
    return {"vote/" + name: dict(line) for name, line in table.items()} | {"greedy/t1": greedy["t1"], "greedy/t2": greedy["t2"]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: sys.exit(f"error: {message}")
    parser.add_argument("question", nargs="?", help="a question to answer")
    parser.add_argument("--model", help="toy, a model folder or a hub id [toy]", default="toy")
    parser.add_argument("--data", help="toy, gsm8k (its test file, downloaded) or a JSONL file [toy]", default="toy")
    parser.add_argument("--eval", help="evaluate on --data: answers, second attempts, critiques", action="store_true")
    parser.add_argument("--pairs", help="JSONL file of critique pairs for --eval, such as OUT/eval_pairs.jsonl [sampled from the model]")
    parser.add_argument("--vote", help="vote on --data at budgets up to --n", action="store_true")
    parser.add_argument("--critiques", help="critiques of each answer in --vote, out of its budget [1]", type=int, default=1)
    parser.add_argument("--compare", help="run folders of train.py", nargs="+", metavar="OUT")
    parser.add_argument("--json", help="also print the numbers as one JSON object on the last line", action="store_true")
    parser.add_argument("--picture", help="where the SVG goes [compare.svg or vote.svg beside the first run or the model]")
    parser.add_argument("--n", help="critiques of a question [4]; the largest budget of --vote [16]", type=int)
    parser.add_argument("--size", help="use the first N problems of --data [all; toy: 512]", type=int, metavar="N")
    parser.add_argument("--temperature", type=float, default=1.0, help="of critiques and votes [1.0]")
    parser.add_argument("--max-new-tokens", type=int, help="limit of a completion in tokens [512, at most a quarter of the context]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda, mps (default: cuda where there is one)")
    options = parser.parse_args(argv)
    try:
        use(options)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def use(options):
    """Do what the flags ask for."""
    if options.picture and not Path(options.picture).resolve().parent.is_dir():
        raise InputError(f"--picture {options.picture}: there is no such folder")
    if options.compare:
        numbers = compare(options.compare, options.picture or Path(options.compare[0]) / "compare.svg")
        return print(json.dumps(numbers)) if options.json else None
    if not (options.question or options.eval or options.vote):
        raise InputError("give a question, --eval, --vote or --compare (see --help)")
    n = options.n if options.n is not None else 16 if options.vote else 4
    if n < 1 or options.vote and n < 2 or options.size is not None and options.size < 1:
        raise InputError(f"--n {n} --size {options.size}: must be at least 1 (--vote: --n 2)")
    budgets = sorted({k for k in (2, 4, 8, 16, 32, 64, 128) if k < n} | {n})
    if options.vote and not 0 < options.critiques < budgets[-1]:
        raise InputError(f"--critiques {options.critiques}: must be at least 1 and less than the largest budget, {budgets[-1]}")
    problems = []
    if options.eval or options.vote:
        problems = (toy_problems(options.size or 512, 12345, held_out=True) if options.data == "toy" else
                    load_problems(fetch_gsm8k("test") if options.data == "gsm8k" else options.data)[:options.size])
    exam = load_exam(options.pairs) if options.pairs else []
    model, tokenizer = load_policy(options.model, options.device)
    limit = options.max_new_tokens if options.max_new_tokens is not None else min(512, context_length(model) // 4)
    args = parse_args(["--seed", str(options.seed), "--temperature", str(options.temperature), "--max-new-tokens", str(limit)])
    run, numbers = Run(args, model, tokenizer, PairCache(1)), {}
    check_lengths(run, problems)
    if options.question:
        show_question(run, options.question, n)
    if options.eval:
        exam = exam or sample_pairs(run, problems, 8, len(problems), seed_of(options.seed, "exam"), "critique pairs")
        numbers |= evaluate(run, problems, exam)
        show_evaluations(options.data, {options.model: numbers})
    if options.vote:
        folder = Path(options.model) if options.model != "toy" and Path(options.model).is_dir() else Path()
        numbers |= vote(run, problems, budgets, options.critiques, options.picture or folder / "vote.svg")
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
