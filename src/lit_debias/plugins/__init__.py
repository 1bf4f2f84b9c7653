"""What authors of rewards, aggregators and engines use; docs/plugins.md explains each name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_debias.support.lazy import importer

if TYPE_CHECKING:
    from lit_debias.aggregators.aggregator import Aggregator
    from lit_debias.errors import ResumableError, UserError, cause_of, did_you_mean
    from lit_debias.models.language_model import LanguageModel
    from lit_debias.models.loading import load_encoder, load_tokenizer, loading
    from lit_debias.models.sentence_encoder import SentenceEncoder
    from lit_debias.models.sources import check_model, locate, resolve
    from lit_debias.plugins.manager import hookimpl
    from lit_debias.policy.policy import Policy
    from lit_debias.rewards.contract import examine
    from lit_debias.rewards.explanation import ExplainingReward, Explanation
    from lit_debias.rewards.identity import UnknownIdentityError, described
    from lit_debias.rewards.reward import Reward, RewardBatch
    from lit_debias.rewards.score_file import ScoreFile
    from lit_debias.rollout.engine import RolloutEngine, RolloutUnderWay, enough
    from lit_debias.support.atomic import new_folder, write_text
    from lit_debias.support.distributed import rank, world_size
    from lit_debias.support.endpoint import NO_KEY, api_key, check_endpoint, is_busy, refusal
    from lit_debias.support.files import parse_json, read_jsonl, read_text, read_yaml
    from lit_debias.support.hashing import sha256
    from lit_debias.support.packages import PACKAGE_SCHEME
    from lit_debias.support.precision import Precision, dtype_of
    from lit_debias.support.requirement import Requirement
    from lit_debias.support.seeds import seed_at, seed_of_rank, seed_of_run
    from lit_debias.support.text import APOSTROPHE, counted, distinct_credit, is_refusal, printable, words
    from lit_debias.types import PromptBatch, Rollout, Scores, Support

MODULES = {
    "Aggregator": "lit_debias.aggregators.aggregator",
    "ResumableError": "lit_debias.errors",
    "UserError": "lit_debias.errors",
    "cause_of": "lit_debias.errors",
    "did_you_mean": "lit_debias.errors",
    "LanguageModel": "lit_debias.models.language_model",
    "load_encoder": "lit_debias.models.loading",
    "load_tokenizer": "lit_debias.models.loading",
    "loading": "lit_debias.models.loading",
    "SentenceEncoder": "lit_debias.models.sentence_encoder",
    "check_model": "lit_debias.models.sources",
    "locate": "lit_debias.models.sources",
    "resolve": "lit_debias.models.sources",
    "hookimpl": "lit_debias.plugins.manager",
    "Policy": "lit_debias.policy.policy",
    "examine": "lit_debias.rewards.contract",
    "ExplainingReward": "lit_debias.rewards.explanation",
    "Explanation": "lit_debias.rewards.explanation",
    "UnknownIdentityError": "lit_debias.rewards.identity",
    "described": "lit_debias.rewards.identity",
    "Reward": "lit_debias.rewards.reward",
    "RewardBatch": "lit_debias.rewards.reward",
    "ScoreFile": "lit_debias.rewards.score_file",
    "RolloutEngine": "lit_debias.rollout.engine",
    "RolloutUnderWay": "lit_debias.rollout.engine",
    "enough": "lit_debias.rollout.engine",
    "new_folder": "lit_debias.support.atomic",
    "write_text": "lit_debias.support.atomic",
    "rank": "lit_debias.support.distributed",
    "world_size": "lit_debias.support.distributed",
    "NO_KEY": "lit_debias.support.endpoint",
    "api_key": "lit_debias.support.endpoint",
    "check_endpoint": "lit_debias.support.endpoint",
    "is_busy": "lit_debias.support.endpoint",
    "refusal": "lit_debias.support.endpoint",
    "parse_json": "lit_debias.support.files",
    "read_jsonl": "lit_debias.support.files",
    "read_text": "lit_debias.support.files",
    "read_yaml": "lit_debias.support.files",
    "sha256": "lit_debias.support.hashing",
    "PACKAGE_SCHEME": "lit_debias.support.packages",
    "Precision": "lit_debias.support.precision",
    "dtype_of": "lit_debias.support.precision",
    "Requirement": "lit_debias.support.requirement",
    "seed_at": "lit_debias.support.seeds",
    "seed_of_rank": "lit_debias.support.seeds",
    "seed_of_run": "lit_debias.support.seeds",
    "APOSTROPHE": "lit_debias.support.text",
    "counted": "lit_debias.support.text",
    "distinct_credit": "lit_debias.support.text",
    "is_refusal": "lit_debias.support.text",
    "printable": "lit_debias.support.text",
    "words": "lit_debias.support.text",
    "PromptBatch": "lit_debias.types",
    "Rollout": "lit_debias.types",
    "Scores": "lit_debias.types",
    "Support": "lit_debias.types",
}
"""Public name -> the module that defines it."""

__getattr__ = importer(__name__, MODULES)
__all__ = [
    "APOSTROPHE",
    "NO_KEY",
    "PACKAGE_SCHEME",
    "Aggregator",
    "ExplainingReward",
    "Explanation",
    "LanguageModel",
    "Policy",
    "Precision",
    "PromptBatch",
    "Requirement",
    "ResumableError",
    "Reward",
    "RewardBatch",
    "Rollout",
    "RolloutEngine",
    "RolloutUnderWay",
    "ScoreFile",
    "Scores",
    "SentenceEncoder",
    "Support",
    "UnknownIdentityError",
    "UserError",
    "api_key",
    "cause_of",
    "check_endpoint",
    "check_model",
    "counted",
    "described",
    "did_you_mean",
    "distinct_credit",
    "dtype_of",
    "enough",
    "examine",
    "hookimpl",
    "is_busy",
    "is_refusal",
    "load_encoder",
    "load_tokenizer",
    "loading",
    "locate",
    "new_folder",
    "parse_json",
    "printable",
    "rank",
    "read_jsonl",
    "read_text",
    "read_yaml",
    "refusal",
    "resolve",
    "seed_at",
    "seed_of_rank",
    "seed_of_run",
    "sha256",
    "words",
    "world_size",
    "write_text",
]
