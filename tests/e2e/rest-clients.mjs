// The public clients of the REST API, unmodified, behind one set of names so that one story tests both.

import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import Arcade from "@arcadeai/arcadejs";

const here = dirname(fileURLToPath(import.meta.url));

/** An error as a client raised it. */
export class Raised extends Error {
  constructor({ name, status, message }) {
    super(message);
    this.raised = name;
    this.status = status;
  }
}

async function every(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

const ORDERS = {
  health: (c) => c.health.check(),
  start: (c, { user, provider, scopes }) => c.auth.start(user, provider, { scopes }),
  authorize: (c, body) => c.auth.authorize(body),
  status: (c, query) => c.auth.status(query),
  wait: (c, { id }) => c.auth.waitForCompletion(id),
  confirm: (c, body) => c.auth.confirmUser(body),
  tools: (c, query) => every(c.tools.list(query)),
  tool: (c, { name, ...query }) => c.tools.get(name, query),
  authorizeTool: (c, body) => c.tools.authorize(body),
  execute: (c, body) => c.tools.execute(body),
  formatted: (c, query) => every(c.tools.formatted.list(query)),
  formattedTool: (c, { name, ...query }) => c.tools.formatted.get(name, query),
  connections: (c, query) => every(c.admin.userConnections.list(query)),
  disconnect: (c, { id }) => c.admin.userConnections.delete(id),
};

/** npm @arcadeai/arcadejs. */
export function javascript(url) {
  const ask = async (key, order, input) => {
    // What is refused must be seen at once, and once.
    const client = new Arcade({ baseURL: url, apiKey: key, maxRetries: 0 });
    try {
      return await ORDERS[order](client, input);
    } catch (error) {
      throw new Raised({ name: error.constructor.name, status: error.status, message: error.message });
    }
  };
  return { name: "arcadejs", ask, close: async () => {} };
}

/** PyPI arcadepy, in a process of its own. */
export function python(interpreter, url) {
  const environment = { PATH: process.env.PATH, BASE_URL: url };
  const child = spawn(interpreter, [join(here, "rest.py")], { env: environment, stdio: ["pipe", "pipe", "inherit"] });
  const waiting = new Map();
  createInterface({ input: child.stdout }).on("line", (line) => {
    const { id, value, error } = JSON.parse(line);
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    error ? reject(new Raised(error)) : resolve(value);
  });
  child.on("close", (code) => {
    for (const { reject } of waiting.values()) reject(new Error(`rest.py: exit ${code}`));
  });
  let last = 0;
  const ask = (key, order, input) =>
    new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, { resolve, reject });
      child.stdin.write(`${JSON.stringify({ id, key, do: order, with: input })}\n`);
    });
  const close = () => new Promise((done) => child.on("close", done) && child.stdin.end());
  return { name: "arcadepy", ask, close };
}
