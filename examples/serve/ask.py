"""Ask a server of `start_server.py` about one image of the artifact, by its id, with as many tokens as you like.

python examples/serve/ask.py --pruned out/photos --model llava-hf/llava-v1.6-vicuna-7b-hf --image 5f3a... --tokens 64 \\
    "what is in the picture?"
"""

import argparse
import os
import sys

import pyarrow.compute as pc
import pyarrow.dataset as ds
import torch
from pydantic import SecretStr

from pipeline.answer.chat_server import ServerGoneError
from pipeline.answer.checks import survey
from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import Question, Reply, ServerSettings
from pipeline.answer.openai_engine import OpenAIEngine, check_server
from pipeline.answer.served import served_name
from pipeline.answer.settings import checked_address, is_key
from pipeline.artifact.artifact import Artifact
from pipeline.artifact.tables import dataset_of
from pipeline.budget import parse_budget
from pipeline.cluster.environment import own_dtype
from pipeline.errors import UserError
from pipeline.families.base import KeptImage, torch_dtype
from pipeline.families.checkpoint import open_checkpoint
from pipeline.families.generation_settings import followed
from pipeline.loader.shard import ShardLoader
from schemas.tables import SELECTIONS


def reply_to(arguments: list[str]) -> tuple[Reply, KeptImage]:
    """What the server replies, and what it was shown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt")
    parser.add_argument("--pruned", required=True, metavar="FOLDER", help="the output of a prune job")
    parser.add_argument("--model", required=True, metavar="PATH|ID", help="the checkpoint that pruned it")
    parser.add_argument("--image", required=True, metavar="ID", help="as the column image_id has it, or its beginning")
    parser.add_argument("--tokens", default="all", metavar="COUNT|RATIO|all", help="visual tokens the model sees")
    parser.add_argument("--server", default="http://127.0.0.1:8000/v1", metavar="URL")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    given = parser.parse_args(arguments)
    pruned = Artifact(given.pruned)
    prune_job = pruned.require_job("prune", "--pruned")
    image = find_image(pruned, given.image, given.tokens)
    if not given.prompt.strip() or given.max_new_tokens < 1:
        raise UserError("expected a prompt that is not blank, and --max-new-tokens of 1 or more")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    server = ServerSettings(
        url=checked_address(given.server, "--server"), model=served_name(prune_job),
        api_key=is_key(SecretStr(key) if key else None), concurrency=1, timeout_sec=600.0, trust_template=False,
    )  # fmt: skip
    decoding = Decoding(given.max_new_tokens)
    checkpoint, family = open_checkpoint(given.model)
    dtype, its = torch_dtype(own_dtype(checkpoint)), followed(checkpoint, "openai")
    prompter = family.answerer(checkpoint, torch.device("cpu"), dtype, language=False)
    check_server(server, prompter, decoding, its, given.model)
    (reply,) = OpenAIEngine(prompter, server, its).answer([Question(given.prompt, image)], decoding)
    return reply, image


def find_image(pruned: Artifact, image_id: str, tokens: str) -> KeptImage:
    """The one image whose id begins so, at a budget.

    Raises:
        UserError: there is none, or there are several.
    """
    budget = parse_budget(tokens, "--tokens")
    selections = dataset_of(pruned.store, survey(pruned).selections, SELECTIONS)
    begins = pc.starts_with(ds.field("image_id"), image_id)
    found = selections.to_table(columns=["image_id", "shard"], filter=begins).to_pylist()
    if len(found) != 1:
        raise UserError(f"--image {image_id}: {len(found)} images of {pruned.address} have an id that begins so")
    images = ShardLoader(pruned).load(found[0]["shard"], budget).images
    if found[0]["image_id"] not in images:
        raise UserError(f"--image {image_id}: no prompt of its shard asks about it, so its features are not read")
    return images[found[0]["image_id"]]


def main(arguments: list[str]) -> int:
    """Ask and print."""
    try:
        reply, image = reply_to(arguments)
    except (UserError, ServerGoneError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if reply.text is None:
        print(f"error: {reply.message}", file=sys.stderr)
        return 1
    print(f"{reply.text.strip()}    ({len(image.indices_K)} of {image.selection.num_tokens} tokens)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
