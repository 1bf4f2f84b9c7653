"""A loop of rollouts with a guarded reward, as GRPO runs it; on one process, or as one of two.

Usage: python guard_worker.py RANK RENDEZVOUS OUT
"""

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
from faulty_rewards import Exits, Hangs, NotANumber, Raises, Slow, Steady, WrongLength, WrongType, rollout

from lit_debias.aggregators import WeightedSum
from lit_debias.rewards.guard import Guard, UnreliableRewardError
from lit_debias.rewards.suite import RewardSuite
from lit_debias.support import distributed

SCENARIOS = {
    "raises": (Raises([1, 2, 3], ranks=[0]), Guard(10, retries=0, open_after=3, open_for=2)),
    "hangs": (Hangs([1], ranks=[0]), Guard(0.5, open_for=2, max_error_rate=1)),
    "slow": (Slow([1], ranks=[0]), Guard(0.5, open_for=1)),
    "nan": (NotANumber([1], ranks=[0]), Guard(10)),
    "wrong length": (WrongLength([1], ranks=[0]), Guard(10)),
    "wrong type": (WrongType([1], ranks=[0]), Guard(10)),
    "exits": (Exits([1], ranks=[0]), Guard(10, retries=0, isolate=True)),
    "stops": (Raises([2, 3, 4, 5, 6], ranks=[0]), Guard(10, 0, open_after=9, max_error_rate=0.2, window=5)),
}


def play(scenario: str, rank: int, steps: int = 7) -> dict:
    """Return, for each step, which of this rank's 6 rows lack the faulty score, and what all ranks decided."""
    faulty, guard = SCENARIOS[scenario]
    suite = RewardSuite({"faulty": faulty, "steady": Steady()}, guards={"faulty": guard})
    suite.setup(torch.device("cpu"))
    aggregator = WeightedSum({"faulty": 1.0, "steady": 1.0}, scale="batch")
    guarded = suite.guarded["faulty"]
    told = {"lost": [], "open": [], "error_rates": [], "advantages": [], "stopped": None}
    for step in range(steps):
        if step == 3 and scenario == "slow" and rank == 0:
            faulty.gate.set()  # the call of step 1 answers now
            guarded.calls.call.thread.join()
        with distributed.fail_together():
            scores = suite.score(rollout(step, rank))
        try:
            suite.settle(scores)
        except UnreliableRewardError as error:
            told["stopped"] = [step, str(error)]
            break
        told["lost"].append("".join("x" if row else "." for row in scores.failed["faulty"].flatten().tolist()))
        told["open"].append(guarded.open_steps)
        told["error_rates"].append(guarded.error_rates[-1])
        told["advantages"].append(aggregator(scores, step).flatten().tolist())  # collective, as the update is
    return told


def main(rank: str, rendezvous: str, out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{rendezvous}", rank=int(rank), world_size=2, timeout=timedelta(seconds=120)
    )
    Path(out).write_text(json.dumps({name: play(name, int(rank)) for name in SCENARIOS}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
