"""What vLLM's tests import from their own `tests/utils.py`, over a kaito that serves the demo model."""

import os
import re
import subprocess
import tempfile
import time

import openai
import requests

# Flags of vLLM that kaito has too, with its names. Others say how vLLM itself works, and are dropped.
FLAGS = {"--chat-template": "--chat-template", "--served-model-name": "--served-model-name"}


class RemoteOpenAIServer:
    """A running server, as long as it is entered."""

    DUMMY_API_KEY = "token-abc123"

    def __init__(self, model, vllm_serve_args, **_):
        flags = ["--any-model-name", "--trust-request-chat-template", "--max-batch-size", "128"]
        for name, value in zip(vllm_serve_args, [*vllm_serve_args[1:], ""]):
            if name in FLAGS and "{{" not in value:
                flags += [FLAGS[name], value]
        if "--served-model-name" not in flags:
            flags += ["--served-model-name", model]
        self.log = tempfile.NamedTemporaryFile(mode="r", suffix=".log")
        command = [os.environ["KAITO_BINARY"], "serve", "--host", "127.0.0.1", "--port", "0", *flags]
        self.proc = subprocess.Popen(command, stdout=open(self.log.name, "wb"), stderr=subprocess.STDOUT)
        for _ in range(600):
            found = re.search(r"http://127\.0\.0\.1:\d+", open(self.log.name).read())
            if found and self._answers(found.group()):
                self.url_root = found.group()
                return
            if self.proc.poll() is not None:
                break
            time.sleep(0.1)
        self.proc.terminate()
        raise RuntimeError(open(self.log.name).read())

    @staticmethod
    def _answers(url):
        try:
            return requests.get(url + "/health", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.proc.terminate()
        self.proc.wait(30)

    def url_for(self, *parts):
        return self.url_root + "/" + "/".join(parts)

    def _client(self, kind, base_url, kwargs):
        return kind(base_url=base_url, api_key=self.DUMMY_API_KEY, max_retries=0, **{"timeout": 120, **kwargs})

    def get_client(self, **kwargs):
        return self._client(openai.OpenAI, self.url_for("v1"), kwargs)

    def get_async_client(self, **kwargs):
        return self._client(openai.AsyncOpenAI, self.url_for("v1"), kwargs)

    def get_client_anthropic(self, **kwargs):
        import anthropic

        return self._client(anthropic.Anthropic, self.url_root, kwargs)

    def get_async_client_anthropic(self, **kwargs):
        import anthropic

        return self._client(anthropic.AsyncAnthropic, self.url_root, kwargs)
