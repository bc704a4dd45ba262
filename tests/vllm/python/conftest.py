"""The servers: vLLM with the demo model, our front before it, and our own engine as the reference."""

import pytest
from engines import DEMO, Engine, front, own

pytest_plugins = ["checks"]


@pytest.fixture(scope="session")
def engine():
    engine = Engine(DEMO).start()
    yield engine.wait()
    engine.close()


@pytest.fixture(scope="session")
def upstream(engine):
    server = front(DEMO, engine, "demo", "--stall-limit", "5s", "--upstream-wait", "10m")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def reference():
    server = own(DEMO, "demo")
    yield server
    server.stop()
