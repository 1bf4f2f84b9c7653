"""The policy of a model that reads pictures, and its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from lit_debias.conversations import Prompt, files_in
from lit_debias.errors import UserError
from lit_debias.forward.forms import Forms
from lit_debias.models.base_weights import load_base
from lit_debias.models.loading import load_seeing_lm
from lit_debias.models.picture_encoder import PictureEncoder, noise
from lit_debias.models.probing.probe import Probe
from lit_debias.models.processors import load_processor
from lit_debias.models.prompt_encoder import PromptEncoder
from lit_debias.policy.encoding import Sizes
from lit_debias.policy.policy import Policy
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.support.precision import Precision
from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel

PROBED = ((56, 56), (112, 56))
"""Width and height of the two pictures that ways and decoders are compared with."""


class SeeingPolicy(Policy):
    """A policy whose prompts may show pictures."""

    def __init__(self, recipe: VLMPolicy, lm: PeftModel, encoder: PictureEncoder, sizes: Sizes, forms: Forms) -> None:
        super().__init__(recipe, lm, encoder.tokenizer, sizes, forms)
        self._seeing = encoder
        encoder.embeddings = self._embeddings

    @property
    def encoder(self) -> PictureEncoder:
        """What makes token ids of prompts, pictures and texts."""
        return self._seeing

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt in the chat template, a placeholder for every part of a picture among them."""
        return self.encoder.prompt(prompt, self.system_prompt)

    def pictures_of(self, prompts: Sequence[Prompt]) -> list[PictureInputs] | None:
        """Return what the pictures of prompts are to the model, [P]; None where there are none."""
        if not any(map(files_in, prompts)):
            return None
        return [self.encoder.pictures(prompt) for prompt in prompts]


class VLMPolicy(QLoRAPolicy):
    """How a language model that reads pictures is loaded; it trains LoRA adapters on its text decoder alone.

    Prompts show the pictures that the data module's ``images`` name. Log-probs are those of the model's own forward
    pass, with which they are compared at load; nothing is packed. It has been tested on tiny models of Idefics3 (the
    architecture of SmolVLM) and Qwen2-VL, and trained on none of full size. :class:`LocalEngine` alone samples from it.

    Args:
        model: Base model: a local folder, or a hub id.
        quantization: ``nf4`` or ``none``, as :class:`QLoRAPolicy` has it; the layers that read pictures are among them.
        dtype: Type of the frozen weights, or of the computation where they are 4-bit.
        rank: LoRA rank.
        alpha: LoRA scale; the update is ``alpha / rank * B @ A``.
        dropout: LoRA dropout. Above 0, sampling and training see different networks.
        targets: Names of the linear layers that get an adapter, a pattern of whole names, or ``all-linear``: those of
            the text decoder.
        adapter: Folder of an adapter to continue from.
        reference: What the frozen reference is where an ``adapter`` is continued: a frozen copy of that adapter, or the
            base without it.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, and more compute, also as
            completions are then read one at a time.
        system_prompt: System message put before every prompt that has none of its own.
        max_prompt_tokens: Longest prompt, in tokens after the chat template; a picture takes 64 to several thousand.
        chat_template_kwargs: Variables of the chat template.
        picture_options: Options of the model's own processor of pictures, such as ``{do_image_splitting: false}`` for
            SmolVLM or ``{size: {shortest_edge: 3136, longest_edge: 200704}}`` for Qwen, whose edges are numbers of
            pixels: fewer parts of a picture are fewer tokens.

    Raises:
        UserError: an argument names nothing or makes no sense.
    """

    reads_pictures = True

    def __init__(
        self,
        model: str,
        quantization: Literal["nf4", "none"] = "nf4",
        dtype: Precision = "auto",
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: str | list[str] = "all-linear",
        adapter: str | None = None,
        reference: Literal["adapter", "base"] = "adapter",
        gradient_checkpointing: bool | None = None,
        system_prompt: str | None = None,
        max_prompt_tokens: int = 4096,
        chat_template_kwargs: dict[str, Any] | None = None,
        picture_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model,
            quantization,
            dtype,
            rank,
            alpha,
            dropout,
            targets,
            adapter,
            reference,
            gradient_checkpointing,
            system_prompt=system_prompt,
            max_prompt_tokens=max_prompt_tokens,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.picture_options = dict(picture_options or {})

    def _encoder(self) -> PictureEncoder:
        processor = load_processor(self.source)
        return PictureEncoder(processor, self.source, self.chat_template_kwargs, self.picture_options)

    def _load_weights(self, dtype: torch.dtype, device: torch.device | str, mesh: DeviceMesh | None) -> PreTrainedModel:
        if mesh is not None:
            raise UserError("policy: VLMPolicy needs the whole base in each process; write trainer.strategy: ddp")
        return load_base(self.source, self.quantization, dtype, device, load_seeing_lm)

    def _probe(self, base: PreTrainedModel, encoder: PromptEncoder) -> Probe:
        seeing, plain = cast(PictureEncoder, encoder), Probe.of(base, encoder.tokenizer)
        first, second = (_shown(plain, seeing, size) for size in PROBED)
        return replace(first, other=second)

    def _policy(self, lm: PeftModel, encoder: PromptEncoder, sizes: Sizes, forms: Forms) -> Policy:
        return SeeingPolicy(self, lm, cast(PictureEncoder, encoder), sizes, forms)


def _shown(probe: Probe, encoder: PictureEncoder, size: tuple[int, int]) -> Probe:
    """Return a probe with a picture of random pixels before its prompt."""
    ids, pictures = encoder.of_images([noise(size)])
    return replace(probe, prompt=torch.cat((torch.tensor(ids).to(probe.prompt), probe.prompt)), pictures=pictures)
