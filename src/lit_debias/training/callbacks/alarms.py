"""Warns while a policy finds ways to earn its rewards that nobody meant."""

from __future__ import annotations

import sys
from statistics import fmean
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.text import Text

from lit_debias.errors import UserError, did_you_mean
from lit_debias.support import distributed
from lit_debias.training.callbacks.hacking import ALARMS, mean_over, measure
from lit_debias.training.grpo import GRPO


class RewardHackingAlarm(Callback):
    """Warn, and stop if you wish, where GRPO's rewards are being hacked.

    Each alarm logs a reading as ``alarms/<name>``, higher is worse, and prints a line when the reading crosses its bar;
    once, until it is back below.

    - ``dominance`` (bar 0.9): share of the advantages' variance that one reward accounts for
    - ``length`` (2.0): factor by which the mean length of completions grew or shrank
    - ``distinct_2`` (0.5): part of the variety of word pairs that is lost
    - ``duplicates`` (0.3): rise in the share of completions that repeat one of their group
    - ``copying`` (0.3): rise in the share of word trigrams that stand in the prompt
    - ``numerals`` (0.05): rise in the share of words that hold a digit, which are likely, varied, and offend nobody
    - ``refusals`` (0.2): rise in the share of completions that are empty or refuse
    - ``judges`` (0.05): fall of a judge from its best validation, if the reward has risen since then

    All but the last compare the mean over the latest rollouts with that over the first ones; values are means over
    ranks, so that all ranks decide alike.

    Args:
        warmup: First rollouts, with which later ones are compared.
        window: Latest rollouts that are averaged, so that one odd batch rings no bell.
        bars: Alarm -> bar, instead of those above; null silences the alarm.
        stop: Alarms that end the training, in order and with a checkpoint and an adapter as usual.

    Raises:
        UserError: there is no such alarm, or a number makes no sense.
    """

    def __init__(
        self,
        warmup: int = 5,
        window: int = 5,
        bars: dict[str, float | None] | None = None,
        stop: list[str] | None = None,
    ) -> None:
        if min(warmup, window) < 1:
            raise UserError(f"RewardHackingAlarm: warmup={warmup}, window={window}; write at least 1")
        self.warmup, self.window = warmup, window
        self.bars: dict[str, float | None] = {**{name: alarm.bar for name, alarm in ALARMS.items()}, **(bars or {})}
        self.stop = list(stop or [])
        self.values: dict[str, list[float]] = {}
        """Name -> values of the first ``warmup`` rollouts, then of the latest ``window``."""
        self.peaks: dict[str, list[float]] = {}
        """Judge -> its best mean, and the reward at that time."""
        self.ringing: set[str] = set()
        self._check()

    def _check(self) -> None:
        for name in [*self.bars, *self.stop]:
            if name not in ALARMS:
                raise UserError(f"RewardHackingAlarm: there is no alarm '{name}'{did_you_mean(name, ALARMS)}")
        for name, bar in self.bars.items():
            if bar is None and name in self.stop:
                raise UserError(f"RewardHackingAlarm: stop names '{name}', which bars silences; take out one of them")
            if bar is not None and not bar > 0:
                raise UserError(f"RewardHackingAlarm: the bar of '{name}' is {bar}; write a positive number, or null")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to wait for judges that are not there."""
        if "judges" in self.stop and isinstance(pl_module, GRPO) and not pl_module.judges.rewards:
            raise UserError("RewardHackingAlarm: stop names 'judges', and there are none; add model.init_args.judges")

    # ---------------------------------------------------------------- what is seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the rollout that was just trained on."""
        if not isinstance(pl_module, GRPO) or pl_module.experience is None:
            return
        for name, value in mean_over(distributed.gather_objects(measure(pl_module.experience))).items():
            row = self.values.setdefault(name, [])
            row.append(value)
            del row[self.warmup : -self.window]
            if len(row) == self.warmup + self.window:
                self._judge(trainer, pl_module, name, now=fmean(row[-self.window :]), before=fmean(row[: self.warmup]))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look whether a judge has fallen while the reward rose."""
        if not isinstance(pl_module, GRPO) or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        for name in pl_module.judges.rewards:
            if f"eval_judges/{name}/mean" not in metrics:  # it scored nothing
                continue
            now, reward = float(metrics[f"eval_judges/{name}/mean"]), float(metrics["eval_reward"])
            best, reward_then = self.peaks.get(name, [now, reward])
            self._judge(trainer, pl_module, f"judges/{name}", now, before=best if reward > reward_then else now)
            if now >= best:
                self.peaks[name] = [now, reward]

    # ---------------------------------------------------------------- what is said

    def _judge(self, trainer: Trainer, module: GRPO, name: str, now: float, before: float) -> None:
        kind = name.partition("/")[0]
        alarm, bar = ALARMS[kind], self.bars[kind]
        if bar is None:
            return
        reading = alarm.reading(now, before)
        module.log(f"alarms/{name}", reading, sync_dist=True, batch_size=1)
        if reading <= bar:
            self.ringing.discard(name)
        elif name not in self.ringing:
            self.ringing.add(name)
            step = f"rollout step {module.rollout_step}"
            went = f"{alarm.meaning} went from {before:.3g} to {now:.3g}"
            say(trainer, f"alarm at {step}: {name} {reading:.3g} is above its bar {bar:g}; {went}")
            if kind in self.stop:
                say(trainer, f"training stops at {step}: RewardHackingAlarm.stop names '{kind}'")
                trainer.should_stop = True

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what was seen so far, and which alarms ring."""
        values = {name: list(row) for name, row in self.values.items()}
        return {"values": values, "peaks": dict(self.peaks), "ringing": sorted(self.ringing)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self.values = {name: list(row) for name, row in state_dict["values"].items()}
        self.peaks = dict(state_dict["peaks"])
        self.ringing = set(state_dict["ringing"])


def say(trainer: Trainer, line: str) -> None:
    """Print a line on stderr, on the first rank; unlike a warning it has no file name around it and never repeats."""
    if trainer.is_global_zero:
        console = Console(stderr=True)
        with console.capture() as text:
            console.print(Text(line, style="bold yellow"), soft_wrap=True)
        print(text.get(), end="", file=sys.stderr)  # where a progress bar listens, and makes room above itself
