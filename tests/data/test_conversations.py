"""Prompts that are conversations: read from files, rendered as plain Hugging Face does, trained on and evaluated."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from prompt_files import ready
from support import CHAT_TEMPLATE, loaded, save_tiny_model

from lit_debias.cli.main import main
from lit_debias.conversations import read_prompt, words_of
from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.policy.lengths import check_prompts
from lit_debias.policy.recipe import QLoRAPolicy
from lit_debias.training.baseline import responses
from lit_debias.training.sft import SFT
from lit_debias.types import PromptBatch

USER = {"role": "user", "content": "Why?"}
SEVERAL = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who cooks?"},
    {"role": "assistant", "content": "People."},
    USER,
]
TRANSCRIPT = "user: Who cooks?\nassistant: People.\nuser: Why?"


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


# -------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_of_messages_becomes_texts_and_conversations(tmp_path, tiny_model, suffix):
    rows = [{"prompt": SEVERAL, "group": "a"}, {"prompt": [{**USER, "name": "Ann"}], "group": "b"}]
    data = ready(PromptDataModule(write(tmp_path / f"p{suffix}", rows), batch_size=2, val_splits="train"))
    [batch] = data.val_dataloader()
    assert batch.texts == [TRANSCRIPT, "Why?"]
    assert batch.messages == [SEVERAL, [{**USER, "name": "Ann"}]]
    assert batch.columns["group"] == ["a", "b"]
    assert batch[1:].asked == batch.messages[1:]
    policy = loaded(tiny_model)
    ids, mask = policy.encode_prompts(batch.asked)
    for row, messages in enumerate(batch.messages):
        plain = policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids[row][mask[row]].tolist() == plain


def test_one_turn_is_the_same_as_a_text(tiny_model):
    policy = loaded(tiny_model, system_prompt="Be fair.")
    assert policy.prompt_ids([USER]) == policy.prompt_ids("Why?")
    parts = read_prompt([{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], "row 1")
    assert parts == [USER]
    assert words_of(parts) == "Why?"
    assert words_of([SEVERAL[0], USER]) == "Why?"


MALFORMED = {
    "empty": ([], " is an empty list; write at least one message"),
    "nothing": (None, " is None; write a text, or a list of messages"),
    "answer last": (SEVERAL[:3], " ends with a message of the assistant; end with what the user says"),
    "role": ([{"role": "usr", "content": "a"}], ", message 1: the role is 'usr'; did you mean 'user'"),
    "no text": ([{"role": "user", "content": None}], ", message 1: the content is None; write a text"),
    "image": (
        [{"role": "user", "content": [{"type": "image", "text": None}]}],
        ", message 1: the content is .*; write",
    ),
    "other keys": ([{"from": "human", "value": "a"}], ", message 1 is .*; write an object with role and content"),
    "texts": (["Why?"], ", message 1 is 'Why[?]'; write an object with role and content"),
}


@pytest.mark.parametrize(("prompt", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_conversations_are_told_with_their_row(tmp_path, prompt, message):
    file = write(tmp_path / "p.jsonl", [{"prompt": prompt}])
    with pytest.raises(UserError, match=rf"p.jsonl', row 1: 'prompt'{message}"):
        ready(PromptDataModule(file, batch_size=1, val_splits=None))


def test_a_conversation_is_checked_like_a_text(tmp_path, tiny_model):
    policy = loaded(tiny_model)
    policy.max_prompt_tokens = len(policy.prompt_ids(SEVERAL)) - 1
    with pytest.raises(UserError, match=rf"row 2: the prompt .* has {policy.max_prompt_tokens + 1} tokens"):
        check_prompts(policy, [[USER], SEVERAL], ["row 1", "row 2"])
    plain = loaded(save_tiny_model(tmp_path, None))
    with pytest.raises(UserError, match=r"row 1: model .* has no chat template, so it takes no conversations"):
        check_prompts(plain, [SEVERAL], ["row 1"])


# -------------------------------------------------------------------- responses


def test_responses_may_be_one_message_of_the_assistant():
    answer = [{"role": "assistant", "content": "Because."}]
    assert responses(PromptBatch(["Why?"], {"reference": [answer]}), ("reference",)) == [["Because."]]
    with pytest.raises(UserError, match="needs a response there, a text or one message of the assistant"):
        responses(PromptBatch(["Why?"], {"reference": [[USER, *answer]]}), ("reference",))


def test_sft_trains_a_response_after_a_conversation(tiny_model):
    module = SFT(QLoRAPolicy(str(tiny_model), quantization="none", dtype="float32", rank=4))
    policy = module.load_policy()
    answer = [{"role": "assistant", "content": "Because."}]
    batch = PromptBatch([TRANSCRIPT], {"reference": [answer]}, [SEVERAL])
    loss, _ = module._part(module._encode(batch), slice(0, 1))
    before = policy.tokenizer.apply_chat_template(SEVERAL, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([*policy.tokenizer.encode("Because."), policy.tokenizer.eos_token_id])
    with torch.no_grad():
        logits = policy.causal_lm(torch.cat([torch.tensor(before), ids])[None]).logits[0, len(before) - 1 : -1]
    expected = -logits.log_softmax(-1).gather(-1, ids[:, None]).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)


# -------------------------------------------------------------------- commands


def test_grpo_trains_on_conversations_and_predicts(tmp_path):
    folder = save_tiny_model(tmp_path / "model", CHAT_TEMPLATE + "{% if thinking is false %}<no>{% endif %}")
    policy = {"model": str(folder), "quantization": "none", "dtype": "float32", "rank": 4}
    policy["chat_template_kwargs"] = {"thinking": False}
    config = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False},
        "model": {
            "class_path": "GRPO",
            "init_args": {
                "policy": {"class_path": "QLoRAPolicy", "init_args": policy},
                "engine": {"class_path": "LocalEngine", "init_args": {"max_new_tokens": 3}},
                "rewards": {"variety": {"class_path": "Variety"}},
                "group_size": 2,
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                "path": write(tmp_path / "p.jsonl", [{"prompt": SEVERAL}, {"prompt": [USER]}]),
                "batch_size": 2,
                "val_splits": None,
                "test_splits": "train",
            },
        },
    }
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "enable_checkpointing": False}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", str(file)]) == 0
    config["trainer"] |= {"callbacks": [{"class_path": "PredictionFile", "init_args": {"out": str(tmp_path / "out")}}]}
    file.write_text(yaml.safe_dump(config))
    assert main(["predict", "-c", str(file)]) == 0
    said = [json.loads(line)["prompt"] for line in (tmp_path / "out").read_text().splitlines()]
    assert said == [TRANSCRIPT, "Why?"]


def test_evaluate_takes_conversations(tmp_path, tiny_model):
    found = {}
    for name, prompt, twin in (
        ("text", "Riders are", "Nurses are"),
        ("one turn", [{"role": "user", "content": "Riders are"}], [{"role": "user", "content": "Nurses are"}]),
        ("own system", [SEVERAL[0], {"role": "user", "content": "Riders are"}], [SEVERAL[0], USER]),
    ):
        folder = tmp_path / name / "prompts"
        folder.mkdir(parents=True)
        row = {"prompt": prompt, "counterfactual_prompt": twin, "reference": "late.", "biased": "lazy."}
        write(folder / "test.parquet", [row])
        results = evaluate(
            str(tiny_model), str(tmp_path / name), str(tmp_path / name), splits=("test",), quantization="none",
            dtype="float32", max_new_tokens=3, bootstrap=2, system_prompt=None, perplexity_model=None,
        )  # fmt: skip
        assert results["settings"]["chat_template_kwargs"] == {}
        arm = json.loads((tmp_path / name / "arms" / "before.json").read_text())
        found[name] = [{**record, "prompt_id": ""} for record in arm["records"]]
    assert found["one turn"] == found["text"]
    assert [record["prompt"] for record in found["own system"][:2]] == ["Riders are", "Why?"]
    assert found["own system"][0]["reference_logprob"] != found["text"][0]["reference_logprob"]
    policy = loaded(tiny_model)
    batch = PromptBatch(["Riders are"], messages=[[SEVERAL[0], {"role": "user", "content": "Riders are"}]])
    expected = policy.logprobs(policy.encode(batch, [["late."]]))
    assert found["own system"][0]["reference_logprob"] == pytest.approx(float(expected.mean()), abs=1e-4)
