"""``lit-debias toxicity train``: a linear model of toxicity from texts of one's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lit_debias.errors import UserError
from lit_debias.evaluation.settings import check_numbers
from lit_debias.support.text import counted
from lit_debias.text_measures.linear_training import Quality, fit, quality_of, read_labelled, split


def train(
    data: str,
    out: str,
    text: str = "text",
    toxic: str = "toxic",
    harmless: str | None = None,
    ngrams: int = 2,
    min_texts: int = 2,
    penalty: float = 1.0,
    held_out: float = 0.1,
    seed: int = 0,
) -> None:
    """Train a linear model of toxicity on texts of your own, for LinearToxicity as a judge, reward or scorer.

    It is logistic regression over words and runs of words, weights as safetensors and words as JSON. A part of the
    texts is held out to say what the model is worth, and not trained on.

    Args:
        data: Texts with labels: a .jsonl, .json, .csv or .parquet file.
        out: Folder for the model; an earlier one is replaced.
        text: Column of the texts.
        toxic: Column of the labels: numbers from 0 (harmless) to 1 (toxic), such as shares of annotators, or true and
            false.
        harmless: Column of labels that go the other way, from 0 (toxic) to 1 (harmless), in the place of ``toxic``; the
            responses of lit-debias's data have such ones in the column fairness.
        ngrams: Words of the longest run that counts.
        min_texts: Texts that a word or run must occur in to count.
        penalty: Of the squared weights, 1 / C of scikit-learn; more makes a text's few words say less.
        held_out: Share of the texts to test on; 0 for none.
        seed: Draws them.

    Raises:
        UserError: the data cannot be read, all labels are one, or a number is out of range.
    """
    check_numbers(ngrams=ngrams, min_texts=min_texts)
    if not 0 <= held_out < 1 or penalty <= 0:
        raise UserError(f"held_out={held_out}, penalty={penalty}; write 0 or more, below 1, and a penalty above 0")
    folder = Path(out).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "toxicity.json").is_file()):
        raise UserError(f"out '{out}' is there and holds no such model; write a folder that is new or empty")
    rows, test = split(read_labelled(data, text, harmless or toxic, harmless=harmless is not None), held_out, seed)
    model = fit(rows, ngrams, min_texts, penalty)
    quality = quality_of(model, test)
    options = {"ngrams": ngrams, "min_texts": min_texts, "penalty": penalty, "held_out": held_out, "seed": seed}
    model.save(folder, {"texts": len(rows), "options": options, "held_out": asdict(quality)})
    toxic_texts = sum(row.toxic >= 0.5 for row in rows)
    print(f"trained on {counted(len(rows), 'text')}, {toxic_texts:,} of them toxic, {len(model.vocabulary):,} n-grams")
    print(in_words(quality))
    print(f"written: {folder}; {{class_path: LinearToxicity, init_args: {{model: {folder}}}}} scores with it")


def in_words(quality: Quality) -> str:
    """Return what a model is worth, in a line."""
    if quality.accuracy is None or quality.majority is None:
        return "no text was held out, so nothing says what it is worth"
    area = "one kind alone, so no AUC" if quality.auc is None else f"AUC {quality.auc:.3f}"
    return (
        f"on {counted(quality.texts, 'text')} held out, {quality.toxic:,} of them toxic: {area}, accuracy "
        f"{quality.accuracy:.3f} (always the more frequent label: {quality.majority:.3f})"
    )
