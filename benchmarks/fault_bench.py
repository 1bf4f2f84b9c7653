"""What every fault needs and gives: runs to compare with, and a row of the table."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.fault_runs import Lab, checkpoints, final_state, same

RESUMES = "a resumed run ends bitwise as the undisturbed one"


@dataclass(frozen=True)
class Finding:
    """A fault, what should come of it, and what did."""

    fault: str
    expected: str
    seen: str
    ok: bool


class Bench:
    """What every fault needs: a lab, what the undisturbed run ends with, and chance.

    Args:
        folder: For runs.
        kills: How often the killed run is killed.
        seed: Seeds the moments.
        short: Whether faults that take long are left out.
    """

    def __init__(self, folder: Path, kills: int, seed: int, short: bool) -> None:
        self.kills, self.seed, self.short = kills, seed, short
        self.lab = Lab(folder, steps=6 if short else 12)
        self.whole = self.undisturbed(self.lab)
        self.details: dict[str, Any] = {}

    def undisturbed(self, lab: Lab) -> dict[str, Any]:
        """Return what a run ends with that nothing happens to."""
        folder = lab.run_folder("undisturbed")
        ended = lab.fit(lab.config(folder)).end()
        assert ended.code == 0, ended.text
        return final_state(folder)

    def resumes(self, config: Path, *options: str) -> str:
        """Resume a run and let it end; return what came of it, ``bitwise`` where all is well."""
        ended = self.lab.resume(config, *options).end()
        if ended.code != 0:
            return f"the resumed run ended with {ended.code}: {ended.text[-300:]}"
        return "bitwise" if same(self.whole, final_state(config.parent)) else "other weights"

    @cached_property
    def interrupted(self) -> Path:
        """The folder of a run that ended two steps early; it kept the checkpoints of all its steps."""
        folder = self.lab.run_folder("interrupted")
        keep = {"every_n_train_steps": 1, "save_last": True, "save_top_k": -1}
        callbacks = [{"class_path": "ModelCheckpoint", "init_args": keep}]
        ended = self.lab.fit(self.lab.config(folder, max_steps=self.lab.steps - 2, callbacks=callbacks)).end()
        assert ended.code == 0, ended.text
        return folder

    def interrupted_run(self, name: str) -> tuple[Path, list[Path]]:
        """Return the configuration of a run that stopped two steps early, and its checkpoints, newest first."""
        folder = self.lab.folder / name
        shutil.copytree(self.interrupted, folder)
        return self.lab.config(folder), checkpoints(folder)
