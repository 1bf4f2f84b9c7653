"""Whether the models of an evaluation can read what they will be asked, told before the first of it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_debias.data.tables import Row
from lit_debias.errors import UserError
from lit_debias.evaluation.examiner import Examiner, asked_of
from lit_debias.evaluation.prompts import PROSE
from lit_debias.models.sources import locate
from lit_debias.policy.lengths import check_prompts
from lit_debias.policy.policy import Policy


def check_all(policy: Policy, rows: Sequence[Row], examiner: Examiner) -> None:
    """Check that the policy and the other language model can read all that they will be asked.

    Raises:
        UserError: a prompt, with its completion or with a given response, is too long for one of them, or holds a token
            without an embedding; or nothing stands before a text's first token.
    """
    policy.encoder.first()
    for passage in [row["prompt"] for row in rows if row["prompt_kind"] == PROSE]:
        policy.check_fits(1 + len(policy.encoder.text(passage)), "write shorter passages with --prose")
    rows = [row for row in rows if row["prompt_kind"] != PROSE]
    prompts, new_tokens = asked_of(rows).asked, examiner.engine.max_new_tokens
    check_prompts(policy, prompts, [row["origin"] for row in rows], new_tokens)
    if examiner.other is not None:
        examiner.other.check_fits(prompts, new_tokens)
    for prompt, row in zip(prompts, rows, strict=True):
        answers = [text for text in (row["reference"], row["biased"], *row["choices"]) if text]
        if policy.positions is not None and answers:
            longest = max(len(policy.encoder.text(text)) for text in answers)
            policy.check_fits(len(policy.prompt_ids(prompt)) + longest, f"shorten the responses of {row['origin']}")


def check_readers(model: str, perplexity_model: str | None, similarity_model: str | None) -> None:
    """Raise :class:`UserError` where a model that reads completions is not there, or is the one that writes them."""
    for option, source in {"perplexity_model": perplexity_model, "similarity_model": similarity_model}.items():
        if source is None:
            continue
        try:
            folder = Path(locate(source))
        except UserError as error:
            raise UserError(f"{option}: {error}") from error
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise UserError(f"{option} '{source}': no config.json there; write the folder of a model, or a hub id")
        if locate(source) == locate(model):
            raise UserError(f"{option} '{source}' is the model that is evaluated; write another one")
