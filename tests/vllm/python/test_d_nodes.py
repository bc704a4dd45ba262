"""One model over two nodes, which are network namespaces here: the same text, and streams that outlive a lost rank."""

import os
import shutil
import subprocess

import httpx2
import pytest
from engines import DEMO, Engine, assert_same_tokens, front, greedy, prompts, wait_until
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


class Ranks:
    """Two nodes that compute one model together, tensor parallel."""

    def __init__(self):
        def rank(at: int, host: str, *flags: str) -> Engine:
            environment = {"VLLM_HOST_IP": ADDRESSES[at], "GLOO_SOCKET_IFNAME": f"kv-{at}"}
            return Engine(DEMO, "--nnodes", "2", "--node-rank", str(at), "--master-addr", ADDRESSES[0], "--master-port", "29500",
                          "--tensor-parallel-size", "2", "--distributed-executor-backend", "mp", *flags, host=host, port=8000,
                          namespace=NODES[at], environment=environment)
        self.master, self.worker = rank(0, THERE), rank(1, ADDRESSES[1], "--headless")

    def start(self, first: str) -> "Ranks":
        """The one that is named first."""
        ranks = [self.master, self.worker]
        for rank in ranks if first == "master" else reversed(ranks):
            rank.start()
        self.master.wait(beside=self.worker)
        return self

    def kill(self) -> None:
        for rank in (self.master, self.worker):
            if rank.running():
                rank.kill()


@pytest.fixture(scope="module")
def ranks(network):
    ranks = Ranks().start("worker")
    yield ranks
    ranks.kill()


@pytest.fixture(scope="module")
def server(ranks):
    server = front(DEMO, ranks.master, "demo", "--upstream-wait", "10m")
    yield server
    server.stop()


def test_the_same_tokens_as_one_node(reference, server):
    for prompt in prompts(10):
        assert_same_tokens(greedy(reference, "demo", prompt, 16), greedy(server, "demo", prompt, 16), prompt)


@pytest.mark.parametrize("lost", ["worker", "master"])
def test_a_rank_is_killed_in_eight_streams(ranks, server, lost):
    undisturbed = texts_of(server)
    streams = Streams(server)
    streams.wait_until_all_have_begun()
    getattr(ranks, lost).kill()
    wait_until(lambda: httpx2.get(f"{server.url}/healthz").status_code == 503, 120, "the loss is seen")
    # Whatever is left of the other rank can't go on alone.
    ranks.kill()
    ranks.start("master" if lost == "worker" else "worker")
    assert streams.whole() == undisturbed
