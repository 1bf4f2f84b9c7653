"""A preference mixture on disk: a reward model for each group, and who belongs to which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_debias.plugins import UserError, new_folder, read_jsonl, write_text
from lit_debias_deberta.calibration import Calibration
from lit_debias_deberta.checkpoint import Manifest, check_free, load_network, read_manifest, save_network, write_json
from lit_debias_deberta.mixture import shares
from lit_debias_deberta.network import RewardNetwork
from lit_debias_deberta.pairs import Pairs
from lit_debias_deberta.search import Trial

MARK = "mixture.json"
ASSIGNMENTS = "assignments.jsonl"
PREFERENCE = "preference"
"""The head of each group's reward model."""


def head_names(groups: int) -> list[str]:
    """Return the heads of a network with K groups."""
    return [f"group_{group}" for group in range(groups)]


def reward_folder(out: Path, group: int) -> Path:
    """Return the reward model of a group."""
    return out / f"reward_{group}"


def check_mixture_free(out: Path) -> None:
    """Raise :class:`UserError` where saving to ``out`` would remove something that is no preference mixture."""
    check_free(out, MARK, "a preference mixture")


def alike(spread: Tensor) -> list[Calibration]:
    """Return calibrations that make the K rewards comparable.

    Bradley-Terry knows rewards up to a constant. Here 0.5 is a group's mean over the training responses, and
    sigmoid(1) what lies a standard deviation above.

    Args:
        spread: [2, K] mean and standard deviation of each reward.
    """
    return [Calibration(deviation or 1.0, -mean / (deviation or 1.0)) for mean, deviation in spread.T.tolist()]


def save_mixture(
    network: RewardNetwork,
    trial: Trial,
    trials: Sequence[Mapping[str, Any]],
    pairs: Pairs,
    out: Path,
    about: Mapping[str, str],
) -> dict[str, Any]:
    """Write the folder ``out``, all or nothing, and return what ``mixture.json`` says; a mixture there is replaced.

    Args:
        network: With the trial's parameters, and a head for each of at least K groups.
        trial: The one that is kept.
        trials: Figures of all trials.
        pairs: The training pairs.
        out: The folder.
        about: Names of ``encoder`` and ``data``, and whatever else is to be said.

    Raises:
        UserError: ``out`` holds something else.
    """
    check_mixture_free(out)
    rows = assignment_rows(pairs, trial.weights)
    found = {**about, **trial.summary(), "shares": shares(trial.weights).tolist()}
    found |= {"users": len(rows), "pairs": len(pairs.user_of), "purity": pairs.purity(trial.weights.argmax(1))}
    found |= {"held_out": trial.held_out, "trials": list(trials)}
    with new_folder(out) as work:
        for group, (name, calibration) in enumerate(zip(head_names(trial.groups), alike(trial.spread), strict=True)):
            network.calibration[name] = calibration
            manifest = _manifest(network, about, trial)
            save_network(network.alone(name, PREFERENCE), manifest, reward_folder(work, group))
        write_text(work / ASSIGNMENTS, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
        write_json(work / MARK, found)
    return found


def _manifest(network: RewardNetwork, about: Mapping[str, str], trial: Trial) -> Manifest:
    return Manifest(
        dimensions=[PREFERENCE],
        max_length=network.max_length,
        base_model=about["encoder"],
        data=about["data"],
        metrics={f"val/{name}": value for name, value in trial.held_out.items()},
        versions={name: version(name) for name in ("lit-debias", "torch", "transformers")},
    )


def assignment_rows(pairs: Pairs, weights: Tensor) -> list[dict[str, Any]]:
    """Return a row for each user: group, weights [K], number of pairs, and the known group where there is one."""
    counts = pairs.counts.tolist()
    return [
        {"user": user, "reward": int(row.argmax()), "weights": row.tolist(), "pairs": count}
        | ({} if known is None else {"group": known})
        for user, row, count, known in zip(pairs.users, weights, counts, pairs.groups, strict=True)
    ]


@dataclass(frozen=True)
class SavedMixture:
    """What ``out`` says."""

    network: RewardNetwork
    """With K heads, in evaluation mode."""
    users: list[str]
    """[U]."""
    weights: Tensor
    """[U, K] float64."""


def check_mixture(out: Path) -> None:
    """Raise :class:`UserError` where there is no mixture."""
    if not (out / MARK).is_file():
        raise UserError(f"there is no preference mixture in '{out}'; train one, or write its folder as model.out")


def load_mixture(out: Path) -> SavedMixture:
    """Read a mixture.

    Raises:
        UserError: a part of it is missing.
    """
    rows = [row for _, row in read_jsonl(out / ASSIGNMENTS, "assignments")]
    weights = torch.tensor([row["weights"] for row in rows], dtype=torch.float64)
    for group in range(weights.shape[1]):
        read_manifest(reward_folder(out, group))
    parts = [load_network(reward_folder(out, group)) for group in range(weights.shape[1])]
    return SavedMixture(_joined(parts), [row["user"] for row in rows], weights)


def _joined(parts: Sequence[RewardNetwork]) -> RewardNetwork:
    """Return a network with the heads of all parts, whose encoders are alike."""
    first, names = parts[0], head_names(len(parts))
    network = RewardNetwork(first.encoder, first.tokenizer, names, first.max_length, pooling=first.pooling)
    for name, part in zip(names, parts, strict=True):
        network.heads[name], network.calibration[name] = part.heads[PREFERENCE], part.calibration[PREFERENCE]
    return network.eval()
