"""Each kind of hostile request is refused, and the next one is answered."""

import asyncio
import random

import httpx
import pytest

from scripts.serving import connections, limits
from tests.scripts.serving import conftest
from tests.stress import hostile


@pytest.fixture(scope="module")
def address(make_served):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(connections, "IDLE_SECONDS", 0.5)
    served = make_served(limits=limits.Limits(body_seconds=0.5))
    with conftest.running(served) as server:
      yield server.address


@pytest.mark.parametrize("kind", hostile.KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_refused(address, kind, seed):
  port = int(address.rpartition(":")[2])
  data = hostile.KINDS[kind].make(random.Random(seed))
  status = asyncio.run(hostile.send(port, data))
  assert status in hostile.KINDS[kind].statuses
  assert httpx.get(f"{address}/healthz").status_code == 200
