// The agent of examples/, as it stands there: a scripted model, the public clients, a real browser. Run by
// `tests/e2e/run`.
//
// Bob has connected everything beforehand, alice nothing; the same script acts as each of them. Then alice says no to
// another application.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { openBrowser, Person } from "./lib/browser.mjs";
import { leaks } from "./lib/leaks.mjs";
import { assertLink, MAIL, MESSAGE, PATHS } from "./lib/tools.mjs";
import { World } from "./lib/world.mjs";
import { javascript } from "./rest-clients.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: systemPython, OBO_E2E_PYTHON_AGENT: python } = process.env;
const example = join(dirname(fileURLToPath(import.meta.url)), "../../examples/agent-python");

const TOOLS = ["Google.SendEmail", "Slack.ListChannels", "Slack.PostMessage"];
const BAD_INPUT = "TOOL_RUNTIME_BAD_INPUT_VALUE";
/** An agent that waits for a link that nobody opens would wait for ten minutes. */
const LIMIT = { timeout: 120_000 };
/** What the agent says at its end when all was done: the results of both providers. */
const DONE = /^Mail: done, \{.*'id': '([^']+)'.*\}\. Slack: done, \{.*'ts': '([\d.]+)'.*\}\.$/;

let world;
let browser;
let model;
const keys = {};
const people = {};
/** Everything that agents printed, searched for leaks at the end. */
const printed = [];

/** One run of the agent: its lines, and its end. `recorded`: with the model that is named to it, not its own. */
class Run {
  static all = [];

  constructor(application, user, { recorded = false } = {}) {
    Run.all.push(this);
    const named = { OPENAI_BASE_URL: model.url, OPENAI_API_KEY: "a-key", OPENAI_MODEL: "recorded" };
    this.child = spawn(python, ["-B", join(example, "agent.py"), user], {
      env: { PATH: process.env.PATH, OBO_URL: world.url, OBO_KEY: keys[application], ...(recorded ? named : {}) },
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.ended = new Promise((done) => this.child.once("close", done));
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  async line() {
    const { value = "" } = await this.lines.next();
    printed.push(value);
    return value;
  }

  /** The next line, which must be a link. */
  async link() {
    const [, link] = /^Open (.*)$/.exec(await this.line()) ?? [];
    assertLink(world.url, link ?? "");
    return link;
  }

  /** The last line. */
  async said() {
    const said = await this.line();
    assert.equal(await this.line(), "");
    assert.equal(await this.ended, 0);
    return said;
  }
}

/** A model in between: the scripted one, in a process of its own, and what it was sent. */
async function startModel() {
  const code = `import scripted_model, sys; print(scripted_model.start(), flush=True); sys.stdin.read()`;
  const script = spawn(python, ["-B", "-c", code], { cwd: example, stdio: ["pipe", "pipe", "inherit"] });
  const [base] = await new Promise((done) => createInterface({ input: script.stdout }).once("line", (line) => done([line])));
  const asked = [];
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const bytes of request) body += bytes;
    asked.push(JSON.parse(body));
    const answer = await fetch(`${base}${request.url}`, { method: "POST", body });
    response.writeHead(answer.status, { "content-type": "application/json" }).end(await answer.text());
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  const stop = async () => {
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
    const ended = new Promise((done) => script.once("close", done));
    script.stdin.end();
    await ended;
  };
  return { url: `http://127.0.0.1:${server.address().port}/v1`, asked, stop };
}

before(async () => {
  world = await World.start({ obo, testbed, python: systemPython, organisations: ["acme"] });
  await world.serve();
  for (const application of ["agent", "other"]) {
    const added = await world.run(["app", "add", application, "--tenant", "acme"], { secret: true });
    assert.equal(added.code, 0, added.stderr);
    keys[application] = added.stdout.trim();
  }
  browser = await openBrowser();
  for (const name of ["alice", "bob"]) people[name] = await Person.at(browser, { name });
  model = await startModel();
});

after(async () => {
  for (const run of Run.all) {
    run.child.kill();
    await run.ended;
  }
  await browser?.close();
  await model?.stop();
  await world?.stop();
});

/** Opens a link as far as the provider's page, signing in at acme where that is asked for. */
async function toProvider(person, link, title) {
  await person.open(link, `${title}-1-link`);
  if (person.seen.at(-1).text.includes("Sign in with acme")) {
    await person.press(`${title}-2-issuer`);
    await person.press(`${title}-3-signed-in`, person.page.locator("button", { hasText: person.name }).first());
  }
  await person.press(`${title}-4-provider`);
}

async function consent(person, link, title) {
  await toProvider(person, link, title);
  await person.press(`${title}-5-connected`, person.page.locator("button", { hasText: person.name }).first());
  assert.match(person.seen.at(-1).text, new RegExp(`Connected as ${person.name}`));
}

async function decline(person, link, title) {
  await toProvider(person, link, title);
  const at = new URL(person.page.url());
  const provider = at.origin === world.providers.slack.base ? "slack" : "google";
  const state = at.searchParams.get("state");
  await person.open(`${world.url}/oauth/callback/${provider}?error=access_denied&state=${state}`, `${title}-5-declined`);
}

/** As whom mail was sent and messages were posted. */
async function done() {
  const as = async (tool) => {
    const log = await world.calls(...PATHS[tool]);
    return log.filter((c) => c.method === "POST" && c.status === 200).map((c) => String(c.user).split("@")[0]);
  };
  return { mails: await as(MAIL), posts: await as(MESSAGE) };
}

test("a user who has connected everything is asked nothing, and what went wrong is mended", LIMIT, async () => {
  const client = javascript(world.url);
  for (const tool_name of TOOLS) {
    const asked = await client.ask(keys.agent, "authorizeTool", { tool_name, user_id: "bob" });
    await consent(people.bob, asked.url, `agent-bob-${tool_name}`);
  }
  // Slack asks to wait once; whether to try again is the model's to say.
  const fault = { path: "chat.postMessage", method: "POST", times: 1, kind: "rate_limit" };
  await fetch(`${world.providers.slack.base}/_testbed/fault`, { method: "POST", body: JSON.stringify(fault) });
  const said = await new Run("agent", "bob", { recorded: true }).said();
  assert.match(said, DONE);
  assert.deepEqual(await done(), { mails: ["bob"], posts: ["bob"] });

  // Everything that the model was told: the tools by the names it may use, and each result.
  const { tools, messages, model: name } = model.asked.at(-1);
  assert.equal(name, "recorded");
  const offered = tools.map((tool) => tool.function.name);
  for (const tool of TOOLS) assert.ok(offered.includes(tool.replace(".", "_")), offered.join());
  const calls = messages.map((message) => (message.tool_calls ?? []).map((asked) => asked.function.name));
  assert.deepEqual(calls.filter((names) => names.length > 0), [
    ["Google_SendEmail", "Slack_ListChannels"],
    ["Google_SendEmail", "Slack_PostMessage"],
    ["Slack_PostMessage"],
  ]);
  const [bad, channels, mail, limited, post] = messages.filter(({ role }) => role === "tool").map((m) => JSON.parse(m.content));
  assert.deepEqual([bad.error.kind, bad.error.extra.code], [BAD_INPUT, "invalid_arguments"]);
  assert.match(bad.error.message, /to/);
  assert.ok(channels.value.channels.some(({ name }) => name === "general"), JSON.stringify(channels));
  assert.deepEqual([limited.error.extra.code, limited.error.retry_after_ms], ["rate_limited", 1000]);
  assert.deepEqual([DONE.exec(said)[1], DONE.exec(said)[2]], [mail.value.id, post.value.ts]);
});

test("a user who has not is shown links, and the calls go on when they have consented", LIMIT, async () => {
  const { alice } = people;
  const run = new Run("agent", "alice", { recorded: true });
  await consent(alice, await run.link(), "agent-alice-channels");
  // The next two calls wait side by side.
  const links = [await run.link(), await run.link()];
  assert.equal(new Set(links).size, 2);
  assert.deepEqual(await done(), { mails: ["bob"], posts: ["bob"] });
  for (const link of links) await consent(alice, link, `agent-alice-${links.indexOf(link)}`);
  assert.match(await run.said(), DONE);
  assert.deepEqual(await done(), { mails: ["bob", "alice"], posts: ["bob", "alice"] });

  assert.match(await new Run("agent", "alice").said(), DONE);
  assert.deepEqual(await done(), { mails: ["bob", "alice", "alice"], posts: ["bob", "alice", "alice"] });
});

test("a user who says no is told that it was not done", LIMIT, async () => {
  const run = new Run("other", "alice");
  // What she has allowed one application is not another's.
  await decline(people.alice, await run.link(), "agent-no-channels");
  await decline(people.alice, await run.link(), "agent-no-mail");
  assert.match(await run.said(), /^Mail: not done, .*declined.* Slack: not done, .*declined/);
  assert.deepEqual(await done(), { mails: ["bob", "alice", "alice"], posts: ["bob", "alice", "alice"] });
});

test("the audit says on whose behalf, and that the application acted", async () => {
  const records = (await world.audit()).filter((r) => r.kind === "call" && r.phase === "outcome" && r.tool === TOOLS[0]);
  const seen = records.map((r) => [r.actor, r.tenant, r.source, r.user, r.outcome].join(" "));
  const of = (user, outcome, application = "app:agent") => `${application} acme ${application} ${user} ${outcome}`;
  assert.deepEqual(seen, [
    of("bob", "invalid_arguments"),
    of("bob", "ok"),
    of("alice", "invalid_arguments"),
    of("alice", "authorization_required"),
    of("alice", "ok"),
    of("alice", "invalid_arguments"),
    of("alice", "ok"),
    of("alice", "invalid_arguments", "app:other"),
    of("alice", "authorization_required", "app:other"),
  ]);
});

test("no secret is in any log, file or line, and no link at the model", async () => {
  // Both conversations, in one of which there were links.
  assert.equal(model.asked.filter(({ messages }) => messages.length === 1).length, 2);
  const told = JSON.stringify(model.asked);
  assert.ok(!told.includes("/connect/"), "the model was told a link");
  const secrets = [...(await world.secrets()), ...Object.values(keys)];
  assert.ok(secrets.length > 6, `${secrets.length} secrets`);
  const texts = { lines: printed.join("\n"), model: told };
  const remains = [...world.remains(), ...Object.entries(texts).map(([from, text]) => ({ from, bytes: Buffer.from(text) }))];
  assert.deepEqual(leaks(secrets, remains), []);
});
