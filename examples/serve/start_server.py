"""Start vLLM's server of OpenAI's protocol for a pruned artifact, in the environment that has vLLM and our plugin.

python examples/serve/start_server.py --pruned out/photos --model llava-hf/llava-1.5-7b-hf \\
    --python vllm-env/bin/python

The server has the model that pruned the artifact, under a name made of its identity, and no vision tower. If it is to
ask for a key, put it into OPENAI_API_KEY before.
"""

import argparse
import os
import shlex
import sys

from pipeline.answer.checks import check_model
from pipeline.answer.served import server_command
from pipeline.artifact.artifact import Artifact
from pipeline.errors import UserError
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from pipeline.families.prompting import load_tokenizer


def command_of(arguments: list[str]) -> tuple[list[str], bool]:
    """The server's command, and whether it is only to be shown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pruned", required=True, metavar="FOLDER", help="the output of a prune job")
    parser.add_argument("--model", required=True, metavar="PATH|ID", help="the checkpoint that pruned it")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="of the environment that has vLLM")
    parser.add_argument("--dtype", default="auto", help="the model runs in; auto is the checkpoint's own")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--chat-template", metavar="FILE", help="for a checkpoint without one")
    parser.add_argument("--show", action="store_true", help="print the command and start nothing")
    given = parser.parse_args(arguments)
    pruned = Artifact(given.pruned)
    prune_job = pruned.require_job("prune", "--pruned")
    checkpoint, family = open_checkpoint(given.model)
    check_model(given.model, answering_identity(checkpoint, family), pruned, prune_job)
    if given.chat_template is None and not load_tokenizer(checkpoint).chat_template:
        raise UserError(f"--model {given.model} has no chat template, which a chat server needs; give --chat-template")
    command = server_command(
        prune_job,
        str(checkpoint.path),
        dtype=given.dtype,
        port=given.port,
        chat_template=given.chat_template,
        python=given.python,
    )
    return command, given.show


def main(arguments: list[str]) -> int:
    """Become the server."""
    try:
        command, is_shown = command_of(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(shlex.join(command), flush=True)
    if not is_shown:
        key = os.environ.get("OPENAI_API_KEY")
        os.execvpe(command[0], command, {**os.environ, **({"VLLM_API_KEY": key} if key else {})})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
