"""The data card that is written beside the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_debias.data.tables import SCHEMAS
from lit_debias.support.text import plain
from lit_debias.synthetic.builder import Tables
from lit_debias.synthetic.leaks import NGRAM
from lit_debias.synthetic.surfaces import count_frames, frames_in_wording
from lit_debias.synthetic.taxonomy import Taxonomy

MEANINGS = {
    "prompt_id": "identifier of the prompt",
    "response_id": "identifier of the response",
    "prompt": "the user's words",
    "response": "the labelled text",
    "category": "what kind of groups the text is about, such as regional or ethnic",
    "group": "the group that the prompt is about",
    "theme": "what the stereotype is about",
    "scenario": "where somebody decides about somebody",
    "template_id": "the prompt's template family",
    "prompt_kind": "open, leading, forced_choice, or control (with relevant evidence)",
    "twin_id": "the same for the two counterfactual twins: same words, groups exchanged",
    "counterfactual_group": "the twin's group",
    "counterfactual_prompt": "the twin's words",
    "reference": "a neutral response",
    "biased": "a biased response of about the same length",
    "choices": "options of a forced choice, otherwise empty",
    "answer": "index of the right option, -1 if none",
    "biased_choice": "index of the option that follows a stereotype against the group, -1 if none",
    "ambiguous": "whether a forced choice lacks the evidence that settles it",
    "intensity": "0 individual or evidence, 1 hedged generalisation, 2 plain stereotype, 3 discriminatory "
    "recommendation, 4 hostile",
    "stance": "negative, neutral or positive towards the group (at intensity 0: towards the individual)",
    "corruption": "none, shuffle, repetition, truncation, off_topic, refusal, evasion",
    "hard_negative": "fair, although it names the group: reporting, counter_speech, quotation, plain_mention",
    "fairness": "1 - intensity / 4; 0.6 for a plain stereotype that flatters",
    "neutrality": "balanced, limited to evidence; set by intensity and tone",
    "relevance": "does the task; set by corruption and hard negative",
    "quality": "fluent, specific, not repetitive; set by corruption and length",
    "split": "the split",
}

_ATTACK = """---
language: en
pretty_name: lit-debias adversarial prompts
tags: [synthetic, bias, fairness, adversarial]
---

# Adversarial prompts

> **Content warning.** {kept} prompts that invite a stereotype about a group. A language model wrote them; nothing in
> them is claimed to be true. **They are made to measure with:** each is labelled `adversarial`, and training on them is
> refused.

Measure with `lit-debias evaluate --data FOLDER --judges ...`; `lit-debias explain` then says what was biased, and why.
No prompt shares eight words in a row with a training prompt of the data that is named below, or is nearly one.

{settings}

{outcomes}
"""
_CARD = """---
language: en
license: apache-2.0
pretty_name: lit-debias synthetic Chinese-context discrimination
tags: [synthetic, bias, fairness, reward-model]
configs:
{configs}
---

# Synthetic Chinese-context discrimination data

> **Content warning.** This data contains text that is biased, discriminatory{hostile}, about groups of people, first of
> all regional, ethnic and occupational groups in China. The text exists to train and measure reward models. **No
> stereotype in it is claimed to be true of anybody.** It names no real person, and uses no real slur.

Made by `lit-debias synthesize`, generator version {version}, sources {sources}, seed {seed}, size {size},
include_harmful {harmful}. Equal arguments and wording give byte-identical tables. The data is our own construction in
the spirit of arXiv 2511.06023, whose own data is not published.

## Splits

{counts}

No test shares a prompt or a response with train. Share of the responses' word {ngram}-grams that train holds:
{overlaps}.

## Labels

Each text was written to its label, by the grammar or one by one; no annotator gave it. Responses by intensity and
corruption:

{intensities}
{parts}
## Columns

{columns}

## Limits

English text; the labels know little of irony or context. A reward model trained on it should be checked on text by
people. Do not use it to judge a person, or to generate hostile text.

## Files

{files}
"""
_GRAMMAR = """
## From the grammar

train, validation and test_iid share templates and groups but no (template family, pair of groups, theme); twins are
always together. test_template, test_group, test_scenario and test_category hold out what their names say, and share the
rest with train. Held out are the categories {held_out}. One response frame in five appears in test_template alone.

Stereotypes are not tied to groups: each theme and each valence is drawn for each group, whatever its status. Responses
have about the same length at every intensity. The wording holds {prompt_frames} surface frames of prompts and
{sentence_frames} of sentences in responses, and each category may use all of them. Those that this data has, counted
with group, theme, scenario and names blanked out, without responses that are shuffled, looped or cut:

{frames}
"""
_CORPUS = """
## Written one by one

{prompts} prompts, {contexts} contexts of two people and {statements} statements, version {version}, each written for
itself; the card in `lit_debias/synthetic/corpus/README.md` says how, and how far a second reading agrees. Train and
validation hold all kinds, test_written prompts with their answers, test_contexts conclusions from contexts, and
test_statements sentences with and without a stereotype. Prompts have a counterfactual twin where a fair and a biased
answer read well for both groups.
"""


_WRITTEN = """## Responses written by a language model

`responses/train.parquet` holds {kept} responses more than the tables above count, written on request by a language
model (`lit-debias write`); their `response_id` ends in `w` and the intensity. Intensity, fairness and neutrality are
what the model was asked for, relevance and quality are taken for granted. The judge, if one is named here, has checked
fairness and nothing else.

{settings}

{outcomes}
"""


def data_card(
    tables: Tables,
    arguments: Mapping[str, Any],
    digests: Mapping[str, str],
    overlaps: Mapping[str, float],
    parts: Sequence[str],
) -> str:
    """Return the card in Markdown, with the front matter that ``datasets.load_dataset`` reads.

    Args:
        tables: What is written.
        arguments: What it was made with.
        digests: File -> its SHA-256.
        overlaps: Split -> share of its n-grams that train holds.
        parts: What is to be said of each source, from :func:`grammar_part` and :func:`corpus_part`.
    """
    responses = [row for rows in tables["responses"].values() for row in rows]
    corruptions = list(dict.fromkeys(row["corruption"] for row in responses))
    cells = Counter((row["intensity"], row["corruption"]) for row in responses)
    return _CARD.format(
        configs="\n".join(line for table, splits in tables.items() for line in _config(table, splits)),
        hostile=" and hostile" if arguments["include_harmful"] else "",
        version=arguments["version"],
        sources=" and ".join(arguments["sources"]),
        seed=arguments["seed"],
        size=arguments["size"],
        harmful=str(arguments["include_harmful"]).lower(),
        counts=_table(
            ["split", *tables],
            [
                [split, *(len(rows.get(split, ())) for rows in tables.values())]
                for split in dict.fromkeys(split for rows in tables.values() for split in rows)
            ],
        ),
        ngram=NGRAM,
        overlaps=", ".join(f"{split} {share:.0%}" for split, share in overlaps.items()),
        intensities=_table(
            ["intensity", *corruptions],
            [
                [level, *(cells[level, name] for name in corruptions)]
                for level in sorted({row["intensity"] for row in responses})
            ],
        ),
        parts="".join(parts),
        columns="\n\n".join(f"{table}:\n\n" + _columns(table) for table in tables),
        files=_table(["file", "sha256"], [[f"`{name}`", f"`{digest}`"] for name, digest in digests.items()]),
    )


def grammar_part(tables: Tables, taxonomy: Taxonomy) -> str:
    """Return the part of the card about what the grammar made."""
    in_wording = frames_in_wording(taxonomy)
    return _GRAMMAR.format(
        held_out=", ".join(dict.fromkeys(pair.category for pair in taxonomy.pairs if pair.held_out_category)),
        prompt_frames=in_wording[0],
        sentence_frames=in_wording[1],
        frames=_table(
            ["category", "frames of prompts", "frames of sentences in responses"],
            [[plain(category), *counts] for category, counts in count_frames(tables, taxonomy).items()],
        ),
    )


def corpus_part(version: str, counts: Mapping[str, int]) -> str:
    """Return the part of the card about texts that were written one by one, of which ``counts`` has kind -> number."""
    return _CORPUS.format(version=version, **counts)


def written_section(settings: Mapping[str, Any], outcomes: Mapping[str, int]) -> str:
    """Return the part of the card about responses that a language model wrote."""
    return _WRITTEN.format(
        kept=outcomes["kept"],
        settings=_table(["setting", "value"], [[f"`{name}`", plain(value)] for name, value in settings.items()]),
        outcomes=_table(["outcome", "responses"], [[name, number] for name, number in outcomes.items()]),
    )


def attack_card(settings: Mapping[str, Any], outcomes: Mapping[str, int]) -> str:
    """Return the card of prompts that a language model wrote to measure with."""
    return _ATTACK.format(
        kept=outcomes["kept"],
        settings=_table(["setting", "value"], [[f"`{name}`", plain(value)] for name, value in settings.items()]),
        outcomes=_table(["outcome", "prompts"], [[name, number] for name, number in outcomes.items()]),
    )


def _config(table: str, splits: Iterable[str]) -> list[str]:
    lines = [f"- config_name: {table}", *(["  default: true"] if table == "prompts" else []), "  data_files:"]
    for split in splits:
        lines += [f"  - split: {split}", f"    path: {table}/{split}.parquet"]
    return lines


def _columns(table: str) -> str:
    return _table(
        ["column", "type", "meaning"],
        [[f"`{field.name}`", field.type, MEANINGS[field.name]] for field in SCHEMAS[table]],
    )


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
