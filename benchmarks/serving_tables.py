"""What README.md and docs/serving_gain.md say of benchmarks/results/serving.json."""

from collections.abc import Mapping, Sequence
from typing import Any

MIB = 2**20
PARTS = ("prepare", "encode", "score", "rank", "load", "prefill", "decode", "write", "other")


def leading_line(result: dict[str, Any], share_of: Mapping[int, float], levels: Mapping[int, Sequence[str]]) -> str:
    """What is gained with the prune pass counted, beside the accuracy at the share of tokens that is nearest.

    Args:
        result: of benchmarks/serving.py.
        share_of: of all tokens, by the numbers of tokens at which accuracy was measured.
        levels: accuracy at each of them, a clause a split.
    """
    row = next(row for row in result["ratios"] if row["goal"] is not None)
    visual = visual_tokens(result["arithmetic"]["measured"]["dims"])
    share = row["tokens"] / visual
    nearest = min(share_of, key=lambda tokens: abs(share_of[tokens] - share))
    whole = round(nearest / share_of[nearest])
    return (
        f"**{row['times']:.1f} times the answers a second** of the untouched model, pruning included: {row['prompts']} "
        f"prompts about each image at {row['tokens']} of {visual:,} visual tokens ({100 * share:.1f} %), on a model "
        f"with LLaVA-NeXT-7B's proportions ([docs/serving_gain.md](docs/serving_gain.md)). At the nearest share that "
        f"accuracy was measured at, {nearest} of {whole} tokens ({100 * share_of[nearest]:.4g} %), the default "
        f"selector answers {' and '.join(levels[nearest])} of the bundled corpus's one-word questions."
    )


def visual_tokens(dims: dict[str, int]) -> int:
    """Of an image, from the dims that a result holds."""
    return dims["tiles"] * int(dims["tile"] // dims["patch"]) ** 2


def gain_lines(result: dict[str, Any]) -> list[str]:
    """The tables of docs/serving_gain.md."""
    where, settings = result["environment"], result["settings"]
    lines = [
        f"`{where['command']}`, {where['cpu']}, {where['threads']} threads, float32, {where['date']}, commit "
        f"{where['commit']}: medians of {settings['repeats']} turns, {settings['images']} images for short answers and "
        f"{settings['long_images']} for long ones, at most {settings['batch_prompts']} prompts and "
        f"{settings['batch_tokens']:,} tokens in a batch, {result['took_sec'] / 60:.0f} minutes in all.",
        "",
        "Answers a second, ours by the baseline's:",
        "",
        "| baseline | ours | tokens | prompts an image | new tokens | times | by processor time | goal | "
        "by operations, this model | by operations, 7B |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["ratios"]:
        goal = "" if row["goal"] is None else f"{row['goal']:g}, {'met' if row['times'] >= row['goal'] else 'missed'}"
        lines.append(
            f"| {row['baseline']} | {row['ours']} | {row['tokens']} | {row['prompts']} | {row['new_tokens']} | "
            f"{row['times']:.1f} | {row['times_by_cpu']:.1f} | {goal} | {row['times_by_operations_scaled']:.1f} | "
            f"{row['times_by_operations_original']:.1f} |"
        )
    if "vllm" in result:
        lines += ["", vllm_line(result["vllm"])]
    lines += ["", "Where the time goes, milliseconds an answer (prune: an image):", ""]
    cases = [row for row in result["cases"].values() if row["new_tokens"] > 1 or row["side"] == "prune"]
    shown = [part for part in PARTS if any(row["parts_sec"].get(part) for row in cases)]
    lines += [
        f"| side | tokens | prompts an image | new tokens | all | {' | '.join(shown)} |",
        "|---|---|---|---|---|" + "---|" * len(shown),
    ]
    for row in cases:
        of = row["images"] * (1 if row["side"] == "prune" else row["prompts"])
        parts = [f"{1000 * row['parts_sec'][part] / of:.0f}" if row["parts_sec"].get(part) else "" for part in shown]
        new = "" if row["side"] == "prune" else row["new_tokens"]
        lines.append(
            f"| {row['side']} | {row['tokens'] or 'all'} | {row['prompts']} | {new} | {1000 * row['sec'] / of:.0f} | "
            f"{' | '.join(parts)} |"
        )
    return [*lines, "", *once_lines(result)]


def vllm_line(found: dict[str, Any]) -> str:
    """The row about vLLM: on pictures, and on the artifact."""
    return (
        f"vLLM {found['version']}, prefix caching on, {found['images']} images x {found['prompts']} prompts, "
        f"{found['new_tokens']} new tokens: from the artifact at {found['tokens']} tokens {found['times']:.1f} times "
        f"the answers a second that it gives from pictures ({found['times_by_cpu']:.1f} by processor time), "
        f"{found['times_with_pruning']:.1f} times with the prune pass counted. Of its {found['answers']} answers "
        f"{found['equal from pictures']} from pictures are the untouched model's, token for token, and "
        f"{found['equal from the artifact']} from the artifact are those of our own engine."
    )


def once_lines(result: dict[str, Any]) -> list[str]:
    """Time to the first token, memory, bytes, equality."""
    first = ", ".join(f"{side} {1000 * sec:.0f} ms" for side, sec in result["first_token_sec"].items())
    memory = ", ".join(
        f"{side} {(found['peak_bytes'] - found['imports_bytes']) / MIB:,.0f} MiB"
        for side, found in result["memory"].items()
    )
    read, weights = result["bytes"], result["bytes"]["weights_bytes"]
    artifact = ", ".join(
        f"{size / 1024:,.0f} KiB at {tokens} tokens" for tokens, size in read["artifact_bytes_an_image"].items()
    )
    equal = result["equality"]
    return [
        f"* To the first token of one prompt about one image, which nobody has read yet: {first}.",
        f"* Peak memory of a process that does nothing else, less its imports: {memory}.",
        f"* Bytes read for an image: {read['picture_bytes_an_image'] / 1024:,.0f} KiB of JPEG; of the artifact "
        f"{artifact} (float32 rows of a width of {result['arithmetic']['measured']['dims']['text_width']}). Weights: "
        f"vision side {weights['vision'] / MIB:,.0f} MiB, language side {weights['language'] / MIB:,.0f} MiB; "
        "answering from an artifact holds the second alone.",
        f"* Checked first, token for token, on {equal['images']} images and {equal['answers']} answers: "
        + "; ".join(f"{name}" for name in equal if " = " in name)
        + f". {equal['distinct answers of the untouched model']} of these answers are distinct. The published "
        f"estimator keeps {100 * equal['kept alike by the published estimator']:.0f} % of the tokens that the closed "
        "form keeps.",
    ]


def arithmetic_lines(result: dict[str, Any]) -> list[str]:
    """The original's arithmetic beside the measured model's."""
    original, measured = result["arithmetic"]["original"], result["arithmetic"]["measured"]
    rows = (
        ("tower, an image of 5 tiles", "tower_gflop_an_image", "{:,.1f} GFLOP"),
        ("of which attention", "tower_attention_share", "{:.1%}"),
        ("projector, an image", "projector_gflop_an_image", "{:,.2f} GFLOP"),
        ("language model, a token", "text_gflop_a_token", "{:,.3f} GFLOP"),
        ("to read a prompt with all tokens", "reading_gflop_a_prompt", "{:,.0f} GFLOP"),
        ("of which attention", "text_attention_share", "{:.1%}"),
        ("tower by reading a prompt", "tower_per_reading", "{:.2%}"),
        ("projector by reading a prompt", "projector_per_reading", "{:.2%}"),
        ("cache of a prompt by weights", "cache_of_a_prompt_per_weights", "{:.1%}"),
    )
    lines = ["| | LLaVA-NeXT-7B | measured | ratio |", "|---|---|---|---|"]
    for name, key, form in rows:
        ratio = original[key] / measured[key]
        lines.append(f"| {name} | {form.format(original[key])} | {form.format(measured[key])} | {ratio:.2f} |")
    return lines
