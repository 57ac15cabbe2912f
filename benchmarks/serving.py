"""What a user gains who prunes a corpus once and answers from the artifact, against what people do today.

    python benchmarks/serving.py                        everything, benchmarks/results/serving.json (half an hour)
    python benchmarks/serving.py --images 2 --long-images 1 --repeats 1 --output -        a look (a few minutes)
    python benchmarks/serving.py --small --output -     every line of it on a model that is small (seconds)

The model is LLaVA-NeXT-7B made smaller, every cost by the same factor (benchmarks/scaled_next.py), with its geometry:
2,880 visual tokens and 48 newlines. All sides run in this process, by turns, with the same threads, the same pictures,
prompts and lengths of answers, and the same limits of a batch. Memory that tensors leave stays with the process, since
getting it anew would weigh eight times as much here as beside the original, which is eight times as wide. The clock
runs from a picture's file, or from the artifact's files, to all answers; loading models does not count, nor does
starting Ray, which is throughput.py's.

Ours are the stages that the jobs run: reading and preparing, encoding, writing; answering with its own loading and
writing. First of all answers are compared, token for token.
"""

# ruff: noqa: E402
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
if __name__ == "__main__":
    # In place of this folder, which holds a file by the name of a standard module (selectors).
    sys.path[0] = str(ROOT)

import argparse
import gc
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.memory import keep_freed_memory, peak_bytes, resident_bytes
from benchmarks.ops import environment
from benchmarks.scaled_next import ORIGINAL, SCALED, TINY, arithmetic
from benchmarks.serving_baselines import Clock, Limits, asked_in
from benchmarks.serving_bench import (
    ANSWER,
    IN_REQUEST,
    PRUNE,
    SHARED,
    UNTOUCHED,
    WORDS,
    Bench,
    Case,
    Turn,
    Work,
    operations,
)
from benchmarks.serving_vllm import time_vllm
from jobs.console import quiet_libraries

PROMPTS = 5  # about an image, where it is not one
CHECKED = 2  # images whose answers are compared on every side
# Baseline, whether the prune pass counts as ours, the prompts of an image, how often as many answers a second.
GOALS = (
    (UNTOUCHED, True, PROMPTS, 12.0),
    (UNTOUCHED, False, PROMPTS, 15.0),
    (SHARED, False, PROMPTS, 8.0),
    (SHARED, True, PROMPTS, 5.0),
    (IN_REQUEST, True, 1, 4.0),
)


def check_equality(bench: Bench, tokens: int, new_tokens: int) -> dict[str, Any]:
    """Sides that must answer alike do, token for token, on a few images; and answers depend on image and kept tokens.

    Raises:
        AssertionError: they do not.
    """
    work = Work(CHECKED, PROMPTS, new_tokens)
    every = bench.dims.visual_tokens
    whole = bench.turn(Case(UNTOUCHED, work)).answers
    shared = bench.turn(Case(SHARED, work)).answers
    all_kept = bench.turn(Case(ANSWER, work, every)).answers
    assert whole == shared, "a shared prefix changes an answer of the untouched model"
    assert whole == all_kept, "with all tokens kept an answer is not the untouched model's"
    ours = bench.ours(Case(ANSWER, work, tokens))
    kept, asked = ours.kept_sets(), asked_in(bench.manifest(work))
    pruned = bench.turn(Case(ANSWER, work, tokens)).answers
    given = bench.stock.in_request(
        asked, new_tokens, Clock(), kept=tokens, choose=lambda number: kept[asked[number].picture.name]
    )
    assert pruned == given, "the method in the request, given our selection, answers otherwise than the artifact"
    questions = [[one.prompts[place][0] for one in asked] for place in range(PROMPTS)]
    assert all(len({tuple(whole[name]) for name in names}) == len(names) for names in questions), "images do not matter"
    assert len({tuple(answer) for answer in whole.values()}) > CHECKED, "prompts do not matter"
    assert whole != pruned, "pruning does not matter, so equality above would say nothing"
    alike = []
    for one in asked:
        published = bench.stock.published(*bench.stock.encoded(one), tokens, Clock()).tolist()
        alike.append(len({*published} & {*kept[one.picture.name].tolist()}) / tokens)
    return {
        "images": work.images,
        "answers": work.answers,
        "untouched = prefix shared": work.answers,
        "untouched = all tokens kept": work.answers,
        f"in request with our selection = artifact, {tokens} tokens": work.answers,
        "distinct answers of the untouched model": len({tuple(answer) for answer in whole.values()}),
        f"answers that {tokens} tokens leave as they were": sum(whole[name] == pruned[name] for name in whole),
        "kept alike by the published estimator": sum(alike) / len(alike),
    }


def cases_of(given: argparse.Namespace) -> list[Case]:
    """Everything that is timed."""
    first, *others = given.tokens
    cases = []
    for images, new_tokens in zip((given.images, given.long_images), given.new_tokens, strict=True):
        many, single = Work(images, PROMPTS, new_tokens), Work(images, 1, new_tokens)
        cases += [Case(UNTOUCHED, many), Case(SHARED, many), Case(IN_REQUEST, single, first)]
        for work in (many, single):
            cases += [Case(PRUNE, work, first), Case(ANSWER, work, first)]
        if new_tokens == given.new_tokens[0]:
            cases += [Case(side, many, tokens) for tokens in others for side in (PRUNE, ANSWER)]
    alone = Work(1, 1, 1)  # whose answers are there with their first token
    cases += [Case(UNTOUCHED, alone), Case(IN_REQUEST, alone, first), Case(PRUNE, alone, first)]
    cases += [Case(ANSWER, alone, first)]
    return list({case.name: case for case in cases}.values())


def time_cases(bench: Bench, cases: Sequence[Case], repeats: int) -> dict[str, dict[str, Any]]:
    """Every case `repeats` times, by turns, the second turn in the opposite order; medians."""
    for case in cases:  # what does not count: pages of weights, the first pass of each of ours
        if case.side in (PRUNE, ANSWER):
            bench.turn(case)
    turns: dict[str, list[Turn]] = {case.name: [] for case in cases}
    for repeat in range(repeats):
        for case in cases[:: -1 if repeat % 2 else 1]:
            done = bench.turn(case)
            assert len(done.answers) == (0 if case.side == PRUNE else case.work.answers), f"{case.name}: answers lack"
            assert all(len(tokens) == case.work.new_tokens for tokens in done.answers.values()), "lengths are forced"
            assert done.answers == (turns[case.name] or [done])[0].answers, f"{case.name}: another turn, other answers"
            turns[case.name].append(done)
            print(f"{case.name}: {done.wall_sec:.2f} s, {done.cpu_sec:.2f} s of processors", flush=True)
    found = {}
    for case in cases:
        some = turns[case.name]
        parts = {name: median(turn.parts.get(name, 0.0) for turn in some) for name in some[0].parts}
        found[case.name] = {
            "side": case.side, "tokens": case.tokens, "images": case.work.images, "prompts": case.work.prompts,
            "new_tokens": case.work.new_tokens,
            "sec": median(turn.wall_sec for turn in some), "sec_each": [turn.wall_sec for turn in some],
            "cpu_sec": median(turn.cpu_sec for turn in some), "parts_sec": parts,
        }  # fmt: skip
    for new_tokens in {case.work.new_tokens for case in cases}:
        both = [turns[c.name][0].answers for c in cases if c.side in (UNTOUCHED, SHARED) and c.work.prompts == PROMPTS
                and c.work.new_tokens == new_tokens]  # fmt: skip
        assert all(answers == both[0] for answers in both), "a shared prefix changes an answer of the untouched model"
    return found


def ratios_of(
    bench: Bench, found: dict[str, dict[str, Any]], cases: Sequence[Case], of_goals: tuple[int, int]
) -> list[dict[str, Any]]:
    """How many times the baseline's answers a second ours give.

    Args:
        of_goals: kept and new tokens for which there are goals.
    """
    by_name = {case.name: case for case in cases}
    rows = []
    for case in [case for case in cases if case.side == ANSWER and case.work.new_tokens > 1]:
        for baseline, pruning, prompts, goal in GOALS:
            their = Case(baseline, case.work, case.tokens if baseline == IN_REQUEST else 0)
            if prompts != case.work.prompts or their.name not in by_name:
                continue
            ours = [Case(PRUNE, case.work, case.tokens), case] if pruning else [case]
            row = {
                "baseline": baseline, "ours": " + ".join(one.side for one in ours), "tokens": case.tokens,
                "images": case.work.images, "prompts": prompts, "new_tokens": case.work.new_tokens,
                "goal": goal if (case.tokens, case.work.new_tokens) == of_goals else None,
            }  # fmt: skip
            for name, measure in (("times", "sec"), ("times_by_cpu", "cpu_sec")):
                row[name] = found[their.name][measure] / sum(found[one.name][measure] for one in ours)
            for name, dims in (("scaled", bench.dims), ("original", ORIGINAL)):
                spent = [operations(dims, one.side, one.work, one.tokens) for one in (their, *ours)]
                row[f"times_by_operations_{name}"] = spent[0] / sum(spent[1:])
            rows.append(row)
    return rows


def alone(bench: Bench, case: Case) -> dict[str, int]:
    """Memory of this process, which does nothing but one turn of one case."""
    imports = resident_bytes()
    bench.turn(case)
    return {"imports_bytes": imports, "peak_bytes": peak_bytes()}


def memory_of(bench: Bench, cases: Sequence[Case], given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Peak memory of every side, each in a process of its own, on a few images."""
    found: dict[str, dict[str, Any]] = {}
    for one in cases:
        # The prompts of one image fill a batch of whole images.
        images = 1 if one.side in (UNTOUCHED, SHARED) else CHECKED
        case = replace(one, work=replace(one.work, images=images))
        if one.side in found or one.work.images == 1:
            continue
        bench.ready(case)  # what it reads is there
        if given.small:
            found[case.side] = {"case": case.name, **alone(bench, case)}
            continue
        fields = [case.side, case.tokens, case.work.images, case.work.prompts, case.work.new_tokens]
        command = [sys.executable, __file__, "--alone", json.dumps(fields), "--folder", str(bench.folder)]
        command += ["--threads", str(given.threads), "--batch-prompts", str(given.batch_prompts)]
        command += ["--batch-tokens", str(given.batch_tokens)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[case.side] = {"case": case.name, **json.loads(output.splitlines()[-1])}
    return found


def bytes_of(bench: Bench, cases: Sequence[Case]) -> dict[str, Any]:
    """Bytes of files that a side reads for an image, and of the weights that it holds."""
    case = answering(cases)
    pictures = [one.picture.stat().st_size for one in asked_in(bench.manifest(case.work))]
    parts = {"vision": ("vision_tower", "multi_modal_projector", "image_newline")}
    weights = {"vision": 0, "language": 0}
    for name, weight in bench.stock.model.named_parameters():
        weights["vision" if any(part in name for part in parts["vision"]) else "language"] += weight.nbytes
    return {
        "picture_bytes_an_image": sum(pictures) / len(pictures),
        "artifact_bytes_an_image": {
            str(tokens): bench.ours(replace(case, tokens=tokens)).bytes_read() / case.work.images
            for tokens in dict.fromkeys(c.tokens for c in cases if c.side == ANSWER and c.work == case.work)
        },
        "weights_bytes": weights,
    }


def first_tokens(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds until the first token of one prompt about one image, which nobody has read yet."""
    alone = {row["side"]: row["sec"] for row in found.values() if row["images"] == 1 and row["new_tokens"] == 1}
    return {**alone, f"{PRUNE} + {ANSWER}": alone[PRUNE] + alone[ANSWER]}


def show(result: dict[str, Any]) -> None:
    """The table of ratios."""
    for row in result["ratios"]:
        goal = (
            ""
            if row["goal"] is None
            else f", goal {row['goal']:g}: {'met' if row['times'] >= row['goal'] else 'missed'}"
        )
        print(
            f"{row['ours']} at {row['tokens']} tokens / {row['baseline']}, {row['new_tokens']} new, "
            f"{row['prompts']} prompts an image: {row['times']:.1f} (by processor time {row['times_by_cpu']:.1f}, by "
            f"operations {row['times_by_operations_scaled']:.1f}){goal}"
        )


def answering(cases: Sequence[Case]) -> Case:
    """The case of the goals that answers from the artifact."""
    return next(case for case in cases if case.side == ANSWER)


def measure_again(bench: Bench, cases: Sequence[Case], given: argparse.Namespace) -> dict[str, Any]:
    """Measure parts of a result anew. It says when and of which commit they are."""
    output = Path(given.output)
    result: dict[str, Any] = json.loads(output.read_text())
    for part in given.only:
        if part == "memory":
            result[part] = memory_of(bench, cases, given)
        else:
            result[part] = time_vllm(bench, answering(cases), result["cases"], given.vllm_python, given.repeats)
        result.setdefault("measured_again", {})[part] = environment(torch.device("cpu"))
    output.write_text(json.dumps(result, indent=1) + "\n")
    return result


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Check, time, print and store."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=10, help="with short answers (default 10)")
    parser.add_argument("--long-images", type=int, default=2, help="with long answers (default 2)")
    parser.add_argument("--tokens", type=int, nargs="+", help="kept of 2,880; goals hold for the first (160 320 640)")
    parser.add_argument("--new-tokens", type=int, nargs=2, help="of short and long answers (8 64); goals are for short")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="that every side computes with (default 2)")
    parser.add_argument("--batch-prompts", type=int, default=32, help="prompts that run together (default 32)")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="tokens that run together (default 16384)")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM and integrations/vllm")
    parser.add_argument(
        "--only", choices=("memory", "vllm"), nargs="+", help="measure these again, for the results in --output"
    )
    parser.add_argument("--small", action="store_true", help="a model, images and work that are small")
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/serving.json"), help="- for none")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--alone", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if "vllm" in (given.only or ()) and not given.vllm_python:
        parser.error("--only vllm needs --vllm-python")
    quiet_libraries()
    dims = TINY if given.small else SCALED
    given.new_tokens = given.new_tokens or ([3, 5] if given.small else [8, 64])
    given.tokens = given.tokens or ([20, 40] if given.small else [160, 320, 640])
    limits = Limits(given.batch_prompts, given.batch_tokens)
    if given.alone:
        side, tokens, *work = given.alone
        found = alone(Bench(Path(given.folder), dims, limits, given.threads), Case(side, Work(*work), tokens))
        print(json.dumps(found))
        return found
    threads = torch.get_num_threads()
    if not given.small:
        keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="serving-", dir=given.folder) as folder:
        bench = Bench(Path(folder), dims, limits, given.threads)
        gc.freeze()  # else every collection before a turn would look through all that was imported
        started, cases = time.perf_counter(), cases_of(given)
        if given.only:
            result = measure_again(bench, cases, given)
            torch.set_num_threads(threads)
            return result
        result: dict[str, Any] = {
            "environment": environment(torch.device("cpu")),
            "settings": {n: v for n, v in vars(given).items() if n not in ("output", "folder", "alone", "vllm_python")},
            "words_a_prompt": WORDS,
            "arithmetic": {
                name: arithmetic(one, WORDS + 2) for name, one in (("original", ORIGINAL), ("measured", dims))
            },
            "equality": check_equality(bench, given.tokens[0], given.new_tokens[0]),
        }
        result["environment"]["threads"] = given.threads
        print(json.dumps(result["equality"]), flush=True)
        result["memory"] = memory_of(bench, cases, given)
        result["cases"] = time_cases(bench, cases, given.repeats)
        result["ratios"] = ratios_of(bench, result["cases"], cases, (given.tokens[0], given.new_tokens[0]))
        result["first_token_sec"] = first_tokens(result["cases"])
        result["bytes"] = bytes_of(bench, cases)
        if given.vllm_python:
            result["vllm"] = time_vllm(bench, answering(cases), result["cases"], given.vllm_python, given.repeats)
        result["took_sec"] = round(time.perf_counter() - started, 1)
    torch.set_num_threads(threads)
    show(result)
    if given.output != "-":
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    main()
