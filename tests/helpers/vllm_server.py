"""A server on this machine that answers as vLLM 0.32 does, with a plain Hugging Face model behind it.

Paths, status codes, fields and messages are those of ``python -m vllm.entrypoints.openai.api_server`` with
``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` and ``VLLM_SERVER_DEV_MODE=1``; a test against a real one holds them to that.
"""

from __future__ import annotations

import copy
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

Answer = tuple[int, Any]


def error(status: int, message: str) -> Answer:
    kind = {400: "BadRequestError", 404: "NotFoundError"}.get(status, "InternalServerError")
    return status, {"error": {"message": message, "type": kind, "param": None, "code": status}}


def adapted(base: Any, adapter: Path) -> Any:
    """Return a copy of a model with a plain LoRA adapter added to its weights."""
    model = copy.deepcopy(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, down in weights.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            up = weights[name.replace("lora_A", "lora_B")]
            model.get_submodule(layer).weight.data += config["lora_alpha"] / config["r"] * up @ down
    return model


NOT_FOUND: Answer = (404, {"detail": "Not Found"})


class VLLMServer(ThreadingHTTPServer):
    """``before`` holds what happens when the n-th request for completions of this number arrives, from 1."""

    daemon_threads = True

    def __init__(self, model: Path, **options: Any) -> None:
        super().__init__(("127.0.0.1", options.pop("port", 0)), Handler)
        self.folder = model
        self.original = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32
        ).eval()  # no thread loads models
        self.name: str = options.pop("name", "base")
        self.longest: int = options.pop("longest", 512)
        self.runtime_adapters: bool = options.pop("runtime_adapters", True)
        self.developer_mode: bool = options.pop("developer_mode", True)
        self.logprobs_mode: str = options.pop("logprobs_mode", "processed_logprobs")
        self.device: str = options.pop("device", "cuda")
        self.receiver: Any = options.pop("receiver", None)  # of lit_debias_vllm_server, where it was started with it
        self.sees: bool = options.pop("sees", True)  # the trainer's files
        self.deaf: bool = options.pop("deaf", False)  # takes adapters and weights, and samples from its own
        assert not options, options
        self.before: dict[int, Callable[[], Any]] = {}
        self.edit: Callable[[dict[str, Any]], Any] = lambda reply: reply
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.status = "well"  # or: dead, hanging
        self.patience = threading.Event()  # what hangs waits for it
        self.lock = threading.Lock()
        self.restart()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def restart(self) -> None:
        """Forget everything that was loaded."""
        self.base = copy.deepcopy(self.original)
        self.adapters: dict[str, tuple[str, Any]] = {}
        self.weight_version, self.status = "default", "well"

    def die(self) -> None:
        self.status = "dead"

    def hang(self) -> None:
        self.status = "hanging"

    def asked(self, path: str) -> list[dict[str, Any]]:
        """Return the bodies of all requests to a path."""
        return [body for asked, body in self.requests if asked == path]

    # ---------------------------------------------------------------- paths

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        routes: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "/health": lambda _: (200, ""),
            "/version": lambda _: (200, {"version": "0.32.0"}),
            "/v1/models": lambda _: (200, self._models()),
            "/v1/completions": self._completions,
        }
        if self.runtime_adapters:
            routes |= {"/v1/load_lora_adapter": self._load, "/v1/unload_lora_adapter": self._unload}
        if self.developer_mode:
            routes |= {
                "/server_info": lambda _: (200, self._info()),
                "/collective_rpc": self._call,
                "/reset_prefix_cache": lambda _: (200, {"success": True}),
                "/update_weight_version": self._set_version,
                "/weight_info": lambda _: (200, {"weight_version": self.weight_version}),
            }
        path = path.partition("?")[0]
        return routes[path](body) if path in routes else NOT_FOUND

    def _models(self) -> dict[str, Any]:
        base = {"id": self.name, "root": str(self.folder), "parent": None, "max_model_len": self.longest}
        adapters = [
            {"id": name, "root": path, "parent": self.name, "max_model_len": None}
            for name, (path, _) in self.adapters.items()
        ]
        return {"object": "list", "data": [base, *adapters]}

    def _info(self) -> dict[str, Any]:
        config = {
            "device_config": {"device": self.device},
            "lora_config": {"max_lora_rank": 16, "max_loras": 2} if self.runtime_adapters else None,
            "model_config": {"logprobs_mode": self.logprobs_mode},
            "scheduler_config": {"enable_chunked_prefill": False},
            "parallel_config": {"worker_extension_cls": "lit_debias_vllm_server.Receiver" if self.receiver else ""},
        }
        return {"vllm_config": config, "vllm_env": {}, "system_env": {}}

    def _load(self, body: dict[str, Any]) -> Answer:
        name, path = body.get("lora_name"), body.get("lora_path")
        if not name or not path:
            return error(400, "Both 'lora_name' and 'lora_path' must be provided.")
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded. If you want to load ...")
        if self._hidden(path) or not (Path(path) / "adapter_model.safetensors").is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = (path, self.base if self.deaf else adapted(self.original, Path(path)))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, body: dict[str, Any]) -> Answer:
        name = body["lora_name"]
        if name not in self.adapters:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]
        return 200, f"Success: LoRA adapter '{name}' removed successfully."

    def _call(self, body: dict[str, Any]) -> Answer:
        if body["method"] == "reload_weights":
            return self._reload(body)
        method = getattr(self.receiver, body["method"], None)
        if method is None:
            return error(500, f"Call to collective_rpc method failed: {body['method']}")
        file = body["kwargs"].get("file", "")
        if not self.sees and body["method"] == "lit_debias_sees":
            body = {"kwargs": {"file": f"/elsewhere{file}"}}
        return 200, {"results": [method(**body["kwargs"])]}

    def _hidden(self, path: str) -> bool:
        return not self.sees and not Path(path).parent.name.startswith("lit-debias-received-")

    def _reload(self, body: dict[str, Any]) -> Answer:
        path = body["kwargs"]["weights_path"]
        if self._hidden(path) or not (Path(path) / "model.safetensors").is_file():
            return error(500, f"Call to collective_rpc method failed: Worker failed with error 'Repo id ... {path}'")
        if not self.deaf:
            self.base = copy.deepcopy(self.original)
            found = self.base.load_state_dict(load_file(Path(path) / "model.safetensors"), strict=False)
            assert not found.unexpected_keys
        return 200, {"results": [None]}

    def _set_version(self, body: dict[str, Any]) -> Answer:
        self.weight_version = body["new_version"]
        return 200, {"success": True, "new_version": self.weight_version}

    # ---------------------------------------------------------------- completions

    def _completions(self, body: dict[str, Any]) -> Answer:
        name = body["model"]
        if name != self.name and name not in self.adapters:
            return error(404, f"The model `{name}` does not exist. Valid aliases: {self.name}.")
        if body["max_tokens"] + len(body["prompt"]) > self.longest:
            return error(400, f"This model's maximum context length is {self.longest} tokens.")
        if not 0 <= body["temperature"] <= 2:
            return error(400, f"temperature must be in [0, 2], got {body['temperature']}.")
        if not body["temperature"] and body["n"] > 1:
            return error(400, f"n must be 1 when using greedy sampling, got {body['n']}.")
        model = self.base if name == self.name else self.adapters[name][1]
        with torch.inference_mode():
            choices = [choice(model, body, index, self.logprobs_mode) for index in range(body["n"])]
        used = sum(len(choice["token_ids"]) for choice in choices)
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": used}
        return 200, self.edit({"object": "text_completion", "model": name, "choices": choices, "usage": usage})


def choice(model: Any, body: dict[str, Any], index: int, logprobs_mode: str) -> dict[str, Any]:
    """Return one completion of a request as vLLM sends it."""
    seed = body.get("seed")
    generator = torch.Generator().manual_seed((0 if seed is None else seed + index) % 2**63)
    ids, logprobs, tops = list(body["prompt"]), [], []
    ends = set(body["stop_token_ids"])
    temperature = body["temperature"]
    for _ in range(body["max_tokens"]):
        plain = model(torch.tensor([ids])).logits[0, -1].float()
        scaled = (plain / (temperature or 1)).log_softmax(-1)
        token = int(torch.multinomial(scaled.exp(), 1, generator=generator) if temperature else plain.argmax())
        told = scaled if logprobs_mode == "processed_logprobs" else plain.log_softmax(-1)
        ids.append(token)
        logprobs.append(float(told[token]))
        tops.append({"x": float(told.max()), "y": logprobs[-1]})
        if token in ends:
            break
    ended = ids[-1] in ends
    return {
        "index": index,
        "text": "",
        "logprobs": {"token_logprobs": logprobs, "top_logprobs": tops},
        "finish_reason": "stop" if ended else "length",
        "stop_reason": ids[-1] if ended else None,
        "token_ids": ids[len(body["prompt"]) :],
    }


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: VLLMServer

    def do_GET(self) -> None:
        self._reply({})

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            server.requests.append((self.path, body))
            if self.path == "/v1/completions":
                event = server.before.get(len(server.asked(self.path)))
                if event is not None:
                    event()
            well = server.status == "well"
            status, content = server.answer(self.path, body) if well else (0, "")
        if not well:
            if server.status == "hanging":
                server.patience.wait(timeout=30)
            self.close_connection = True
            return
        text = content if isinstance(content, str) else json.dumps(content)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except ConnectionError:
            pass  # the client has hung up

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def serving(model: Path, **options: Any) -> Iterator[VLLMServer]:
    """Serve within the context."""
    with VLLMServer(model, **options) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.patience.set()
        server.shutdown()


if __name__ == "__main__":  # vllm_server.py MODEL --host 127.0.0.1 --port PORT
    VLLMServer(Path(sys.argv[1]), port=int(sys.argv[5])).serve_forever()
