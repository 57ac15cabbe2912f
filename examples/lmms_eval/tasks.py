"""lmms-eval's side: a task, what it asks about each of its documents, and its own evaluator over answers that exist."""

import argparse
import difflib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from exchange import Export, Refusal, Request

try:
    from lmms_eval.api.instance import Instance
    from lmms_eval.api.model import lmms
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager, get_task_dict
    from loguru import logger
except ImportError as error:
    sys.exit(
        f"error: lmms-eval can't be imported here ({error}); run this by the Python of its environment, which "
        "`make lmms-env` makes"
    )
from PIL import Image
from tenacity import RetryError

NO_REFERENCES = "none"


def quiet() -> None:
    """Of what lmms-eval logs only warnings are said."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")


def version() -> str:
    """Of lmms-eval."""
    return importlib.metadata.version("lmms_eval")


def load_task(name: str, include_path: str | None, model_name: str | None) -> ConfigurableTask:
    """A task with its data set.

    Args:
        name: of the task.
        include_path: a folder with tasks of one's own; without it those that lmms-eval comes with.
        model_name: whose prompts are taken, of the models that the task's `lmms_eval_specific_kwargs` names.

    Raises:
        Refusal: there is no such task, it is a group, its data set can't be loaded, or nothing is generated for it.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise Refusal(f"--include-path {include_path} is no folder; name one with YAML files of tasks")
    manager = TaskManager(include_path=include_path, include_defaults=include_path is None, model_name=model_name)
    if name not in manager.task_index:
        like = difflib.get_close_matches(name, manager.all_tasks, n=3)
        meant = f"did you mean {' or '.join(like)}?" if like else f"there are {len(manager.all_tasks)}"
        raise Refusal(f"--task {name}: lmms-eval knows no such task; {meant}")
    if manager.task_index[name]["type"] not in ("task", "python_task"):
        raise Refusal(
            f"--task {name} is a {manager.task_index[name]['type']} of tasks; export one of its tasks at a time"
        )
    try:
        task = get_task_dict([name], manager)[name]
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise Refusal(f"--task {name}: lmms-eval can't load its data set: {_line(cause)}") from cause
    if len(task.config.filter_list or ()) > 1:
        raise Refusal(f"--task {name} has several filters, and so several grades of an answer; take one of them out")
    if task.OUTPUT_TYPE != "generate_until":
        raise Refusal(f"--task {name} is of the type {task.OUTPUT_TYPE}; only generate_until is answered in one go")
    return task


def split_of(task: ConfigurableTask) -> str:
    """The split that lmms-eval grades."""
    return str(task.config.test_split if task.has_test_docs() else task.config.validation_split)


def requests_of(task: ConfigurableTask, references: str | None, limit: int | None) -> Iterator[Request]:
    """What lmms-eval asks about each document: its own requests, with the image that they show.

    Args:
        task: with its data set.
        references: the column that holds them, "none", or None for the task's `doc_to_target`.
        limit: of documents, the first ones.

    Raises:
        Refusal: a document shows no image or several, or its references are not to be had.
    """
    if limit is not None and limit < 1:
        raise Refusal(f"--limit {limit}: expected a number of documents, at least 1")
    read = references_of(task, references)
    docs = task.eval_docs
    for instance in _instances(task, limit):
        where = f"--task {task.task_name}, document {instance.doc_id}"
        doc = docs[instance.doc_id]
        if not isinstance(instance.args[0], str):
            raise Refusal(f"{where}: its prompt is a {type(instance.args[0]).__name__}, no text; it can't be answered")
        yield Request(instance.doc_id, instance.args[0], read(doc, where), _image_of(task, doc, where))


def _instances(task: ConfigurableTask, limit: int | None) -> list[Instance]:
    task.build_all_requests(limit=limit, rank=0, world_size=1)
    return task.instances


def references_of(task: ConfigurableTask, references: str | None) -> Callable[[Any, str], list[str]]:
    """What reads the references of a document, given with words for where it stands; arguments as of `requests_of`.

    Raises:
        Refusal: there is no such column, or none that the task's `doc_to_target` names.
    """
    if references == NO_REFERENCES:
        return lambda doc, where: []
    columns = ", ".join(task.features)
    if references is not None:
        if references not in task.features:
            raise Refusal(
                f"--references {references}: the documents of {task.task_name} have no such column, only {columns}"
            )
        return lambda doc, where: _texts(doc[references], where)
    told = task.config.doc_to_target
    if isinstance(told, str) and told not in task.features and "{{" not in told:
        raise Refusal(
            f"--task {task.task_name}: its doc_to_target {told!r} names no column, so lmms-eval takes that word "
            f"for the target of every document; name the column of the references by --references COLUMN ({columns}), "
            f"or say --references {NO_REFERENCES}"
        )
    return lambda doc, where: _texts(_chosen(task, doc), where)


def _chosen(task: ConfigurableTask, doc: Any) -> Any:
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        return task.doc_to_choice(doc)[target]
    return target


def _texts(target: Any, where: str) -> list[str]:
    """The references in a target: a text or a number, or a list of them or of VQAv2's {"answer": ...}."""
    if target is None:
        return []
    texts = []
    for one in target if isinstance(target, Sequence) and not isinstance(target, str) else [target]:
        text = one.get("answer") if isinstance(one, Mapping) else one
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise Refusal(
                f"{where}: its target {target!r:.80} is no text; name the column of the references by --references"
            )
        texts.append(str(text))
    return [text for text in texts if text.strip()]  # blank where a test split keeps its answers secret


def _image_of(task: ConfigurableTask, doc: Any, where: str) -> Image.Image:
    try:
        found = task.doc_to_visual(doc)
    except OSError as error:
        raise Refusal(f"{where}: its image can't be read: {_line(error)}") from error
    visuals = list(found) if isinstance(found, list | tuple) else [] if found is None else [found]
    if len(visuals) != 1:
        many = f"{len(visuals)} images" if visuals else "no image"
        raise Refusal(f"{where} shows {many}; a prompt is about one image, so this task can't be pruned")
    if not isinstance(visuals[0], Image.Image):
        raise Refusal(f"{where} shows a {type(visuals[0]).__name__}, no image; this task can't be pruned")
    return visuals[0]


class Replay(lmms):
    """A model of lmms-eval's that says what was answered before."""

    def __init__(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """What was asked about the documents, and what was answered, in their order."""
        super().__init__()
        self._prompts, self._answers = prompts, answers

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answers.

        Raises:
            Refusal: what is asked is not what was asked.
        """
        for request in requests:
            prompt = self._prompts[request.doc_id]
            if request.args[0] != prompt:
                raise Refusal(
                    f"lmms-eval asks {request.args[0]!r:.200} where {prompt!r:.200} was exported and answered: its "
                    "task or data set is another one now; export it again, and answer that"
                )
        return [self._answers[request.doc_id] for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> Any:
        """Not there: answers are texts."""
        raise Refusal("a metric of this task asks for likelihoods, which answers do not have")

    generate_until_multi_round = loglikelihood


def grade(task: ConfigurableTask, export: Export, answers: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What lmms-eval's evaluator says of answers: its filters, `process_results` and aggregation, as it runs them.

    Args:
        task: as it was exported.
        export: its prompts.
        answers: by prompt id; documents without one are not among those that are graded.
        folder: for files that a task writes, such as submissions.

    Raises:
        Refusal: the task is not the one that was exported, or its own code fails.
    """
    asked = sorted((export.prompts[prompt_id] for prompt_id in answers), key=lambda one: one.doc_id)
    split, kept = split_of(task), [one.doc_id for one in asked]
    if (documents := len(task.eval_docs)) != export.task["documents"]:
        raise Refusal(
            f"task {export.name} has {documents:,} documents, {export.task['documents']:,} when it was exported; "
            "export it again, and answer that"
        )
    if len(kept) < len(task.eval_docs):
        _keep(task, split, kept)
    read = references_of(task, export.task["references"])
    for one, doc in zip(asked, task.eval_docs_no_media, strict=True):
        if tuple(read(doc, f"task {export.name}, document {one.doc_id}")) != one.references:
            raise Refusal(
                f"task {export.name}, document {one.doc_id} has other references than when it was exported; export it "
                "again, and answer that"
            )
    model = Replay([one.prompt for one in asked], [answers[one.prompt_id] for one in asked])
    told = argparse.Namespace(process_with_media=False, output_path=str(folder))  # as its own command line has it
    try:
        results = simple_evaluate(
            model=model, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0,
            cli_args=told, process_docs_parallel=1,
        )  # fmt: skip
    except RetryError as error:
        cause = error.last_attempt.exception()
        raise Refusal(f"task {export.name}: lmms-eval's process_results fails: {_line(cause)}") from cause
    samples = results["samples"][export.name]
    if len(samples) != len(asked):
        raise Refusal(f"lmms-eval gave {len(samples)} grades of {len(asked)} answers to {export.name}; none is taken")
    totals = {
        key.partition(",")[0]: value
        for key, value in results["results"][export.name].items()
        if key.partition(",")[0] in task.aggregation()
    }
    graded = {asked[sample["doc_id"]].prompt_id: {name: sample.get(name) for name in totals} for sample in samples}
    return {"totals": totals, "samples": graded}


def _keep(task: ConfigurableTask, split: str, kept: list[int]) -> None:
    """Make a task one of these documents alone."""
    for data in {id(one): one for one in (task.dataset, task.dataset_no_image)}.values():
        data[split] = data[split].select(kept)
    task.task_docs = task.eval_docs


def _line(error: BaseException | None) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]
