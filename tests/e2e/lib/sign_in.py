"""PyPI's MCP clients, with nothing but the address of a server, told line by line what to do.

Each line of standard input is one order, a JSON object with the key `do`; each is answered with one JSON line.

open   {"library": "mcp" | "fastmcp", "url", "document"}: `document` is the address of a client metadata document, or
       null. Answered with {}.
list   answered with {"tools": [...]}, the names
call   {"tool", "arguments"}; answered with {"isError", "texts"}
later  {"seconds"}: for this process, that much time passes
close  ends it

What is raised is {"raised"}. The person's browser is `$BROWSER`.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import sys
import time
import traceback
import webbrowser
from urllib.parse import parse_qs, urlsplit

ONE = importlib.metadata.version("mcp").startswith("1.")
NAME = "obo-e2e mcp " + importlib.metadata.version("mcp")
# What a call may take; a client that waits for an answer that cannot come must not wait for ever.
WAIT_S = 30

passed = 0.0
real_time = time.time
time.time = lambda: real_time() + passed


class Memory:
    """Where the client keeps its registration and its tokens."""

    def __init__(self):
        self.tokens = self.client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client_info):
        self.client = client_info


class Loopback:
    """Where the browser comes back to."""

    async def open(self):
        self.answers = asyncio.Queue()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = "http://127.0.0.1:%d/callback" % self.server.sockets[0].getsockname()[1]
        return self

    async def serve(self, reader, writer):
        target = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1]
        if urlsplit(target).path == "/callback":
            await self.answers.put({key: values[0] for key, values in parse_qs(urlsplit(target).query).items()})
        text = b"You may close this page."
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
        await writer.drain()
        writer.close()

    async def answer(self):
        answer = await self.answers.get()
        if "error" in answer:
            raise RuntimeError(f"{answer['error']}: {answer.get('error_description')}")
        if ONE:
            return answer["code"], answer.get("state")
        from mcp.shared.auth import AuthorizationCodeResult

        return AuthorizationCodeResult(code=answer["code"], state=answer.get("state"), iss=answer.get("iss"))


async def show(url):
    await asyncio.to_thread(webbrowser.open, url)


async def provider(order, loopback):
    from mcp.client.auth import OAuthClientProvider
    from mcp.shared.auth import OAuthClientMetadata

    return OAuthClientProvider(
        server_url=order["url"],
        client_metadata=OAuthClientMetadata(client_name=NAME, redirect_uris=[loopback.url]),
        storage=Memory(),
        redirect_handler=show,
        callback_handler=loopback.answer,
        client_metadata_url=order["document"],
    )


@contextlib.asynccontextmanager
async def opened(order):
    if order["library"] == "fastmcp":
        from fastmcp import Client
        from fastmcp.client.auth import OAuth

        auth = OAuth(client_metadata_url=order["document"]) if order["document"] else "oauth"
        async with Client(order["url"], auth=auth, timeout=WAIT_S) as client:
            yield client
        return
    auth = await provider(order, await Loopback().open())
    if ONE or order["url"].endswith("/sse"):
        from mcp import ClientSession
        from mcp.client.sse import sse_client

        if order["url"].endswith("/sse"):
            streams = sse_client(order["url"], auth=auth)
        else:
            from mcp.client.streamable_http import streamablehttp_client

            streams = streamablehttp_client(order["url"], auth=auth)
        async with streams as (read, write, *_), ClientSession(read, write) as session:
            await session.initialize()
            yield session
    else:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        http = httpx2.AsyncClient(auth=auth, timeout=WAIT_S)
        async with http, Client(streamable_http_client(order["url"], http_client=http)) as client:
            yield client


async def call(client, order):
    # fastmcp's other way raises what a tool says as an error of its own.
    make = getattr(client, "call_tool_mcp", client.call_tool)
    result = await make(order["tool"], order["arguments"])
    failed = getattr(result, "is_error", None) or getattr(result, "isError", None)
    return {"isError": bool(failed), "texts": [item.text for item in result.content if item.type == "text"]}


async def main():
    global passed
    stack, client = contextlib.AsyncExitStack(), None
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        answer = {}
        try:
            async with asyncio.timeout(WAIT_S):
                if order["do"] == "open":
                    client = await stack.enter_async_context(opened(order))
                elif order["do"] == "list":
                    tools = await client.list_tools()
                    answer = {"tools": [tool.name for tool in getattr(tools, "tools", tools)]}
                elif order["do"] == "call":
                    answer = await call(client, order)
                elif order["do"] == "later":
                    passed += order["seconds"]
                elif order["do"] == "close":
                    await stack.aclose()
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


asyncio.run(main())
