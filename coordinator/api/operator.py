"""Who operates the run: the bearer of the admin token that `init` wrote."""

import hmac

from fastapi import Depends

from coordinator.api.errors import ApiError
from coordinator.api.routes.context import Authorization, Context
from coordinator.api.settings import ApiSettings
from protocol.errors import ErrorCode


def is_operator(authorization: str | None, settings: ApiSettings) -> bool:
    """Whether an Authorization header holds the admin token. Nobody does where there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    expected = settings.admin_token
    return (
        bool(expected)
        and scheme.lower() == "bearer"
        and hmac.compare_digest(token.encode(), (expected or "").encode())
    )


async def check_operator(context: Context, authorization: Authorization = None) -> None:
    """Raises ApiError for everybody else."""
    if not is_operator(authorization, context.settings):
        raise ApiError(
            ErrorCode.UNKNOWN_TOKEN,
            "Authorization: expected Bearer and the run's admin token, which stands in its "
            "keys/admin.token",
        )


OperatorOnly = Depends(check_operator)
