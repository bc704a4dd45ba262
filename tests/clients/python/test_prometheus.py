"""Prometheus' client library reads what the server measures, in both forms."""

import httpx2
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text
from questions import WORKSPACE

CLIENT = ("prometheus_client", "prometheus_client")
VLLM = {
    "gauge": ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"],
    "counter": ["prompt_tokens", "generation_tokens", "num_preemptions", "prefix_cache_queries", "prefix_cache_hits",
                "request_success"],
    "histogram": ["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                  "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens"],
}


def families(server, accept: str):
    answer = httpx2.get(f"{server.url}/metrics", headers={"Accept": accept})
    kind, parse = answer.headers["content-type"], (openmetrics if "openmetrics" in accept else text)
    return kind, {family.name: family for family in parse(answer.text)}


def test_parses_metrics(server):
    asked = server.post("/v1/chat/completions", {"messages": WORKSPACE, "temperature": 0, "max_tokens": 30})
    assert asked.status_code == 200
    plain_kind, plain = families(server, "text/plain")
    open_kind, opened = families(server, "application/openmetrics-text; version=1.0.0")
    assert plain_kind.startswith("text/plain; version=0.0.4")
    assert open_kind.startswith("application/openmetrics-text")
    # Only OpenMetrics has a type for what is known once, whose samples end so.
    assert {name.removesuffix("_info") for name in plain} == {name.removesuffix("_info") for name in opened}
    assert len(opened) > 20
    for kind, names in VLLM.items():
        for name in names:
            family = opened[f"vllm:{name}"]
            assert family.type == kind, name
            assert all(sample.labels["model_name"] == "demo" and sample.labels["engine"] == "0"
                       for sample in family.samples)
    total = sum(sample.value for sample in opened["vllm:generation_tokens"].samples if sample.name.endswith("_total"))
    ours = sum(it.value for it in opened["kaito_generated_tokens"].samples if it.name.endswith("_total"))
    assert total == ours >= 1
    [usage] = opened["vllm:kv_cache_usage_perc"].samples
    assert 0 <= usage.value <= 1
