"""What is not trusted runs nothing: weights, code in model folders, adapters; docs/security.md lists all of it."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from command_line import config, run, write  # noqa: F401  # a fixture
from safetensors.torch import load_file
from support import loaded, save_tiny_model

from lit_debias.cli.main import main
from lit_debias.errors import UserError
from lit_debias.models.language_model import LanguageModel
from lit_debias.models.sentence_encoder import SentenceEncoder
from lit_debias.policy.policy import Policy
from lit_debias.support.text import plain
from lit_debias.synthetic.card import written_section
from lit_debias.synthetic.taxonomy import WORDING, Taxonomy

CPU = torch.device("cpu")
LOADERS: dict[str, Callable[[str], object]] = {
    "policy": lambda source: loaded(Path(source)),
    "perplexity model": lambda source: LanguageModel(source, batch_size=1).load(CPU),
    "sentence encoder": lambda source: SentenceEncoder(source).load(CPU),
}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path) -> Path:
    """A file that only foreign code makes."""
    return tmp_path / "foreign-code-was-run"


def arm(weights: Path, pickled: Path, mark: Path) -> None:
    """Replace safetensors by a pickle of the same tensors that makes ``mark``."""
    torch.save({**load_file(weights), "bomb": Bomb(mark)}, pickled)
    weights.unlink()


def test_the_bomb_works(tmp_path, mark):
    torch.save(Bomb(mark), tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_with_pickled_weights_is_refused(tiny_model, tmp_path, mark, loader, name):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    arm(folder / "model.safetensors", folder / name, mark)
    with pytest.raises(UserError, match=r"model '.*model' has no weights in safetensors, and other files are not read"):
        loader(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("part", ["config", "tokenizer_config"])
def test_code_in_a_models_folder_is_not_run(tiny_model, tmp_path, mark, loader, part, monkeypatch):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    classes = {"config": ("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "tokenizer_config": ("AutoTokenizer",)}
    content = json.loads((folder / f"{part}.json").read_text())
    own = "foreign.Own" if part == "config" else ["foreign.Own", "foreign.Own"]
    content |= {"model_type": "own", "tokenizer_class": "Own", "auto_map": dict.fromkeys(classes[part], own)}
    (folder / f"{part}.json").write_text(json.dumps(content))
    (folder / "foreign.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask in the terminal
    with pytest.raises(UserError, match=r"comes with Python code of its own, which is never run; write one whose"):
        loader(str(folder))
    assert not mark.exists()


def test_code_beside_a_known_architecture_is_left_alone(tiny_model, tmp_path, mark):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"auto_map": {"AutoModelForCausalLM": "foreign.Own"}}))
    (folder / "foreign.py").write_text(f"open({str(mark)!r}, 'w')")
    assert type(loaded(folder).causal_lm).__module__.startswith("transformers.")
    assert not mark.exists()


@pytest.fixture
def adapter(tiny_model, tmp_path) -> Path:
    loaded(tiny_model).lm.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def continued(model: Path, adapter: Path) -> Policy:
    return loaded(model, adapter=str(adapter))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_with_pickled_weights_is_refused(tiny_model, adapter, mark):
    arm(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin", mark)
    with pytest.raises(UserError, match=r"adapter '.*adapter': no adapter_model.safetensors there, and other"):
        continued(tiny_model, adapter)
    assert not mark.exists()


def test_an_adapter_names_no_module_to_import(tiny_model, adapter, mark, monkeypatch):
    (adapter / "foreign_module.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(adapter)
    content = json.loads((adapter / "adapter_config.json").read_text())
    content |= {"megatron_config": {"size": 1}, "megatron_core": "foreign_module"}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"adapter '.*adapter' uses megatron_config .*; name a plain LoRA adapter"):
        continued(tiny_model, adapter)
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore")  # Lightning's, before it gets that far
def test_a_checkpoint_that_makes_objects_is_refused(config, tmp_path, mark, capsys):
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "bomb": Bomb(mark)}, tmp_path / "last.ckpt")
    assert run("fit", "-c", write(tmp_path, config), "--ckpt_path", tmp_path / "last.ckpt") == 2
    assert "and no code is run" in capsys.readouterr().err
    assert not mark.exists()


def test_a_chat_template_reaches_no_python(tmp_path):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match=r"chat template fails .*is unsafe"):
        loaded(save_tiny_model(tmp_path / "model", template))


# ---------------------------------------------------------------- files that are no models


def yaml_bomb(mark: Path) -> str:
    return f"!!python/object/apply:os.mkdir [{str(mark)!r}]"


def test_the_yaml_bomb_works(mark):
    yaml.unsafe_load(yaml_bomb(mark))
    assert mark.exists()


@pytest.mark.parametrize("command", [["fit"], ["evaluate"], ["rewards", "score", "NoSweepingWords", "x"]])
def test_yaml_makes_no_python_objects(tmp_path, mark, capsys, command):
    (tmp_path / "config.yaml").write_text(f"model: {yaml_bomb(mark)}\n")
    option = ["--init_args", yaml_bomb(mark)] if command[0] == "rewards" else ["-c", str(tmp_path / "config.yaml")]
    assert main([*command, *option]) == 2
    assert "lit-debias: error:" in capsys.readouterr().err
    assert not mark.exists()


@pytest.mark.parametrize("name", ["groups", "themes"])
def test_wording_and_lexicons_make_no_python_objects(tmp_path, mark, capsys, name):
    folder = shutil.copytree(WORDING, tmp_path / "wording")
    (folder / f"{name}.yaml").write_text(f"x: {yaml_bomb(mark)}\n")
    with pytest.raises(UserError, match=f"{name}.yaml"):
        Taxonomy.load(folder)
    arguments = {"lexicons": [str(folder / f"{name}.yaml")]}
    assert main(["rewards", "score", "Rules", "x", "--init_args", json.dumps(arguments)]) == 2
    assert not mark.exists()


# ---------------------------------------------------------------- what is written


def test_settings_on_a_data_card_are_text():
    evil = "x` | <script>alert(1)</script>\n[a](javascript:alert(1)) ![b](http://evil.example)"
    section = written_section({"author": {"model": evil}}, {"kept": 1})
    (line,) = [line for line in section.splitlines() if "author" in line]
    assert line.count("|") == 3
    assert not re.search(r"<script|\]\(|(?<!^\| )`(?!author)", line.removeprefix("| `author`"))
    assert plain("a plain word, 3.5") == "a plain word, 3.5"


# ---------------------------------------------------------------- the source itself

ROOT = Path(__file__).parent.parent
UNSAFE = re.compile(
    r"(torch|joblib|dill|marshal|shelve|cloudpickle)\.loads?|yaml\.(unsafe_|full_)?load(_all)?|pickle\.(loads?|Unpickler)"
    r"|(pd|pandas)\.read_pickle|eval|exec|os\.system|os\.popen|(\w+\.)?extractall|tempfile\.mktemp|(\w+\.)?from_pretrained"
)
KNOWN = {
    "lit_debias/rewards/contract.py": {"pickle.loads"},  # of its own copy
    "lit_debias/rewards/calls.py": {"pickle.loads"},  # what the parent process sends
    "lit_debias/models/loading.py": {"from_pretrained"},  # with safetensors, without code
    "lit_debias/models/gguf_file.py": {"from_pretrained"},  # a GGUF file, without code
    "lit_debias/models/processors.py": {"from_pretrained"},  # of a processor, without code
    "lit_debias/models/adapter_config.py": {"from_pretrained"},  # of a configuration
    "lit_debias/models/base_weights.py": {"from_pretrained"},  # of a configuration
    "lit_debias/models/adapters.py": {"from_pretrained"},  # of an adapter that adapter_config has passed
    "lit_debias_classifier/reward.py": {"from_pretrained"},  # with safetensors, without code
}


def unsafe_calls(path: Path) -> set[str]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    loads = [call for call in calls if "weights_only=True" not in map(ast.unparse, call.keywords)]
    names = {ast.unparse(call.func) for call in loads if UNSAFE.fullmatch(ast.unparse(call.func))}
    keywords = {(word.arg, ast.unparse(word.value)) for call in calls for word in call.keywords}
    names |= {f"{name}=True" for name in ("shell", "allow_pickle", "trust_remote_code") if (name, "True") in keywords}
    return {"from_pretrained" if name.endswith("from_pretrained") else name for name in names}


def test_nothing_else_loads_pickles_or_runs_text():
    found = {}
    for source in (ROOT / "src", *ROOT.glob("plugins/*/src")):
        found |= {path.relative_to(source).as_posix(): unsafe_calls(path) for path in source.rglob("*.py")}
    assert {place: calls for place, calls in found.items() if calls} == KNOWN


def test_benchmarks_load_models_of_their_own_and_nothing_else_that_is_unsafe():
    assert set().union(*map(unsafe_calls, (ROOT / "benchmarks").rglob("*.py"))) == {"from_pretrained"}


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`([a-z_/]+)::([a-z_0-9]+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named) > 20
    for file, test in named:
        folder, _, name = file.rpartition("/")
        (path,) = [*ROOT.glob(f"tests/{folder}/test_{name}.py"), *ROOT.glob(f"plugins/*/tests/test_{file}.py")]
        assert f"def test_{test}(" in path.read_text(), f"{file}::{test}"
