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
        return LIES[(self.calls // 2 - 1) % len(LIES)](batch.completions)


LIES = [
    lambda texts: [1.0] * (len(texts) - 1) + [float("nan")],
    lambda texts: ["1.0"] + [1.0] * (len(texts) - 1),
    lambda texts: [1.0] * (len(texts) + 1),
    lambda texts: Longer([1.0] * (len(texts) - 1)),
    lambda texts: [1.0] * (len(texts) - 1) + [Number("inf")],
    lambda texts: dict.fromkeys(texts, 1.0),
    lambda texts: texts.clear(),
]


@hookimpl
def lit_debias_rewards():
    return [Integrity]
