"""PyPI's `arcadepy`, unmodified, at the orders of the suite.

Environment: BASE_URL. Standard input: a line of JSON for each order, {"id", "key", "do", "with"}; each is answered with a
line {"id", "value"} or {"id", "error": {"name", "status", "message"}}, in whatever order they end.
"""

import json
import os
import sys
import threading

from arcadepy import APIError, Arcade

BASE_URL = os.environ["BASE_URL"]
printing = threading.Lock()


def plain(value):
    return value.to_dict() if hasattr(value, "to_dict") else value


def every(pages):
    """All items, asked for page after page."""
    return [plain(item) for item in pages]


ORDERS = {
    "health": lambda c: c.health.check(),
    "start": lambda c, user, provider, scopes: c.auth.start(user, provider, scopes=scopes),
    "authorize": lambda c, **body: c.auth.authorize(**body),
    "status": lambda c, id: c.auth.status(id=id),
    "wait": lambda c, id: c.auth.wait_for_completion(id),
    "confirm": lambda c, **body: c.auth.confirm_user(**body),
    "tools": lambda c, **query: every(c.tools.list(**query)),
    "tool": lambda c, name, **query: c.tools.get(name, **query),
    "authorizeTool": lambda c, **body: c.tools.authorize(**body),
    "execute": lambda c, **body: c.tools.execute(**body),
    "formatted": lambda c, **query: every(c.tools.formatted.list(**query)),
    "formattedTool": lambda c, name, **query: c.tools.formatted.get(name, **query),
    "connections": lambda c, **query: every(c.admin.user_connections.list(**query)),
    "disconnect": lambda c, id: c.admin.user_connections.delete(id),
}


def obey(order):
    # What is refused must be seen at once, and once.
    client = Arcade(base_url=BASE_URL, api_key=order["key"], max_retries=0)
    answer = {"id": order["id"]}
    try:
        answer["value"] = plain(ORDERS[order["do"]](client, **order["with"]))
    except APIError as error:
        status = getattr(error, "status_code", None)
        answer["error"] = {"name": type(error).__name__, "status": status, "message": error.message}
    with printing:
        print(json.dumps(answer), flush=True)


for line in sys.stdin:
    threading.Thread(target=obey, args=(json.loads(line),), daemon=True).start()
