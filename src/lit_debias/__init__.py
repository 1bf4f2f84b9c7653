"""lit-debias: de-bias language models with multi-reward GRPO on Lightning."""

from importlib.metadata import PackageNotFoundError, version

from lit_debias import threads

threads.settle()  # before torch is loaded, which the imports below do

from lit_debias.plugins import hookimpl  # noqa: E402
from lit_debias.rewards.aggregators import Aggregator  # noqa: E402
from lit_debias.rewards.base import Reward, RewardBatch  # noqa: E402

try:
    __version__ = version("lit-debias")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["Aggregator", "Reward", "RewardBatch", "__version__", "hookimpl"]
