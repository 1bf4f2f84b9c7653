"""What a model that reads pictures is asked: token ids with a place for every part of a picture, and the pictures."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lit_debias.conversations import PICTURES, Prompt, files_in
from lit_debias.errors import UserError, did_you_mean
from lit_debias.models.loading import padded
from lit_debias.models.prompt_encoder import PromptEncoder
from lit_debias.support.picture_files import read_picture, size_of
from lit_debias.support.text import counted
from lit_debias.types import PictureInputs

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import ProcessorMixin

OF_TEXT = ("input_ids", "attention_mask")


class PictureEncoder(PromptEncoder):
    """Turns prompts that show pictures into token ids and :class:`PictureInputs`.

    The ids are those of the chat template, in which one placeholder stands for each picture; a processor puts as many
    in its place as a picture of that size has parts. Only the template writes placeholders: in what a message says they
    are text.

    Args:
        processor: Of the model.
        source: The model's name, for errors.
        chat_template_kwargs: Variables of its chat template.
        picture_options: Options of its processor of pictures.

    Raises:
        UserError: the processor names no placeholder, or knows no such option.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        source: str,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        picture_options: Mapping[str, Any] | None = None,
    ) -> None:
        reader: Any = processor
        super().__init__(padded(reader.tokenizer, source), source, chat_template_kwargs)
        self.tokenizer.chat_template = reader.chat_template or self.tokenizer.chat_template
        self.processor, self.options = reader, dict(picture_options or {})
        word, placeholder = getattr(reader, "image_token", None), getattr(reader, "image_token_id", None)
        if not isinstance(word, str) or not isinstance(placeholder, int):
            raise UserError(
                f"model '{source}': its processor ({type(reader).__name__}) does not say which token stands for a "
                "picture; write another model, such as SmolVLM or Qwen2.5-VL"
            )
        self.word, self.placeholder = word, placeholder
        self._check_options()
        self._parts: dict[tuple[int, int], list[int]] = {}

    def _check_options(self) -> None:
        known = set(self.processor.image_processor.valid_kwargs.__annotations__)
        for name in sorted(set(self.options) - known):
            raise UserError(
                f"policy: picture_options: the processor of model '{self.source}' knows no '{name}'"
                f"{did_you_mean(name, known)}"
            )

    def check(self, system_prompt: str | None) -> None:
        """Check template, variables and system prompt, and that ids with a picture are those of the processor.

        Raises:
            UserError: the template would not say or show what a prompt does, or the ids are others.
        """
        super().check(system_prompt)
        if not self.has_template:
            raise UserError(f"model '{self.source}' has no chat template, which says where pictures stand; give it one")
        image, said = noise((64, 48)), "What is this?"
        message = {"role": "user", "content": said, PICTURES: [{"at": 0}]}
        text = self.chat.rendered([message])
        found = self._shown(self.chat.ids([message]), [image.size], said)
        if said not in text or found != self._process([image], text)["input_ids"][0].tolist():
            raise UserError(
                f"model '{self.source}': its processor and its chat template do not put a picture into a prompt in one "
                "way; write another model, such as SmolVLM or Qwen2.5-VL"
            )

    def prompt(self, prompt: Prompt, system_prompt: str | None = None) -> list[int]:
        """Return the ids of a prompt, its pictures among them; see :meth:`PromptEncoder.prompt`.

        Raises:
            UserError: the template loses a picture, or a picture cannot be read.
        """
        ids = super().prompt(prompt, system_prompt)
        sizes = [size_of(file) for file in files_in(prompt)]
        return self.known(self._shown(ids, sizes, str(prompt)), str(prompt))

    def pictures(self, prompt: Prompt) -> PictureInputs:
        """Return what a prompt's pictures are to the model.

        Raises:
            UserError: one cannot be read.
        """
        return self.of_images([read_picture(file) for file in files_in(prompt)])[1]

    def of_images(self, images: Sequence[Image]) -> tuple[list[int], PictureInputs]:
        """Return the ids that stand for pictures one after the other, and what the pictures are to the model.

        Raises:
            UserError: the processor puts other tokens in the place of a picture than of an empty one of its size.
        """
        if not images:
            return [], PictureInputs({}, self.placeholder, [])
        batch = self._process(images, self.word * len(images))
        ids = batch["input_ids"][0].tolist()
        if ids != [token for image in images for token in self._parts_of(image.size)]:
            raise UserError(
                f"model '{self.source}': its processor cuts pictures of one size in several ways; write another"
            )
        beside = {name: tensor for name, tensor in batch.items() if name not in OF_TEXT}
        marks = [name for name, tensor in beside.items() if tensor.shape == batch["input_ids"].shape]
        for name in marks:
            if not bool(beside[name].eq(batch["input_ids"].eq(self.placeholder)).all()):
                raise UserError(f"model '{self.source}': its processor has a '{name}' that is not known; write another")
        tensors = {name: tensor for name, tensor in beside.items() if name not in marks}
        return ids, PictureInputs(tensors, self.placeholder, marks)

    def _shown(self, ids: Sequence[int], sizes: Sequence[tuple[int, int]], said: str) -> list[int]:
        """Return ids with the parts of each picture in the place of its placeholder."""
        shown = list(ids).count(self.placeholder)
        if shown != len(sizes):
            raise UserError(
                f"model '{self.source}': its chat template shows {counted(shown, 'picture')} "
                f"of {len(sizes)} in {said!r:.40}; write pictures in messages of the user, or another model"
            )
        left = iter(sizes)
        parts = [self._parts_of(next(left)) if token == self.placeholder else [token] for token in ids]
        return [token for part in parts for token in part]

    def _parts_of(self, size: tuple[int, int]) -> list[int]:
        """Return the ids that stand for one picture of a size, in pixels."""
        if size not in self._parts:
            from PIL import Image

            batch = self._process([Image.new("RGB", size, "grey")], self.word)
            self._parts[size] = batch["input_ids"][0].tolist()
        return self._parts[size]

    def _process(self, images: Sequence[Image], text: str) -> dict[str, Any]:
        """Return what the processor makes of a text and its pictures, tensors of one row."""
        try:
            batch = self.processor(
                text=[text], images=list(images), return_tensors="pt", add_special_tokens=False, **self.options
            )
        except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, ImportError) as error:
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            reason = " ".join(str(error).split())
            raise UserError(
                f"model '{self.source}': its processor fails on a picture ({sizes} pixels: {reason:.100}); write "
                "another picture, or other picture_options"
            ) from error
        return dict(batch)


def noise(size: tuple[int, int]) -> Image:
    """Return a picture of a size whose pixels are random, always the same."""
    from PIL import Image

    width, height = size
    return Image.frombytes("RGB", size, random.Random(0).randbytes(3 * width * height))
