"""Servers of ``lit-debias ray``: what its file says of them, and that they end with whoever wants them."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import yaml
from command_line import run, said
from ray_stand_in import RayError, ray  # noqa: F401

from lit_debias.cli import on_ray, ray_servers
from lit_debias.cli.ray_servers import HERE, ServerProcess, Servers, serving
from lit_debias.errors import UserError

SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Well(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
HTTPServer((sys.argv[2], int(sys.argv[4])), Well).serve_forever()
"""
COMMAND = [sys.executable, "-S", "-c", SERVER]


# ---------------------------------------------------------------- the file


@pytest.fixture
def launched(monkeypatch, tmp_path):
    """Let ``lit-debias ray`` do all but what needs Ray; return what it would have started."""
    found = {}

    @contextmanager
    def started(servers, folder, local):
        found.update(servers=servers, folder=folder, local=local)
        yield ["server-0-x", "server-1-x"]

    def train(work, *arguments):
        found["work"] = work
        return 0

    for name, function in {"serving": started, "_train": train}.items():
        monkeypatch.setattr(on_ray, name, function)
    for name in ("find_spec", "_connect"):
        monkeypatch.setattr(on_ray, name, lambda what: object())
    monkeypatch.setattr(on_ray, "_check_room", lambda wanted: found.update(wanted=wanted))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "run.yaml").write_text('urls: ["ray://servers"]')
    return found


def launch(tmp_path, **servers) -> int:
    (tmp_path / "ray.yaml").write_text(yaml.safe_dump({"run": "run.yaml", "workers": 2, "servers": servers}))
    return run("ray", "-c", tmp_path / "ray.yaml")


def test_a_section_of_the_file_starts_servers_and_workers_are_told_their_names(launched, tmp_path):
    environment = {"VLLM_SERVER_DEV_MODE": 1, "A": "b"}
    command = "vllm serve 'a model' --enable-lora"
    assert launch(tmp_path, command=command, number=2, resources={"GPU": 1}, environment=environment) == 0
    assert launched["servers"].words() == ["vllm", "serve", "a model", "--enable-lora"]
    assert launched["servers"].variables() == {"VLLM_SERVER_DEV_MODE": "1", "A": "b"}
    assert launched["wanted"] == [{"CPU": 1}, {"CPU": 1}, {"GPU": 1}, {"GPU": 1}]
    assert (launched["folder"], launched["local"]) == (str(tmp_path), True)
    assert launched["work"]["servers"] == ["server-0-x", "server-1-x"]


@pytest.mark.parametrize(
    ("servers", "line"),
    [
        ({"command": "vllm serve x", "number": 0}, "number=0, restarts=3, timeout=1800; write at least 1, -1 and 1"),
        ({"command": " "}, "servers.command is ' '; write what starts a server, such as `vllm serve MODEL`"),
        ({"command": "vllm serve x --port=80"}, "without --host and --port"),
        ({"command": "vllm serve 'x"}, "servers.command: no closing quotation in: vllm serve 'x"),
        ({"number": 2}, "command"),
        ({"command": "vllm serve x", "nmber": 2}, "nmber"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_line(launched, tmp_path, servers, line, capsys):
    assert launch(tmp_path, **servers) == 2
    assert line in said(capsys)
    assert not launched


def test_servers_that_nobody_would_use_are_refused(launched, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text('urls: ["http://localhost:8000"]')
    assert launch(tmp_path, command="vllm serve x") == 2
    assert said(capsys).startswith('ray: no engine samples with the servers; write urls: ["ray://servers"]')


def test_what_this_machine_has_not_is_found_before_anything_waits_for_it(ray):
    on_ray._check_room([{"CPU": 0.5}] * 4)
    with pytest.raises(UserError, match="workers and servers take 2 GPU, and this machine has 0; write fewer"):
        on_ray._check_room([{"CPU": 1}, {"GPU": 1}, {"GPU": 1}])


# ---------------------------------------------------------------- actors


class Started:
    """What is behind an actor that starts as it is told."""

    def __init__(self, *arguments):
        self.arguments, self.stopped = arguments, False

    def ready(self, seconds):
        if self.arguments[0] == ["lost"]:
            raise RayError("The actor\ndied")
        return "" if self.arguments[0] == ["well"] else "it ended with exit code 1"

    def stop(self):
        self.stopped = True


def test_servers_are_actors_with_names_that_end_with_the_run(ray):
    ray.make = Started
    servers = Servers("well", 2, {"GPU": 2, "CPU": 4, "fast": 1}, {"A": 1}, restarts=5)
    with serving(servers, "/runs", local=False) as names:
        assert [*ray.actors] == names
        assert len(names) == 2
        for name in names:
            assert ray.actors[name].instance.arguments == (["well"], {"A": "1"}, "/runs", False)
            taken = {"num_cpus": 4, "num_gpus": 2, "resources": {"fast": 1}, "max_restarts": 5}
            assert ray.options[name].items() >= taken.items()
    assert ray.killed == [*ray.actors.values()]
    assert all(actor.instance.stopped for actor in ray.killed)
    with serving(None, "/runs", local=False) as names:
        assert names == []


@pytest.mark.parametrize(
    ("command", "late", "line"),
    [
        ("bad", False, r"server-0-\w+ does not start: it ended with exit code 1; what it wrote stands above"),
        ("lost", False, r"server-0-\w+ does not start: The actor died;"),
        ("well", True, r"servers: 2 of 2 do not answer in 60 s; each takes {'CPU': 1}: does the cluster have it\?"),
    ],
)
def test_a_server_that_does_not_start_is_one_line_and_leaves_none(ray, command, late, line):
    ray.make, ray.late = Started, late
    with pytest.raises(UserError, match=line), serving(Servers(command, 2, timeout=60), "/runs", local=True):
        pass
    assert len(ray.killed) == 2


# ---------------------------------------------------------------- processes


class Watched(ServerProcess):
    def __init__(self, command, folder, **options):
        self.left = threading.Event()
        super().__init__(command, {}, str(folder), HERE, **options)

    def _leave(self):
        self.left.set()


def is_there(port: int) -> bool:
    connection = HTTPConnection(HERE, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_a_server_is_well_before_it_is_used_and_gone_when_it_is_stopped(tmp_path):
    server = Watched(COMMAND, tmp_path)
    assert server.ready(60) == ""
    assert server.address() == f"http://127.0.0.1:{server.port}"
    assert is_there(server.port)
    server.stop()
    assert not is_there(server.port)
    assert server.reason == "it was ended"
    assert not server.left.is_set()


@pytest.mark.parametrize(
    ("command", "away", "reason"),
    [
        ([sys.executable, "-S", "-c", "raise SystemExit(3)"], "", "it ended with exit code 3"),
        (["no-such-server"], "", "it cannot be started: [Errno 2] No such file or directory: 'no-such-server'"),
        (COMMAND, "away", "it cannot be started: [Errno 2] No such file or directory: '{folder}/away'"),
    ],
)
def test_a_server_that_does_not_start_says_why(tmp_path, command, away, reason):
    server = Watched(command, tmp_path / away)
    assert server.ready(60) == reason.format(folder=tmp_path)
    assert not server.left.is_set()  # the one who waits tells it


def test_an_actor_whose_server_is_lost_ends_so_that_ray_starts_it_again(tmp_path, capsys):
    starts = "import os; open('pid', 'w').write(str(os.getpid()))\n"
    server = Watched([sys.executable, "-S", "-c", starts + SERVER], tmp_path)
    assert server.ready(60) == ""
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert server.left.wait(30)
    assert "a server is lost: it ended with exit code -9" in capsys.readouterr().err
    again = Watched([sys.executable, "-S", "-c", "raise SystemExit(3)"], tmp_path, restarted=True)
    assert again.left.wait(30)  # nobody waits for that one


HOLDER = """
import sys, time
from lit_debias.cli.ray_servers import ServerProcess
server = ServerProcess(sys.argv[2:], {}, sys.argv[1], "127.0.0.1")
assert server.ready(60) == ""
print(server.port, flush=True)
time.sleep(600)
"""
WITH_A_CHILD = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', 'child'])\n"
)


def test_nothing_is_left_of_a_server_whose_actor_is_killed(tmp_path):
    starts = f"import os; open('group', 'w').write(str(os.getpgid(0)))\n{WITH_A_CHILD}"
    command = [sys.executable, "-c", HOLDER, str(tmp_path), sys.executable, "-S", "-c", starts + SERVER]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    port = int(holder.stdout.readline())
    group = int((tmp_path / "group").read_text())
    os.killpg(group, 0)  # it is there, with a child
    holder.kill()
    holder.communicate()
    end = time.monotonic() + 60
    while _alive(group) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(group)
    assert not is_there(port)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_names_are_told_in_one_variable():
    assert ray_servers.SERVERS == "LIT_DEBIAS_SERVERS"
    assert on_ray.NAMED == "ray://servers"
