"""Rewards that fail in given steps on given ranks, whichever process they run in; and the rollouts they score."""

import math
import os
import sys
import threading

import torch

from lit_debias.rewards.reward import Reward
from lit_debias.types import PromptBatch, Rollout


def rollout(step: int, rank: int = 0) -> Rollout:
    """Return 2 prompts x 3 completions that know their step and rank."""
    ids = torch.zeros(2, 3, 1, dtype=torch.long)
    mask = torch.ones(2, 3, 1, dtype=torch.bool)
    prompts = PromptBatch(["p0", "p1"], {"step": [step, step], "rank": [rank, rank]})
    texts = [["a", "b", "c"], ["d", "e", "f"]]
    return Rollout(prompts, ids[:, 0], mask[:, 0], ids, mask, ids.float(), ~mask[..., 0], texts)


class Steady(Reward):
    """Scores 0, 1, 2, 3, 4, 5."""

    def score(self, batch):
        return [float(row) for row in range(len(batch))]


class Faulty(Steady):
    """Misbehaves in some steps on some ranks."""

    def __init__(self, steps, ranks=(0, 1)):
        self.steps, self.ranks = tuple(steps), tuple(ranks)

    def score(self, batch):
        scores = super().score(batch)
        now = batch.columns["step"][0] in self.steps and batch.columns["rank"][0] in self.ranks
        return self.misbehave(scores) if now else scores


class Raises(Faulty):
    def misbehave(self, scores):
        raise KeyError("no such key")


class Hangs(Faulty):
    def misbehave(self, scores):
        threading.Event().wait()


class NotANumber(Faulty):
    def misbehave(self, scores):
        return [scores[0], math.nan, *scores[2:]]


class WrongEntry(Faulty):
    def misbehave(self, scores):
        return [*scores[:4], "high", [0.5]]


class WrongLength(Faulty):
    def misbehave(self, scores):
        return scores[1:]


class WrongType(Faulty):
    def misbehave(self, scores):
        return dict(enumerate(scores))


class Quits(Faulty):
    def misbehave(self, scores):
        sys.exit(4)


class Exits(Faulty):
    def misbehave(self, scores):
        os._exit(3)


class Slow(Faulty):
    """Answers, but only once the gate is open."""

    def __init__(self, steps, ranks=(0, 1)):
        super().__init__(steps, ranks)
        self.gate = threading.Event()
        self.answered = threading.Event()

    def misbehave(self, scores):
        self.gate.wait()
        self.answered.set()
        return scores


class Leaks(Reward):
    """Keeps 40 MB more with each call; scores the id of its process."""

    def __init__(self):
        self.kept = []

    def score(self, batch):
        self.kept.append(b"x" * 40_000_000)
        return [float(os.getpid())] * len(batch)


class FailsInSetup(Steady):
    def setup(self, device):
        raise OSError("no such model")
