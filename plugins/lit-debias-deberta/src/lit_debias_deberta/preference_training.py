"""Training of a preference mixture: ``lit-debias fit -c configs/preference_mixture.yaml``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from lit_debias.plugins import Precision, UserError, rank, seed_at, seed_of_rank, seed_of_run, world_size
from lit_debias_deberta.checkpoint import TEST, write_json
from lit_debias_deberta.encoder_module import EncoderModule
from lit_debias_deberta.losses import preference_loss
from lit_debias_deberta.mixture import (
    Assignment,
    Start,
    fill_empty,
    log_likelihood,
    responsibilities,
    shares,
    start_weights,
)
from lit_debias_deberta.mixture_folder import check_mixture, check_mixture_free, head_names, load_mixture, save_mixture
from lit_debias_deberta.pairs import Pairs, held_out_figures, prior_of, round_figures
from lit_debias_deberta.search import Search, Trial
from lit_debias_deberta.tables import mixture_tables

STATE = "preference_mixture"
"""Key of the trials in a checkpoint."""


class PreferenceMixture(EncoderModule):
    """Reward models of people who disagree: expectation-maximisation over users' preferences (arXiv 2402.08925).

    K heads on one encoder are the rewards of K groups of users. A round trains them on all pairs, each head weighted
    with how much the pair's user belongs to its group, and then assigns the users anew; the learning rate rises and
    falls in each round. A trial ends where no user changes groups, or after ``rounds``; training ends by itself after
    the last trial, so write ``trainer.max_epochs: -1``. ``groups: 1`` is a Bradley-Terry reward model.

    The data are those of ``PreferenceDataModule``. At the end ``out`` holds ``reward_0`` to ``reward_{K-1}``, which
    ``DebertaPreference`` scores with, ``assignments.jsonl`` with a line for each user, and ``mixture.json`` with the
    figures. Scores of different groups are comparable: 0.5 is each one's mean over the training responses, and a
    standard deviation above it is 0.73. Where the data have a column ``group``, purity is logged as ``em/purity``.

    Args:
        out: Folder for the rewards; a mixture that is there is replaced.
        encoder: Hub id, local folder, or ``pkg://PACKAGE/PATH``; the encoder of a reward model is trained further.
        groups: K; of several, that is kept whose log-likelihood of the validation pairs is the highest.
        assignment: ``hard`` gives a user wholly to the likeliest reward, as the paper does; ``soft`` by posterior.
        start: ``shuffled`` deals users to groups in a seeded order, ``in_turn`` in that of the data.
        restarts: Trials of each K, from other starts; the one with the highest log-likelihood is kept.
        rounds: Rounds of a trial at most.
        epochs: Epochs in a round.
        tolerance: With ``soft``, a weight that moves by no more has not changed.
        max_length: Tokens of prompt and response together.
        trainable_layers: Train only so many of the highest encoder layers; null trains the embeddings too.
        dropout: In the heads, in [0, 1).
        optimizer: Builds the optimiser from the parameters that train; by default AdamW with the learning rate 2e-5.
        warmup: Share of a round's steps in which the learning rate rises; it falls to 0 in the rest.
        bucket_size: Texts in one forward pass, alike in length so that little is padded, which suits a CPU; null
            reads a whole batch at once, which suits a GPU. The loss is the same.
        precision: Type of the encoder's products, whatever the trainer's precision says; weights and heads are float32.
            ``auto`` is bfloat16 where the device has instructions for it, and float32 elsewhere.
        seed: Seeds starts, new heads and dropout; null takes the seed of ``seed_everything``.

    Raises:
        UserError: an argument is out of range, ``encoder`` names nothing, or ``out`` holds something else; in
            ``setup``, the data do not suit.
    """

    def __init__(
        self,
        out: str,
        encoder: str = "microsoft/deberta-v3-base",
        groups: int | list[int] = 2,
        assignment: Assignment = "hard",
        start: Start = "shuffled",
        restarts: int = 1,
        rounds: int = 10,
        epochs: int = 1,
        tolerance: float = 1e-3,
        max_length: int = 256,
        trainable_layers: int | None = None,
        dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        warmup: float = 0.1,
        bucket_size: int | None = None,
        precision: Precision = "auto",
        seed: int | None = None,
    ) -> None:
        super().__init__(encoder, max_length, trainable_layers, dropout, optimizer, warmup, bucket_size, precision)
        sizes = sorted({groups} if isinstance(groups, int) else set(groups))
        if not sizes or min(*sizes, restarts, rounds, epochs) < 1 or not tolerance >= 0:
            raise UserError(
                f"PreferenceMixture: groups={groups}, restarts={restarts}, rounds={rounds}, epochs={epochs}, "
                f"tolerance={tolerance}; write at least 1, and a tolerance of at least 0"
            )
        check_mixture_free(Path(out))
        self.out, self.sizes, self.restarts = Path(out), sizes, restarts
        self.assignment, self.start, self.tolerance, self.seed = assignment, start, tolerance, seed_of_run(seed)
        self.rounds, self.epochs = rounds, epochs
        self.search = Search.over(sizes, restarts)
        self.pairs: dict[str, Pairs] = {}
        self.number: dict[str, int] = {}
        self.steps_per_round = 0
        self.initial: dict[str, Tensor] = {}
        self.held: list[tuple[list[int], Tensor]] = []

    def setup(self, stage: str) -> None:
        """Check what a stage needs before a model is loaded.

        Raises:
            UserError: the data are no preferences, or of too few users; or there is no trained mixture to measure.
        """
        self.check_trainer()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(data, "in_order"):
            raise UserError("data: PreferenceMixture reads who chose what; write class_path: PreferenceDataModule")
        self.pairs = {role: _pairs(rows) for role, rows in data.rows.items() if rows is not None}
        if stage == "fit":
            self._check_fit()
        else:
            self.network = None
            check_mixture(self.out)

    def _check_fit(self) -> None:
        train = self.pairs["train"]
        if len(train.users) < self.sizes[-1]:
            raise UserError(f"data: {len(train.users)} users are fewer than groups={self.sizes[-1]}; write fewer")
        if len(self.sizes) > 1 and "validation" not in self.pairs:
            raise UserError(
                f"groups={self.sizes}: held-out pairs decide which one is kept, and the data have no split "
                "'validation'; name one with data.init_args.val_split, or write one number of groups"
            )
        if any(isinstance(c, WeightAveraging) for c in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "trainer.callbacks: an average of weights would run over several starts; leave WeightAveraging out"
            )
        self.number = {user: index for index, user in enumerate(train.users)}

    def configure_model(self) -> None:
        """Load the encoder to train, or the trained mixture in any other stage; once."""
        if self.network is not None:
            return
        if self.trainer.state.fn != "fit":
            saved = load_mixture(self.out)
            self.network, self.search.weights = saved.network, saved.weights
            self.number = {user: index for index, user in enumerate(saved.users)}
            return
        self.network = self.build(head_names(self.sizes[-1]))
        parameters = self.network.encoder.named_parameters()
        self.initial = {name: p.detach().clone() for name, p in parameters if p.requires_grad}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser; its learning rate rises and falls linearly in each round."""
        self.trainer.fit_loop.setup_data()
        batches = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        if not math.isfinite(batches):
            raise UserError("PreferenceMixture reads all pairs in an epoch; write trainer.limit_train_batches: 1.0")
        self.steps_per_round = steps = self.epochs * math.ceil(batches)
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        schedule = LambdaLR(optimizer, lambda step: _rise_and_fall(step % steps, steps, round(self.warmup * steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---------------------------------------------------------------- steps

    @property
    def weights(self) -> Tensor:
        """[U, K] float64, how much each user belongs to each group of the trial that runs."""
        assert self.search.weights is not None, "no trial has begun"
        return self.search.weights

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of N pairs; dropout depends on the step alone, so that a resumed run draws the same."""
        torch.manual_seed(seed_of_rank(seed_at(self.seed, self.global_step)))
        chosen, rejected = self._logits(batch)
        margins = chosen - rejected
        weights = self.weights[[self.number[user] for user in batch["user"]]].to(margins)
        spare = margins.shape[1] - weights.shape[1]  # heads of larger K, which must have a gradient on several devices
        loss = preference_loss(margins, F.pad(weights, (0, spare)))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(margins))
        return loss

    def _logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the logits [2, N, D] of the chosen and of the rejected responses."""
        logits: Tensor = self(batch["prompt"] * 2, batch["chosen"] + batch["rejected"])
        return torch.stack(logits.chunk(2))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Collect margins of held-out pairs."""
        chosen, rejected = self._logits(batch)[..., : self.weights.shape[1]]
        self.held.append((batch["pair"], (chosen - rejected).cpu()))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log how well the rewards say what held-out pairs prefer."""
        self._log_held_out("validation", "val")

    def on_test_epoch_end(self) -> None:
        """Log the same of the test pairs, and write it to ``test.json``."""
        figures = self._log_held_out("test", "test")
        if self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_json(self.out / TEST, {"data": self.data_path, "figures": figures})

    def _log_held_out(self, role: str, prefix: str) -> dict[str, float]:
        pairs = self.pairs[role]
        found = torch.zeros(len(pairs.user_of), self.weights.shape[1] + 1)  # the last column: whether it was seen
        for rows, margins in self.held:
            found[rows] = F.pad(margins, (0, 1), value=1.0)
        self.held.clear()
        found = self._sum(found)
        figures = self._figures(pairs, found[:, :-1], found[:, -1] > 0)
        # sync_dist: every rank holds the same figures already, and Lightning warns without it
        self.log_dict({f"{prefix}/{name}": value for name, value in figures.items()}, sync_dist=True)
        return figures

    def _figures(self, pairs: Pairs, margins: Tensor, seen: Tensor) -> dict[str, float]:
        prior = prior_of(pairs, list(self.number), self.weights, shares(self.weights))
        return held_out_figures(pairs, margins, seen, prior)

    def _sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks, on the CPU."""
        summed: Tensor = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        return summed.cpu()

    # ---------------------------------------------------------------- rounds and trials

    def on_fit_start(self) -> None:
        """Begin the first trial, unless a checkpoint goes on with one."""
        if self.search.weights is None:
            self._begin()
        if self.search.is_done:
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Assign the users where a checkpoint of a round's last step goes on; leave where all trials are done."""
        self._end_round()
        return -1 if self.search.is_done else None

    def on_train_epoch_end(self) -> None:
        """Assign the users where a round is over."""
        self._end_round()

    def on_train_end(self) -> None:
        """Take in the trial that runs where the trainer has ended it."""
        if not self.search.is_done and self.global_step > self.steps_per_round * self.search.rounds_before:
            done, planned = len(self.search.finished), len(self.search.plan)
            Console().print(f"training ended in trial {done + 1} of {planned}; it ends by itself with max_epochs: -1")
            logits, _ = self._assign()
            self._finish(logits)

    def _begin(self) -> None:
        """Put the network to its start, with heads of its own for each trial, and deal the users to groups."""
        assert self.network is not None
        groups, _ = self.search.current
        seed = seed_at(self.seed, len(self.search.finished))
        self.search.begin(start_weights(len(self.number), groups, self.start, seed))
        self.network.encoder.load_state_dict(self.initial, strict=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in self.network.heads.modules():
                if isinstance(part, nn.Linear):
                    part.reset_parameters()
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def _end_round(self) -> None:
        """Assign the users anew where the last step of a round is done; end the trial where none has changed groups."""
        search = self.search
        if search.is_done or self.global_step < self.steps_per_round * (search.rounds_before + search.rounds + 1):
            return
        search.rounds += 1
        logits, figures = self._assign()
        how: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
        self.log_dict({"em/round": float(search.rounds), **figures}, **how)
        if search.rounds == self.rounds or not figures["em/changed"]:
            self._finish(logits)

    def _assign(self) -> tuple[Tensor, dict[str, float]]:
        """Assign the users anew, the E step; return the logits [2, N, K] of all training pairs, and figures."""
        logits, train, before = self._read("train"), self.pairs["train"], self.weights
        likelihood = train.likelihood(logits[0] - logits[1])
        weights = responsibilities(likelihood, shares(before), self.assignment)
        self.search.weights = fill_empty(weights, likelihood, train.counts)
        return logits, round_figures(train, likelihood, before, self.weights, self.tolerance)

    def _read(self, role: str) -> Tensor:
        """Return the logits [2, N, K] float32 of all pairs of a role, without dropout; ranks share the batches."""
        assert self.network is not None
        data, most = self.trainer.datamodule, 1 if self.trainer.fast_dev_run else None  # type: ignore[attr-defined]
        logits = torch.zeros(2, len(self.pairs[role].user_of), self.weights.shape[1])
        was = self.network.training
        self.network.eval()
        with torch.no_grad():
            for number, batch in enumerate(islice(data.in_order(role), most)):
                if number % world_size() == rank():
                    logits[:, batch["pair"]] = self._logits(batch)[..., : logits.shape[2]].cpu()
        self.network.train(was)
        return self._sum(logits)

    def _finish(self, logits: Tensor) -> None:
        """Take in the trial that ran, with the users as they are assigned, and begin the next one."""
        assert self.network is not None
        held_out: dict[str, float] = {}
        if "validation" in self.pairs:
            chosen, rejected = self._read("validation")
            everything = torch.ones(len(chosen), dtype=torch.bool)
            held_out = self._figures(self.pairs["validation"], chosen - rejected, everything)
        groups, restart = self.search.current
        trained = {name: p.detach().cpu().clone() for name, p in self.network.named_parameters() if p.requires_grad}
        likelihood = self.pairs["train"].likelihood(logits[0] - logits[1])
        fit = log_likelihood(likelihood, shares(self.weights)) / logits.shape[1]
        spread = torch.stack([logits.flatten(0, 1).mean(0), logits.flatten(0, 1).std(0, correction=0)])
        trial = Trial(groups, restart, self.search.rounds, fit, held_out, self.weights, trained, spread)
        self.search.finish(trial)
        if self.search.is_done:
            self.trainer.should_stop = True
        else:
            self._begin()

    # ---------------------------------------------------------------- crashes, and the end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trials, and whose users they are of."""
        checkpoint[STATE] = {
            "options": self._options(),
            "users": list(self.number),
            "search": self.search.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the trials of a checkpoint.

        Raises:
            UserError: it is of another kind of run, of other options or of other users.
        """
        if self.trainer.state.fn != "fit":
            raise UserError("PreferenceMixture is measured as it stands in model.out; leave --ckpt_path out")
        if STATE not in checkpoint:
            raise UserError("the checkpoint is of another module than PreferenceMixture; write one of its own")
        state = checkpoint[STATE]
        for name, value in self._options().items():
            if state["options"][name] != value:
                raise UserError(f"the checkpoint is of {name}={state['options'][name]}, not {value}; write the same")
        if state["users"] != list(self.number):
            raise UserError("the checkpoint is of other users; resume with the same data")
        self.search.load_state_dict(state["search"])

    def _options(self) -> dict[str, Any]:
        names = ("sizes", "restarts", "assignment", "start", "rounds", "epochs", "seed")
        return {name: getattr(self, name) for name in names}

    def on_fit_end(self) -> None:
        """Write the best trial and print the figures, on the first rank; a ``fast_dev_run`` leaves nothing."""
        trial = self.search.chosen()
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run or trial is None:  # type: ignore[attr-defined]
            return
        assert self.network is not None
        self.network.load_state_dict(trial.parameters, strict=False)
        self.search.weights = trial.weights
        about = {"encoder": self.source, "data": self.data_path, "assignment": self.assignment}
        about |= save_mixture(self.network, trial, self.search.finished, self.pairs["train"], self.out, about)
        Console().print(*mixture_tables(about, f"{self.source} -> {self.out}"), sep="\n")


def _pairs(rows: Any) -> Pairs:
    return Pairs.of(rows["user"], rows["group"] if "group" in rows.column_names else None)


def _rise_and_fall(step: int, steps: int, rise: int) -> float:
    """Return the learning rate's factor at a step of a round, as transformers' linear schedule has it."""
    return step / rise if step < rise else (steps - step) / max(1, steps - rise)
