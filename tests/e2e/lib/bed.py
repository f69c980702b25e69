"""Hosts the offline providers for the suite and remembers every token that they ever hand out.

Usage: bed.py TESTBED_FOLDER REDIRECT_URI...
Prints one JSON line when it is ready. A line `secrets` on standard input is answered with one JSON line; the end of
standard input stops it.
"""

import json
import random
import socket
import sys
from urllib.parse import parse_qsl, urlencode, urlsplit

SERVICES = ("google", "slack", "github", "microsoft", "linear", "salesforce", "hubspot")


class Remembering(dict):
    """A dict that keeps every key it ever had."""

    def __init__(self, ever):
        super().__init__()
        self.ever = ever

    def __setitem__(self, key, value):
        self.ever.add(key)
        super().__setitem__(key, value)


def free_base_port():
    """A base port whose neighbours, as the test bed uses them, are all free."""
    for _ in range(100):
        base = random.randrange(20000, 30000, 10)
        try:
            for port in [*range(base + 1, base + 8), *range(base + 101, base + 108)]:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    sys.exit("no free ports")


def like_hubspot(gate, client):
    """Adds what the test bed's HubSpot lacks: optional scopes, and whose token it is."""
    serve = gate.serve_inner

    def serve_inner(method, path, p, headers, body):
        if p == "/oauth/authorize":
            query = dict(parse_qsl(urlsplit(path).query))
            # HubSpot refuses a link that does not ask for what the app requires.
            if query.get("scope") != "oauth":
                return gate.js(400, {"error": "invalid_scope"})
            query["scope"] += " " + query.pop("optional_scope", "")
            path = f"{p}?{urlencode(query)}"
        elif (method, p) == ("POST", "/oauth/v1/token/introspect"):
            form = dict(parse_qsl(body.decode()))
            token = gate.access.get(form.get("token"))
            if (form.get("client_id"), form.get("client_secret")) != client or token is None or token.dead:
                return gate.js(200, {"active": False})
            user = {"user": f"{token.user}@example.com", "user_id": 1 if token.user == "alice" else 2}
            return gate.js(200, {"active": True, "token": form["token"], "hub_id": 4242, "hub_domain": "acme.example", **user})
        return serve(method, path, p, headers, body)

    gate.serve_inner = serve_inner


def main():
    sys.path.insert(0, sys.argv[1])
    sys.dont_write_bytecode = True
    import testbed

    bed = testbed.TestBed(base_port=free_base_port(), redirects=sys.argv[2:]).start()
    ever = set()
    for gate in bed.gates.values():
        gate.access, gate.refresh = Remembering(ever), Remembering(ever)
    like_hubspot(bed.gates["hubspot"], testbed.client("hubspot"))
    try:
        print(json.dumps({name: bed.describe()[name] for name in SERVICES}), flush=True)
        for line in sys.stdin:
            if line.strip() == "secrets":
                clients = {testbed.client(name)[1] for name in SERVICES}
                print(json.dumps(sorted(ever | clients)), flush=True)
    finally:
        bed.stop()


if __name__ == "__main__":
    main()
