// The clients that people really use, each at the protocol revision it speaks.

import { Client as ModernClient, StreamableHTTPClientTransport as ModernHttp } from "@modelcontextprotocol/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const NAME = { name: "obo-e2e", version: "1.0.0" };

const bearer = (token) => ({ requestInit: { headers: { Authorization: `Bearer ${token}` } } });

/** Runs `use` with a connected client and closes it whatever happens. */
async function using(client, transport, use) {
  await client.connect(transport);
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

/** npm @modelcontextprotocol/sdk: 2025-11-25 over Streamable HTTP. `capabilities` are the client's. */
export function legacyHttp(url, token, use, capabilities = {}) {
  const transport = new StreamableHTTPClientTransport(new URL(`${url}/mcp`), bearer(token));
  return using(new Client(NAME, { capabilities }), transport, use);
}

/** The same client over HTTP+SSE, the transport of 2024-11-05. */
export function legacySse(url, token, use) {
  const transport = new SSEClientTransport(new URL(`${url}/sse`), bearer(token));
  return using(new Client(NAME, { capabilities: {} }), transport, use);
}

/** The same client, launching obo itself. `heard` gets what obo writes to stderr. */
export function stdio(command, args, env, heard, use, capabilities = {}) {
  const transport = new StdioClientTransport({ command, args, env, stderr: "pipe" });
  transport.stderr.on("data", (bytes) => heard(bytes.toString()));
  return using(new Client(NAME, { capabilities }), transport, use);
}

/**
 * npm @modelcontextprotocol/client, held to 2026-07-28. `onLink(url)` stands for the person who is shown a link and
 * returns `accept`, `decline` or `cancel`; without it the client does not declare that it can show links.
 */
export function modernHttp(url, token, use, onLink) {
  const capabilities = onLink ? { elicitation: { url: {} } } : {};
  const client = new ModernClient(NAME, { capabilities, versionNegotiation: { mode: { pin: "2026-07-28" } } });
  if (onLink) {
    client.setRequestHandler("elicitation/create", async ({ params }) => ({ action: await onLink(params) }));
  }
  return using(client, new ModernHttp(new URL(`${url}/mcp`), bearer(token)), use);
}
