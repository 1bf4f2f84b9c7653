"""One step off-policy with an engine whose rollouts come after the update, as if they had come before it."""

from contextlib import contextmanager

import pytest
from grpo_runs import InterruptAt, Interruption, NeedsReference, Vowels, adapter_of, assert_same, grpo, trainer
from grpo_runs import prompts as prompts  # a fixture
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_debias import PromptDataModule
from lit_debias.rollout.engine import RolloutUnderWay
from lit_debias.rollout.local import LocalEngine


class Late(LocalEngine):
    """Samples when it is waited for: with the weights of the start, or the result is another one."""

    @contextmanager
    def under_way(self, *arguments, **options):
        engine = self

        class UnderWay(RolloutUnderWay):
            seconds = 3.0

            def result(self):
                return engine.generate(*arguments, **options)

        yield UnderWay()


def fit(model, engine, folder, data, ckpt=None, callbacks=(), **options):
    rewards = {"vowels": Vowels(), "likely": NeedsReference()}
    module = grpo(model, engine=engine(6), rewards=rewards, **{"one_step_off_policy": True, **options})
    keep = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True, save_top_k=-1)
    run = trainer(folder, max_steps=4, max_epochs=-1, enable_checkpointing=True, callbacks=[keep, *callbacks])
    run.fit(module, PromptDataModule(str(data), batch_size=2, seed=5), ckpt_path=ckpt, weights_only=True)
    return module


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("inner_epochs", [1, 2])
def test_when_a_rollout_comes_changes_nothing_even_where_the_run_is_interrupted(
    tiny_model, prompts, tmp_path, inner_epochs
):
    before = fit(tiny_model, LocalEngine, tmp_path / "before", prompts, inner_epochs=inner_epochs)
    late = fit(tiny_model, Late, tmp_path / "late", prompts, inner_epochs=inner_epochs)
    assert_same(adapter_of(before), adapter_of(late))
    assert late.trainer.callback_metrics["rollout_time"] == 3.0
    assert 0 < late.trainer.callback_metrics["rollout_wait"] < 3.0
    broken = tmp_path / "broken"
    with pytest.raises(Interruption):  # in the last inner epoch, before the rollout of the step is there
        fit(tiny_model, Late, broken, prompts, callbacks=[InterruptAt(inner_epochs * 2 - 1)], inner_epochs=inner_epochs)
    resumed = fit(tiny_model, Late, broken, prompts, ckpt=broken / "last.ckpt", inner_epochs=inner_epochs)
    assert_same(adapter_of(before), adapter_of(resumed))
    assert resumed.ahead.sampler is None


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_step_that_began_on_policy_is_finished(tiny_model, prompts, tmp_path):
    two = {"inner_epochs": 2}
    with pytest.raises(Interruption):
        fit(tiny_model, LocalEngine, tmp_path, prompts, callbacks=[InterruptAt(1)], one_step_off_policy=False, **two)
    resumed = fit(tiny_model, LocalEngine, tmp_path, prompts, ckpt=tmp_path / "last.ckpt", **two)
    # Of 4 updates the third and fourth are on the second rollout, which the third step trains on.
    assert resumed.rollout_step == 3
