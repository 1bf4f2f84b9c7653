"""What Lightning's trainer can be told: each option does what it says, or is one line before a model loads."""

import contextlib

import pytest
import torch
from command_line import config, run, write  # noqa: F401  (config is a fixture)
from grpo_runs import Vowels, adapter_of, assert_same, grpo, prompts, trainer  # noqa: F401  (prompts is a fixture)
from lightning import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from safetensors.torch import load_file
from support import loaded, perturb
from torch.optim import LBFGS, SGD, AdamW, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.optim.lr_scheduler import ReduceLROnPlateau as TorchReduceLROnPlateau

from lit_debias.data import PromptDataModule
from lit_debias.errors import UserError
from lit_debias.policy.policy import QLoRAPolicy
from lit_debias.rewards.reward import Reward
from lit_debias.rollout.local import LocalEngine
from lit_debias.training.averaging import AdapterAveraging
from lit_debias.training.callbacks import AdapterExport
from lit_debias.training.checkpoints import read
from lit_debias.training.trainer_checks import check_strategy
from lit_debias.types import PromptBatch


@pytest.fixture
def data(prompts) -> PromptDataModule:
    return PromptDataModule(str(prompts), batch_size=4, val_splits="train")


@pytest.fixture
def no_model(monkeypatch):
    def load(policy, device):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(QLoRAPolicy, "load", load)


def sgd(parameters):
    return SGD(parameters, lr=0.5)


def policy_of(model, dtype) -> QLoRAPolicy:
    return QLoRAPolicy(str(model), quantization="none", dtype=dtype, rank=4)


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_clip_val": 0.3}, "write model.init_args.max_grad_norm: 0.3"),
        ({"gradient_clip_algorithm": "value"}, "clipped by norm"),
        ({"accumulate_grad_batches": 2}, "write that, and model.init_args.micro_batch_tokens"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler does not work here"),
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, "write EMAWeightAveraging"),
        ({"callbacks": [LearningRateFinder()]}, "optimizer.init_args.lr"),
        ({"callbacks": [BatchSizeFinder()]}, "data.init_args.batch_size"),
        ({"callbacks": [ModelPruning("l1_unstructured")]}, "the adapter alone trains"),
        ({"precision": "bf16-true"}, "write trainer.precision: 32-true"),
        ({"precision": "16-true"}, "'16-true' is not how the policy computes"),
        ({"precision": "64-true"}, "'64-true' is not how the policy computes"),
        ({"precision": "bf16-mixed"}, "whose type is float32"),
        ({"plugins": [MixedPrecision("16-mixed", "cpu")]}, "'16-mixed' is not how the policy computes"),
    ],
)
def test_an_option_that_does_not_suit_is_refused(tiny_model, data, tmp_path, no_model, options, message):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, **options).fit(grpo(tiny_model), data)


def test_strategies_that_hold_the_model_otherwise_are_refused(tmp_path):
    with pytest.raises(UserError, match="write ddp, which runs"):
        check_strategy(trainer(tmp_path, strategy="ddp_spawn", devices=2))
    sharding = trainer(tmp_path)
    sharding.strategy.__class__ = FSDPStrategy  # no trainer builds one without a GPU
    with pytest.raises(UserError, match="splits the model over devices"):
        check_strategy(sharding)


class Sharp(SGD):
    """Sharpness-aware: looks for the gradient at other weights within a step."""

    def step(self, closure=None):
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(parameter.grad)
        closure()
        return super().step()


@pytest.mark.parametrize(
    ("optimizer", "schedule", "message"),
    [
        (lambda p: LBFGS(list(p)), None, "LBFGS asks for the loss again"),
        (lambda p: Sharp(p, lr=1.0), None, "Sharp asks for the loss again"),
        (lambda p: AdamW(p, capturable=True), None, "capturable=True"),
        (lambda p: AdamW(p, lr=-1.0), None, "optimizer: ValueError: Invalid learning rate"),
        (SparseAdam, None, "does not support dense gradients"),
        (sgd, TorchReduceLROnPlateau, "write lightning.pytorch.cli.ReduceLROnPlateau"),
        (sgd, lambda o: OneCycleLR(o, 1.0, total_steps=3), "ends after total_steps=3, and trainer.max_steps is 4"),
        (sgd, lambda o: CosineAnnealingLR(o), "lr_scheduler: TypeError: .*'T_max'"),
    ],
)
def test_optimiser_and_schedule_are_tried_before_a_model_loads(
    tiny_model, data, tmp_path, no_model, optimizer, schedule, message
):
    with pytest.raises(UserError, match=message):
        trainer(tmp_path).fit(grpo(tiny_model, optimizer=optimizer, lr_scheduler=schedule), data)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("logger", {"class_path": "MLFlowLogger"}, "pip install -U 'mlflow"),
        ("enable_checkpointing", False, "found `ModelCheckpoint` in callbacks"),
        ("devices", 0, "Trainer.devices=0.` value is not a valid input"),
    ],
)
def test_a_trainer_that_cannot_be_built_is_one_line(config, tmp_path, capsys, section, value, message):
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint"}]
    config["trainer"][section] = value
    assert run("fit", "-c", write(tmp_path, config)) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message.replace(".devices=0.", "(devices=0)") in line


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("transformers.get_constant_schedule", "it is a function that does not say what it returns"),
        ("torch.optim.lr_scheduler.StepLR", "model.lr_scheduler: missing: step_size"),
    ],
)
def test_a_schedule_that_lacks_arguments_says_so(config, tmp_path, capsys, schedule, message):
    config["model"]["init_args"]["lr_scheduler"] = {"class_path": schedule}
    assert run("fit", "-c", write(tmp_path, config)) == 2
    assert message in capsys.readouterr().err


def test_an_optimiser_has_its_own_defaults(config, tmp_path, capsys):
    """Those of AdamW, the default, reached every optimiser that a file named: SGD with a weight decay of 0.01."""
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    assert run("fit", "-c", write(tmp_path, config), "--print_config") == 0
    assert "weight_decay: 0.0\n" in capsys.readouterr().out


# ---------------------------------------------------------------- precision and loss scalers


class Autocast(Reward):
    """Notes whether the caller's autocast is on."""

    def __init__(self):
        self.seen = set()

    def score(self, batch):
        self.seen.add(torch.is_autocast_enabled("cpu"))
        return Vowels().score(batch)


def test_mixed_precision_of_a_bf16_policy_is_the_policys_own(tiny_model, data, tmp_path):
    adapters, reward = [], Autocast()
    for precision in ("32-true", "bf16-mixed"):
        module = grpo(tiny_model, policy=policy_of(tiny_model, "bfloat16"), rewards={"r": reward}, optimizer=sgd)
        run_of = trainer(tmp_path, max_steps=2, precision=precision, limit_val_batches=1, val_check_interval=1)
        run_of.fit(module, data)
        adapters.append(adapter_of(module))
    assert_same(*adapters)
    assert reward.seen == {False}
    with run_of.precision_plugin.forward_context():  # the trainer has its own back
        assert torch.is_autocast_enabled("cpu")


class ScalerOnly(MixedPrecision):
    """A loss scaler without autocast: what 16-mixed on a GPU does to gradients, on a CPU."""

    def __init__(self, scale=65536.0):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    def forward_context(self):
        return contextlib.nullcontext()


def test_a_loss_scaler_changes_nothing(tiny_model, data, tmp_path):
    adapters = []
    for plugins in ([], [ScalerOnly()]):  # powers of two: bitwise
        module = grpo(tiny_model, optimizer=sgd, max_grad_norm=0.5)
        trainer(tmp_path, max_steps=2, plugins=plugins).fit(module, data)
        adapters.append(adapter_of(module))
    assert_same(*adapters)


class Overflow(Callback):
    """Makes the first step's gradient infinite."""

    def __init__(self):
        self.adapters = []

    def on_after_backward(self, trainer, pl_module):
        if not self.adapters:
            next(iter(pl_module.policy.trainable_parameters().values())).grad.fill_(float("inf"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.adapters.append(adapter_of(pl_module))


def test_a_loss_scaler_leaves_out_a_step_that_overflows_until_its_scale_is_one(tiny_model, data, tmp_path):
    overflow, plugin = Overflow(), ScalerOnly()
    module = grpo(tiny_model, optimizer=sgd)
    trainer(tmp_path, max_steps=2, plugins=[plugin], callbacks=[overflow]).fit(module, data)
    first, second = overflow.adapters
    assert all(not value.any() for name, value in first.items() if "lora_B" in name)
    assert any(value.any() for name, value in second.items() if "lora_B" in name)
    assert plugin.scaler.get_scale() == 32768
    with pytest.raises(FloatingPointError, match="the gradient of rollout step 0 is not finite"):
        trainer(tmp_path, plugins=[ScalerOnly(1.0)], callbacks=[Overflow()]).fit(grpo(tiny_model), data)


def test_an_optimiser_that_unscales_by_itself_is_refused(tiny_model, data, tmp_path, no_model):
    module = grpo(tiny_model, optimizer=lambda p: AdamW(p, fused=True))
    with pytest.raises(UserError, match="write fused: false"):
        trainer(tmp_path, plugins=[ScalerOnly()]).fit(module, data)


# ---------------------------------------------------------------- averages of weights


class Watch(Callback):
    """Keeps the weights after each step, and in validation the weights and how far sampling is from them."""

    def __init__(self):
        self.steps, self.validated, self.differences = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(adapter_of(pl_module))

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.validated.append(adapter_of(pl_module))
        rollout = LocalEngine(6).generate(pl_module.policy, PromptBatch(["people"]), 4, 0)
        difference = (rollout.logprobs - pl_module.policy.logprobs(rollout)).abs()
        self.differences.append(float(difference[rollout.completion_mask].max()))


def averages(steps, decay=0.5):
    """The average by hand: the first weights, then ``decay * average + (1 - decay) * weights``."""
    average = steps[0]
    yield average
    for weights in steps[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
        yield average


def close(first, second):
    return all(torch.allclose(first[name], second[name], atol=1e-6) for name in second)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_an_average_of_weights_reaches_sampling_checkpoints_and_export(tiny_model, data, tmp_path):
    def fit(max_steps, **options):
        watch = Watch()
        keep = ModelCheckpoint(tmp_path / "c", "{step}", every_n_train_steps=1, save_top_k=-1)
        callbacks = [EMAWeightAveraging(decay=0.5), watch, AdapterExport(str(tmp_path / "adapter")), keep]
        module = grpo(tiny_model, optimizer=sgd)
        run_of = trainer(
            tmp_path, max_steps=max_steps, max_epochs=-1, callbacks=callbacks, enable_checkpointing=True,
            limit_val_batches=1, val_check_interval=1,
        )  # fmt: skip
        run_of.fit(module, data, **options)
        return watch, adapter_of(module)

    watch, final = fit(3)
    by_hand = list(averages(watch.steps))
    for validated, average in zip(watch.validated, by_hand, strict=True):
        assert close(validated, average)
    assert not close(watch.validated[-1], watch.steps[-1])
    assert max(watch.differences) < 1e-4
    assert close(final, by_hand[-1])
    exported = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(
        torch.equal(value, final[f"lm.{name.replace('.weight', '.default.weight')}"])
        for name, value in exported.items()
    )

    content = read(tmp_path / "c" / "step=2.ckpt")
    kept, live = ({name.removeprefix("policy."): value for name, value in content[key].items()}
                  for key in ("state_dict", "current_model_state"))  # fmt: skip
    assert close(kept, by_hand[1])
    assert_same(live, watch.steps[1])

    resumed, other = fit(3, ckpt_path=tmp_path / "c" / "step=2.ckpt")
    assert_same(resumed.steps[0], watch.steps[2])
    assert_same(other, final)
    with pytest.raises(UserError, match="average over steps"):
        trainer(tmp_path).fit(grpo(tiny_model, optimizer=sgd), data, ckpt_path=tmp_path / "c" / "step=2.ckpt")


def test_a_checkpoint_from_the_middle_of_validation_is_not_swapped(tiny_model):
    policy = loaded(tiny_model)
    module = grpo(tiny_model, policy=policy)
    averaging = AdapterAveraging(EMAWeightAveraging(decay=0.5))
    run_of = trainer(None)
    run_of.state.fn = "fit"
    averaging.on_fit_start(run_of, module)
    before = adapter_of(module)
    perturb(policy)
    trained = adapter_of(module)
    averaging.on_validation_epoch_start(run_of, module)
    checkpoint = {}
    averaging.on_save_checkpoint(run_of, module, checkpoint)
    average, live = ({name.removeprefix("policy."): value for name, value in checkpoint[key].items()}
                     for key in ("state_dict", "current_model_state"))  # fmt: skip
    assert_same(average, before)
    assert_same(live, trained)


@pytest.mark.parametrize("decoder", ["lean", "hugging_face"])
def test_sampling_notices_weights_that_change_unseen(tiny_model, decoder):
    policy, engine = loaded(tiny_model), LocalEngine(6, decoder=decoder)
    engine.generate(policy, PromptBatch(["people"]), 4, 0)
    for parameter in policy.trainable_parameters().values():
        parameter.data.add_(0.1)  # no version counter sees that
    rollout = engine.generate(policy, PromptBatch(["people"]), 4, 0)
    difference = (rollout.logprobs - policy.logprobs(rollout)).abs()
    assert float(difference[rollout.completion_mask].max()) < 1e-4


# ---------------------------------------------------------------- schedules that watch a metric


class Constant(Reward):
    def score(self, batch):
        return [1.0] * len(batch)


class Rates(Callback):
    """Notes the learning rate before each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, *args):
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("monitor", ["reward", "eval_reward"])
def test_a_plateau_lowers_the_learning_rate(tiny_model, data, tmp_path, monitor):
    """With patience 0 the first value is the best, and each one that is no better halves the rate."""
    rates = Rates()
    module = grpo(
        tiny_model,
        rewards={"constant": Constant()},
        optimizer=lambda p: SGD(p, lr=1.0),
        lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor=monitor, mode="max", factor=0.5, patience=0),
    )
    options = {"max_epochs": -1, "limit_val_batches": 1, "val_check_interval": 1}
    trainer(tmp_path, callbacks=[rates], **options).fit(module, data)
    assert rates.values == [1.0, 1.0, 0.5, 0.25]


def test_a_metric_that_is_not_there_is_named(tiny_model, data, tmp_path):
    module = grpo(tiny_model, lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="rewardd"))
    with pytest.raises(UserError, match="no metric 'rewardd' to monitor; did you mean 'reward'"):
        trainer(tmp_path).fit(module, data)


# ---------------------------------------------------------------- overfit_batches


@pytest.mark.parametrize(("batches", "expected"), [(1, 1), (0.5, 1), (2, 2)])
def test_overfitting_sees_the_same_batches_again_and_again(tiny_model, data, tmp_path, batches, expected):
    class Seen(Callback):
        def __init__(self):
            self.batches = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batches.append(tuple(batch.texts))

    seen, data = Seen(), PromptDataModule(data.path, batch_size=4, val_splits=None)
    options = {"max_steps": 4, "max_epochs": -1, "overfit_batches": batches, "callbacks": [seen]}
    trainer(tmp_path, **options).fit(grpo(tiny_model), data)
    first = [tuple(f"people from {place} are" for place in places) for places in ("abcd", "efgh")]
    assert seen.batches == [first[step % expected] for step in range(4)]
