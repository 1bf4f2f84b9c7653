"""What ``--help`` of the trainer's commands opens with, before Lightning's hundreds of options."""

from __future__ import annotations

import re
from argparse import RawDescriptionHelpFormatter

from jsonargparse import ArgumentParser, DefaultHelpFormatter

TRAINER_COMMANDS = {
    "fit": "train a policy with GRPO, SFT or DPO, or a reward model",
    "validate": "score greedy completions of the validation prompts",
    "test": "score greedy completions of the test prompts",
    "predict": "write completions for prompts",
}
CLOSING = {
    "fit": "FILE says model, data and trainer; options on the command line win over it.",
    "validate": "Rewards and judges are those of FILE, and nothing is trained.",
    "test": "Rewards and judges are those of FILE, and nothing is trained.",
    "predict": "Prompts are those of the test split, and nothing is trained.",
}
_TRAINED = {
    "-c FILE": "the model of FILE",
    "-c FILE --ckpt_path last": "the newest checkpoint",
    "-c FILE --model.policy.adapter DIR": "an exported adapter",
}
CALLS = {
    "fit": {
        "-c FILE": "run what FILE says",
        "-c FILE --print_config": "show every option, run nothing",
        "-c FILE --trainer.max_steps 5": "with another value of one",
        "-c FILE --ckpt_path last": "go on where a run stopped",
        "--model.help GRPO": "show the options of a class",
    },
    "validate": {
        **_TRAINED,
        "-c FILE --data.val_splits NAME": "on another split",
        "-c FILE --data.val_limit 20": "on 20 of the prompts",
    },
    "test": {
        **_TRAINED,
        "-c FILE --data.test_splits NAME": "on another split",
        "-c FILE --data.val_limit 20": "on 20 of the prompts",
    },
    "predict": {
        **_TRAINED,
        "-c FILE --data.test_splits NAME": "for another split",
        "-c FILE --data.val_limit 20": "for 20 of the prompts",
    },
}
"""Command -> arguments of its common calls, and what they are for."""
TITLES = {
    "Customize every aspect": "Trainer, see https://lightning.ai/docs/pytorch/stable/common/trainer.html",
    "<class '": "Model",
    "A DataModule": "Data",
}
"""Beginning of a title that Lightning takes from a docstring -> a whole one."""


class WholeText(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help whose description keeps its lines."""


def opening(command: str) -> dict[str, str]:
    """Return usage and description of one of the trainer's commands, as a parser takes them."""
    about = TRAINER_COMMANDS[command]
    width = max(map(len, CALLS[command]))
    calls = [f"  lit-debias {command} {call:<{width}}  {what}" for call, what in CALLS[command].items()]
    description = "\n".join([f"{about[0].upper()}{about[1:]}.", CLOSING[command], "", *calls])
    return {"usage": f"lit-debias {command} -c FILE [--OPTION VALUE ...]", "description": description}


def mend(parser: ArgumentParser, command: str) -> None:
    """Let a command's help keep lines, and give its parts titles that are whole, and sentences the space between."""
    parser.formatter_class = WholeText  # Lightning's parser takes the one of the parser above it
    for group in parser._action_groups:
        title = group.title or ""
        whole = [new for old, new in TITLES.items() if title.startswith(old)]
        group.title = whole[0] if whole else title if title.islower() else f"Of {command} alone"
    for action in parser._actions:
        action.help = re.sub(r"(?<=[a-z])\.(?=[A-Z][a-z])", ". ", action.help) if action.help else action.help
