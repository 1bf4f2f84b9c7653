"""Data modules: prompts, twins, responses, and exact resumption under Lightning."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from prompt_files import ROWS, ready, write

from lit_debias.data import PromptDataModule, ResponseDataModule
from lit_debias.errors import UserError
from lit_debias.support import distributed
from lit_debias.support.hashing import stable_hash
from lit_debias.synthetic.synthesis import synthesize


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    synthesize(out, size=900)
    return out


@pytest.fixture
def jsonl(tmp_path) -> Path:
    return write(tmp_path / "prompts.jsonl", ROWS)


# -------------------------------------------------------------------- prompts


def test_synthetic_prompts_bring_what_rewards_and_evaluation_need(folder):
    data = ready(PromptDataModule(str(folder), prompt_kinds=["open", "leading"], val_limit=6, val_batch_size=4))
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == 4
    assert set(batch.columns["prompt_kind"]) <= {"open", "leading"}
    assert {"prompt_id", "twin_id", "group", "reference", "biased", "counterfactual_prompt"} <= set(batch.columns)
    assert [len(batch) for batch in data.val_dataloader()] == [4, 2]
    with pytest.raises(UserError, match="no prompts of the kind 'leaning'; did you mean 'leading'"):
        ready(PromptDataModule(str(folder), prompt_kinds=["leaning"]))


def test_several_splits_are_joined(folder):
    splits = ["test_template", "test_group"]
    data = ready(PromptDataModule(str(folder), test_splits=splits), "test")
    seen = Counter(split for batch in data.test_dataloader() for split in batch.columns["split"])
    assert seen == {split: pq.read_metadata(folder / f"prompts/{split}.parquet").num_rows for split in splits}
    assert len(data.predict_dataloader()) == len(data.test_dataloader())


def test_limits_are_seeded_choices(jsonl):
    def chosen(seed):
        data = ready(PromptDataModule(str(jsonl), batch_size=1, train_limit=5, seed=seed))
        return {batch.texts[0] for batch in data.train_dataloader()}

    assert chosen(1) == chosen(1)
    assert len(chosen(1)) == 5
    assert len({frozenset(chosen(seed)) for seed in range(5)}) > 1


# -------------------------------------------------------------------- prompts to measure with


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_adversarial_prompts_are_trained_on_where_it_is_meant_alone(tmp_path, suffix):
    file = tmp_path / f"prompts.{suffix}"
    lines = {
        "jsonl": ['{"prompt": "a", "hard": false}', '{"prompt": "b", "hard": true}', '{"prompt": "c"}'],
        "csv": ["prompt,hard", "a,False", "b,True", "c,"],
    }
    file.write_text("\n".join(lines[suffix]))
    columns = {"adversarial": "hard"}
    with pytest.raises(UserError, match=r"row [23]: an adversarial prompt, .* write data.init_args.adversarial: true"):
        ready(PromptDataModule(str(file), columns=columns, batch_size=1))
    data = ready(PromptDataModule(str(file), columns=columns, batch_size=1, adversarial=True))
    assert len([*data.train_dataloader()]) == 3
    ready(PromptDataModule(str(file), columns=columns, test_splits="train"), "test")


# -------------------------------------------------------------------- twins


@pytest.mark.parametrize("world_size", [1, 2])
def test_twins_share_batch_and_rank(folder, monkeypatch, world_size):
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        data = ready(PromptDataModule(str(folder), twins=True, batch_size=8, prompt_kinds=["open", "leading"]))
        batches = [*data.train_dataloader(), *data.train_dataloader()]  # two epochs, in different orders
        assert len(batches) > 4
        for batch in batches:
            assert len(batch) == 8 // world_size
            assert set(Counter(batch.columns["twin_id"]).values()) == {2}
            assert set(batch.texts) == set(batch.columns["counterfactual_prompt"])


def test_the_twins_of_augmentation_are_those_that_the_synthetic_data_has(folder):
    options = {"augment": "cda", "augment_categories": ["regional", "ethnic", "occupational"]}
    kinds = {"prompt_kinds": ["open", "leading"], "columns": {"reference": "prompt_kind", "biased": "prompt_kind"}}
    data = PromptDataModule(str(folder), **options, **kinds)
    own = len(ready(PromptDataModule(str(folder), **kinds)).rows["train"])
    with pytest.raises(
        UserError, match=rf"0 counterfactual twins beside {own} prompts; {own} left out, as the data has"
    ):
        ready(data)


def test_without_the_option_twins_are_apart(folder):
    batch = next(iter(ready(PromptDataModule(str(folder), batch_size=8)).train_dataloader()))
    assert max(Counter(batch.columns["twin_id"]).values()) == 1


def test_twins_that_are_apart_in_the_file_come_together(tmp_path):
    rows = [{"prompt": f"{side}{number}", "pair": number} for side in "ab" for number in range(5)]
    file = str(write(tmp_path / "twins.jsonl", rows))
    data = ready(PromptDataModule(file, columns={"twin_id": "pair"}, twins=True, batch_size=2, train_limit=7))
    batches = [batch.texts for batch in data.train_dataloader()]
    assert len(batches) == 3  # of 7 prompts, whole pairs
    assert all(first[0] == "a" and second == "b" + first[1:] for first, second in batches)


def test_a_twin_that_is_given_as_a_counterfactual_alone_is_asked_too(tmp_path):
    rows = [
        {"prompt": f"n{n}", "counterfactual_prompt": f"s{n}", "twin_id": str(n), "group": "north", "biased": "lazy"}
        | {"counterfactual_group": "south", "reference": "ask"}
        for n in range(3)
    ]
    data = ready(PromptDataModule(str(write(tmp_path / "twins.jsonl", rows)), twins=True, batch_size=2))
    for batch in data.train_dataloader():
        (first, second), columns = batch.texts, batch.columns
        assert (first[0], second) == ("n", "s" + first[1:])
        assert (columns["group"], columns["counterfactual_group"]) == (["north", "south"], ["south", "north"])
        assert columns["counterfactual_prompt"] == [second, first]
        assert (columns["reference"], columns["biased"]) == (["ask", "ask"], ["lazy", ""])
        assert columns["prompt_id"][1] == columns["prompt_id"][0] + "-twin"


def test_wrong_twins(tmp_path, monkeypatch):
    def refuses(message, rows, **arguments):
        file = write(tmp_path / "twins.jsonl", rows)
        with pytest.raises(UserError, match=message):
            ready(PromptDataModule(str(file), twins=True, **{"batch_size": 2, **arguments}))

    pair = [{"prompt": "a", "twin_id": "x"}, {"prompt": "b", "twin_id": "x"}]
    refuses("train batch size 3 is no multiple of 2", pair, batch_size=3)
    refuses("validation batch size 5 is no multiple of 2", pair, val_batch_size=5)
    refuses("has no column 'twin_id'", ROWS)
    refuses("twin_id 'y' has 1 row with 1 different", [*pair, {"prompt": "c", "twin_id": "y"}])
    refuses("twin_id 'x' has 3 rows with 3 different", [*pair, {"prompt": "c", "twin_id": "x"}])
    refuses("twin_id 'y' has 2 rows with 1 different", [*pair, *[{"prompt": "c", "twin_id": "y"}] * 2])
    data = PromptDataModule("unread.jsonl", twins=True, batch_size=6)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="train batch size 6 is no multiple of 4"):
        data._check_even("train")


# -------------------------------------------------------------------- responses


def test_response_batches(folder):
    data = ready(ResponseDataModule(str(folder), batch_size=12))
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == (12, 4)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].isfinite().all()
    assert list(Counter(batch["prompt_id"]).values()) == [6, 6]
    rows = {row["response"]: row for row in pq.read_table(folder / "responses/train.parquet").to_pylist()}
    for text, prompt, label in zip(batch["response"], batch["prompt"], batch["labels"].tolist(), strict=True):
        row = rows[text]
        assert prompt == row["prompt"]
        assert label == pytest.approx([row[name] for name in ("fairness", "neutrality", "relevance", "quality")])
    assert set(batch) >= {"intensity", "stance", "corruption", "template_id", "split"}


def test_folds_share_no_template_and_no_frame(folder):
    families, texts = [], []
    for fold in ("0/2", "1/2"):
        data = ready(ResponseDataModule(str(folder), fold=fold))
        rows = data.rows["train"]
        families.append(set(rows["template_id"]))
        clean = [
            text for text, corruption in zip(rows["response"], rows["corruption"], strict=True) if corruption == "none"
        ]
        texts.append({" ".join(text.split()[-4:]) for text in clean})
        assert {stable_hash(family) % 2 for family in families[-1]} == {int(fold[0])}
    assert families[0].isdisjoint(families[1])
    support = "point in pretending otherwise."
    assert sum(support in endings for endings in texts) == 1
    for wrong in ("2/2", "1", "a/b"):
        with pytest.raises(UserError, match=f"fold: '{wrong}' is no part"):
            ResponseDataModule(str(folder), fold=wrong)


def test_own_responses_with_mapped_columns_and_missing_labels(tmp_path):
    rows = [
        {"question": "q1", "answer": "a1", "score": 0.25},
        {"question": "q2", "answer": "a2", "score": None},
        {"question": "q1", "answer": "a3", "score": 1},
    ]
    columns = {"prompt": "question", "response": "answer", "fairness": "score"}
    data = ready(ResponseDataModule(str(write(tmp_path / "r.jsonl", rows)), batch_size=3, columns=columns))
    batch = next(iter(data.train_dataloader()))
    labels = dict(zip(batch["response"], batch["labels"], strict=True))
    assert [labels["a1"][0], labels["a3"][0]] == [0.25, 1.0]
    assert labels["a2"].isnan().all()
    assert labels["a1"][1:].isnan().all()
    ids = dict(zip(batch["response"], batch["prompt_id"], strict=True))
    assert ids["a1"] == ids["a3"] != ids["a2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "response": "r"}, "has none of the labels fairness, neutrality, relevance, quality"),
        ({"prompt": "p", "response": "r", "fairness": 3.0}, r"row 1: fairness is 3\.0; write 0 to 1"),
        ({"prompt": "p", "text": "r", "fairness": 1.0}, "has no column 'response'"),
    ],
)
def test_wrong_responses(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        ready(ResponseDataModule(str(write(tmp_path / "r.jsonl", [row])), batch_size=1))


def test_limited_responses_are_whole_prompts(folder):
    data = ready(ResponseDataModule(str(folder), train_limit=50, batch_size=6))
    assert len(data.rows["train"]) == 48
    assert set(Counter(data.rows["train"]["prompt_id"]).values()) == {6}


# -------------------------------------------------------------------- under Lightning


class Recorder(LightningModule):
    """Records what it trains on; its one weight learns nothing."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], 0
        if counts:
            self.rollout_step = 0

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, tuple(batch.texts)))
        if hasattr(self, "rollout_step"):
            self.rollout_step += 1
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["count"] = getattr(self, "rollout_step", None)

    def on_load_checkpoint(self, checkpoint):
        if checkpoint["count"] is not None:
            self.rollout_step = checkpoint["count"]


def fit(path, folder, counts, steps, ckpt_path=None, **options):
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"enable_checkpointing": False, "max_epochs": -1, **options},
    )
    model = Recorder(counts)
    trainer.fit(model, PromptDataModule(str(path), batch_size=2, seed=1), ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / f"{steps}.ckpt")
    return model


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_resumed_fit_sees_the_prompts_that_an_unbroken_one_sees(jsonl, tmp_path, counts, stop):
    whole = fit(jsonl, tmp_path, counts, 13).seen
    assert len({texts for _, batch in whole[:5] for texts in batch}) == 10  # 5 batches of 2 are an epoch
    assert [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5 + [2] * 3
    first = fit(jsonl, tmp_path, counts, stop).seen
    rest = fit(jsonl, tmp_path, counts, 13, ckpt_path=tmp_path / f"{stop}.ckpt").seen
    assert [texts for _, texts in first + rest] == [texts for _, texts in whole]


def test_resuming_from_a_checkpoint_in_mid_epoch(jsonl, tmp_path):
    whole = fit(jsonl, tmp_path, False, 9).seen
    checkpoint = ModelCheckpoint(tmp_path / "mid", "{step}", every_n_train_steps=3, save_top_k=-1)
    fit(jsonl, tmp_path, False, 9, enable_checkpointing=True, callbacks=[checkpoint])
    for step in (3, 6):
        with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
            rest = fit(jsonl, tmp_path, False, 9, ckpt_path=tmp_path / f"mid/step={step}.ckpt").seen
        assert rest == whole[step:]  # epochs too


def test_resuming_where_a_schedule_asks_how_many_steps_there_will_be(jsonl, tmp_path, monkeypatch):
    def optimizers(module):
        assert module.trainer.estimated_stepping_batches == module.trainer.max_steps  # makes the loader
        return torch.optim.SGD(module.parameters(), lr=0.1)

    monkeypatch.setattr(Recorder, "configure_optimizers", optimizers)
    whole = fit(jsonl, tmp_path, False, 8, max_epochs=3).seen
    fit(jsonl, tmp_path, False, 3, max_epochs=3)
    rest = fit(jsonl, tmp_path, False, 8, ckpt_path=tmp_path / "3.ckpt", max_epochs=3).seen
    assert [texts for _, texts in rest] == [texts for _, texts in whole[3:]]


def test_resuming_under_a_batch_limit(jsonl, tmp_path):
    whole = fit(jsonl, tmp_path, True, 8, limit_train_batches=3).seen
    first = fit(jsonl, tmp_path, True, 4, limit_train_batches=3).seen
    rest = fit(jsonl, tmp_path, True, 8, ckpt_path=tmp_path / "4.ckpt", limit_train_batches=3).seen
    assert [texts for _, texts in first + rest] == [texts for _, texts in whole]


def test_test_and_predict_see_every_prompt_once(folder, tmp_path):
    class Reader(Recorder):
        def predict_step(self, batch, batch_idx):
            return batch.texts

        def test_step(self, batch, batch_idx):
            self.validated += len(batch)

    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    model, data = Reader(False), PromptDataModule(str(folder))
    texts = pq.read_table(folder / "prompts/test_iid.parquet")["prompt"].to_pylist()
    assert [text for batch in trainer.predict(model, data) for text in batch] == texts
    trainer.test(model, data, verbose=False)
    assert model.validated == len(texts)


def test_every_validation_sees_all_prompts(folder, tmp_path):
    prompts = pq.read_metadata(folder / "prompts/validation.parquet").num_rows
    model = fit(folder, tmp_path, True, 4, val_check_interval=2, num_sanity_val_steps=0)
    assert model.validated == 2 * prompts
