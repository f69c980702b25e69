// Clients that sign their person in, behind one interface. They are given the address of a server and nothing else.
//
// Each of `SIGN_INS` has `name`, `transport` (`http` or `sse`), `document` (whether it is known by a metadata document,
// else it registers itself), and `open({url, document, opener, folder})`, which returns a conversation:
//
//   list()             the names of the tools
//   call(tool, input)  `{isError, texts}`; it throws when the person is not signed in in the end
//   later(seconds)     makes the client believe that time has passed, for clients that renew by their own clock alone
//   close()

import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { mkdtempSync, realpathSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import {
  Client as Client2, SSEClientTransport as Sse2, StreamableHTTPClientTransport as Http2,
  UnauthorizedError as Unauthorized2,
} from "@modelcontextprotocol/client";
import { UnauthorizedError as Unauthorized1 } from "@modelcontextprotocol/sdk/client/auth.js";
import { Client as Client1 } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport as Sse1 } from "@modelcontextprotocol/sdk/client/sse.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport as Http1 } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

import { freePort } from "./world.mjs";

const here = dirname(fileURLToPath(import.meta.url));
// Not the link: the inspector does nothing when it is run by another name than its own.
const modules = realpathSync(join(here, "../node_modules"));
const CLIENT = { name: "obo-e2e", version: "1.0.0" };
const { OBO_E2E_PYTHON_1: python1, OBO_E2E_PYTHON_2: python2, OBO_E2E_PYTHON_FASTMCP: pythonFastmcp } = process.env;
const { OBO_E2E_NODE_22: node22 } = process.env;

const shown = ({ isError, content }) => ({
  isError: isError === true,
  texts: content.filter(({ type }) => type === "text").map(({ text }) => text),
});

/** Where the browser comes back to, for clients in this process. */
class Loopback {
  static async open() {
    const loopback = new Loopback();
    loopback.wait();
    loopback.server = createServer((asked, answered) => {
      const { pathname, searchParams } = new URL(asked.url, loopback.url);
      answered.end("You may close this page.");
      if (pathname === "/callback") loopback.come(searchParams);
    });
    await new Promise((done) => loopback.server.listen(0, "127.0.0.1", done));
    loopback.url = `http://127.0.0.1:${loopback.server.address().port}/callback`;
    return loopback;
  }

  wait() {
    this.answer = new Promise((come) => (this.come = come));
  }

  /** The answer, once. */
  async next(state) {
    const answer = await this.answer;
    this.wait();
    if (answer.get("state") !== state) throw new Error("the answer is of another request");
    if (answer.has("error")) throw new Error(`${answer.get("error")}: ${answer.get("error_description")}`);
    return answer;
  }

  async close() {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }
}

/** The `OAuthClientProvider` of an application, which both generations of the TypeScript client take. */
class Provider {
  constructor(loopback, opener, metadata, document) {
    this.redirectUrl = loopback.url;
    this.clientMetadata = { redirect_uris: [loopback.url], response_types: ["code"], ...metadata };
    this.clientMetadataUrl = document;
    this.opener = opener;
  }

  state() {
    this.stateSent = randomUUID();
    return this.stateSent;
  }
  clientInformation() {
    return this.client;
  }
  saveClientInformation(client) {
    this.client = client;
  }
  tokens() {
    return this.kept;
  }
  saveTokens(tokens) {
    this.kept = tokens;
  }
  codeVerifier() {
    return this.verifier;
  }
  saveCodeVerifier(verifier) {
    this.verifier = verifier;
  }
  discoveryState() {
    return this.discovered;
  }
  saveDiscoveryState(discovered) {
    this.discovered = discovered;
  }
  redirectToAuthorization(url) {
    this.opener.show(url.href);
  }
  invalidateCredentials(scope) {
    if (["all", "tokens"].includes(scope)) this.kept = undefined;
    if (["all", "client"].includes(scope)) this.client = undefined;
  }
}

/** An application on one of the TypeScript clients, written as their documentation shows. */
class TypeScript {
  constructor({ connect, Unauthorized, finish, metadata }, { opener, document }) {
    Object.assign(this, { connect, Unauthorized, finish, metadata, opener, document });
  }

  async start() {
    this.loopback = await Loopback.open();
    this.provider = new Provider(this.loopback, this.opener, this.metadata, this.document);
    try {
      await this.signedIn(() => this.reach());
    } catch (error) {
      await this.close();
      throw error;
    }
    return this;
  }

  async reach() {
    const { client, transport } = this.connect(this.provider);
    Object.assign(this, { client, transport });
    await client.connect(transport);
  }

  /** Does `work`, and where the person has to sign in for it, does it again when they have. */
  async signedIn(work, again = work) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof this.Unauthorized)) throw error;
      await this.finish(this.transport, await this.loopback.next(this.provider.stateSent));
      return again();
    }
  }

  async asked(work) {
    return this.signedIn(work, async () => {
      await this.client.close();
      await this.reach();
      return work();
    });
  }

  async list() {
    return (await this.asked(() => this.client.listTools())).tools.map(({ name }) => name);
  }
  async call(name, input) {
    return shown(await this.asked(() => this.client.callTool({ name, arguments: input })));
  }
  async later() {}
  async close() {
    await this.client.close();
    await this.loopback.close();
  }
}

/** npm @modelcontextprotocol/sdk. It asks for a secret, as its own example does, and is told that there is none. */
function sdk(options) {
  const Transport = options.url.endsWith("/sse") ? Sse1 : Http1;
  const kind = {
    connect: (authProvider) => ({
      client: new Client1(CLIENT, { capabilities: {} }),
      transport: new Transport(new URL(options.url), { authProvider }),
    }),
    Unauthorized: Unauthorized1,
    finish: (transport, answer) => transport.finishAuth(answer.get("code")),
    metadata: {
      client_name: "obo-e2e sdk 1",
      grant_types: ["authorization_code", "refresh_token"],
      token_endpoint_auth_method: "client_secret_post",
    },
  };
  return new TypeScript(kind, options).start();
}

/** npm @modelcontextprotocol/client, which finds out by itself which revision the server has. */
function client(options) {
  const Transport = options.url.endsWith("/sse") ? Sse2 : Http2;
  const kind = {
    connect: (authProvider) => ({
      client: new Client2(CLIENT, { capabilities: {}, versionNegotiation: { mode: "auto" } }),
      transport: new Transport(new URL(options.url), { authProvider }),
    }),
    Unauthorized: Unauthorized2,
    finish: (transport, answer) => transport.finishAuth(answer),
    metadata: { client_name: "obo-e2e client 2" },
  };
  return new TypeScript(kind, options).start();
}

/** npm mcp-remote, launched as a server by a client that can do no more. */
async function mcpRemote({ url, opener, folder, document }) {
  const transport = url.endsWith("/sse") ? ["--transport", "sse-only"] : [];
  const known = document ? ["--client-metadata-url", document] : [];
  const launched = new StdioClientTransport({
    command: process.execPath,
    args: [join(modules, "mcp-remote/dist/proxy.js"), url, ...transport, ...known],
    env: { PATH: process.env.PATH, HOME: folder, MCP_REMOTE_CONFIG_DIR: folder, ...opener.environment },
    stderr: "pipe",
  });
  const client = new Client1(CLIENT, { capabilities: {} });
  // It says why on stderr and in the browser, and leaves whoever launched it without an answer.
  const refused = new Promise((_, fail) => {
    let stderr = "";
    launched.stderr.on("data", (bytes) => {
      stderr = (stderr + bytes).slice(-4000);
      const why = /Authorization failed: .*/.exec(stderr)?.[0];
      if (why) fail(new Error(`mcp-remote: ${why}`));
    });
  });
  refused.catch(() => {});
  try {
    await Promise.race([client.connect(launched), refused]);
  } catch (error) {
    await client.close();
    throw error;
  }
  return {
    list: async () => (await client.listTools()).tools.map(({ name }) => name),
    call: async (name, input) => shown(await client.callTool({ name, arguments: input })),
    later: async () => {},
    close: () => client.close(),
  };
}

/** npm @modelcontextprotocol/inspector on the command line: a process for every request, which keeps what it has. */
async function inspector({ url, opener, folder, document }, era) {
  const program = join(modules, "@modelcontextprotocol/inspector/clients/cli/build/index.js");
  const known = document ? ["--client-metadata-url", document] : [];
  const env = {
    PATH: process.env.PATH,
    HOME: folder,
    MCP_INSPECTOR_SECRET_STORE: "file",
    MCP_AUTO_OPEN_ENABLED: "true",
    MCP_OAUTH_CALLBACK_URL: `http://127.0.0.1:${await freePort()}/oauth/callback`,
    ...opener.environment,
  };
  const ask = async (...asked) => {
    const args = [program, url, "--protocol-era", era, "--format", "json", "--quiet", ...known, ...asked];
    const child = spawn(node22, args, { env, stdio: ["ignore", "pipe", "pipe"] });
    const out = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"]) {
      child[stream].setEncoding("utf8").on("data", (text) => (out[stream] += text));
    }
    const code = await new Promise((done) => child.on("close", done));
    if (code !== 0) throw new Error(`inspector: exit ${code}: ${out.stderr}`);
    return JSON.parse(out.stdout).result;
  };
  const list = async () => (await ask("--method", "tools/list")).tools.map(({ name }) => name);
  await list();
  return {
    list,
    call: async (tool, input) =>
      shown(await ask("--method", "tools/call", "--tool-name", tool, "--tool-args-json", JSON.stringify(input))),
    later: async () => {},
    close: async () => {},
  };
}

/** PyPI's clients; see sign_in.py. */
async function python(interpreter, library, { url, opener, document }) {
  const env = { PATH: process.env.PATH, ...opener.environment };
  const child = spawn(interpreter, ["-B", join(here, "sign_in.py")], { env, stdio: ["pipe", "pipe", "pipe"] });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text) => (stderr = (stderr + text).slice(-4000)));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const order = async (line) => {
    child.stdin.write(`${JSON.stringify(line)}\n`);
    const { value, done } = await lines.next();
    if (done) throw new Error(`sign_in.py ended: ${stderr}`);
    const answer = JSON.parse(value);
    if (answer.raised) throw new Error(`${answer.raised}\n${stderr}`);
    return answer;
  };
  const close = async () => {
    const ended = new Promise((done) => child.on("close", done));
    child.stdin.end();
    await ended;
  };
  try {
    await order({ do: "open", library, url, document: document ?? null });
  } catch (error) {
    await close();
    throw error;
  }
  return {
    list: async () => (await order({ do: "list" })).tools,
    call: (tool, input) => order({ do: "call", tool, arguments: input }),
    later: (seconds) => order({ do: "later", seconds }),
    close: () => order({ do: "close" }).finally(close),
  };
}

/** A folder of its own for what a client keeps. */
const withFolder = (open) => (options) => open({ ...options, folder: mkdtempSync(join(options.folder, "client-")) });

export const SIGN_INS = [
  { name: "npm sdk 1.32.2", open: sdk },
  { name: "npm sdk 1.32.2", transport: "sse", open: sdk },
  { name: "npm client 2.4.0", open: client },
  { name: "npm client 2.4.0", document: true, open: client },
  { name: "npm client 2.4.0", transport: "sse", open: client },
  { name: "npm inspector 2.12.0", open: withFolder((options) => inspector(options, "legacy")) },
  { name: "npm inspector 2.12.0", document: true, open: withFolder((options) => inspector(options, "modern")) },
  { name: "npm mcp-remote 0.15.1", open: withFolder(mcpRemote) },
  { name: "npm mcp-remote 0.15.1", transport: "sse", open: withFolder(mcpRemote) },
  { name: "PyPI mcp 1.30.0", open: (options) => python(python1, "mcp", options) },
  { name: "PyPI mcp 1.30.0", transport: "sse", open: (options) => python(python1, "mcp", options) },
  { name: "PyPI mcp 2.3.0", open: (options) => python(python2, "mcp", options) },
  { name: "PyPI mcp 2.3.0", document: true, open: (options) => python(python2, "mcp", options) },
  { name: "PyPI fastmcp 4.1.6", open: (options) => python(pythonFastmcp, "fastmcp", options) },
  { name: "PyPI fastmcp 4.1.6", transport: "sse", open: (options) => python(pythonFastmcp, "fastmcp", options) },
].map((one) => ({ transport: "http", document: false, ...one }));
