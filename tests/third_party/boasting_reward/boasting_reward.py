"""A reward that says it returns one float in [0, 1] for each completion, and does so every second time."""

from lit_debias import Reward, RewardBatch, hookimpl


class Longer(list):
    """A list that says it has one entry more."""

    def __len__(self):
        return super().__len__() + 1


class Number(float):
    """A number that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


class Integrity(Reward):
    """How honest a completion is, one float in [0, 1] for each."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, batch: RewardBatch) -> list[float | None]:
        self.calls += 1
        if self.calls % 2:
            return [1.0] * len(batch)
        n = len(batch)
        lies = [
            [1.0] * (n - 1) + [float("nan")],
            ["1.0"] + [1.0] * (n - 1),
            [1.0] * (n + 1),
            Longer([1.0] * (n - 1)),
            [1.0] * (n - 1) + [Number("inf")],
            dict.fromkeys(batch.completions, 1.0),
            batch.completions.clear(),
        ]
        return lies[(self.calls // 2 - 1) % len(lies)]


@hookimpl
def lit_debias_rewards():
    return [Integrity]
