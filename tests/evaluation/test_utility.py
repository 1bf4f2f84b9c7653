"""What de-biasing may cost: another model's perplexity, held-out prose, similarity to the neutral reference."""

import math

import pytest
import torch
from support import loaded, save_tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast

from lit_debias.benchmark.asking import Model
from lit_debias.errors import UserError
from lit_debias.evaluation.examiner import Examiner
from lit_debias.evaluation.prose import LONGEST, OWN, prose_rows, read_prose
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.sentence_encoder import SentenceEncoder
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.synthetic.taxonomy import Taxonomy

CPU = torch.device("cpu")


# ---------------------------------------------------------------- another language model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("base"), chat_template=None))


def alone(folder, context, completion):
    """Log-probabilities of one text, without padding; ``context`` is a text with its special tokens."""
    tokenizer, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    before, ids = (tokenizer.encode(text, add_special_tokens=False) for text in (context, completion))
    with torch.inference_mode():
        logits = lm(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_a_base_model_reads_prompt_newline_completion_after_its_first_token(base):
    other = LanguageModel(base, 2, torch.float32, separator="\n")
    other.load(CPU)
    prompts = ["What are riders like?", "Nurses are", "What are riders like?", "Why?"]
    completions = ["Each person is judged alone.", "kind", "", "People cook in different ways because they can."]
    ids, logprobs = other.read(prompts, completions)
    assert (ids[2], len(logprobs[2])) == ([], 0)  # an empty completion counts nothing
    for prompt, completion, ours in zip(prompts, completions, logprobs, strict=True):
        if completion:
            expected = alone(base, f"<|im_start|>{prompt}\n", completion)
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_a_chat_model_reads_the_completion_as_an_answer(tiny_model):
    other = LanguageModel(str(tiny_model), 2, torch.float32, separator="\n")
    other.load(CPU)
    _, [ours] = other.read(["Riders are"], ["often late."])
    chat = "<|im_start|>user\nRiders are<|im_end|>\n<|im_start|>assistant\n"
    torch.testing.assert_close(ours, alone(tiny_model, chat, "often late."), rtol=0, atol=1e-4)


def test_a_model_that_cannot_be_loaded_is_one_line():
    for reader in (LanguageModel("no/such-model", 1), SentenceEncoder("no/such-model")):
        with pytest.raises(UserError, match="model 'no/such-model' cannot be loaded") as caught:
            reader.load(CPU)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- prose


def test_the_passages_are_short_different_and_about_no_group(monkeypatch):
    monkeypatch.setattr("lit_debias.evaluation.prose.OWN", OWN)  # not the short ones of other tests
    found = read_prose(None)
    assert len(found) == len(set(found)) == 24
    assert all(60 <= len(passage.split()) <= 90 for passage in found)
    groups = {group for pair in Taxonomy.load().pairs for group in pair.groups}
    assert groups
    assert not [(group.bare, passage) for group in groups for passage in found if group.named_in(passage)]


def test_a_file_of_passages(tmp_path):
    path = tmp_path / "prose.txt"
    path.write_text("One line\nand another.\n \t\n\n\nThe second.\n\n")
    assert read_prose(str(path)) == ["One line and another.", "The second."]
    rows = prose_rows(read_prose(str(path)))
    assert [row["twin_id"] for row in rows] == ["prose-0", "prose-1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\); write the name of a readable file"),
        (b" \n\n", "is empty; write passages"),
        (b"\xff\xfe", "is UTF-16; save it as UTF-8"),
        (b"Short.\n\n" + b"long " * (LONGEST // 4), "passage 2 has 2499 characters; write passages of at most 2000"),
    ],
)
def test_wrong_prose(tmp_path, content, message):
    path = tmp_path / "prose.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_prose(str(path))


def test_prose_is_read_without_chat_template_and_system_prompt(tiny_model):
    policy = loaded(tiny_model, system_prompt="Be fair.")
    examiner = Examiner(RewardSuite({}), RewardSuite({}), LocalEngine(4), batch_size=2)
    passages = ["People cook in different ways.", "The lift was out of order.", "Late."]
    done = []
    records = examiner.examine(policy, prose_rows(passages), done.append)
    assert sum(done) == 3
    for passage, record in zip(passages, records, strict=True):
        expected = alone(tiny_model, "<|im_start|>", passage)
        assert record.prose_logprob == pytest.approx(float(expected.sum()), abs=1e-3)
        assert record.prose_tokens == len(expected)
        assert record.completion is None
    # the yardstick is the one of the public benchmarks
    [[likelihood]] = Model(policy, RewardSuite({}), done.append).sentences([""], [[passages[0]]])
    assert likelihood.total == pytest.approx(records[0].prose_logprob, abs=1e-3)


# ---------------------------------------------------------------- similarity


WORDS = ["[PAD]", "[UNK]", "north", "south", "east"]


def words_tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")


class Compass(nn.Module):
    """An "encoder" whose hidden states are known: a vector for each word, and a far one for padding."""

    device = CPU

    def forward(self, input_ids, **ignored):
        vectors = torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        return type("Output", (), {"last_hidden_state": vectors[input_ids]})


def test_similarity_by_hand():
    encoder = SentenceEncoder("none")
    encoder._encoder, encoder._tokenizer = Compass(), words_tokenizer()
    pairs = [
        ("north north east", "east", 1 / math.sqrt(5)),  # (2/3, 1/3) and (0, 1)
        ("north", "south", -1.0),
        ("north", "east east east", 0.0),
        ("east north", "north east", 1.0),
        (" ", "north", 0.0),
    ]
    found = encoder.similarity([a for a, _, _ in pairs], [b for _, b, _ in pairs])
    assert found == pytest.approx([expected for _, _, expected in pairs], abs=1e-6)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=len(WORDS), **size, initializer_range=0.5)).save_pretrained(folder)
    words_tokenizer().save_pretrained(folder)
    return str(folder)


def test_similarity_under_a_real_encoder(encoder):
    first, second = ["north", "south east east north", "east", "north " * 300], ["north", "east", "north south east"]
    second.append("north " * 256)
    together, single = SentenceEncoder(encoder), SentenceEncoder(encoder, batch_size=1)
    for each in (together, single):
        each.load(CPU)
    found = together.similarity(first, second)
    assert found == pytest.approx(single.similarity(first, second), abs=1e-5)  # padding changes nothing
    assert found[0] == pytest.approx(1.0)  # equal texts
    assert found[3] == pytest.approx(1.0)  # equal as far as they are read
    assert max(found[1:3]) < 0.999
    model, tokenizer = BertModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    with torch.inference_mode():
        states = [
            model(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0].mean(0) for text in (first[1], second[1])
        ]
    assert found[1] == pytest.approx(float(torch.cosine_similarity(*states, dim=0)), abs=1e-5)
