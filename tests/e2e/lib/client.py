"""One conversation of PyPI's `mcp` client with obo: lists the tools, makes one call, prints what it saw as JSON.

Standard input: {"url", "transport": "http" | "sse", "token", "tool", "arguments"}. Runs with mcp 1.x, which speaks
2025-11-25 at most, and with mcp 2.x, which speaks 2026-07-28 over HTTP.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import sys

VERSION = importlib.metadata.version("mcp")


@contextlib.asynccontextmanager
async def connected(asked):
    headers = {"Authorization": f"Bearer {asked['token']}"}
    if asked["transport"] == "sse":
        from mcp import ClientSession
        from mcp.client.sse import sse_client

        async with sse_client(asked["url"] + "/sse", headers=headers) as (read, write):
            async with ClientSession(read, write) as session:
                await session.initialize()
                yield session
    elif VERSION.startswith("1."):
        from mcp import ClientSession
        from mcp.client.streamable_http import streamablehttp_client

        async with streamablehttp_client(asked["url"] + "/mcp", headers=headers) as (read, write, _):
            async with ClientSession(read, write) as session:
                await session.initialize()
                yield session
    else:
        import httpx2
        from mcp import Client
        from mcp.client.streamable_http import streamable_http_client

        http = httpx2.AsyncClient(headers=headers, timeout=60)
        transport = streamable_http_client(asked["url"] + "/mcp", http_client=http)
        async with http, Client(transport, mode="2026-07-28") as client:
            yield client


async def main():
    asked = json.load(sys.stdin)
    async with connected(asked) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool(asked["tool"], asked["arguments"])
    failed = getattr(result, "is_error", None) or getattr(result, "isError", None)
    texts = [item.text for item in result.content if item.type == "text"]
    print(json.dumps({"version": VERSION, "tools": tools, "result": {"isError": bool(failed), "texts": texts}}))


asyncio.run(main())
