"""lit-debias: de-bias language models with multi-reward GRPO on Lightning."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from lit_debias.support import threads
from lit_debias.support.lazy import importer

if TYPE_CHECKING:
    from lit_debias.aggregators import (
        GDPO,
        Aggregator,
        Gated,
        GeometricMean,
        GroupMaxMin,
        Lagrangian,
        LowerConfidenceBound,
        MaxMin,
        WeightedSum,
        WorstCase,
    )
    from lit_debias.data.preference_data import PreferenceDataModule
    from lit_debias.data.prompt_data import PromptDataModule
    from lit_debias.data.response_data import ResponseDataModule
    from lit_debias.errors import UserError
    from lit_debias.evaluation import evaluate
    from lit_debias.evaluation.callback import EvaluationCallback
    from lit_debias.grpo.correction import ImportanceCorrection
    from lit_debias.grpo.loss import BNPOLoss, CISPOLoss, DAPOLoss, DrGRPOLoss, GRPOLoss, GSPOLoss
    from lit_debias.plugins.manager import hookimpl
    from lit_debias.policy.policy import Policy
    from lit_debias.policy.recipe import QLoRAPolicy
    from lit_debias.rewards.overlong import SoftOverlong
    from lit_debias.rewards.reward import Reward, RewardBatch
    from lit_debias.rollout.local import LocalEngine
    from lit_debias.synthetic.synthesis import synthesize
    from lit_debias.training.anchor import ProseAnchor
    from lit_debias.training.callbacks import (
        AdapterExport,
        CompletionTable,
        GracefulStop,
        PredictionFile,
        RewardHackingAlarm,
        SlowSteps,
    )
    from lit_debias.training.dpo import DPO
    from lit_debias.training.dynamic_sampling import DynamicSampling
    from lit_debias.training.grpo import GRPO
    from lit_debias.training.sft import SFT

threads.settle()  # before anybody loads torch, which asks once how its threads are to wait

try:
    __version__ = version("lit-debias")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

MODULES = {
    **dict.fromkeys(
        ("BNPOLoss", "CISPOLoss", "DAPOLoss", "DrGRPOLoss", "GRPOLoss", "GSPOLoss"), "lit_debias.grpo.loss"
    ),
    **dict.fromkeys(
        (
            *("Aggregator", "GDPO", "Gated", "GeometricMean", "GroupMaxMin", "Lagrangian", "LowerConfidenceBound"),
            *("MaxMin", "WeightedSum", "WorstCase"),
        ),
        "lit_debias.aggregators",
    ),
    **dict.fromkeys(
        ("AdapterExport", "CompletionTable", "GracefulStop", "PredictionFile", "RewardHackingAlarm", "SlowSteps"),
        "lit_debias.training.callbacks",
    ),
    "DPO": "lit_debias.training.dpo",
    "DynamicSampling": "lit_debias.training.dynamic_sampling",
    "EvaluationCallback": "lit_debias.evaluation.callback",
    "GRPO": "lit_debias.training.grpo",
    "ImportanceCorrection": "lit_debias.grpo.correction",
    "LocalEngine": "lit_debias.rollout.local",
    "PreferenceDataModule": "lit_debias.data.preference_data",
    "PromptDataModule": "lit_debias.data.prompt_data",
    "ProseAnchor": "lit_debias.training.anchor",
    "Policy": "lit_debias.policy.policy",
    "QLoRAPolicy": "lit_debias.policy.recipe",
    "ResponseDataModule": "lit_debias.data.response_data",
    "Reward": "lit_debias.rewards.reward",
    "RewardBatch": "lit_debias.rewards.reward",
    "SFT": "lit_debias.training.sft",
    "SoftOverlong": "lit_debias.rewards.overlong",
    "UserError": "lit_debias.errors",
    "VLMPolicy": "lit_debias.policy.vlm",
    "evaluate": "lit_debias.evaluation",
    "hookimpl": "lit_debias.plugins.manager",
    "synthesize": "lit_debias.synthetic.synthesis",
}
"""Public name -> the module that defines it."""

__getattr__ = importer(__name__, MODULES)
__all__ = [
    "DPO",
    "GDPO",
    "GRPO",
    "SFT",
    "AdapterExport",
    "Aggregator",
    "BNPOLoss",
    "CISPOLoss",
    "CompletionTable",
    "DAPOLoss",
    "DrGRPOLoss",
    "DynamicSampling",
    "EvaluationCallback",
    "GRPOLoss",
    "GSPOLoss",
    "Gated",
    "GeometricMean",
    "GracefulStop",
    "GroupMaxMin",
    "ImportanceCorrection",
    "Lagrangian",
    "LocalEngine",
    "LowerConfidenceBound",
    "MaxMin",
    "Policy",
    "PredictionFile",
    "PreferenceDataModule",
    "PromptDataModule",
    "ProseAnchor",
    "QLoRAPolicy",
    "ResponseDataModule",
    "Reward",
    "RewardBatch",
    "RewardHackingAlarm",
    "SlowSteps",
    "SoftOverlong",
    "UserError",
    "VLMPolicy",
    "WeightedSum",
    "WorstCase",
    "__version__",
    "evaluate",
    "hookimpl",
    "synthesize",
]
