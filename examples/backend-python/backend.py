"""A backend whose users send mail from their own accounts: obo asks each of them once, and sends as them.

The loop: authorize and send the browser to the link (`do_POST`), confirm whose it is (`verify`), wait and execute (`send`).
"""

import html
import http.server
import os
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, urlsplit

from arcadepy import APIStatusError, Arcade

PORT = int(os.environ.get("PORT", "5000"))
HERE = f"http://127.0.0.1:{PORT}"
TOOL = "Google.SendEmail"

obo = Arcade(base_url=os.environ["OBO_URL"], api_key=os.environ["OBO_KEY"])
agents = ThreadPoolExecutor()
sessions: dict[str, str] = {}  # who is signed in, by the session's cookie
sent: dict[str, Future] = {}  # what became of each user's last mail

PAGE = """<!doctype html><title>Mail</title><p>{text}</p>
<form method="post" action="/mail"><input name="to"><input name="subject"><button>Send</button></form>"""


def send(user: str, mail: dict, authorization) -> str:
    """What an agent does on behalf of a user, while nobody looks."""
    if authorization.status != "completed":
        obo.auth.wait_for_completion(authorization)
    answer = obo.tools.execute(tool_name=TOOL, user_id=user, input=mail)
    return "Sent." if answer.success else answer.output.error.message


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/sign-in":
            # Stands for the sign-in that your backend has.
            session = secrets.token_urlsafe()
            sessions[session] = query["user"]
            return self.go("/", f"session={session}; HttpOnly; SameSite=Lax; Path=/")
        if not (user := self.user()):
            return self.page(401, "Sign in first.")
        if url.path == "/obo/verify":
            return self.verify(user, query.get("flow_id", ""))
        if url.path == "/done" and user in sent:
            return self.page(200, self.outcome(sent[user]))
        return self.page(200, f"You are {user}.")

    def do_POST(self):
        if not (user := self.user()) or self.path != "/mail":
            return self.page(401, "Sign in first.")
        form = parse_qs(self.rfile.read(min(int(self.headers["content-length"] or 0), 10_000)).decode())
        mail = {"to": [form["to"][0]], "subject": form["subject"][0], "text": "Sent on your behalf."}
        authorization = obo.tools.authorize(tool_name=TOOL, user_id=user, next_uri=f"{HERE}/done")
        sent[user] = agents.submit(send, user, mail, authorization)
        self.go("/done" if authorization.status == "completed" else authorization.url)

    def verify(self, user: str, flow_id: str):
        """obo asks whose browser it is: whoever is signed in to it, and nobody else."""
        try:
            confirmed = obo.auth.confirm_user(flow_id=flow_id, user_id=user)
        except APIStatusError as refused:
            return self.page(refused.status_code, "Nothing was connected: the link was not yours.")
        self.go(confirmed.next_uri or "/")

    def outcome(self, future: Future) -> str:
        try:
            return future.result(timeout=30)
        except APIStatusError:
            return "You did not connect the account, so nothing was sent."

    def user(self) -> str | None:
        cookie = SimpleCookie(self.headers["cookie"]).get("session")
        return sessions.get(cookie.value) if cookie else None

    def page(self, status: int, text: str):
        body = PAGE.format(text=html.escape(text)).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def go(self, where: str, cookie: str | None = None):
        self.send_response(303)
        self.send_header("location", where)
        self.send_header("content-length", "0")
        if cookie:
            self.send_header("set-cookie", cookie)
        self.end_headers()

    def log_message(self, *_):
        """Says nothing: a query has the flow's id."""


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Backend)
    print(f"listening on {HERE}", flush=True)
    server.serve_forever()
