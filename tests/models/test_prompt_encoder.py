"""Ids of prompts and texts: nothing appended, nothing that the model has no weights for."""

import pytest
import torch
from support import CHAT_TEMPLATE, loaded, save_tiny_model, train_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GPTNeoConfig, GPTNeoForCausalLM, OPTConfig, OPTForCausalLM

from lit_debias.errors import UserError
from lit_debias.evaluation import evaluate
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.positions import positions_held
from lit_debias.models.prompt_encoder import PromptEncoder
from lit_debias.policy.lengths import check_prompts, check_responses
from lit_debias.rollout.local import LocalEngine
from lit_debias.types import PromptBatch

START, END = ("<|im_start|>", 1), ("<|im_end|>", 2)


@pytest.mark.parametrize(
    ("around", "before"),
    [("$A <|im_end|>", []), ("<|im_start|> $A <|im_end|>", [1]), ("<|im_start|> $A", [1]), ("$A", [])],
)
def test_no_end_of_sequence_is_appended_to_a_prompt(around, before):
    tokenizer = train_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=[START, END])
    found = PromptEncoder(tokenizer, "tiny")
    assert found.prompt("People are") == before + tokenizer.encode("People are", add_special_tokens=False)
    assert found.prompt("") == before
    assert found.text("late") == tokenizer.encode("late", add_special_tokens=False)


def test_the_model_that_reads_completions_gets_no_appended_end_either(tmp_path):
    folder = save_tiny_model(tmp_path, None)
    tokenizer = train_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|im_end|>", special_tokens=[END])
    tokenizer.save_pretrained(folder)
    reader = LanguageModel(str(folder), 1)
    reader.load(torch.device("cpu"))
    _, [found] = reader.read(["People are"], ["late"])
    context, ids = (tokenizer.encode(text, add_special_tokens=False) for text in ("People are", "late"))
    model = loaded(folder).causal_lm
    with torch.no_grad():
        expected = model(torch.tensor([context + ids])).logits[0, len(context) - 1 : -1].log_softmax(-1)
    assert found == pytest.approx(expected.gather(-1, torch.tensor(ids)[:, None])[:, 0], abs=1e-5)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A model whose tokenizer has a pad token and a word beyond the embedding."""
    folder = save_tiny_model(tmp_path_factory.mktemp("narrow"))
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<group>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("decoder", ["lean", "hugging_face"])
def test_a_pad_id_beyond_the_embedding_is_not_used(narrow, decoder):
    policy = loaded(narrow)
    rows = policy.causal_lm.get_input_embeddings().num_embeddings
    assert policy.tokenizer.pad_token_id >= rows
    prompts = ["People are late because", "Why?"]
    rollout = LocalEngine(4, decoder=decoder).generate(policy, PromptBatch(prompts), 2, seed=0)
    assert rollout.prompt_ids.max() < rows
    logprobs = policy.logprobs(rollout)
    assert logprobs == pytest.approx(rollout.logprobs, abs=1e-4)
    alone = policy.encode(PromptBatch(prompts[1:]), [["late"]])
    together = policy.encode(PromptBatch(prompts), [["so"], ["late"]])
    expected = policy.logprobs(alone)[0, 0]
    assert policy.logprobs(together)[1, 0][: len(expected)] == pytest.approx(expected, abs=1e-5)


def test_a_token_beyond_the_embedding_is_refused_with_its_row(narrow):
    policy = loaded(narrow)
    message = r"embeddings and none for the token '<group>' of its tokenizer, id \d+, which 'a <group> b' needs"
    with pytest.raises(UserError, match=message):
        policy.encode_prompts(["a <group> b"])
    with pytest.raises(UserError, match=f"row 2: model .*{message}"):
        check_prompts(policy, ["a", "a <group> b"], ["row 1", "row 2"])
    with pytest.raises(UserError, match=f"row 2: model .*{message}"):
        check_responses(policy, ["a", "b"], ["a", "a <group> b"], ["row 1", "row 2"], "reference")


def test_a_model_with_neither_begin_nor_end_is_refused_where_one_is_needed(tmp_path):
    folder = save_tiny_model(tmp_path, CHAT_TEMPLATE)
    tokenizer = train_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace('"eos_token_id": 2', '"eos_token_id": null'))
    policy = loaded(folder)
    assert policy.eos_token_ids == ()
    rollout = LocalEngine(3).generate(policy, PromptBatch(["Why?"]), 2, seed=0)
    assert rollout.truncated.all()
    with pytest.raises(UserError, match="neither a begin- nor an end-of-sequence token, so nothing stands before"):
        policy.encoder.first()
    with pytest.raises(UserError, match="no end-of-sequence token to train"):
        policy.encode(PromptBatch(["Why?"]), [["late"]], end=True)


# -------------------------------------------------------------------- positions


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """An OPT and a GPT-Neo of 24 positions, without chat template."""
    sizes = {"vocab_size": 320, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    opt = {
        "hidden_size": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    neo = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
    torch.manual_seed(0)
    models = {
        "opt": OPTForCausalLM(OPTConfig(**sizes, **opt, max_position_embeddings=24)),
        "gpt_neo": GPTNeoForCausalLM(GPTNeoConfig(**sizes, **neo, max_position_embeddings=24)),
    }
    folders = {}
    for name, model in models.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        train_tokenizer(None).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("name", ["opt", "gpt_neo"])
def test_a_completion_beyond_learned_positions_is_refused(learned, name):
    policy = loaded(learned[name])
    assert policy.positions == 24
    prompt = PromptBatch(["Why?"])
    longest = 24 + 1 - len(policy.prompt_ids("Why?"))  # the last token predicts nothing
    rollout = LocalEngine(longest).generate(policy, prompt, 8, seed=0)
    assert rollout.lengths.max() == longest
    with pytest.raises(
        UserError, match=r"has 24 positions, and a text of 25 tokens needs more, .*; shorten the prompt"
    ):
        LocalEngine(longest + 1).generate(policy, prompt, 1, seed=0)
    with pytest.raises(UserError, match="has 24 positions"):
        policy.encode(prompt, [["late " * 30]])
    check_prompts(policy, ["Why?"], ["row 1"], longest)
    with pytest.raises(UserError, match=r"row 1: model .* has 24 positions, .* or lower max_new_tokens"):
        check_prompts(policy, ["Why?"], ["row 1"], longest + 1)


def test_rotations_have_no_table(tiny_model):
    assert positions_held(loaded(tiny_model).causal_lm) is None


def test_evaluate_refuses_a_model_with_too_few_positions_before_it_asks(learned, tiny_model, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "prompts").mkdir()
    pq.write_table(pa.Table.from_pylist([{"prompt": "People are"}]), tmp_path / "prompts" / "test.parquet")
    prose = tmp_path / "prose.txt"
    prose.write_text("Why?")
    options = {"splits": ("test",), "quantization": "none", "dtype": "float32", "bootstrap": 2, "prose": str(prose)}
    models = {"model": str(learned["gpt_neo"])}, {"model": str(tiny_model), "perplexity_model": str(learned["opt"])}
    for named in models:
        with pytest.raises(UserError, match="has 24 positions"):
            evaluate(**named, data=str(tmp_path), out=str(tmp_path / "out"), max_new_tokens=30, **options)
    assert not (tmp_path / "out").exists()
