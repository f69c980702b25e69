// Every client behind one interface, so that one table of scenarios tests them all.
//
// A client is opened on a server, which is an entry of `mcpServers` as clients' configurations have it: `{type, url,
// headers}` or `{command, args, env}`. `onLink(params)` stands for the person whom the client shows a link, and returns
// `accept`, `decline` or `cancel`; without it the client does not declare that it can show links. What comes back is a
// conversation:
//
//   revision            what was agreed on, where the client tells
//   list()              the tools, `[{name, _meta}]`
//   call(tool, input)   `{result}` or `{error: {code, message, data}}`
//   call(tool, input, byHand)
//                       without the client's own loop: `byHand` has what a retry carries, `{}` at first
//   close()

import { spawn } from "node:child_process";
import { mkdtempSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { Client as Client2, SSEClientTransport as Sse2, StreamableHTTPClientTransport as Http2 } from "@modelcontextprotocol/client";
import { StdioClientTransport as Stdio2 } from "@modelcontextprotocol/client/stdio";
import { Client as Client1 } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport as Sse1 } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport as Stdio1 } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport as Http1 } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const here = dirname(fileURLToPath(import.meta.url));
// Not the link: the inspector does nothing when it is run by another name than its own.
const modules = realpathSync(join(here, "../node_modules"));
const NAME = { name: "obo-e2e", version: "1.0.0" };
const CAN_SHOW_LINKS = { elicitation: { url: {} } };
const WAIT_MS = 60_000;
const STOP_MS = 5_000;

/** The transport of a server for either generation of the TypeScript clients. */
function transportTo(server, [Http, Sse, Stdio], heard) {
  if (server.command) {
    const transport = new Stdio({ ...server, stderr: "pipe" });
    transport.stderr.on("data", (bytes) => heard(bytes.toString()));
    return transport;
  }
  const Transport = server.type === "sse" ? Sse : Http;
  return new Transport(new URL(server.url), { requestInit: { headers: server.headers } });
}

/** What an answer is, whether the client returns it or throws it. */
async function answered(work) {
  try {
    return { result: await work };
  } catch (error) {
    // A code of JSON-RPC; those of the libraries themselves are words.
    if (!Number.isInteger(error.code)) throw error;
    return { error: { code: error.code, message: error.message, data: error.data } };
  }
}

/** npm @modelcontextprotocol/sdk. */
export async function sdk(server, { onLink, heard }) {
  const client = new Client1(NAME, { capabilities: onLink ? CAN_SHOW_LINKS : {} });
  const transport = transportTo(server, [Http1, Sse1, Stdio1], heard);
  let revision;
  // Called with what was agreed on by every transport that needs to know it.
  const set = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = (version) => {
    revision = version;
    set?.(version);
  };
  await client.connect(transport);
  return {
    revision,
    list: async () => (await client.listTools()).tools,
    call: (name, input) => answered(client.callTool({ name, arguments: input }, undefined, { timeout: WAIT_MS })),
    close: () => client.close(),
  };
}

/** npm @modelcontextprotocol/client. `mode` is how it negotiates the revision. */
export async function client(server, { onLink, heard, mode }) {
  const capabilities = onLink ? CAN_SHOW_LINKS : {};
  const client = new Client2(NAME, { capabilities, versionNegotiation: { mode } });
  if (onLink) client.setRequestHandler("elicitation/create", async ({ params }) => ({ action: await onLink(params) }));
  await client.connect(transportTo(server, [Http2, Sse2, Stdio2], heard));
  const call = (name, input, byHand) => {
    if (!byHand) return client.callTool({ name, arguments: input }, { timeout: WAIT_MS });
    const params = { name, arguments: input, ...byHand };
    return client.request({ method: "tools/call", params }, { allowInputRequired: true, timeout: WAIT_MS });
  };
  return {
    revision: client.getNegotiatedProtocolVersion(),
    list: async () => (await client.listTools()).tools,
    call: (...args) => answered(call(...args)),
    close: () => client.close(),
  };
}

/** npm mcp-remote, as a client launches it that can do nothing but launch servers. */
export function mcpRemote({ command, args, env }, options) {
  // `npx -y mcp-remote@VERSION` in a configuration; here the installed one.
  const [yes, program, ...own] = args;
  if (command !== "npx" || yes !== "-y" || !program.startsWith("mcp-remote@")) throw new Error(`launched by ${command}`);
  return sdk({ command: process.execPath, args: [join(modules, "mcp-remote/dist/proxy.js"), ...own], env }, options);
}

/** Runs a program to its end. */
async function run(command, args, env) {
  const child = spawn(command, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  const out = { stdout: "", stderr: "" };
  for (const stream of ["stdout", "stderr"]) child[stream].setEncoding("utf8").on("data", (text) => (out[stream] += text));
  return { code: await new Promise((done) => child.on("close", done)), ...out };
}

/** npm @modelcontextprotocol/inspector on the command line: a process for every request. `era`: legacy, auto or modern. */
export async function inspector(server, { heard, era, node, environment }) {
  const folder = mkdtempSync(join(tmpdir(), "obo-e2e-inspector-"));
  const config = join(folder, "mcp.json");
  writeFileSync(config, JSON.stringify({ mcpServers: { obo: server } }), { mode: 0o600 });
  const program = join(modules, "@modelcontextprotocol/inspector/clients/cli/build/index.js");
  const ask = async (...args) => {
    const options = ["--config", config, "--server", "obo", "--protocol-era", era, "--format", "json", "--quiet"];
    // Its own secrets: it has none to keep, and there is no keyring.
    const env = { ...environment, HOME: folder, MCP_INSPECTOR_SECRET_STORE: "memory" };
    const { code, stdout, stderr } = await run(node, [program, ...options, ...args], env);
    heard(stderr);
    // It ends with an error of its own when a tool says that it failed, and prints what the tool said all the same.
    if (code !== 0 && !stderr.includes('"tool_is_error"')) throw new Error(`inspector: exit ${code}: ${stderr}`);
    return { ended: code, ...JSON.parse(stdout).result };
  };
  return {
    list: async () => (await ask("--method", "tools/list")).tools,
    call: async (name, input) => {
      const args = ["--method", "tools/call", "--tool-name", name, "--tool-args-json", JSON.stringify(input)];
      const { ended, ...result } = await ask(...args);
      if ((ended !== 0) !== (result.isError === true)) throw new Error(`inspector: exit ${ended}: ${JSON.stringify(result)}`);
      return { result };
    },
    close: () => rmSync(folder, { recursive: true }),
  };
}

/** A process of PyPI's clients; see client.py. Its conversations end in the opposite order in which they began. */
export class Python {
  constructor(interpreter, heard = () => {}) {
    this.child = spawn(interpreter, ["-B", join(here, "client.py")], { stdio: ["pipe", "pipe", "pipe"] });
    this.stderr = "";
    this.child.stderr.setEncoding("utf8").on("data", (text) => {
      this.stderr = (this.stderr + text).slice(-2000);
      heard(text);
    });
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
    this.ended = new Promise((done) => this.child.on("close", done));
    // That it is gone is seen where its answers are read.
    this.child.stdin.on("error", () => {});
  }

  say(line) {
    this.child.stdin.write(`${JSON.stringify(line)}\n`);
  }

  /** Gives an order and returns its answer. */
  async order(order, onLink) {
    this.say(order);
    for (;;) {
      const { value, done } = await this.lines.next();
      if (done) throw new Error(`client.py ended: ${this.stderr}`);
      const answer = JSON.parse(value);
      if (answer.raised) throw new Error(answer.raised);
      if (!answer.link) return answer;
      this.say({ action: await onLink(answer.link) });
    }
  }

  async open(server, { onLink, library, mode }) {
    const { version, revision } = await this.order({ do: "open", library, server, mode, links: Boolean(onLink) });
    return {
      version,
      revision,
      list: async () => (await this.order({ do: "list" })).tools,
      call: (tool, input, byHand) => this.order({ do: "call", tool, arguments: input, byHand }, onLink),
      close: () => this.order({ do: "close" }),
    };
  }

  async stop() {
    this.child.stdin.end();
    const late = setTimeout(() => this.child.kill(), STOP_MS);
    await this.ended;
    clearTimeout(late);
  }
}
