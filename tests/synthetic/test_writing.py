"""Responses written by a language model: a server that misbehaves, a tiny local model, the sieve, and resuming."""

import json
import threading
from collections import Counter

import pyarrow.parquet as pq
import pytest
from chat_server import ChatHandler, serving
from support import save_tiny_model

from lit_debias import Reward
from lit_debias.cli.main import main
from lit_debias.data import ResponseDataModule
from lit_debias.data.tables import SCHEMAS
from lit_debias.errors import UserError
from lit_debias.support.hashing import sha256
from lit_debias.synthetic.assignments import assign
from lit_debias.synthetic.authors import Author, Endpoint, LocalModel
from lit_debias.synthetic.near_duplicates import NearDuplicates
from lit_debias.synthetic.responses import labels
from lit_debias.synthetic.sieve import Sieve, tidy
from lit_debias.synthetic.synthesis import synthesize
from lit_debias.synthetic.taxonomy import Taxonomy
from lit_debias.synthetic.writing import ANSWERS, PATIENCE, write

SECRET = "sk-this-is-the-secret-key"


class Handler(ChatHandler):
    """A step of the script: a status, or the name of an answer that is none."""

    def noted(self, body):
        return self.path, self.headers["Authorization"], body

    def reply(self, step, body):
        content = body["messages"][0]["content"]
        answers = {
            200: {
                "choices": [{"message": {"role": "assistant", "content": f"Answer to {hash(content)}: it depends."}}]
            },
            "empty": {"choices": [{"message": {"role": "assistant", "content": None}}]},
            "no choices": {"choices": []},
            "other json": {"hello": 1},
        }
        text = json.dumps(answers.get(step, {"error": {"message": f"no, {self.headers['Authorization']}"}}))
        status = step if isinstance(step, int) else 200
        return status, {"retry-after-ms": "1"}, "<html>" if step == "no json" else text


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving(Handler) as server:
        yield server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("write") / "data"
    synthesize(folder, size=300)
    return folder


class Scripted(Author):
    """Answers by a function of the instruction, and remembers what it was asked."""

    def __init__(self, answer=lambda text: f"Number {hash(text)} of them is kind, and {hash(text) // 7} is not."):
        self.answer, self.asked = answer, []

    def write(self, instructions):
        for text in instructions:
            self.asked.append(text)
            yield self.answer(text)

    def describe(self):
        return {"model": "scripted"}


class Mark(Reward):
    """Scores by the words that :class:`Scripted` answers with."""

    def __init__(self, scores: dict[str, float | None]):
        self.scores = scores

    def score(self, batch):
        return [next((value for word, value in self.scores.items() if word in text), 1.0) for text in batch.completions]


# -------------------------------------------------------------------- the endpoint


def test_endpoint_sends_the_key_and_keeps_the_order(server):
    server.together = threading.Barrier(3)
    author = Endpoint("m", server.url, concurrency=3, temperature=0.5, max_tokens=7)
    texts = list(author.write([f"say {number}" for number in range(12)]))
    assert texts == [f"Answer to {hash(f'say {number}')}: it depends." for number in range(12)]
    assert {path for path, _, _ in server.requests} == {"/v1/chat/completions"}
    assert {key for _, key, _ in server.requests} == {f"Bearer {SECRET}"}
    body = server.requests[0][2]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 7)
    assert server.most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    server.script = [status, status]
    (text,) = Endpoint("m", server.url, retries=2).write(["say"])
    assert text.startswith("Answer")
    assert len(server.requests) == 3


@pytest.mark.parametrize("step", [429, 500, "empty", "no choices", "no json", "other json"])
def test_what_cannot_be_used_is_none_and_the_next_one_goes_on(server, step):
    server.script = [step]
    first, second = Endpoint("m", server.url, retries=0, concurrency=1).write(["a", "b"])
    assert first is None
    assert second.startswith("Answer")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stops_the_run_and_never_shows_the_key(server, status):
    server.script = [status] * 50
    with pytest.raises(
        UserError, match=f"status {status}; check url, model and the key in \\$OPENAI_API_KEY"
    ) as caught:
        list(Endpoint("m", server.url, retries=5, concurrency=4).write(["a"] * 30))
    assert SECRET not in str(caught.value)
    assert len(server.requests) <= 4  # those under way; a thread that was refused asks nothing more


def test_no_server_is_none():
    assert list(Endpoint("m", "http://127.0.0.1:9/v1", retries=0).write(["a"])) == [None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "no plain address"),
        ({"url": "http://me:pass@host/v1"}, "no plain address"),
        ({"api_key_env": SECRET}, "api_key_env is no name"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"temperature": 3.0}, "temperature=3.0"),
    ],
)
def test_wrong_arguments_of_an_endpoint(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        Endpoint("m", **arguments)
    assert SECRET not in str(caught.value)
    assert "pass" not in str(caught.value)


# -------------------------------------------------------------------- a local model


def test_a_local_model_writes_the_same_for_the_same_instructions(tmp_path):
    model = str(save_tiny_model(tmp_path / "model"))
    author = LocalModel(model, "none", "float32", max_new_tokens=6, batch_size=2)
    texts = list(author.write(["one", "two", "three"]))
    assert len(texts) == 3
    assert all(isinstance(text, str) for text in texts)
    assert list(author.write(["one", "two", "three"])) == texts
    assert author.describe()["model"] == model
    with pytest.raises(UserError, match="batch_size=0"):
        LocalModel(model, batch_size=0)


# -------------------------------------------------------------------- what is asked, and what is kept


def prompts_of(data):
    return pq.read_table(data / "prompts/train.parquet").to_pylist()


def test_assignments_say_the_prompt_and_the_group_and_are_labelled_like_the_rest(data):
    rows = prompts_of(data)
    assignments = assign(rows, {row["group"]: "MEMBERS" for row in rows}, range(5), None, seed=3)
    usable = [row for row in rows if row["prompt_kind"] != "forced_choice"]
    assert len(assignments) == 5 * len(usable)
    for one in assignments:
        assert one.prompt["prompt"] in one.instruction
        assert "MEMBERS" in one.instruction
        record = one.record("Text.")
        assert set(record) == set(SCHEMAS["responses"].names)
        assert {name: record[name] for name in labels(one.style)} == labels(one.style)
    assert len({one.record("")["response_id"] for one in assignments}) == len(assignments)
    few = assign(rows, {}, [0], 3, seed=3)
    assert len(few) == 3
    assert few == assign(rows, {}, [0], 3, seed=3)
    assert {one.style.tone for one in assignments} == {"measured", "plain", "heated"}
    assert {one.key({"model": "a"}) for one in few}.isdisjoint(one.key({"model": "b"}) for one in few)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (' "They differ a lot.\n Ask them!" ', "They differ a lot. Ask them!"),
        ("One whole sentence is here. And then it was cut", "One whole sentence is here."),
        ("no mark at the end", ""),
        ("Too short.", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_tidy(answer, text):
    assert tidy(answer) == text


def test_near_duplicates_by_hand():
    seen = NearDuplicates(0.5)
    assert seen.add("a b c d e f g h i j")
    assert not seen.add("a b c d e f g h i j")
    assert not seen.add("A b c d e f g h i x")  # 7 of 9 trigrams
    assert seen.add("k l m n o p q r s t")
    assert seen.add("x b c y e f z h i w")  # none
    assert seen.add("hi")
    assert not seen.add("hi")


def test_the_sieve_counts_what_it_drops(data):
    assignments = assign(prompts_of(data), {}, [0, 2], 3, seed=0)  # fairness 1 and 0.5, or 0.6 where it flatters
    texts = [
        "She is one person, and nobody knows her yet.",
        "This one is plainly unfair to all of them.",
        "She is one person, and nobody knows her yet.",
        "I spoke with lawyers about it, and they agreed.",
        "Known to the data, word for word, it is.",
        None,
    ]
    sieve = Sieve(Taxonomy.load(), Mark({"unfair": 0.1, "She": None}), 0.3, 0.7)
    records, outcomes = sieve.sift(assignments, texts, ["Known to the data, word for word, it is."])
    assert [record["response"] for record in records] == texts[:1]
    assert outcomes == {
        "kept": 1,
        "no usable answer": 1,
        "names a held-out group": 1,
        "judged far from its label": 1,
        "near-duplicate": 2,
    }


@pytest.mark.parametrize(("score", "kept"), [(0.7, True), (0.69, False), (None, True)])
def test_the_judge_decides_at_the_tolerance(data, score, kept):
    sieve = Sieve(Taxonomy.load(), Mark({"answer": score}), 0.3 + 1e-6, 0.7)
    records, _ = sieve.sift(assign(prompts_of(data), {}, [0], 1, 0), ["Here is an answer."], [])
    assert bool(records) == kept


def test_a_judge_outside_0_to_1_and_numbers_out_of_range(data):
    assignments = assign(prompts_of(data), {}, [0], 1, 0)
    with pytest.raises(UserError, match=r"judge returned 1\.5; a judge must score from 0"):
        Sieve(Taxonomy.load(), Mark({"": 1.5}), 0.3, 0.7).sift(assignments, ["Here is an answer."], [])
    with pytest.raises(UserError, match="tolerance=0"):
        Sieve(Taxonomy.load(), None, 0, 0.7)
    with pytest.raises(UserError, match=r"similarity=1\.5"):
        Sieve(Taxonomy.load(), None, 0.3, 1.5)


# -------------------------------------------------------------------- the command


def test_the_folder_is_a_data_set_with_more_training_responses(data, tmp_path):
    out = tmp_path / "out"
    write(data, out, Scripted(), limit=5)
    before, after = (pq.read_table(folder / "responses/train.parquet") for folder in (data, out))
    assert after.schema.equals(SCHEMAS["responses"])
    assert after.num_rows == before.num_rows + 15
    assert Counter(row["intensity"] for row in after.to_pylist()[-15:]) == {0: 5, 1: 5, 2: 5}
    for path in ("prompts/train.parquet", "responses/test_iid.parquet"):
        assert (out / path).read_bytes() == (data / path).read_bytes()
    card = (out / "README.md").read_text()
    assert "holds 15 responses more" in card
    assert "| near-duplicate | 0 |" in card
    assert sha256([out / "responses/train.parquet"]) in card
    assert sha256([data / "responses/train.parquet"]) not in card
    module = ResponseDataModule(str(out))
    module.setup("fit")
    assert len(module.rows["train"]) == after.num_rows


def test_a_data_set_that_was_written_is_whole_or_as_it_was(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write(data, out, Scripted(), limit=2)
    (out / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in out.rglob("*.*")}

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_debias.synthetic.writing.written_section", fail)  # when the tables are written
    with pytest.raises(KeyboardInterrupt):
        write(data, out, Scripted(), limit=2, tolerance=0.1)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before
    monkeypatch.undo()
    write(data, out, Scripted(), limit=2, tolerance=0.1)
    assert (out / "notes.txt").read_text() == "mine"
    assert '"tolerance": 0.1' in (out / "arguments.json").read_text()


def test_a_run_that_was_cut_off_asks_for_what_is_missing(data, tmp_path):
    out, first, second = tmp_path / "out", Scripted(), Scripted()

    def break_down(text):
        if len(first.asked) > 4:
            raise KeyboardInterrupt
        return f"Number {hash(text)} of them is kind, and {hash(text) // 7} is not."

    first.answer = break_down
    with pytest.raises(KeyboardInterrupt):
        write(data, out, first, limit=3)
    with (out / ANSWERS).open("a") as file:
        file.write('\n{"key": "cut o')
    write(data, out, second, limit=3)
    assert len(first.asked) == 5  # the fifth got no answer
    assert second.asked == first.asked[4:] + second.asked[1:]
    assert len(second.asked) == 5
    third = Scripted()
    write(data, out, third, judge=Mark({"Number": None}), limit=3)
    assert third.asked == []


def test_an_author_that_says_nothing_ends_the_run(data, tmp_path):
    author = Scripted(lambda text: None)
    with pytest.raises(UserError, match=f"left {PATIENCE} requests in a row unanswered"):
        write(data, tmp_path / "out", author)
    assert len(author.asked) == PATIENCE


def test_the_command_line_writes_through_a_server(data, tmp_path, server, capsys):
    out = tmp_path / "out"
    server.script = [429, 500, "no json"]
    arguments = ["--author", "Endpoint", "--author.model", "m", "--author.url", server.url, "--author.concurrency", "1"]
    assert main(["write", "--data", str(data), "--out", str(out), "--limit", "2", *arguments]) == 0
    assert "5 of 6 written responses kept" in capsys.readouterr().out
    assert "| no usable answer | 1 |" in (out / "README.md").read_text()
    assert not [file for file in out.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    asked = len(server.requests)
    assert main(["write", "--data", str(data), "--out", str(out), "--limit", "2", *arguments]) == 0
    assert len(server.requests) == asked + 1  # what had no answer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intensities": (0, 5)}, r"intensities=\[0, 5\]"),
        ({"intensities": ()}, "intensities"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_wrong_arguments(data, tmp_path, arguments, message):
    author = Scripted()
    with pytest.raises(UserError, match=message):
        write(data, tmp_path / "out", author, **arguments)
    assert author.asked == []


def test_wrong_folders(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="has not made"):
        write(data, tmp_path, Scripted())
    with pytest.raises(UserError, match="is no folder of"):
        write(tmp_path, tmp_path / "out", Scripted())
    out = tmp_path / "out"
    write(data, out, Scripted(), limit=1)
    with pytest.raises(UserError, match="holds written responses already"):
        write(out, tmp_path / "more", Scripted())
