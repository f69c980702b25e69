// The REST API through the public Arcade clients, unmodified: a backend's whole loop, with a real browser. Run by
// `tests/e2e/run`.
//
// One story, told by each client with an application and a user of its own.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { appendFileSync, cpSync, readFileSync, symlinkSync } from "node:fs";
import { createServer } from "node:http";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";

import { openBrowser, Person } from "./lib/browser.mjs";
import { leaks } from "./lib/leaks.mjs";
import { assertLink, mail, PATHS } from "./lib/tools.mjs";
import { freePort, World } from "./lib/world.mjs";
import { javascript, python, Raised } from "./rest-clients.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: systemPython, OBO_E2E_PYTHON_REST: restPython } = process.env;
const here = dirname(fileURLToPath(import.meta.url));
const repository = join(here, "../..");

const SEND = "Google.SendEmail";
const SCOPES = ["https://www.googleapis.com/auth/gmail.send"];
const GOOGLE = { provider_id: "google", provider_type: "oauth2", oauth2: { scopes: SCOPES } };
/** The stories, by client. */
const STORIES = [
  { client: "arcadepy", application: "python", user: "alice" },
  { client: "arcadejs", application: "javascript", user: "bob" },
];

/** The backends of examples/, by their folders. */
const EXAMPLES = [
  { folder: "backend-python", user: "alice", start: pythonBackend },
  { folder: "backend-typescript", user: "bob", start: typescriptBackend },
];

let world;
let browser;
const examples = {};
const clients = {};
const backends = {};
/** Everything that clients were answered, searched for leaks at the end. */
const answers = [];

/** The application's own site: its page that confirms whose browser it is, and the page where the browser ends. */
class Site {
  static async start() {
    const site = new Site();
    site.server = createServer((request, response) => site.answer(new URL(request.url, site.url), response));
    await new Promise((done) => site.server.listen(0, "127.0.0.1", done));
    site.url = `http://127.0.0.1:${site.server.address().port}`;
    site.flows = [];
    return site;
  }

  async answer({ pathname, searchParams }, response) {
    response.setHeader("content-type", "text/html");
    if (pathname !== "/verify") return response.end("<p>Welcome back.</p>");
    const flow = searchParams.get("flow_id");
    this.flows.push(flow);
    // Who is signed in here is the application's to know.
    const confirmed = await this.confirm(flow).catch((error) => error);
    this.confirmed = confirmed;
    if (confirmed instanceof Error) return response.end("<p>This is not your connection.</p>");
    if (!confirmed.next_uri) return response.end("<p>Connected.</p>");
    response.writeHead(302, { location: confirmed.next_uri }).end();
  }

  stop() {
    return new Promise((done) => this.server.close(done));
  }
}

/** Adds an application to obo.toml, and returns its key. */
function configure(application, verifier, next) {
  const sha256 = (text) => createHash("sha256").update(text).digest("hex");
  const key = `${application}-${sha256(world.folder + application)}`;
  appendFileSync(
    world.config,
    `
[[identity.application]]
name = "${application}"
tenant = "acme"
key_sha256 = "${sha256(key)}"
user_verifier_url = "${verifier}"
next_uris = ["${next}"]
`,
  );
  return key;
}

function pythonBackend() {
  return [restPython, [join(repository, "examples/backend-python/backend.py")]];
}

/** Compiled as its package.json says, in a folder of its own that has what it depends on. */
function typescriptBackend() {
  const folder = join(world.folder, "backend-typescript");
  cpSync(join(repository, "examples/backend-typescript"), folder, { recursive: true });
  symlinkSync(join(here, "node_modules"), join(folder, "node_modules"));
  const compiled = spawnSync(process.execPath, ["node_modules/typescript/bin/tsc"], { cwd: folder, encoding: "utf8" });
  assert.equal(compiled.status, 0, compiled.stdout);
  return [process.execPath, [join(folder, "dist/backend.js")]];
}

before(async () => {
  world = await World.start({ obo, testbed, python: systemPython });
  for (const { client, application, user } of STORIES) {
    const site = await Site.start();
    const key = configure(application, `${site.url}/verify`, `${site.url}/done`);
    backends[client] = { application, user, site, key };
  }
  for (const { folder } of EXAMPLES) {
    const port = await freePort();
    const url = `http://127.0.0.1:${port}`;
    examples[folder] = { port, url, key: configure(folder, `${url}/obo/verify`, `${url}/done`) };
  }
  await world.serve();
  browser = await openBrowser();
  clients.arcadejs = javascript(world.url);
  clients.arcadepy = python(restPython, world.url);
});

after(async () => {
  for (const client of Object.values(clients)) await client.close();
  for (const { site } of Object.values(backends)) await site.stop();
  await browser?.close();
  await world?.stop();
});

/** How often mail was sent, by the person as whom. */
async function sentAs(user) {
  const [provider, path] = PATHS.Google_SendEmail;
  const calls = await world.calls(provider, path);
  return calls.filter((c) => c.method === "POST" && c.status === 200 && String(c.user).startsWith(user)).length;
}

/** Asserts that asking raises the client's own error for a status. */
async function raises(asking, names, status) {
  const error = await asking.then((value) => assert.fail(`answered: ${JSON.stringify(value)}`), (error) => error);
  assert.ok(error instanceof Raised, String(error));
  assert.deepEqual([names.includes(error.raised), error.status], [true, status], `${error.raised}: ${error.message}`);
  return error;
}

for (const { client } of STORIES) {
  describe(client, { concurrency: false }, () => {
    let backend;
    let person;
    const ask = async (order, input = {}, key = backend.key) => {
      const value = await clients[client].ask(key, order, input);
      answers.push({ from: `${client} ${order}`, text: JSON.stringify(value) ?? "" });
      return value;
    };
    const call = (subject) => ({ tool_name: SEND, user_id: backend.user, input: mail(subject) });
    const consent = (link, title) =>
      person.consent(link, { account: `${backend.user}@example.com`, title: `rest-${client}-${title}` });

    before(async () => {
      backend = backends[client];
      person = await Person.at(browser, { name: backend.user });
      backend.site.confirm = (flow_id) => ask("confirm", { flow_id, user_id: backend.user });
    });

    test("it is healthy", async () => {
      assert.equal((await ask("health")).healthy, true);
    });

    test("all tools are listed, however small the pages", async () => {
      const names = async (query) => (await ask("tools", query)).map((tool) => tool.qualified_name);
      const all = await names({ limit: 100 });
      assert.ok(all.includes(SEND) && all.length > 4, all.join());
      assert.deepEqual(await names({ limit: 2 }), all);
      assert.deepEqual(await names({}), all);
      assert.ok((await names({ toolkit: "slack" })).every((name) => name.startsWith("Slack.")));
      const tool = await ask("tool", { name: SEND, user_id: backend.user, include_format: ["openai", "anthropic"] });
      assert.equal(tool.requirements.met, false);
      assert.deepEqual(tool.requirements.authorization.oauth2.scopes, SCOPES);
      assert.equal(tool.requirements.authorization.token_status, "not_started");
      assert.ok(tool.input.parameters.some(({ name, required }) => name === "to" && required));
      assert.equal(tool.formatted_schema.openai.function.name, "Google_SendEmail");
      assert.equal(tool.formatted_schema.anthropic.input_schema.type, "object");
    });

    test("tools come in the formats of model APIs", async () => {
      for (const [format, name] of [["openai", (t) => t.function.name], ["anthropic", (t) => t.name]]) {
        const listed = await ask("formatted", { format, user_id: backend.user, limit: 3 });
        assert.ok(listed.map(name).includes("Google_SendEmail"), JSON.stringify(listed));
        assert.equal(name(await ask("formattedTool", { name: SEND, format })), "Google_SendEmail");
      }
    });

    test("a call before the user has connected has the link, and reaches nobody", async () => {
      const { success, output } = await ask("execute", call("too early"));
      assert.deepEqual([success, output.error.kind], [false, "TOOL_REQUIREMENTS_NOT_MET"]);
      assert.equal(output.authorization.status, "pending");
      assertLink(world.url, output.authorization.url);
      assert.equal(await sentAs(backend.user), 0);
    });

    test("start, the link, the browser, confirm_user, and the wait ends", async () => {
      const started = await ask("start", { user: backend.user, provider: "google", scopes: SCOPES });
      assert.deepEqual([started.status, started.user_id, started.provider_id], ["pending", backend.user, "google"]);
      assertLink(world.url, started.url);
      assert.equal((await ask("status", { id: started.id })).status, "pending");
      const waiting = ask("wait", { id: started.id });
      const text = await consent(started.url, "start");
      assert.match(text, /Connected\./);
      assert.equal(backend.site.confirmed.auth_id, started.id);
      const completed = await waiting;
      assert.deepEqual([completed.status, completed.user_id], ["completed", backend.user]);
      assert.equal(completed.context ?? null, null);
      const again = await ask("start", { user: backend.user, provider: "google", scopes: SCOPES });
      assert.equal(again.status, "completed");
      assert.equal((await ask("authorizeTool", { tool_name: SEND, user_id: backend.user })).status, "completed");
      assert.equal((await ask("tool", { name: SEND, user_id: backend.user })).requirements.met, true);
    });

    test("the call runs as the user, and bad input runs as nobody", async () => {
      const done = await ask("execute", call("from the backend"));
      assert.deepEqual([done.success, done.status], [true, "success"], JSON.stringify(done));
      assert.ok(done.output.value.id);
      assert.ok(done.duration >= 0);
      assert.equal(await sentAs(backend.user), 1);
      const bad = await ask("execute", { ...call("bad"), input: { to: "nobody" } });
      assert.deepEqual([bad.success, bad.output.error.kind], [false, "TOOL_RUNTIME_BAD_INPUT_VALUE"]);
      assert.equal(bad.output.error.can_retry, false);
      assert.equal(await sentAs(backend.user), 1);
    });

    test("connections are listed and ended, at the provider too", async () => {
      const listed = await ask("connections", { user: { id: backend.user } });
      assert.equal(listed.length, 1);
      assert.equal(listed[0].provider_user_info.account, `${backend.user}@example.com`);
      assert.deepEqual(await ask("connections", { user: { id: backend.user }, provider: { id: "slack" } }), []);
      await ask("disconnect", { id: listed[0].id });
      assert.deepEqual(await ask("connections", { user: { id: backend.user } }), []);
      const state = await (await fetch(`${world.providers.google.base}/_testbed/state`)).json();
      assert.deepEqual(state.tokens.filter((t) => String(t.user).startsWith(backend.user) && !t.dead && !t.expired), []);
      assert.equal((await ask("execute", call("gone"))).output.error.kind, "TOOL_REQUIREMENTS_NOT_MET");
      await raises(ask("disconnect", { id: listed[0].id }), ["NotFoundError"], 404);
    });

    test("the browser goes where the application said", async () => {
      const next_uri = `${backend.site.url}/done`;
      const asked = await ask("authorize", { auth_requirement: GOOGLE, user_id: backend.user, next_uri });
      assert.match(await consent(asked.url, "next"), /Welcome back\./);
      assert.equal(person.page.url(), next_uri);
      assert.equal((await ask("wait", { id: asked.id })).status, "completed");
      const elsewhere = { auth_requirement: GOOGLE, user_id: backend.user, next_uri: "https://elsewhere.example/" };
      await raises(ask("authorize", elsewhere), ["BadRequestError"], 400);
    });

    test("another user's browser connects nothing, and the wait ends with an error", async () => {
      const asked = await ask("start", { user: "mallory", provider: "google", scopes: SCOPES });
      const waiting = raises(ask("wait", { id: asked.id }), ["APIStatusError", "APIError"], 410);
      // The link was passed on: the browser that comes back is somebody else's.
      assert.match(await consent(asked.url, "mallory"), /not your connection/);
      assert.ok(backend.site.confirmed instanceof Raised);
      assert.deepEqual([backend.site.confirmed.raised, backend.site.confirmed.status], ["BadRequestError", 400]);
      await waiting;
      assert.deepEqual(await ask("connections", { user: { id: "mallory" } }), []);
      // The id of the link does not do in place of the id that the browser brought.
      const once = await ask("start", { user: "mallory", provider: "google", scopes: SCOPES });
      await raises(ask("confirm", { flow_id: once.id, user_id: "mallory" }), ["NotFoundError"], 404);
    });

    test("a user who says no ends the wait with an error", async () => {
      const asked = await ask("start", { user: "nobody", provider: "google", scopes: SCOPES });
      const waiting = raises(ask("wait", { id: asked.id }), ["APIStatusError", "APIError"], 410);
      await person.open(asked.url, `rest-${client}-no-1-link`);
      await person.press(`rest-${client}-no-2-provider`);
      const state = new URL(person.page.url()).searchParams.get("state");
      await person.open(`${world.url}/oauth/callback/google?error=access_denied&state=${state}`, `rest-${client}-no-3`);
      const error = await waiting;
      assert.match(error.message, /declined/);
    });

    test("what is refused is raised as the error that it is", async () => {
      await raises(ask("tools", {}, "not-a-key"), ["AuthenticationError"], 401);
      await raises(ask("tools", {}, `Bearer ${backend.key} `.trim() + "x"), ["AuthenticationError"], 401);
      await raises(ask("start", { user: "", provider: "google", scopes: [] }), ["BadRequestError"], 400);
      const unknown = await raises(ask("start", { user: "x", provider: "nowhere", scopes: [] }), ["BadRequestError"], 400);
      assert.match(unknown.message, /known: .*google/);
      await raises(ask("tool", { name: "Nothing.Here" }), ["NotFoundError"], 404);
      await raises(ask("execute", { tool_name: "Nothing.Here", user_id: "x", input: {} }), ["NotFoundError"], 404);
      await raises(ask("status", { id: "A".repeat(32) }), ["NotFoundError"], 404);
      // Twenty links may be open for a person.
      const link = (n) => ask("start", { user: "greedy", provider: "google", scopes: [`scope-${n}`] });
      for (let n = 0; n < 20; n++) assert.equal((await link(n)).status, "pending");
      await raises(link(20), ["RateLimitError"], 429);
    });

    test("the other application's users, links and connections do not exist", async () => {
      const other = Object.values(backends).find(({ key }) => key !== backend.key);
      const mine = await ask("start", { user: "carol", provider: "google", scopes: SCOPES });
      await raises(ask("status", { id: mine.id }, other.key), ["NotFoundError"], 404);
      const [connection] = await ask("connections", { user: { id: backend.user } });
      assert.deepEqual(await ask("connections", { user: { id: backend.user } }, other.key), []);
      await raises(ask("disconnect", { id: connection.id }, other.key), ["NotFoundError"], 404);
    });
  });
}

for (const { folder, user, start } of EXAMPLES) {
  describe(`examples/${folder}`, { concurrency: false }, () => {
    let child;
    let person;

    before(async () => {
      const { port, key } = examples[folder];
      const [program, arguments_] = start();
      const environment = { PATH: process.env.PATH, OBO_URL: world.url, OBO_KEY: key, PORT: String(port) };
      child = spawn(program, arguments_, { env: environment, stdio: ["ignore", "pipe", "inherit"] });
      const line = await new Promise((resolve, reject) => {
        createInterface({ input: child.stdout }).once("line", resolve);
        child.once("close", (code) => reject(new Error(`${folder}: exit ${code}`)));
      });
      assert.match(line, /^listening on /);
      person = await Person.at(browser, { name: user });
    });

    after(async () => {
      const ended = new Promise((done) => child.once("close", done));
      child.kill();
      await ended;
    });

    /** Signs in to the backend, and fills in its form. */
    const write = async (person, name, title) => {
      await person.open(`${examples[folder].url}/sign-in?user=${name}`, `${title}-signed-in`);
      await person.page.fill("input[name=to]", "bob@example.com");
      await person.page.fill("input[name=subject]", title);
      await person.press(`${title}-sent`);
    };
    /** From obo's page to the backend's. */
    const consent = async (person, title) => {
      await person.press(`${title}-provider`);
      const account = person.page.locator("button", { hasText: `${user}@example.com` }).first();
      await person.press(`${title}-back`, account);
      return person.seen.at(-1).text;
    };

    test("the first mail is sent once the user has connected, and the next at once", async () => {
      const before = await sentAs(user);
      await write(person, user, `${folder}-1`);
      assertLink(world.url, person.page.url());
      assert.equal(await sentAs(user), before);
      assert.match(await consent(person, `${folder}-1`), /Sent\./);
      assert.equal(person.page.url(), `${examples[folder].url}/done`);
      assert.equal(await sentAs(user), before + 1);
      await write(person, user, `${folder}-2`);
      assert.match(person.seen.at(-1).text, /Sent\./);
      assert.equal(await sentAs(user), before + 2);
    });

    test("a link that was passed on connects nothing", async () => {
      const before = await sentAs(user);
      const mallory = await Person.at(browser, { name: "mallory" });
      await write(mallory, "mallory", `${folder}-mallory`);
      const link = mallory.page.url();
      await person.open(link, `${folder}-passed-on`);
      assert.match(await consent(person, `${folder}-passed-on`), /was not yours/);
      assert.equal((await mallory.page.goto(`${examples[folder].url}/done`)).status(), 200);
      assert.match(await mallory.page.locator("body").innerText(), /nothing was sent/);
      assert.equal(await sentAs(user), before);
      await mallory.close();
    });
  });
}

test("the audit names the application as the actor", async () => {
  const records = await world.audit();
  for (const { application, user } of Object.values(backends)) {
    const sent = records.filter((r) => r.actor === `app:${application}` && r.tool === SEND && r.outcome === "ok");
    assert.deepEqual(sent.map((r) => [r.user, r.source, r.tenant]), [[user, `app:${application}`, "acme"]]);
  }
});

test("the loop in README runs as it stands there", async () => {
  const { key, site } = backends.arcadejs;
  const readme = readFileSync(join(repository, "README.md"), "utf8");
  const [loop, ...more] = [...readme.matchAll(/^```python\n(.*?)^```$/gms)].map(([, text]) => text);
  assert.deepEqual(more, []);
  assert.ok(loop.includes("https://obo.example.com"));
  // A user of the application who has not connected, and whom it confirms.
  site.confirm = (flow_id) => clients.arcadejs.ask(key, "confirm", { flow_id, user_id: "alice" });
  const before = await sentAs("alice");
  const child = spawn(restPython, ["-c", loop.replace("https://obo.example.com", world.url)], {
    env: { PATH: process.env.PATH, OBO_KEY: key },
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise((done) => child.once("close", done));
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const [, link] = /^Open (.*)$/.exec((await lines.next()).value);
  const alice = await Person.at(browser, { name: "alice" });
  await alice.consent(link, { account: "alice@example.com", title: "readme" });
  assert.equal((await lines.next()).value, "Sent.");
  assert.equal(await ended, 0);
  assert.equal(await sentAs("alice"), before + 1);
});

test("no secret is in any log, answer or file", async () => {
  const keys = [...Object.values(backends), ...Object.values(examples)].map(({ key }) => key);
  const secrets = [...(await world.secrets()), ...keys];
  assert.ok(secrets.length > 6, `${secrets.length} secrets`);
  const remains = [...world.remains(), ...answers.map(({ from, text }) => ({ from, bytes: Buffer.from(text) }))];
  assert.deepEqual(leaks(secrets, remains), []);
});
