"""A chat server on the loopback address that stands in for vLLM's with our plugin: same requests, a tiny model.

It puts conversations into the checkpoint's chat template itself, and drops the beginning of sequence unless it is
asked to add it, as vLLM's does. It answers one request at a time, so that an answer depends on nothing but its
request. It makes faults when it is told to, and it can be killed and started again on its port.

    python -m tests.chat_server MODEL NAME PORT SHARE      one to try things on; SHARE of all answers are faults
"""

import base64
import hashlib
import io
import json
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from pipeline.families.checkpoint import open_checkpoint

HOST = "127.0.0.1"
FAULTS = ("500", "429", "cut", "500", "500", "429", "cut", "500", "500")  # in this order, over and over


@dataclass
class Manners:
    """What the server is like, beside answering."""

    share: float = 0.0  # of requests that get a fault; of 0.09, 500s are 5 % of all requests and cut connections 2 %
    refuse: tuple[int, str] | None = None  # status and message of every answer
    retry_after: str = "0.01"  # that a busy server says
    key: str | None = None  # that it asks for
    has_plugin: bool = True
    tells_tokens: bool = True
    adds_bos: bool = True  # if it is asked to
    made: Counter[str] = field(default_factory=Counter)  # faults
    seen: list[dict[str, Any]] = field(default_factory=list)  # bodies of chat requests that were answered
    most_at_once: int = 0
    hold_sec: float = 0.0  # that each request takes beside its answer

    def __post_init__(self) -> None:
        self._due, self._lock, self._at_once = 0.0, threading.Lock(), 0

    def fault(self) -> str | None:
        """The fault of the next request, if any."""
        with self._lock:
            self._due += self.share
            if self._due < 1:
                return None
            self._due -= 1
            found = FAULTS[self.made.total() % len(FAULTS)]
            self.made[found] += 1
            return found

    def enter(self) -> None:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)

    def leave(self) -> None:
        with self._lock:
            self._at_once -= 1


class TinyModel:
    """The language model of a checkpoint, and what vLLM does around one."""

    def __init__(self, path: str) -> None:
        checkpoint, family = open_checkpoint(path)
        self._answerer = family.answerer(checkpoint, torch.device("cpu"), torch.float32)
        self._on_grid = family.positions == ("grid",)
        self._lock = threading.Lock()
        self._known: dict[bytes, tuple[list[int], str, str]] = {}  # answers, by request
        self.width = self._answerer.width

    def check(self, image: dict[str, Tensor], *, has_plugin: bool) -> str | None:
        """Why an image can't be taken."""
        rows = image["image_embeds"]
        if rows.shape[1] != self.width:
            if not has_plugin:
                return f"Image embedding dimension mismatch: got {rows.shape[1]}, expected {self.width}"
            return f"image_embeds has rows of {rows.shape[1]} numbers, and this model's have {self.width}"
        if self._on_grid and has_plugin and "kept_hw" not in image:
            return "this model places tokens on a grid: beside image_embeds an image needs kept_hw (K, 2)"
        return None

    def prompt(self, messages: list[dict[str, Any]], *, add_special_tokens: bool, rows: int) -> list[int]:
        """Token ids of a conversation with one image."""
        tokenizer = self._answerer.tokenizer
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        place = ids.index(self._answerer.image_token_id)
        return [*ids[:place], *[self._answerer.image_token_id] * rows, *ids[place + 1 :]]

    def answer(self, ids: list[int], image: dict[str, Tensor], body: dict[str, Any]) -> tuple[list[int], str, str]:
        """Generated token ids, their text, and why they end; what was asked before is not computed again."""
        how = json.dumps([ids, {name: value for name, value in body.items() if name != "messages"}])
        rows = b"".join(image[name].float().numpy().tobytes() for name in sorted(image))
        asked = hashlib.sha256(how.encode() + rows).digest()
        with self._lock:
            if asked not in self._known:
                self._known[asked] = self._answer(ids, image, body)
            return self._known[asked]

    @torch.inference_mode()
    def _answer(self, ids: list[int], image: dict[str, Tensor], body: dict[str, Any]) -> tuple[list[int], str, str]:
        tokens: list[int] = []
        inputs, cache = self._inputs(ids, image), None
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        ends = body["stop_token_ids"] if body.get("ignore_eos") else [self._answerer.tokenizer.eos_token_id]
        position = inputs.get("position_ids")
        while True:
            output = self._answerer.model(past_key_values=cache, use_cache=True, **inputs)
            cache, logits = output.past_key_values, output.logits[0, -1]
            if body["temperature"]:
                p = (logits / body["temperature"]).softmax(-1)
                token = int(torch.multinomial(p, 1, generator=generator))
            else:
                token = int(logits.argmax())
            tokens.append(token)
            text = self._answerer.tokenizer.decode(tokens, skip_special_tokens=True)
            cut = min((text.find(one) for one in body.get("stop", ()) if one in text), default=None)
            if cut is not None or token in ends:
                return tokens, text[:cut], "stop"
            if len(tokens) == body["max_tokens"]:
                return tokens, text, "length"
            inputs = {"input_ids": torch.tensor([[token]])}
            if position is not None:
                position = position[..., -1:] + 1
                inputs["position_ids"] = position

    def _inputs(self, ids: list[int], image: dict[str, Tensor]) -> dict[str, Any]:
        given = torch.tensor([ids])
        rows = image["image_embeds"].float()
        if not self._on_grid:
            output: Any = BaseModelOutputWithPooling(pooler_output=[rows])  # type: ignore[arg-type]
            return {"input_ids": given, "mm_encoder_outputs": {"image": output}}
        features, *levels = rows.split(self._answerer.model.config.get_text_config().hidden_size, dim=1)
        output = BaseModelOutputWithPooling(pooler_output=[features])  # type: ignore[arg-type]
        if levels:
            output = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[features], deepstack_features=[[level] for level in levels]
            )
        is_image = given[0] == self._answerer.image_token_id
        start, behind = int(is_image.int().argmax()), len(ids) - int(is_image.sum())
        places = torch.cat([torch.zeros(len(rows), 1), image["kept_hw"]], dim=1).T.long() + start
        before = torch.arange(start).expand(3, -1)
        after = torch.arange(behind - start).expand(3, -1) + start + int(image["true_hw"].max())
        return {
            "input_ids": given,
            "mm_encoder_outputs": {"image": output},
            "position_ids": torch.cat([before, places, after], dim=1)[:, None],
        }


class ChatServerStandIn:
    """The server. It is there from `start` on, and gone after `kill` until the next `start`."""

    def __init__(self, model: TinyModel, name: str, manners: Manners | None = None, port: int = 0) -> None:
        self._model, self._name, self._port = model, name, port
        self.manners = manners or Manners()
        self._server: ThreadingHTTPServer | None = None
        self._connections: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._port}/v1"

    def start(self) -> "ChatServerStandIn":
        owner = self

        class Handler(_Handler):
            stand_in = owner

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_: object) -> None:
                """Connections that end early are what is tested."""

        self._server = Server((HOST, self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def kill(self) -> None:
        """End at once: requests under way get no answer, and nobody listens."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.shutdown()
        server.server_close()
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it was closed already

    def chat(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and answer of a chat request."""
        if body["model"] != self._name:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        messages, image = body["messages"], None
        for message in messages:
            for part in message["content"]:
                if part["type"] == "image_embeds":
                    image, part["type"] = _decoded(part.pop("image_embeds")), "image"
        assert image is not None
        if (why := self._model.check(image, has_plugin=self.manners.has_plugin)) is not None:
            return 400, _error(why)
        adds = bool(body.get("add_special_tokens")) and self.manners.adds_bos
        ids = self._model.prompt(messages, add_special_tokens=adds, rows=len(image["image_embeds"]))
        tokens, text, reason = self._model.answer(ids, image, body)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
        if self.manners.tells_tokens and body.get("return_token_ids"):
            return 200, {"choices": [{**choice, "token_ids": tokens}], "prompt_token_ids": ids}
        return 200, {"choices": [choice]}


class _Handler(BaseHTTPRequestHandler):
    stand_in: ChatServerStandIn
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the other side

    def setup(self) -> None:
        super().setup()
        self.stand_in._connections.add(self.connection)

    def finish(self) -> None:
        self.stand_in._connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self._is_let_in():
            self._send(200, {"object": "list", "data": [{"id": self.stand_in._name, "object": "model"}]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_let_in():
            return
        manners = self.stand_in.manners
        manners.enter()
        try:
            time.sleep(manners.hold_sec)
            self._answer(json.loads(data), manners)
        finally:
            manners.leave()

    def _answer(self, body: dict[str, Any], manners: Manners) -> None:
        fault = manners.fault()
        if manners.refuse is not None:
            self._send(manners.refuse[0], _error(manners.refuse[1]), {"Retry-After": manners.retry_after})
        elif fault == "500":
            self._send(500, _error("it was told to fail"))
        elif fault == "429":
            self._send(429, _error("too many requests"), {"Retry-After": manners.retry_after})
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        else:
            status, answer = self.stand_in.chat(body)
            if status == 200:
                manners.seen.append(body)
            self._send(status, answer)

    def _is_let_in(self) -> bool:
        key = self.stand_in.manners.key
        given = self.headers.get("Authorization", "")
        if key is None or given == f"Bearer {key}":
            return True
        self._send(401, _error(f"Incorrect API key provided: {given.removeprefix('Bearer ')}"))
        return False

    def _send(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error"}}


def _decoded(embeds: str | dict[str, str]) -> dict[str, Tensor]:
    encoded = {"image_embeds": embeds} if isinstance(embeds, str) else embeds
    return {name: torch.load(io.BytesIO(base64.b64decode(text)), weights_only=True) for name, text in encoded.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    path, served, number, share = sys.argv[1:]
    ChatServerStandIn(TinyModel(path), served, Manners(share=float(share)), int(number)).start()
    print("ready", flush=True)
    threading.Event().wait()
