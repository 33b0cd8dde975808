"""
Passwords and tokens of the API's users.

None of it belongs to a role: only root on the controller may do it. Secrets are neither arguments nor answers.
"""

from pathlib import Path

import salt.auth

from saltmarsh import apiusers
from saltmarsh.errors import InvalidInput


def rotate(user):
    """
    Give a user a new password, and log the user out everywhere. The old password and every token are refused at once.

    user
        The user's name.

    Returns the file with the new password, and how many tokens were revoked.

    CLI Example:

    .. code-block:: bash

        salt-run elastic_api.rotate grafana
    """
    try:
        password = apiusers.rotate(_directory(), user)
    except InvalidInput as err:
        __context__["retcode"] = 2
        return {"error": str(err), "retcode": 2}
    return {"password": str(password), "revoked": _revoke(user)}


def revoke(user):
    """
    Log a user out everywhere: every token is refused at once. Whoever knows the password can log in again.

    user
        The user's name; also one that is no user any more.

    Returns how many tokens were revoked.

    CLI Example:

    .. code-block:: bash

        salt-run elastic_api.revoke grafana
    """
    return {"revoked": _revoke(user)}


def _directory():
    try:
        return Path(__opts__["external_auth"]["file"]["^filename"]).parent
    except KeyError as err:
        raise InvalidInput("the master has no API: apply the state salt.api on the controller") from err


def _revoke(user):
    with salt.auth.LoadAuth(__opts__) as auth:
        tokens = [token for token in auth.list_tokens() if auth.get_tok(token).get("name") == user]
        for token in tokens:
            auth.rm_token(token)
    return len(tokens)
