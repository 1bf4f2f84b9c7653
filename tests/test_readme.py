"""The README's examples do what they say, on a tiny model and with a stand-in for the reward model."""

import re
from pathlib import Path

import pytest
import yaml
from command_line import run

from lit_debias import Reward
from lit_debias_fluency import Fluency

README = (Path(__file__).parent.parent / "README.md").read_text()
NOISE = ["ignore:.*logging interval:", "ignore:You defined a `validation_step`:"]
pytestmark = [pytest.mark.filterwarnings(line) for line in NOISE]


class StandIn(Reward):
    """What needs no checkpoint."""

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def score(self, batch):
        return [float("e" in text) for text in batch.completions]


def block(language: str, start: str) -> str:
    [found] = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if start in text]
    return found


@pytest.fixture
def small(tiny_model, tmp_path, monkeypatch):
    """Make what the examples name small, and return what does so to a text."""
    monkeypatch.chdir(tmp_path)
    questions = [f"Who rides horse {number}?" for number in range(16)]
    (tmp_path / "prompts.csv").write_text("\n".join(["question", *questions, ""]))
    words = {
        "Qwen/Qwen2.5-1.5B-Instruct": str(tiny_model),
        "nf4": "none",
        "max_new_tokens: 128": "max_new_tokens: 4",
        "max_new_tokens=128": "max_new_tokens=4",
        "200": "1",
    }
    return lambda text: re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], text)


def test_it_is_short():
    assert len(README.split()) < 900


def test_the_yaml_trains(small, tmp_path):
    config = yaml.safe_load(small(block("yaml", "class_path: GRPO")))
    rewards = config["model"]["init_args"]["rewards"]
    rewards["fairness"] = {"class_path": "NoSweepingWords"}
    config["trainer"] |= {"default_root_dir": str(tmp_path / "run"), "accelerator": "cpu", "enable_progress_bar": False}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert run("fit", "-c", "run.yaml") == 0
    assert list(tmp_path.glob("run/**/*.ckpt"))


def test_the_python_trains(small, tmp_path, monkeypatch):
    import lit_debias_deberta

    monkeypatch.setattr(lit_debias_deberta, "DebertaFairness", StandIn)
    code = small(block("python", "from lightning import Trainer")).replace("Trainer(", "Trainer(accelerator='cpu', ")
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["module"].rollout_step == 1
    assert isinstance(names["module"].rewards.rewards["fluency"], Fluency)


def test_the_reward_scores():
    names = {}
    exec(compile(block("python", "class Hedging"), "README.md", "exec"), names)
    from lit_debias import RewardBatch

    [reward] = names["lit_debias_rewards"]()
    assert reward().score(RewardBatch(["?"] * 2, ["Some do.", "All do."], [0, 0])) == [1.0, 0.0]


def test_the_step_reads_as_the_code_does():
    training = Path(__file__).parent.parent / "src/lit_debias/training"
    files = (training / "grpo.py", training / "drawing.py", training.parent / "rollout/engine.py")
    code = "".join(file.read_text() for file in files).replace("module.", "").replace("self.", "")
    for call in ("engine.generate(policy, prompts, group_size", "aggregator(", "while pending:"):
        assert call in block("python", "rollout = self.engine").replace("self.", "")
        assert call in code
