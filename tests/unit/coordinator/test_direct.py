"""Handlers that the api calls without the framework: which it takes, and which it does not."""

import pytest
from fastapi import APIRouter, FastAPI

from coordinator.api.direct import DirectRoutes
from coordinator.api.routes.context import Context
from protocol.messages import Acknowledge, LeaseState


async def nowhere(_scope, _receive, _send):
    raise AssertionError("passed on")


def direct(router: APIRouter) -> DirectRoutes:
    return DirectRoutes(nowhere, owner=FastAPI(), routes=router.routes, context=None)


def test_a_handler_that_takes_what_cannot_be_made_is_refused_at_the_start():
    router = APIRouter()

    @router.post("/page")
    async def page(context: Context, limit: int) -> LeaseState:
        raise AssertionError("called")

    with pytest.raises(TypeError, match=r"limit: .*int.*: expected the context, the caller"):
        direct(router)


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [("http", "GET", "/take"), ("http", "POST", "/take/it"), ("websocket", "POST", "/take")],
)
async def test_what_is_not_a_post_to_a_known_path_is_passed_on(kind, method, path):
    router = APIRouter()

    @router.post("/take")
    async def take(request: Acknowledge) -> LeaseState:
        raise AssertionError("called")

    scope = {"type": kind, "method": method, "path": path, "headers": []}
    with pytest.raises(AssertionError, match="passed on"):
        await direct(router)(scope, None, None)
