"""The arms with vLLM: what they are asked, their servers, who gets which GPU, and why an arm is left out."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from benchmarks import gpu, our_side, vllm_arms
from benchmarks.arms import ARMS, COLOCATED, OURS, SERVED, TRL_COLOCATED, TRL_SERVED, TUNED, Arms, side_of
from benchmarks.gpu import Item
from benchmarks.processes import ROOT, ArmError, reason_in, run_arm
from benchmarks.settings import Settings
from benchmarks.shapes import save_model
from benchmarks.vllm_arms import ALONE, SHARED, GPUs, Pythons, Servers, engine_of, grpo_config, server_command, why_not
from vllm_server import serving

import lit_debias_vllm
from lit_debias.errors import UserError

NOISE = "ignore:You defined a `validation_step`:lightning.fabric.utilities.warnings.PossibleUserWarning"
PYTHONS = Pythons("ours", "trl", "vllm")
ONE, TWO = GPUs(), GPUs("0", "1")
ON_GPU = Settings(model="/model", device="cuda", quantization="none", prompts=4, group_size=8)
ASKED = {"prompt_tokens": 8, "completion_tokens": 4, "prompts": 1, "group_size": 2, "repeats": 2}
SERVER = """#!{python}
import http.server, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid, flush=True)
if "{way}" == "breaks":
    child.kill()
    sys.exit("(APIServer pid=7) ValueError: no room\\nbye")
if "{way}" == "hangs":
    time.sleep(60)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def with_arm(arm: str, **changes) -> Settings:
    return dataclasses.replace(ON_GPU, **(ARMS[arm] | changes))


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


# ---------------------------------------------------------------- what each arm is asked


def test_the_same_model_and_sampling_for_both_servers_and_each_its_own_way_for_weights(tmp_path):
    model = str(tmp_path)
    ours = server_command("our_side", with_arm(SERVED, model=model), "vllm", 8123, ALONE)
    theirs = server_command("trl_side", with_arm(TRL_SERVED, model=model), "trl", 8123, ALONE)
    for command in (ours, theirs):
        assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
        assert (option(command, "--model"), option(command, "--port")) == (model, "8123")
        assert option(command, "--logprobs-mode") == "processed_logprobs"
        assert (option(command, "--max-num-seqs"), option(command, "--gpu-memory-utilization")) == ("32", "0.9")
        assert "--no-enable-chunked-prefill" not in command
    assert (ours[0], theirs[0]) == ("vllm", "trl")
    assert option(ours, "--max-lora-rank") == "16"
    assert json.loads(option(theirs, "--weight-transfer-config")) == {"backend": "nccl"}
    assert "--enable-lora" not in theirs


def test_a_cpu_has_no_share_of_a_gpu_and_reads_prompts_whole(tmp_path):
    command = server_command("our_side", with_arm(SERVED, device="cpu", model=str(tmp_path)), "vllm", 8123, SHARED)
    assert "--gpu-memory-utilization" not in command
    assert "--no-enable-chunked-prefill" in command


def test_what_trl_is_told():
    assert grpo_config(with_arm(TUNED)) == {}
    served = grpo_config(with_arm(TRL_SERVED, vllm_url="http://127.0.0.1:8123"))
    assert (served["vllm_mode"], served["vllm_server_base_url"]) == ("server", "http://127.0.0.1:8123")
    colocated = grpo_config(with_arm(TRL_COLOCATED, vllm_share=SHARED, prompt_tokens=47, completion_tokens=48))
    assert (colocated["vllm_mode"], colocated["vllm_max_model_length"]) == ("colocate", 95)
    assert colocated["vllm_gpu_memory_utilization"] == SHARED


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs trl==1.16.0 on PYTHONPATH")
def test_trl_has_these_options_and_this_share_is_its_own():
    from trl import GRPOConfig

    defaults = {each.name: each.default for each in dataclasses.fields(GRPOConfig)}
    assert defaults.keys() >= grpo_config(with_arm(TRL_SERVED)).keys() | grpo_config(with_arm(TRL_COLOCATED)).keys()
    assert defaults["vllm_gpu_memory_utilization"] == SHARED


@pytest.mark.filterwarnings(NOISE)
def test_our_side_samples_with_its_server_and_sends_it_each_adapter(tmp_path):
    model = save_model("tiny", tmp_path / "model", "cpu")
    asked = {"model": str(model), "shape": "tiny", "quantization": "none", "dtype": "float32", "engine": "server"}
    with serving(model, device="cuda") as server:
        eight = ASKED | {"group_size": 8}  # two short answers often share their reward, and such a step moves nothing
        settings = Settings(**asked, **eight, vllm_url=server.url)
        assert our_side.PlainSteps(settings).correction is not None
        found = our_side.steps(settings)
        loaded = {body["lora_name"] for body in server.asked("/v1/load_lora_adapter")}
    assert found["tokens"] == [32, 32]
    assert found["versions"]["vllm"] == "0.32.0"
    assert found["seconds"].keys() == {"rollout", "reference", "reward", "update", "step"}
    assert len(loaded - {""}) == 3  # the warm-up's and those after the next two updates


@pytest.mark.skipif(not hasattr(lit_debias_vllm, "ColocatedVLLMEngine"), reason="needs vLLM inside of the process")
def test_vllm_inside_of_the_trainer_has_trls_share_and_does_not_sleep():
    engine = engine_of(with_arm(COLOCATED, vllm_share=SHARED, prompt_tokens=300, completion_tokens=48))
    assert (engine.max_new_tokens, engine.max_model_len) == (48, 348)
    assert (engine.gpu_memory_utilization, engine.sleep_level) == (SHARED, 0)


# ---------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    ("count", "visible", "expected"),
    [(0, None, ONE), (1, None, ONE), (1, "5", ONE), (2, None, TWO), (3, "5,7,2", GPUs("5", "7"))],
)
def test_the_first_gpu_is_the_trainers_and_the_second_the_servers(count, visible, expected):
    assert GPUs.shared_out(count, visible) == expected


def test_processes_see_their_own_gpu_and_one_that_is_shared_stays_as_it_is():
    seen = [TWO.environment({"A": "1"}, server=server)["CUDA_VISIBLE_DEVICES"] for server in (False, True)]
    assert seen == ["0", "1"]
    assert "CUDA_VISIBLE_DEVICES" not in ONE.environment({"A": "1"}, server=True)


# ---------------------------------------------------------------- arms that cannot run


EVERYTHING = {("ours", "lit_debias_vllm"), ("trl", "trl"), ("trl", "vllm")}
EVERYTHING |= {("vllm", name) for name in ("vllm", "lightning", "lit_debias_vllm")}


@pytest.mark.parametrize(
    ("arm", "lacks", "changes", "gpus", "reason"),
    [
        (OURS, EVERYTHING, {}, ONE, None),
        (SERVED, set(), {}, ONE, None),
        (SERVED, set(), {"device": "cpu"}, ONE, None),
        (SERVED, {("vllm", "vllm")}, {}, ONE, "--vllm-python vllm cannot import it"),
        (SERVED, {("ours", "lit_debias_vllm")}, {}, ONE, "lit-debias-vllm is not installed"),
        (COLOCATED, set(), {}, ONE, None),
        (COLOCATED, {("vllm", "lightning")}, {}, ONE, "no lit-debias beside vLLM"),
        (COLOCATED, {("vllm", "vllm")}, {}, ONE, "--vllm-python vllm cannot import it"),
        (TUNED, {("trl", "vllm")}, {}, ONE, None),
        (TUNED, {("trl", "trl")}, {}, ONE, "no TRL"),
        (TRL_COLOCATED, set(), {}, ONE, None),
        (TRL_COLOCATED, {("trl", "vllm")}, {}, ONE, "no vLLM beside TRL"),
        (TRL_COLOCATED, set(), {"quantization": "nf4"}, ONE, "packed 4-bit weights"),
        (TRL_COLOCATED, set(), {"device": "cpu"}, ONE, "on GPUs only"),
        (TRL_SERVED, set(), {}, ONE, "needs a second one"),
        (TRL_SERVED, set(), {}, TWO, None),
    ],
)
def test_why_an_arm_cannot_run(arm, lacks, changes, gpus, reason, monkeypatch):
    there = EVERYTHING - lacks
    monkeypatch.setattr(vllm_arms, "has", lambda python, *modules: all((python, name) in there for name in modules))
    found = why_not(side_of(arm), with_arm(arm, **changes), PYTHONS, gpus)
    assert (found is None) == (reason is None)
    assert reason is None or reason in found


def test_an_arm_that_is_asked_for_and_cannot_run_is_a_mistake():
    with pytest.raises(UserError, match=rf"--arms {SERVED}: no vLLM: --vllm-python /nowhere"):
        Arms(sys.executable, 1, "/nowhere").check([OURS, SERVED], Settings())


# ---------------------------------------------------------------- servers and processes


def server_of(tmp_path, way: str, minutes: float = 1) -> Servers:
    """A stand-in for vLLM's Python, whose server has a child in a session of its own."""
    python = tmp_path / "python"
    python.write_text(SERVER.format(python=sys.executable, way=way))
    python.chmod(0o755)
    return Servers(Pythons("", "", str(python)), minutes, logs=tmp_path)


def child_of(log: Path) -> int:
    return int(log.read_text().splitlines()[0])


def test_a_server_is_there_as_long_as_its_arm_and_ends_with_its_children(tmp_path):
    settings = Settings(engine="server", model=str(tmp_path))
    with server_of(tmp_path, "serves").for_arm(SERVED, "our_side", settings) as told:
        assert urllib.request.urlopen(f"{told.vllm_url}/health").status == 200
        child = child_of(tmp_path / f"{SERVED}.vllm.log")
        assert psutil.pid_exists(child)
    assert (told.engine, told.vllm_share) == ("server", SHARED)
    gone(child)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{told.vllm_url}/health")


def gone(pid: int) -> None:
    """Wait until a killed process of another parent is reaped."""
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.01)
    raise AssertionError(f"{pid} lives")


def test_a_server_that_ends_is_named_with_its_reason(tmp_path):
    settings = Settings(engine="server", model=str(tmp_path))
    with (
        pytest.raises(ArmError, match=r"vLLM's server: it ended: ValueError: no room$"),
        server_of(tmp_path, "breaks").for_arm(SERVED, "our_side", settings),
    ):
        pass


def test_a_server_that_is_never_well_has_its_limit(tmp_path):
    settings = Settings(engine="server", model=str(tmp_path))
    with (
        pytest.raises(ArmError, match=r"vLLM's server: not well after 0\.01 minutes"),
        server_of(tmp_path, "hangs", 0.01).for_arm(SERVED, "our_side", settings),
    ):
        pass
    gone(child_of(tmp_path / f"{SERVED}.vllm.log"))


def test_an_arm_that_takes_too_long_ends_with_its_children_and_leaves_what_it_said(tmp_path):
    log = tmp_path / "log"
    log.write_text("before\n")
    with pytest.raises(ArmError, match=r"not done after 0\.01 minutes"):
        run_arm(["sh", "-c", "setsid sleep 60 & echo $!; wait"], 0.01, log=log)
    before, child = log.read_text().split()
    assert before == "before"
    gone(int(child))


def test_the_line_that_says_why_is_found_behind_what_libraries_say_at_their_end():
    said = "Traceback:\n[rank0]: torch.OutOfMemoryError: CUDA out of memory\n[rank0]:[W1 ProcessGroup] destroy it\n"
    assert reason_in(said) == "torch.OutOfMemoryError: CUDA out of memory"
    assert reason_in("one\nno luck\n\n") == "no luck"
    assert reason_in("") == "no message"


# ---------------------------------------------------------------- in the single GPU call


CELLS = {"cells": [{"arms": {OURS: {}}, "errors": {SERVED: "no room"}}]}


def call(tmp_path, *arguments) -> tuple[int, dict]:
    status = gpu.main(["--out", str(tmp_path), "--device", "cpu", "--shape", "tiny", *arguments])
    return status, {item["name"]: item for item in json.loads((tmp_path / "gpu.json").read_text())["items"]}


def test_arms_that_cannot_run_are_left_out_and_each_says_what_became_of_it(tmp_path, monkeypatch):
    arms = dict.fromkeys([OURS, SERVED, COLOCATED, TRL_COLOCATED], 0.0)
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nopen(sys.argv[-1], 'w').write({json.dumps(CELLS)!r})\n")
    python.chmod(0o755)
    item = Item("vllm_small", ("vs_trl",), 0, 60, arms=arms, python=str(python))
    monkeypatch.setattr(gpu, "items", lambda *_: iter([item]))
    reasons = {TRL_COLOCATED: "no TRL"}
    monkeypatch.setattr(Arms, "why_not", lambda self, arm, settings: reasons.get(arm))
    status, found = call(tmp_path)
    assert status == 0
    assert found["vllm_small"]["command"].endswith(f"--arms {OURS} {SERVED} {COLOCATED}")
    assert found["vllm_small"]["arms"] == {
        OURS: "timed",
        SERVED: "failed: no room",
        COLOCATED: "not timed",
        TRL_COLOCATED: "skipped: no TRL",
    }


def test_without_vllm_its_items_are_skipped_with_the_reason(tmp_path):
    status, found = call(tmp_path, "--only", "vllm", "--vllm-python", "/nowhere")
    assert (status, found.keys()) == (0, {"vllm_small", "vllm_large", "vllm_large_nf4"})
    for item in found.values():
        assert item["reason"] == "no vLLM: --vllm-python /nowhere cannot import it"
        assert item["arms"][SERVED] == f"skipped: {item['reason']}"


def test_too_little_time_for_the_arms_skips_the_item(tmp_path, monkeypatch):
    monkeypatch.setattr(Arms, "why_not", lambda *_: None)
    _, found = call(tmp_path, "--only", "vllm_small", "--minutes", "2")
    assert found["vllm_small"]["reason"] == "120 s left, and it takes about 292 s"


def test_a_choice_of_items_that_are_none_is_a_mistake(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--device", "cpu", "--shape", "tiny", "--only", "vlm"]) == 2
    assert "--only vlm: no such item; there are trl_parity, " in capsys.readouterr().err


def test_one_gpu_has_time_for_both_trainers_and_for_vllm_with_the_small_model(tmp_path):
    options = gpu.parser().parse_args(["--trl-python", "trl"])
    found = {item.name: item for item in gpu.items(options, "cuda", tmp_path)}
    first = ("trl_parity", "vs_trl_small", "vllm_small")
    assert tuple(found)[:3] == first
    assert sum(found[name].seconds + sum(found[name].arms.values()) for name in first) < 60 * options.minutes
    assert {OURS, SERVED, COLOCATED, TRL_COLOCATED, TRL_SERVED} <= found["vllm_small"].arms.keys()
    assert found["trl_parity"].python == "trl"
    on_one_gpu = [seconds for item in found.values() for arm, seconds in item.arms.items() if arm != TRL_SERVED]
    assert round((sum(on_one_gpu) + sum(item.seconds for item in found.values())) / 60) in (25, 26)  # as the docs say
    assert not {TRL_SERVED, TRL_COLOCATED} & found["vllm_large_nf4"].arms.keys()


def test_a_program_that_is_terminated_takes_what_it_runs_with_it():
    code = (
        "import sys; from benchmarks.processes import end_on_terminate, started; end_on_terminate()\n"
        "with started(['sleep', '60'], sys.stderr) as process: print(process.pid, flush=True); process.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        child = int(program.stdout.readline())
        program.terminate()
        assert program.wait(30) == 128 + 15
    gone(child)
