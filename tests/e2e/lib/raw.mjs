// The protocol by hand, for revisions that no client library speaks any more, and to see exactly what is answered.

export const REVISIONS = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28"];
export const MODERN = "2026-07-28";

const CLIENT = { name: "obo-e2e-raw", version: "1.0.0" };
const WAIT_MS = 30_000;

/** A JSON-RPC request. */
export const request = (id, method, params = {}) => ({ jsonrpc: "2.0", id, method, params });

/** What arrives on an event stream, one `{event, data}` after another. */
async function* events(body) {
  let text = "";
  for await (const piece of body.pipeThrough(new TextDecoderStream())) {
    text += piece.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const fields = text.slice(0, end).split("\n").map((line) => /^(event|data): ?(.*)$/.exec(line)).filter(Boolean);
      text = text.slice(end + 2);
      const all = (name) => fields.filter(([, field]) => field === name).map(([, , value]) => value);
      if (all("data").length > 0) yield { event: all("event")[0] ?? "message", data: all("data").join("\n") };
    }
  }
}

/** The answer to the request `id`, or to a batch, in a response of either content type. */
async function answerIn(response, id) {
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response.json();
  for await (const { data } of events(response.body)) {
    const message = data && JSON.parse(data);
    if (message && message.id === id) return message;
  }
  throw new Error(`the stream ended without an answer to ${id}`);
}

async function accepted(response) {
  if (response.status !== 202) throw new Error(`HTTP ${response.status}: ${await response.text()}`);
  await response.body?.cancel();
}

/** One request of 2026-07-28, which stands for itself: the JSON-RPC answer. */
async function ask(url, token, capabilities, method, params) {
  const _meta = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": capabilities,
  };
  const response = await fetch(`${url}/mcp`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${token}`,
      "content-type": "application/json",
      accept: "application/json, text/event-stream",
      "mcp-protocol-version": MODERN,
      "mcp-method": method,
      ...(params.name ? { "mcp-name": params.name } : {}),
    },
    body: JSON.stringify(request(1, method, { ...params, _meta })),
    signal: AbortSignal.timeout(WAIT_MS),
  });
  return answerIn(response, 1);
}

/** A session over Streamable HTTP, of any revision that has sessions. */
async function session(url, token, revision, capabilities) {
  const headers = {
    authorization: `Bearer ${token}`,
    "content-type": "application/json",
    accept: "application/json, text/event-stream",
  };
  const post = (body) =>
    fetch(`${url}/mcp`, { method: "POST", headers, body: JSON.stringify(body), signal: AbortSignal.timeout(WAIT_MS) });
  const opened = await post(request(0, "initialize", { protocolVersion: revision, capabilities, clientInfo: CLIENT }));
  headers["mcp-session-id"] = opened.headers.get("mcp-session-id");
  const { result } = await answerIn(opened, 0);
  // The header is of 2025-06-18.
  if (result.protocolVersion >= "2025-06-18") headers["mcp-protocol-version"] = result.protocolVersion;
  await accepted(await post({ jsonrpc: "2.0", method: "notifications/initialized" }));
  let id = 0;
  return {
    revision: result.protocolVersion,
    post,
    ask: async (method, params) => answerIn(await post(request(++id, method, params)), id),
    close: async () => (await fetch(`${url}/mcp`, { method: "DELETE", headers })).body?.cancel(),
  };
}

/** A session over HTTP+SSE. */
async function streamed(url, token, revision, capabilities) {
  const authorization = `Bearer ${token}`;
  const closing = new AbortController();
  const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(WAIT_MS)]);
  const stream = events((await fetch(`${url}/sse`, { headers: { authorization }, signal })).body);
  const { value: first } = await stream.next();
  if (first?.event !== "endpoint") throw new Error(`the stream began with ${JSON.stringify(first)}`);
  const endpoint = new URL(first.data, url);
  const post = async (body) => {
    const headers = { authorization, "content-type": "application/json" };
    await accepted(await fetch(endpoint, { method: "POST", headers, body: JSON.stringify(body) }));
  };
  const wait = async (id) => {
    for (;;) {
      const { value, done } = await stream.next();
      if (done) throw new Error(`the stream ended without an answer to ${id}`);
      const message = JSON.parse(value.data);
      if (message.id === id) return message;
    }
  };
  await post(request(0, "initialize", { protocolVersion: revision, capabilities, clientInfo: CLIENT }));
  const { result } = await wait(0);
  await post({ jsonrpc: "2.0", method: "notifications/initialized" });
  let id = 0;
  return {
    revision: result.protocolVersion,
    ask: async (method, params) => {
      await post(request(++id, method, params));
      return wait(id);
    },
    close: async () => closing.abort(),
  };
}

/** Runs `use` with a client of a revision, over `http` (Streamable HTTP) or `sse` (HTTP+SSE). */
export async function raw({ url, token, transport, revision, capabilities = {} }, use) {
  if (transport === "http" && revision === MODERN) {
    return use({ revision, ask: (method, params = {}) => ask(url, token, capabilities, method, params) });
  }
  const client = await (transport === "sse" ? streamed : session)(url, token, revision, capabilities);
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}
