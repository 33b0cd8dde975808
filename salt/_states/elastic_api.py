"""
The users of the API as a state.
"""

from pathlib import Path

from salt.exceptions import CommandExecutionError

from saltmarsh import apiusers
from saltmarsh.errors import InvalidInput


def users(name, users):
    """
    Exactly these users can log in to the API. A new one gets a password of chance, in the file ``USER.password``.

    The passwords of the others stay; ``salt-run elastic_api.rotate`` changes one.

    name
        The directory of the files, which root alone may read.
    users
        Their names.

    CLI Example:

    .. code-block:: yaml

        /etc/salt/api:
          elastic_api.users:
            - users: [grafana, scripts]
    """
    test = __opts__["test"]
    try:
        new, gone = apiusers.settle(Path(name), users, test=test)
    except InvalidInput as err:
        return {"name": name, "result": False, "changes": {}, "comment": str(err)}
    except OSError as err:
        raise CommandExecutionError(f"{err.filename}: {err.strerror}") from err
    changes = {key: value for key, value in (("new", new), ("gone", gone)) if value}
    comment = "there are other users" if changes and test else "these users can log in"
    return {"name": name, "result": None if changes and test else True, "changes": changes, "comment": comment}
