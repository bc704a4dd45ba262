"""The cases that LiteLLM runs against each provider, against kaito; `base_llm_unit_tests.py` is from LiteLLM's source."""

import os

import litellm
import pytest
from base_llm_unit_tests import BaseLLMChatTest


# The base class asks LiteLLM's list of models what a model can do; the demo model is not in it.
litellm.register_model({
    f"{provider}/demo": {
        "litellm_provider": provider, "mode": "chat", "max_tokens": 2048, "supports_function_calling": True,
        "supports_response_schema": True, "supports_system_messages": True, "input_cost_per_token": 0,
        "output_cost_per_token": 0,
    } for provider in ("hosted_vllm", "openai")
})


class Kaito(BaseLLMChatTest):
    def get_base_completion_call_args(self) -> dict:
        return {
            "model": f"{self.provider}/demo", "api_base": f"{os.environ['KAITO_URL']}/v1", "api_key": "none",
            "max_tokens": 400, "temperature": 0,
        }

    @pytest.fixture
    def tool_call_no_arguments(self):
        call = {"id": "call_0123456789abcdefghijklmn", "type": "function",
                "function": {"name": "now", "arguments": "{}"}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    @pytest.fixture
    def pdf_messages(self):
        pytest.skip("no files")

    def test_completion_cost(self):
        pytest.skip("a server of one's own has no price")

    def test_tool_call_no_arguments(self, tool_call_no_arguments):
        """A history whose call has no arguments."""
        result = {"role": "tool", "tool_call_id": tool_call_no_arguments["tool_calls"][0]["id"], "content": "noon"}
        tools = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
        answer = litellm.completion(
            **self.get_base_completion_call_args(), tools=tools,
            messages=[{"role": "user", "content": "What time is it?"}, tool_call_no_arguments, result],
        )
        assert answer.choices


class TestHostedVllm(Kaito):
    provider = "hosted_vllm"


class TestOpenAi(Kaito):
    provider = "openai"
