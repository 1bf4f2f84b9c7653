"""What a step reports, under TRL's metric names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_debias.aggregators.aggregator import batch_means, batch_moments, scored
from lit_debias.grpo.advantages import zero_std_fraction
from lit_debias.grpo.loss import UpdateSize
from lit_debias.types import Experience, Rollout, Scores

OVER_RANKS = {
    "num_tokens": "sum",
    "tokens_per_second": "sum",
    "rollout_time": "max",
    "rollout_wait": "max",
    "step_time": "max",
    "completions/min_length": "min",
    "completions/max_length": "max",
    "sampling/sampling_logp_difference/max": "max",
}
"""How logging makes one value of those of all ranks, where that is not their mean."""


def of_rollout(rollout: Rollout, scores: Scores, total: Tensor, seconds: float) -> dict[str, float]:
    """Return the metrics of a scored rollout of this rank; :data:`OVER_RANKS` says how those of all become one.

    Means and standard deviations of scores are those over all ranks already (collective). A reward that scored nothing
    on any of them has none.

    Args:
        rollout: The rollout.
        scores: Its scores.
        total: [P, G] combined reward.
        seconds: Wall-clock time of generation.
    """
    tokens = float(rollout.lengths.sum())
    values = _rewards(scores, total) | _lengths(rollout)
    stds = torch.stack([_std(row) for row in total])
    values |= {
        "reward_std": float(stds.mean()),
        "frac_reward_zero_std": float(zero_std_fraction(total, scored(total), min_std=1e-6)),
        "num_tokens": tokens,
        "rollout_time": seconds,
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }
    return values | {f"rewards/{name}/latency": spent for name, spent in scores.seconds.items()}


def of_validation(rollout: Rollout, scores: Scores, judged: Scores, total: Tensor) -> dict[str, float]:
    """Return the metrics of greedy completions, as :func:`of_rollout`; nothing is trained on ``judges/<name>``."""
    judges = {f"judges/{name}/mean": mean for name, mean in batch_means(judged, tuple(judged.values)).items()}
    return _rewards(scores, total) | _lengths(rollout) | judges


def of_sampling(experience: Experience) -> dict[str, float]:
    """Return how far the log-probs of sampling are from those of the first update: the canary for wrong weights."""
    assert experience.old_logprobs is not None
    difference = (experience.old_logprobs - experience.rollout.logprobs).abs()[experience.loss_mask]
    name = "sampling/sampling_logp_difference"
    if difference.numel() == 0:
        return {f"{name}/mean": 0.0, f"{name}/max": 0.0}
    return {f"{name}/mean": float(difference.mean()), f"{name}/max": float(difference.max())}


def of_update(sums: Mapping[str, float], size: UpdateSize) -> dict[str, float]:
    """Return means per token, over all ranks, of the sums that the loss reported; and the loss itself."""
    # Logging averages over ranks, so this rank's share is scaled up to the whole.
    per_token = size.world_size / max(size.tokens, 1)
    means = {name: value * per_token for name, value in sums.items() if name != "loss"}
    return means | {"loss": sums["loss"] * size.world_size}


def _rewards(scores: Scores, total: Tensor) -> dict[str, float]:
    combined = batch_means(Scores({"reward": total}, {"reward": scored(total)}), ("reward",))
    values = {"reward": 0.0, **combined}  # always there: checkpoints are chosen by it
    for name, (mean, std) in batch_moments(scores, tuple(scores.values)).items():
        values |= {f"rewards/{name}/mean": mean, f"rewards/{name}/std": std}
    for name, valid in scores.valid.items():
        values[f"rewards/{name}/missing_rate"] = float((~valid).float().mean())
    for name, failed in scores.failed.items():
        values[f"rewards/{name}/error_rate"] = float(failed.float().mean())
    return values


def _std(values: Tensor) -> Tensor:
    """Return the standard deviation of what is there; a completion that nothing scored has a total of NaN."""
    present = values[scored(values)]
    return present.std() if present.numel() > 1 else present.new_zeros(())


def _lengths(rollout: Rollout) -> dict[str, float]:
    lengths = rollout.lengths.float()
    ended = lengths[~rollout.truncated]
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.float().mean()),
        "completions/mean_terminated_length": float(ended.mean()) if ended.numel() else 0.0,
    }
