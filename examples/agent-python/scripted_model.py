"""A model that follows a script, so that the agent runs without a model: it speaks Chat Completions over HTTP.

It looks at nothing but the conversation it is sent, so the same conversation always goes on in the same way. Its first
mail has a wrong argument, as models' calls do.
"""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAIL, CHANNELS, POST = "Google_SendEmail", "Slack_ListChannels", "Slack_PostMessage"
NEWS = "Lunch is at noon."


def reply(messages: list[dict], tools: list[dict]) -> dict:
    """The next message of the conversation."""
    if missing := {MAIL, CHANNELS, POST} - {tool["function"]["name"] for tool in tools}:
        return {"role": "assistant", "content": f"I have no {', '.join(sorted(missing))}."}
    mails, lists, posts = (results(messages, name) for name in (MAIL, CHANNELS, POST))
    calls = []
    if not mails:
        calls.append((MAIL, {"to": "bob@example.com", "subject": "Lunch", "text": NEWS}))
    elif len(mails) == 1 and error(mails[0]).get("kind") == "TOOL_RUNTIME_BAD_INPUT_VALUE":
        calls.append((MAIL, {"to": ["bob@example.com"], "subject": "Lunch", "text": NEWS}))
    if not lists:
        calls.append((CHANNELS, {}))
    elif (not posts or len(posts) == 1 and error(posts[0]).get("can_retry")) and (channel := general(lists[0])):
        calls.append((POST, {"channel": channel, "text": NEWS}))
    if not calls:
        return {"role": "assistant", "content": f"{said('Mail', mails)} {said('Slack', posts or lists)}"}
    number = sum(len(message.get("tool_calls") or []) for message in messages)
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, (name, arguments) in enumerate(calls, number)
        ],
    }


def results(messages: list[dict], name: str) -> list[dict]:
    """What a tool has answered so far."""
    asked = [call for message in messages for call in message.get("tool_calls") or []]
    ids = {call["id"] for call in asked if call["function"]["name"] == name}
    return [json.loads(message["content"]) for message in messages if message.get("tool_call_id") in ids]


def error(result: dict) -> dict:
    return result.get("error", {})


def general(channels: dict) -> str | None:
    listed = channels.get("value", {}).get("channels", [])
    return next((channel["id"] for channel in listed if channel["name"] == "general"), None)


def said(what: str, all_results: list[dict]) -> str:
    last = all_results[-1]
    return f"{what}: not done, {last['error']['message']}." if "error" in last else f"{what}: done, {last['value']}."


class Model(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not re.fullmatch(r"(/v1)?/chat/completions", self.path):
            return self.send_error(404)
        message = reply(asked["messages"], asked.get("tools", []))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        body = json.dumps(
            {
                "id": f"chatcmpl-{len(asked['messages'])}",
                "object": "chat.completion",
                "created": 0,
                "model": asked["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing: stdout and stderr are the agent's."""


def start() -> str:
    """Serves the model while the process lives. Its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"
