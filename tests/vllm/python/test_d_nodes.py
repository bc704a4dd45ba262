"""One model over two nodes, which are network namespaces here, by `kaito supervise`: the same text, and streams that outlive the loss
of a rank although nobody does more than a kubelet would, which starts containers again that have ended."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from engines import DEMO, LOADING_LIMIT, MAX_MODEL_LEN, PYTHON, assert_same_tokens, greedy, prompts, wait_until, without_weights
from pods import Container, health, wait_until_healthy
from serving import BINARY, HTTP, Running
from test_c_recovery import Streams, texts_of

CHECKS = "vllm/nodes"
NODES = ("kaito-vllm-0", "kaito-vllm-1")
# Of documentation (RFC 5737): each node's address, and that of this machine towards the first.
ADDRESSES = ("192.0.2.1", "192.0.2.2")
HERE, THERE = "198.51.100.1", "198.51.100.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def network():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    # What a run left behind that was ended.
    subprocess.run(["ip", "link", "del", "kv-here"], capture_output=True)
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)
        ip("netns", "add", node)
        ip("-n", node, "link", "set", "lo", "up")
    ip("link", "add", "kv-0", "netns", NODES[0], "type", "veth", "peer", "name", "kv-1", "netns", NODES[1])
    for at, (node, address) in enumerate(zip(NODES, ADDRESSES, strict=True)):
        ip("-n", node, "addr", "add", f"{address}/24", "dev", f"kv-{at}")
        ip("-n", node, "link", "set", f"kv-{at}", "up")
    ip("link", "add", "kv-here", "type", "veth", "peer", "name", "kv-there", "netns", NODES[0])
    ip("addr", "add", f"{HERE}/24", "dev", "kv-here")
    ip("link", "set", "kv-here", "up")
    ip("-n", NODES[0], "addr", "add", f"{THERE}/24", "dev", "kv-there")
    ip("-n", NODES[0], "link", "set", "kv-there", "up")
    yield
    for node in NODES:
        ip("netns", "del", node)


class Model(Running):
    """Two pods that compute one model together, tensor parallel, and the front in the first of them."""

    def __init__(self):
        super().__init__(f"http://{THERE}:5000")
        self.front = Container(
            NODES[0], str(BINARY), "serve", str(without_weights(DEMO)), "--served-model-name", "demo", "--host", "0.0.0.0",
            "--port", "5000", "--upstream", "http://127.0.0.1:8000", "--upstream-supervisor", "http://127.0.0.1:5001",
            "--upstream-wait", "10m", "--stall-limit", "15s")
        self.master, self.worker = self.rank(0), self.rank(1)
        self.containers = [self.front, self.master, self.worker]

    def rank(self, at: int) -> Container:
        engine = [
            str(Path(PYTHON).with_name("vllm")), "serve", str(DEMO), "--served-model-name", "demo", "--dtype", "float32",
            "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN), "--nnodes", "2", "--node-rank", str(at),
            "--master-addr", ADDRESSES[0], "--master-port", "29500", "--tensor-parallel-size", "2",
            "--distributed-executor-backend", "mp",
        ]
        return Container(
            NODES[at], str(BINARY), "supervise", "--rank", str(at), "--ranks", "2", "--first", ADDRESSES[0], "--host", "0.0.0.0",
            "--front", "http://127.0.0.1:5000", "--first-argument=--host", "--first-argument=127.0.0.1", "--first-argument=--port",
            "--first-argument=8000", "--other-argument=--headless", "--", *engine,
            environment={"VLLM_HOST_IP": ADDRESSES[at], "GLOO_SOCKET_IFNAME": f"kv-{at}"})

    def overview(self) -> dict:
        """What rank 0's supervisor knows; its port is reached from this machine, too."""
        return HTTP.get(f"http://{THERE}:5001/ranks", timeout=10).json()

    def wait_until_healthy(self) -> None:
        wait_until_healthy(self.url, LOADING_LIMIT, self.containers)

    def ends(self) -> list[int]:
        """How often each container has ended."""
        return [len(container.ends) for container in self.containers]


@pytest.fixture(scope="module")
def model(network):
    model = Model()
    # The worker begins, and waits.
    model.worker.start()
    wait_until(lambda: "rank 0 does not answer" in model.worker.log.read_text(), 60, "rank 0 is missed")
    model.front.start()
    model.master.start()
    model.wait_until_healthy()
    yield model
    for container in model.containers:
        container.close()


def test_the_same_tokens_as_one_node(reference, model):
    for prompt in prompts(10):
        assert_same_tokens(greedy(reference, "demo", prompt, 16), greedy(model, "demo", prompt, 16), prompt)


@pytest.fixture(scope="module")
def undisturbed(model) -> list[str]:
    return texts_of(model)


def disturbed(model: Model, disturb) -> tuple[list[str], list[int]]:
    """Texts of eight streams with a disturbance, and how often each container ended meanwhile."""
    before = model.ends()
    streams = Streams(model)
    streams.wait_until_all_have_begun()
    disturb()
    whole = streams.whole()
    model.wait_until_healthy()
    return whole, [now - then for now, then in zip(model.ends(), before, strict=True)]


@pytest.mark.parametrize("lost", ["worker", "master"])
def test_the_engine_of_a_rank_is_killed_in_eight_streams(model, undisturbed, lost):
    def disturb():
        getattr(model, lost).signal(signal.SIGKILL)
        wait_until(lambda: health(model.url)[0] == 503, 120, "the loss is seen")
        if lost == "worker":
            wait_until(lambda: "the engine of rank 1 was ended by signal 9" in health(model.url)[1], 120, "the cause is told")

    whole, ends = disturbed(model, disturb)
    assert whole == undisturbed
    assert ends == [0, int(lost == "master"), int(lost == "worker")], "the other one's container goes on"
    assert "error: the engine was ended by signal 9" in getattr(model, lost).log.read_text(), "what a kubelet shows"


def test_a_pod_is_lost_in_eight_streams(model, undisturbed):
    def disturb():
        # First the supervisor, so that it can tell nobody.
        tree = model.worker.tree()
        model.worker.process.kill()
        for pid, _ in tree:
            os.kill(pid, signal.SIGKILL)

    whole, ends = disturbed(model, disturb)
    assert whole == undisturbed
    assert ends[0] == 0 and ends[2] == 1, ends


def test_a_stopped_worker_is_named_and_replaced_in_eight_streams(model, undisturbed):
    incarnation = model.overview()["incarnation"]

    def disturb():
        stopped = model.worker.signal(signal.SIGSTOP, "VLLM::Worker")
        named = [f"{pid} (VLLM::Worker" for pid in stopped]
        wait_until(lambda: all(part in health(model.url)[1] for part in named) and health(model.url)[0] == 503, 120,
                   "the stopped processes are named")
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in stopped), 120, "they are ended")

    whole, ends = disturbed(model, disturb)
    assert whole == undisturbed
    assert ends == [0, 0, 0], "no container is to blame"
    # More than one where a busy machine takes longer for the next engine's first tokens than they may be owed.
    assert model.overview()["incarnation"]["number"] > incarnation["number"]


def test_all_end_by_sigterm_after_the_last_streams(model, undisturbed):
    streams = Streams(model)
    streams.wait_until_all_have_begun()
    for container in model.containers:
        container.terminate()
    assert streams.whole() == undisturbed
    assert [container.wait(120) for container in model.containers] == [0, 0, 0]
    for node in NODES:
        left = subprocess.run(["ip", "netns", "pids", node], check=True, capture_output=True, text=True).stdout
        assert not left.strip(), f"{node}: {left}"
