// The world a scenario lives in: the offline providers, one obo with its own folder, and everything they ever said.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, mkdirSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const START_MS = 30_000;

export async function freePort() {
  const server = createServer();
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const { port } = server.address();
  await new Promise((done) => server.close(done));
  return port;
}

function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what}: nothing after ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

export class World {
  /**
   * Starts the providers and writes obo's configuration; `serve` starts obo.
   *
   * `organisations`: names; each gets an identity provider of its own, and is a tenant and an issuer of that name.
   * `providers`: the ids of those that obo has a client of. `server`, `slack`, `issuer`: further lines of these tables;
   * `further`: further tables. `front`: what stands in front of obo, see front.mjs.
   */
  static async start({ obo, testbed, python, organisations = [], providers = ["google", "slack"], front, ...lines }) {
    const world = new World();
    world.clients = providers;
    world.obo = obo;
    world.children = [];
    world.folder = mkdtempSync(join(tmpdir(), "obo-e2e-"));
    world.folders = [];
    world.takeFolder();
    world.port = await freePort();
    world.url = front?.url ?? `http://127.0.0.1:${world.port}`;
    front?.to(world.port);
    world.said = []; // every byte that obo wrote to stdout or stderr, with the command it was

    const redirects = providers.map((id) => `${world.url}/oauth/callback/${id}`);
    world.bed = spawn(python, [join(here, "bed.py"), testbed, ...redirects], { stdio: ["pipe", "pipe", "inherit"] });
    world.bedLines = createInterface({ input: world.bed.stdout })[Symbol.asyncIterator]();
    world.providers = JSON.parse((await within(world.bedLines.next(), START_MS, "the test bed")).value);
    world.organisations = {};
    for (const name of organisations) world.organisations[name] = await world.startIssuer(testbed, name);
    world.configure(lines);
    return world;
  }

  /** Starts an organisation's identity provider, whose users are alice and bob. */
  async startIssuer(testbed, name) {
    const home = process.env.TESTBED_HOME;
    const redirects = `${this.url}/login/callback/${name}`;
    const child = spawn(join(home, "node_modules/node/bin/node"), [join(testbed, "idp.mjs"), await freePort(), "3600"], {
      env: { PATH: process.env.PATH, IDP_HOME: home, IDP_REDIRECTS: redirects },
      stdio: ["ignore", "pipe", "ignore"],
    });
    this.children.push(child);
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    return JSON.parse((await within(lines.next(), START_MS, `the identity provider of ${name}`)).value);
  }

  /** Takes a new data folder, beside those that there were. */
  takeFolder() {
    this.data = join(this.folder, this.folders.length === 0 ? "data" : `data-${this.folders.length + 1}`);
    this.folders.push(this.data);
    mkdirSync(this.data, { mode: 0o700 });
  }

  configure({ server = "", slack = "", issuer = "", further = "" }) {
    this.config = join(this.folder, "obo.toml");
    const keyFile = join(this.folder, "vault.key");
    writeFileSync(keyFile, randomBytes(32).toString("base64"), { mode: 0o600 });
    const provider = (id) => `
[providers.${id}]
client_id = "${this.providers[id].client_id}"
client_secret = "env:E2E_${id.toUpperCase()}_SECRET"
origin = "${this.providers[id].base}"
`;
    const issuers = Object.entries(this.organisations).map(
      ([name, { issuer: url, client_id }]) => `
[[identity.issuer]]
name = "${name}"
tenant = "${name}"
issuer = "${url}"
client_id = "${client_id}"
client_secret = "env:E2E_${name.toUpperCase()}_SECRET"
${issuer}
`,
    );
    writeFileSync(
      this.config,
      `[server]
listen = "127.0.0.1:${this.port}"
public_url = "${this.url}"
${server}
[vault]
store = "file"
[vault.key]
source = "file"
path = "${keyFile}"
${this.clients.map((id) => provider(id) + (id === "slack" ? slack : "")).join("")}
${issuers.join("")}${further}`,
    );
    this.environment = {
      PATH: process.env.PATH,
      HOME: this.folder,
      RUST_LOG: "debug",
    };
    for (const id of this.clients) this.environment[`E2E_${id.toUpperCase()}_SECRET`] = this.providers[id].client_secret;
    for (const [name, { client_secret }] of Object.entries(this.organisations)) {
      this.environment[`E2E_${name.toUpperCase()}_SECRET`] = client_secret;
    }
  }

  /** The options that every command of this world takes. */
  get options() {
    return ["--config", this.config, "--data-dir", this.data];
  }

  /** Runs a command to its end. `secret`: its stdout is meant to show a secret once and is not searched for leaks. */
  async run(args, { input, secret = false } = {}) {
    const child = spawn(this.obo, [...args, ...this.options], { env: this.environment, stdio: ["pipe", "pipe", "pipe"] });
    child.stdin.end(input ?? "");
    const out = { stdout: "", stderr: "" };
    for (const stream of ["stdout", "stderr"]) child[stream].setEncoding("utf8").on("data", (text) => (out[stream] += text));
    const code = await within(new Promise((done) => child.on("close", done)), START_MS, `obo ${args.join(" ")}`);
    if (!secret) this.said.push({ from: `obo ${args[0]} (stdout)`, text: out.stdout });
    this.said.push({ from: `obo ${args[0]} (stderr)`, text: out.stderr });
    return { code, ...out };
  }

  /** An access token for a person, from `obo token issue`. */
  async issueToken(user, tenant = "default") {
    const { code, stdout, stderr } = await this.run(["token", "issue", "--user", user, "--tenant", tenant], { secret: true });
    const token = /\bobo_[A-Za-z0-9_-]{20,}/.exec(stdout)?.[0];
    if (code !== 0 || !token) throw new Error(`obo token issue: exit ${code}, ${stderr}`);
    return token;
  }

  /** The audit's records. */
  async audit() {
    const { code, stdout, stderr } = await this.run(["audit", "show", "--json"]);
    if (code !== 0) throw new Error(`obo audit show: exit ${code}, ${stderr}`);
    return stdout.trim().split("\n").filter(Boolean).map((line) => JSON.parse(line));
  }

  /** Starts `obo serve` and waits until it is ready. */
  async serve() {
    this.server = spawn(this.obo, ["serve", ...this.options, "--log", "json"], {
      env: this.environment,
      stdio: ["ignore", "pipe", "pipe"],
    });
    for (const stream of ["stdout", "stderr"]) {
      const entry = { from: `obo serve (${stream})`, text: "" };
      this.said.push(entry);
      this.server[stream].setEncoding("utf8").on("data", (text) => (entry.text += text));
    }
    const ready = async () => {
      for (;;) {
        if (this.server.exitCode !== null) throw new Error(`obo serve ended: ${this.said.at(-1).text}`);
        const answer = await fetch(`${this.url}/readyz`).catch(() => null);
        if (answer?.ok) return;
        await new Promise((next) => setTimeout(next, 50));
      }
    };
    await within(ready(), START_MS, "obo serve");
  }

  /** Stops `obo serve`. */
  async stopServing() {
    const ended = new Promise((done) => this.server.on("close", done));
    this.server.kill("SIGTERM");
    await within(ended, START_MS, "stopping");
  }

  /** Stops `obo serve` and starts it with a new data folder: nobody is connected, nothing was asked for. */
  async serveAnew() {
    await this.stopServing();
    this.takeFolder();
    await this.serve();
  }

  /** Calls that reached a provider's API, without consent and token traffic: `[{method, path, user, status}]`. */
  async calls(provider, path) {
    const log = await (await fetch(`${this.providers[provider].base}/_testbed/log`)).json();
    return log.filter((call) => call.path.includes(path));
  }

  /** Every token the providers ever handed out, and the client secrets. */
  async secrets() {
    this.bed.stdin.write("secrets\n");
    return JSON.parse((await within(this.bedLines.next(), START_MS, "the test bed's secrets")).value);
  }

  /** Every place a secret could have been left: output, and each file in the data folders. */
  remains() {
    const files = [];
    const walk = (folder) => {
      for (const name of readdirSync(folder)) {
        const path = join(folder, name);
        if (statSync(path).isDirectory()) walk(path);
        else files.push({ from: path.slice(this.folder.length + 1), bytes: readFileSync(path) });
      }
    };
    this.folders.forEach(walk);
    return [...this.said.map(({ from, text }) => ({ from, bytes: Buffer.from(text) })), ...files];
  }

  async stop() {
    for (const child of [this.server, this.bed, ...this.children]) {
      if (!child || child.exitCode !== null) continue;
      const ended = new Promise((done) => child.on("close", done));
      child === this.bed ? child.stdin.end() : child.kill("SIGTERM");
      await within(ended, 10_000, "stopping").catch(() => child.kill("SIGKILL"));
    }
    rmSync(this.folder, { recursive: true, force: true });
  }
}
