"""LightningCLI with lit-debias's classes known by their short names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from rich.console import Console

from lit_debias import data  # noqa: F401
from lit_debias.cli.errors import one_line, user_error
from lit_debias.cli.help import mend, opening
from lit_debias.cli.leftovers import no_empty_logs
from lit_debias.cli.parser import Parser, config_files
from lit_debias.cli.values import check_names
from lit_debias.errors import LostProcessError, UserError, did_you_mean
from lit_debias.evaluation import callback  # noqa: F401  (its short name)
from lit_debias.plugins.manager import components, get_plugin_manager
from lit_debias.plugins.official import missing_plugin
from lit_debias.support import distributed
from lit_debias.support.files import read_yaml

# Imported for their short names in YAML.
from lit_debias.training import callbacks, dpo, grpo, sft  # noqa: F401
from lit_debias.training.adapter_module import AdapterModule
from lit_debias.training.callbacks import GracefulStop, ProgressLine, SlowSteps
from lit_debias.training.callbacks.progress import results_table
from lit_debias.training.checkpoints import REQUEUED, SafeCheckpointIO, resolve_last, resolve_restart
from lit_debias.training.machines import lost, meet
from lit_debias.training.sharding import adopt_strategy
from lit_debias.training.trainer_checks import check_strategy

# Lightning's Timer has a default that is both a text and an enum, which YAML's writer does not know.
yaml.SafeDumper.add_multi_representer(str, lambda dumper, value: dumper.represent_str(str(value)))

REWARD_HELP = re.compile(r"--model\.(?:init_args\.)?(rewards|judges)\.(?P<name>[\w-]+)\.help(?:=(?P<cls>[\w.]+))?")


class TrainingParser(Parser, LightningArgumentParser):
    """Lightning's parser with one-line errors."""


class SaveConfig(SaveConfigCallback):
    """Keeps the configuration in the run's folder, in the place of one that a run before left there."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the configuration.

        Raises:
            UserError: what is there was not written by a run.
        """
        file = Path(trainer.log_dir or "") / self.config_filename
        if file.is_file() and not file.read_text().startswith("# lightning.pytorch=="):
            raise UserError(f"{file} is not a run's, and would be lost; write another --trainer.default_root_dir")
        super().setup(trainer, pl_module, stage)


class TrainingCLI(LightningCLI):
    """``lit-debias fit | validate | test | predict``: any LightningModule and data module, from YAML."""

    def __init__(self, args: list[str]) -> None:
        self.command = args[0]
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the modules build their own from the adapter's parameters
            seed_everything_default=42,
            trainer_defaults={"callbacks": [GracefulStop(), SlowSteps()]},  # added to those of the configuration
            parser_class=TrainingParser,
            parser_kwargs={"prog": "lit-debias", self.command: opening(self.command)},
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that runs, alone: each has all options of a trainer, and takes a while to build."""
        return {self.command: super().subcommands()[self.command]}

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Build the parser, whose help Lightning takes from docstrings that are not made for it."""
        super().setup_parser(*args, **kwargs)
        mend(self._subcommand_parsers[self.command], self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse ``args``, which come from ``sys.argv`` themselves; Lightning warns that both are there."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            super().parse_arguments(parser, args)

    def instantiate_classes(self) -> None:
        """Build module, data and trainer; raise :class:`UserError` with the reason where a class refuses its options.

        A missing library is such a reason: Lightning's loggers ask for theirs when they are built.
        """
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
            if user_error(error) is None:
                raise UserError(one_line(str(error))) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer; its checkpoints are written safely unless its ``plugins`` name another way."""
        options = self.config_init[self.subcommand]["trainer"]
        check_names(options)
        named = options["callbacks"] if isinstance(options["callbacks"], list) else [options["callbacks"]]
        if options["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in named):
            self.trainer_defaults["callbacks"].append(ProgressLine())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
            raise UserError(f"trainer: {' '.join(str(error).split())}") from error
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = SafeCheckpointIO()
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it is: Lightning would let hyperparameters in a checkpoint change it."""

    def before_fit(self) -> None:
        """Find and read the checkpoint to go on from, before a model is loaded or Lightning starts a process."""
        if isinstance(self.model, AdapterModule):
            adopt_strategy(self.trainer)
            check_strategy(self.trainer)
        meet(self.trainer)
        given = self.config_init[self.subcommand]
        given["ckpt_path"] = path = self._checkpoint(given.get("ckpt_path"))
        if path and path.endswith(".ckpt"):
            SafeCheckpointIO().load_checkpoint(path)
            if isinstance(self.model, AdapterModule):
                self.model.resumes_from = path

        self.shows_results = bool(given.get("verbose"))
        given["verbose"] = False  # Lightning's table has 17 digits

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; one that ends before it began leaves no folder."""
        with no_empty_logs(self.trainer):
            super()._run_subcommand(subcommand)

    def _checkpoint(self, given: str | None) -> str | None:
        """Return the checkpoint of this run where it was started again, the one that is given, or ``last``.

        Without any of them, there may be what SLURM's requeueing left, which Lightning takes by itself: on each
        machine's own disk, and by its number, not its age.
        """
        if self.subcommand == "fit" and (own := resolve_restart(self.trainer)):
            return str(own)
        requeued = given is None and self.subcommand == "fit" and SLURMEnvironment.detect()
        if given != "last" and not requeued:
            return given and str(given)
        folder = Path(self.trainer.default_root_dir)
        if requeued and not distributed.of_first(lambda: any(folder.glob(REQUEUED))):
            return None
        found = resolve_last(self.trainer)
        if found is None and self.subcommand != "fit":
            raise UserError("--ckpt_path last: nothing has been saved yet; write the path of a checkpoint")
        return None if found is None else str(found)

    before_validate = before_test = before_predict = before_fit

    def after_validate(self) -> None:
        """Show the figures."""
        if self.shows_results and self.trainer.is_global_zero:
            figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            Console().print(results_table(str(self.subcommand), figures))

    after_test = after_validate


def run_trainer(args: list[str]) -> None:
    """Run ``[COMMAND, *OPTIONS]`` through Lightning, or print a reward's options."""
    for index, arg in enumerate(args):
        if match := REWARD_HELP.fullmatch(arg):
            following = args[index + 1] if index + 1 < len(args) and not args[index + 1].startswith("-") else None
            print(reward_help(match["name"], match["cls"] or following, args))
            return
    try:
        TrainingCLI(args)
    except Exception as error:
        if (gone := lost(error)) and user_error(error) is None:
            raise LostProcessError(gone) from error
        reason = _reason(error)
        if reason is None:
            raise
        raise UserError(reason) from error


def _reason(error: Exception) -> str | None:
    """Return what Lightning says of options that do not suit, None where it is something else."""
    text = " ".join(str(error).split())
    if isinstance(error, MisconfigurationException):
        return f"trainer: {text}"
    if isinstance(error, ModuleNotFoundError):
        return f"{text}; install it, or take out what asks for it"
    return f"trainer.callbacks: {text}" if text.startswith("Early stopping conditioned on metric") else None


def reward_help(name: str, class_name: str | None, args: Sequence[str]) -> str:
    """Return the options of the reward called ``name``.

    Args:
        name: The user's name of the reward.
        class_name: Its class; by default what the configuration files in ``args`` say.
        args: The command line.

    Raises:
        UserError: nothing says which class it is, or there is no such class.
    """
    class_name = class_name or _configured_class(name, args)
    rewards = {c.name: c.cls for c in components(get_plugin_manager()) if c.kind == "reward"}
    if class_name is None:
        raise UserError(f"no configuration file names a reward '{name}'; write --model.rewards.{name}.help CLASS")
    short = class_name.rpartition(".")[2]
    if short not in rewards:
        raise UserError(
            missing_plugin(short) or f"there is no reward class '{class_name}'{did_you_mean(short, rewards)}"
        )
    parser = Parser(prog=short, add_help=False, description=rewards[short].__doc__)
    parser.add_class_arguments(rewards[short], f"model.rewards.{name}.init_args")
    return str(parser.format_help())


def _configured_class(name: str, args: Sequence[str]) -> str | None:
    for file in config_files(args):
        config: Any = read_yaml(file, "configuration")
        for group in ("rewards", "judges"):
            reward = config
            for key in ("model", "init_args", group, name, "class_path"):
                reward = reward.get(key) if isinstance(reward, dict) else None
            if reward is not None:
                return str(reward)
    return None
