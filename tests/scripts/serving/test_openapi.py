"""Requests drawn from the server's own description never break it."""

import hypothesis
import pytest
import schemathesis
from schemathesis import checks

from tests.scripts.serving import conftest


@pytest.fixture(scope="module")
def described(make_served):
  with conftest.running(make_served()) as server:
    yield schemathesis.openapi.from_url(f"{server.address}/openapi.json")


@pytest.mark.parametrize(
  "path",
  [
    *("/v1/chat/completions", "/v1/detect", "/v1/segment", "/v1/caption"),
    *("/v1/answer", "/v1/embeddings"),
  ],
)
def test_no_server_error(described, path):
  @hypothesis.settings(
    max_examples=30, deadline=None, derandomize=True, database=None
  )
  @hypothesis.given(case=described[path]["POST"].as_strategy())
  def ask(case):
    case.call_and_validate(checks=[checks.not_a_server_error])

  ask()
