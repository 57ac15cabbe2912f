"""vLLM's chat server with the plugin, asked by the openai engine: equal answers, also when it is killed meanwhile."""

import json
import os
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.answer.decoding import Decoding
from pipeline.answer.engine import ServerSettings
from pipeline.answer.engines import ENGINES
from pipeline.answer.openai_engine import OpenAIEngine, check_server
from pipeline.answer.served import served_name, server_command
from pipeline.answer.transformers_engine import TransformersEngine
from pipeline.families.checkpoint import answering_identity, open_checkpoint
from pipeline.families.generation_settings import followed
from tests.faults.fault_tools import wait_for
from tests.vllm.made import questions
from tests.vllm.models import build_for_vllm

pytestmark = pytest.mark.vllm
REPO = Path(__file__).resolve().parents[2]
GREEDY, STOPPED = Decoding(16), Decoding(16, stop=("w3", "blue"))
START_SEC = 300
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


class Server:
    """vLLM's server for the artifact of a model, on a port of its own."""

    def __init__(self, python: str, record: SimpleNamespace, model: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = server_command(record, model, dtype="float32", port=self.port, chat_template=None, python=python)
        self._command = [*command, "--enforce-eager", "--max-num-seqs", "16"]
        self._log, self._process = log, None

    def start(self) -> None:
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": ""}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=REPO, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def is_up(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()[-8000:]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def wait(self) -> None:
        assert wait_for(self.is_up, START_SEC, every_sec=0.5), self._log.read_text()[-8000:]

    def kill(self) -> None:
        """SIGKILL the server and the engine that it started."""
        os.killpg(self._process.pid, 9)
        self._process.wait()


@contextmanager
def serving(python: str, family: str, folder: Path) -> Iterator[tuple[Server, OpenAIEngine, TransformersEngine]]:
    """A server of a family's tiny model, the engine that asks it, and the one that answers here."""
    model = str(folder / "model")
    build_for_vllm(family, folder / "model")
    checkpoint, adapter = open_checkpoint(model)
    record = SimpleNamespace(model=answering_identity(checkpoint, adapter))
    server = Server(python, record, model, folder / "server.log")
    server.start()
    try:
        cpu, its = torch.device("cpu"), followed(checkpoint, "openai")
        settings = ServerSettings(f"http://127.0.0.1:{server.port}/v1", served_name(record), None, 16, 120.0, False)
        prompter = adapter.answerer(checkpoint, cpu, torch.float32, language=False)
        answerer = adapter.answerer(checkpoint, cpu, torch.float32)
        server.wait()
        check_server(settings, prompter, GREEDY, its, model)
        yield (
            server,
            OpenAIEngine(prompter, settings, its),
            TransformersEngine(answerer, batch_size=16, batch_tokens=1 << 15),
        )
    finally:
        server.kill()


def told(replies) -> list[tuple]:
    return [(list(reply.token_ids), reply.text, reply.finish_reason, reply.message) for reply in replies]


@pytest.mark.parametrize("family", ENGINES["openai"].families)
def test_a_server_answers_as_transformers_does(vllm_python, tmp_path, family):
    """At concurrency 16, in two rounds; for LLaVA it is killed in a third, and started again."""
    asked = questions(family)
    with serving(vllm_python, family, tmp_path) as (server, engine, transformers):
        expected = told(transformers.answer(asked, GREEDY))
        for _ in range(2):
            assert told(engine.answer(asked, GREEDY)) == expected
        assert told(engine.answer(asked, STOPPED)) == told(transformers.answer(asked, STOPPED))
        if family != "llava":
            return
        done = threading.Event()

        def kill_in_the_middle() -> None:
            done.wait(0.5)
            server.kill()
            server.start()

        killing = threading.Thread(target=kill_in_the_middle)
        killing.start()
        try:
            assert told(engine.answer(asked * 6, GREEDY)) == expected * 6
            assert killing.is_alive() is False, "the server was killed before all was answered"
        finally:
            done.set()
            killing.join()


def refused_start(python: str, model: Path, **settings: str) -> str:
    """What a server says that does not start for a model."""
    checkpoint, adapter = open_checkpoint(str(model))
    record = SimpleNamespace(model=answering_identity(checkpoint, adapter))
    command = server_command(record, str(model), dtype="float32", port=1, chat_template=None, python=python)
    environment = {**os.environ, **SETTINGS, "PYTHONPATH": "", **settings}
    command = [*command, "--enforce-eager"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=START_SEC)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_server_without_the_plugin_does_not_start(vllm_python, tmp_path):
    """What vLLM does where the package is missing: it says so and ends."""
    build_for_vllm("llava", tmp_path / "model")
    said = refused_start(vllm_python, tmp_path / "model", VLLM_PLUGINS="")
    assert "ZooPruneLlavaForConditionalGeneration" in said


@pytest.mark.parametrize(("family", "interleaved"), [("qwen2_vl", True), ("qwen2_5_vl", True), ("qwen3_vl", False)])
def test_a_config_that_vllm_rotates_by_in_a_way_of_its_own_is_refused(vllm_python, tmp_path, family, interleaved):
    """Transformers reads no such key: Qwen3-VL always interleaves, the others never do."""
    build_for_vllm(family, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = interleaved
    path.write_text(json.dumps(config))
    said = refused_start(vllm_python, tmp_path / "model")
    assert f'this checkpoint {"have" if interleaved else "lack"} "mrope_interleaved": true' in said
