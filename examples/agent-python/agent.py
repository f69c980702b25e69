"""An agent: a model chooses the tools, and obo calls each of them as the user who asked.

The loop (`answer`): the model's message, the tool calls in it side by side (`call`), their results back to the model. A
user who has to connect an account first is shown the link, and the call is made when they have (`execute`).
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from arcadepy import APIConnectionError, APIStatusError, Arcade
from openai import OpenAI

import scripted_model

TASK = "Tell bob@example.com by mail, and #general on Slack, that lunch is at noon."
MAX_ROUNDS = 8
MAX_CALLS_AT_ONCE = 4
# Refusals that the model, or the user, can do something about; all others are for you.
THEIRS = {400, 404, 410, 429}

obo = Arcade(base_url=os.environ["OBO_URL"], api_key=os.environ["OBO_KEY"])
# A call whose answer was lost may have been made. Whether it is made again is not the client's to decide.
once = obo.with_options(max_retries=0)

if "OPENAI_API_KEY" in os.environ:
    model, model_name = OpenAI(), os.environ["OPENAI_MODEL"]
else:
    model, model_name = OpenAI(base_url=scripted_model.start(), api_key="none"), "script"


def answer(user: str, task: str) -> str:
    """What the model says when it has done what the user asked for."""
    tools = list(obo.tools.formatted.list(format="openai", user_id=user))
    messages = [{"role": "user", "content": task}]
    links: set[str] = set()
    for _ in range(MAX_ROUNDS):
        completion = model.chat.completions.create(model=model_name, messages=messages, tools=tools)
        message = completion.choices[0].message
        messages.append(message.to_dict(exclude_none=True))
        if not message.tool_calls:
            return message.content or ""
        with ThreadPoolExecutor(MAX_CALLS_AT_ONCE) as calls:
            results = list(calls.map(lambda asked: call(user, asked.function, links), message.tool_calls))
        for asked, result in zip(message.tool_calls, results):
            messages.append({"role": "tool", "tool_call_id": asked.id, "content": json.dumps(result)})
    return f"Not done after {MAX_ROUNDS} rounds."


def call(user: str, function, links: set[str]) -> dict:
    """One call: its value, or what went wrong, so that the model can react to it."""
    try:
        return execute(user, function.name, json.loads(function.arguments), links)
    except json.JSONDecodeError as error:
        return {"error": {"message": f"the arguments are not JSON: {error}"}}
    except APIConnectionError:
        return {"error": {"message": "no answer came; it may have been done, so look before you call again"}}
    except APIStatusError as refused:
        if refused.status_code not in THEIRS:
            raise
        return {"error": {"message": refused.message}}


def execute(user: str, name: str, arguments: dict, links: set[str]) -> dict:
    # obo takes a tool's name as it wrote it for the model.
    done = once.tools.execute(tool_name=name, user_id=user, input=arguments)
    if link := done.output.authorization:
        # The user's, not the model's. Calls that need the same have the same link.
        if link.url not in links:
            links.add(link.url)
            print(f"Open {link.url}", flush=True)
        obo.auth.wait_for_completion(link)
        done = once.tools.execute(tool_name=name, user_id=user, input=arguments)
    if done.success:
        return {"value": done.output.value}
    return {"error": done.output.error.to_dict()}


if __name__ == "__main__":
    user, task, *_ = [*sys.argv[1:], TASK]
    print(answer(user, task))
