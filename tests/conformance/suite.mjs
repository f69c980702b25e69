// Runs the conformance suite against a server behind a proxy that signs in, and holds what fails against a baseline.
//
// The suite's own judgement counts, and a stricter one: each check that fails, warns or is skipped must stand in the
// baseline, and no other; that also goes for scenarios which the suite runs without scoring them.

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { freePort } from "../e2e/lib/world.mjs";
import * as proxy from "./proxy.mjs";

const REVISIONS = ["2025-11-25", "2026-07-28"];
const START_MS = 30_000;
const STOP_MS = 30_000;

const SHORT_OF_A_PASS = new Set(["FAILURE", "WARNING", "SKIPPED"]);

// Scenarios of io.modelcontextprotocol/tasks, an extension that obo does not offer. The suite does not score them.
const EXTENSION = /^tasks-/;

const here = dirname(fileURLToPath(import.meta.url));
const { OBO_BIN, OBO_FIXTURE, OBO_CONFORMANCE_SUITE, OBO_CONFORMANCE_LOGS } = process.env;

/** A program's end: its code, and what it said. */
function ended(child) {
  const said = { stdout: "", stderr: "" };
  for (const stream of ["stdout", "stderr"]) child[stream].setEncoding("utf8").on("data", (text) => (said[stream] += text));
  return new Promise((done, failed) => {
    child.on("error", failed);
    child.on("close", (code) => done({ code, ...said }));
  });
}

/** A server with a folder of its own, and the proxy in front of it. */
class Target {
  constructor(name) {
    this.name = name;
    this.folder = mkdtempSync(join(tmpdir(), "obo-conformance-"));
    mkdirSync(this.results, { mode: 0o700 });
  }

  /** Where the suite writes what it found. */
  get results() {
    return join(this.folder, "results");
  }

  async start(program, args) {
    const [port, front] = [await freePort(), await freePort()];
    this.url = `http://127.0.0.1:${front}/mcp`;
    const config = join(this.folder, "obo.toml");
    const data = join(this.folder, "data");
    mkdirSync(data, { mode: 0o700 });
    writeFileSync(join(this.folder, "vault.key"), randomBytes(32), { mode: 0o600 });
    // The clients are needed for tools to be offered; nobody calls one.
    writeFileSync(
      config,
      `[server]
listen = "127.0.0.1:${port}"
public_url = "http://127.0.0.1:${front}"
[vault.key]
source = "file"
path = "vault.key"
[providers.google]
client_id = "conformance"
client_secret = "unused"
[providers.slack]
client_id = "conformance"
client_secret = "unused"
`,
    );
    const env = { PATH: process.env.PATH, HOME: this.folder };
    const options = ["--config", config, "--data-dir", data];
    const issued = await ended(spawn(OBO_BIN, ["token", "issue", "--user", "conformance", ...options], { env }));
    const token = /\bobo_[A-Za-z0-9_-]{20,}/.exec(issued.stdout)?.[0];
    if (issued.code !== 0 || !token) throw new Error(`obo token issue: exit ${issued.code}, ${issued.stderr}`);

    this.server = spawn(program, args({ config, data, options }), { env });
    this.end = ended(this.server);
    await this.ready(port);
    // Nothing that follows is worth anything where everybody is let in.
    const stranger = await fetch(`http://127.0.0.1:${port}/mcp`, { method: "POST" });
    if (stranger.status !== 401) throw new Error(`${this.name}: a request without a bearer got ${stranger.status}`);
    // The suite wants to see a stream end before its answer, and be taken up again. obo ends none; networks do.
    this.proxy = await proxy.start({ port: front, target: port, token, cut: '"test_reconnection"' });
  }

  async ready(port) {
    const since = Date.now();
    for (;;) {
      if (this.server.exitCode !== null) throw new Error(`${this.name} ended: ${(await this.end).stderr}`);
      const answer = await fetch(`http://127.0.0.1:${port}/readyz`).catch(() => null);
      if (answer?.ok) return;
      if (Date.now() - since > START_MS) throw new Error(`${this.name} is not ready after ${START_MS} ms`);
      await new Promise((next) => setTimeout(next, 50));
    }
  }

  async stop() {
    await this.proxy?.stop();
    const timer = setTimeout(() => this.server?.kill("SIGKILL"), STOP_MS);
    this.server?.kill("SIGTERM");
    const end = await this.end;
    clearTimeout(timer);
    rmSync(this.folder, { recursive: true, force: true });
    if (end && end.code !== 0) throw new Error(`${this.name} ended with ${end.code}: ${end.stderr}`);
  }
}

/** What is expected not to pass: `scenario:check`, so that the other checks of the scenario count. */
function entries(baseline) {
  if (!existsSync(baseline)) return [];
  return readFileSync(baseline, "utf8").split("\n").map((line) => /^\s*-\s+(\S+)/.exec(line)?.[1]).filter(Boolean);
}

/** Adds up the checks that the suite wrote to `results`, a folder a scenario. */
function judge(results, expected) {
  const verdict = { passed: 0, expected: 0, unexpected: [], stale: new Set(expected) };
  for (const folder of readdirSync(results)) {
    const scenario = /^server-(.+)-\d{4}-\d\d-\d\dT/.exec(folder)?.[1];
    if (!scenario) throw new Error(`the suite wrote ${folder}, which names no scenario`);
    if (EXTENSION.test(scenario)) continue;
    for (const { id, status, errorMessage } of JSON.parse(readFileSync(join(results, folder, "checks.json"), "utf8"))) {
      if (status === "SUCCESS") verdict.passed += 1;
      if (!SHORT_OF_A_PASS.has(status)) continue;
      const check = `${scenario}:${id}`;
      if (expected.includes(check)) {
        verdict.expected += 1;
        verdict.stale.delete(check);
      } else {
        verdict.unexpected.push(`${check} (${status})${errorMessage ? `: ${errorMessage}` : ""}`);
      }
    }
  }
  return verdict;
}

/** Runs the suite for a revision, and says how it went. */
async function run(target, revision) {
  const baseline = join(here, `${target.name}-${revision}.yml`);
  const results = join(target.results, revision);
  const args = [join(OBO_CONFORMANCE_SUITE, "dist/index.js"), "server", "--url", target.url];
  args.push("--requirements", revision, "-o", results);
  if (existsSync(baseline)) args.push("--expected-failures", baseline);
  const { code, stdout, stderr } = await ended(spawn(process.execPath, args, { env: { PATH: process.env.PATH } }));
  if (OBO_CONFORMANCE_LOGS) {
    mkdirSync(OBO_CONFORMANCE_LOGS, { recursive: true });
    writeFileSync(join(OBO_CONFORMANCE_LOGS, `${target.name}-${revision}.log`), stdout + stderr);
  }
  if (!existsSync(results)) throw new Error(`the suite did not run: ${stderr.trim()}`);
  console.log(stdout.slice(Math.max(0, stdout.indexOf("=== SUMMARY ==="))).trimEnd());
  const verdict = judge(results, entries(baseline));

  for (const check of verdict.unexpected) console.log(`failed: ${check}`);
  for (const entry of verdict.stale) console.log(`stale, passes or is not there: ${entry}`);
  if (code !== 0) console.log(`the suite ended with ${code}: ${stderr.trim()}`);
  const failed = verdict.unexpected.length + verdict.stale.size;
  const known = verdict.expected > 0 ? `, ${verdict.expected} of what is not offered` : "";
  console.log(`conformance ${revision} ${target.name}: ${verdict.passed} passed, ${failed} failed${known}\n`);
  return code === 0 && failed === 0 && verdict.passed > 0;
}

const TARGETS = [
  ["fixture", OBO_FIXTURE, ({ config, data }) => [config, data]],
  ["product", OBO_BIN, ({ options }) => ["serve", ...options]],
];

const revisions = process.argv.length > 2 ? process.argv.slice(2) : REVISIONS;
let good = true;
for (const [name, program, args] of TARGETS) {
  const target = new Target(name);
  try {
    await target.start(program, args);
    for (const revision of revisions) good = (await run(target, revision)) && good;
  } finally {
    await target.stop();
  }
}
process.exit(good ? 0 : 1);
