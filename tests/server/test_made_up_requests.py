"""Bodies made up from the served OpenAPI document, right and wrong ones: none of them is a server's error."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies

from presswork.server.app import create_app
from presswork.server.config import ServerConfig
from tests.server.test_code import NEXT_EDIT, SKETCH

NUM_CASES = 5000
NOT_MADE = ("embeddings", "rerank", "images/generations", "audio/speech", "audio/transcriptions")
# What random values never hit, so that other fields are looked at too.
SENSIBLE = {
    "model": "tiny", "messages": [{"role": "user", "content": "add"}], "max_tokens": 8, "max_denoising_steps": 2,
    "tools": None, "tool_choice": None, "input": "add", "system": None, "max_completion_tokens": None,
    "max_output_tokens": 8,
    "questions": {"q": {"type": "choice", "instructions": "Which?", "criteria": {"a": None, "b": None}}},
}  # fmt: skip
MESSAGES = {
    "/edit/completions": {"messages": [{"role": "user", "content": NEXT_EDIT}]},
    "/apply/completions": {"messages": [{"role": "user", "content": SKETCH}]},
}

document = create_app(ServerConfig(models={"tiny": "tiny"})).openapi()
schemathesis_schema = schemathesis.openapi.from_dict(document)
operations = [found.ok() for found in schemathesis_schema.get_all_operations()]
# Those without a body have few cases, which hypothesis gives once each.
with_body = [operation for operation in operations if operation.body]


@pytest.mark.slow
@pytest.mark.parametrize("operation", operations, ids=lambda operation: operation.label)
def test_no_request_is_a_servers_error(served, operation):
    statuses: Counter[int] = Counter()
    unmade = 501 if operation.path.removeprefix("/v1/") in NOT_MADE else None

    @settings(
        max_examples=-(-NUM_CASES // len(with_body)) if operation.body else 3, deadline=None, derandomize=True,
        database=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(), is_sensible=strategies.booleans())
    def try_one(case, is_sensible):
        if is_sensible and isinstance(case.body, dict):
            sensible = SENSIBLE | MESSAGES.get(operation.path.removeprefix("/v1"), {})
            case.body |= {name: value for name, value in sensible.items() if name in case.body}
        response = case.call(base_url=served.url, timeout=120)
        statuses[response.status_code] += 1
        assert response.status_code < 500 or response.status_code == unmade, case.as_curl_command()[:2000]

    try_one()
    # Otherwise only what refuses requests would have been tried.
    assert operation.method == "get" or statuses[unmade or 200], statuses
