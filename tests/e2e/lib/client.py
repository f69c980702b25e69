"""PyPI's MCP clients, told line by line what to do: `mcp` 1.x and 2.x, and `fastmcp`.

Each line of standard input is one order, a JSON object with the key `do`; each is answered with one JSON line.

open   {"library": "mcp" | "fastmcp", "server", "mode", "links"}: `server` is an entry of `mcpServers`; `mode` is how
       revisions are negotiated, where the library has a choice; with `links` the client says that it can show links.
       Answered with {"version", "revision"}.
list   answered with {"tools": [{"name", "_meta"}]}
call   {"tool", "arguments", "byHand"?}: `byHand` has what a retry carries, {} at first; then the library's own loop is
       not used. Answered with {"result"} or {"error": {"code", "message", "data"}}. While it goes on, the client may be
       shown a link: {"link"} is printed, and the next line of standard input is {"action"}.
close  ends what was opened last; what was opened before it is spoken to again.

What the library raises is {"raised"}.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import sys
import traceback

ONE = importlib.metadata.version("mcp").startswith("1.")
NAME = {"name": "obo-e2e", "version": "1.0.0"}


def say(answer):
    print(json.dumps(answer), flush=True)


async def heard():
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None


def dumped(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def ask_person(params):
    say({"link": dumped(params)})
    return (await heard())["action"]


async def on_elicitation(_context, params):
    from mcp.types import ElicitResult

    return ElicitResult(action=await ask_person(params))


async def on_fastmcp_elicitation(_message, _response_type, params, _context):
    from fastmcp.client.elicitation import ElicitResult

    return ElicitResult(action=await ask_person(params))


def launched(server):
    from mcp import StdioServerParameters

    return StdioServerParameters(command=server["command"], args=server["args"], env=server["env"])


@contextlib.asynccontextmanager
async def streams(server):
    """Read and write streams of `mcp`, for the transports that a bare session takes."""
    if "command" in server:
        from mcp.client.stdio import stdio_client

        opened = stdio_client(launched(server))
    elif server["type"] == "sse":
        from mcp.client.sse import sse_client

        opened = sse_client(server["url"], headers=server["headers"])
    else:
        from mcp.client.streamable_http import streamablehttp_client

        opened = streamablehttp_client(server["url"], headers=server["headers"])
    async with opened as (read, write, *_):
        yield read, write


@contextlib.asynccontextmanager
async def opened_session(order):
    from mcp import ClientSession
    from mcp.types import Implementation

    callback = on_elicitation if order["links"] else None
    async with streams(order["server"]) as (read, write):
        options = {"elicitation_callback": callback, "client_info": Implementation(**NAME)}
        async with ClientSession(read, write, **options) as session:
            opened = await session.initialize()
            yield session, getattr(opened, "protocol_version", None) or opened.protocolVersion


@contextlib.asynccontextmanager
async def opened_client(order):
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client
    from mcp.types import Implementation

    server = order["server"]
    async with contextlib.AsyncExitStack() as stack:
        if "command" in server:
            transport = launched(server)
        else:
            import httpx2

            http = await stack.enter_async_context(httpx2.AsyncClient(headers=server["headers"], timeout=60))
            transport = streamable_http_client(server["url"], http_client=http)
        options = {"elicitation_callback": on_elicitation if order["links"] else None}
        client = Client(transport, mode=order["mode"], client_info=Implementation(**NAME), **options)
        await stack.enter_async_context(client)
        yield client, client.protocol_version


@contextlib.asynccontextmanager
async def opened_fastmcp(order):
    from fastmcp import Client
    from mcp.types import Implementation

    # Processes that it launches would be kept for the next client otherwise.
    config = {"mcpServers": {"obo": {**order["server"], "keep_alive": False}}}
    options = {"elicitation_handler": on_fastmcp_elicitation} if order["links"] else {}
    async with Client(config, mode=order["mode"], client_info=Implementation(**NAME), **options) as client:
        yield client, client.session.protocol_version


def opening(order):
    if order["library"] == "fastmcp":
        return opened_fastmcp(order)
    # The client of 2.x has no HTTP+SSE; its sessions do.
    return opened_session(order) if ONE or order["server"].get("type") == "sse" else opened_client(order)


async def call(client, order):
    # The error of 1.x and of 2.x.
    from mcp.shared import exceptions

    refused = getattr(exceptions, "McpError", None) or exceptions.MCPError
    by_hand = order.get("byHand")
    try:
        if by_hand is None:
            # fastmcp's other way raises what a tool says as an error of its own.
            make = getattr(client, "call_tool_mcp", client.call_tool)
            result = await make(order["tool"], order["arguments"])
        else:
            result = await getattr(client, "session", client).call_tool(
                order["tool"],
                order["arguments"],
                request_state=by_hand.get("requestState"),
                input_responses=by_hand.get("inputResponses"),
                allow_input_required=True,
            )
    except refused as error:
        return {"error": dumped(error.error)}
    return {"result": dumped(result)}


async def listed(client):
    tools = await client.list_tools()
    # fastmcp returns them bare.
    return [{"name": tool.name, "_meta": tool.meta} for tool in getattr(tools, "tools", tools)]


async def main():
    opened = []
    while (order := await heard()) is not None:
        try:
            if order["do"] == "open":
                stack = contextlib.AsyncExitStack()
                client, revision = await stack.enter_async_context(opening(order))
                opened.append((stack, client))
                package = {"mcp": "mcp", "fastmcp": "fastmcp-slim"}[order["library"]]
                say({"version": importlib.metadata.version(package), "revision": revision})
            elif order["do"] == "list":
                say({"tools": await listed(opened[-1][1])})
            elif order["do"] == "call":
                say(await call(opened[-1][1], order))
            elif order["do"] == "close":
                stack, _ = opened.pop()
                await stack.aclose()
                say({})
        except Exception:
            say({"raised": traceback.format_exc()})


asyncio.run(main())
