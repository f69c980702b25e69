// obo from the outside: real clients, a real browser, providers that are strict. Run by `tests/e2e/run`.
//
// The tests are one story and run in their order: nobody is connected, alice connects, bob connects, everybody's calls
// run as themselves, and nothing secret was left anywhere.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { openBrowser, Person } from "./lib/browser.mjs";
import { legacyHttp, legacySse, modernHttp, stdio } from "./lib/clients.mjs";
import { leaks, spellings } from "./lib/leaks.mjs";
import { MODERN, raw, request, REVISIONS } from "./lib/raw.mjs";
import {
  assertAuthorizationText, assertDone, assertLink, assertShape, channelId, CHANNELS, EVENT, event, MAIL, mail, MESSAGE,
  message, PATHS, shapeOf,
} from "./lib/tools.mjs";
import { World } from "./lib/world.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: systemPython } = process.env;

/** What a client shows a person whose link it cannot open: `-32042` with one URL elicitation. */
const CAN_OPEN_LINKS = { elicitation: { url: {} } };

let world;
let browser;
const tokens = {};
const people = {};
/** Everything that clients were answered, searched for leaks at the end. */
const answers = [];

before(async () => {
  world = await World.start({ obo, testbed, python: systemPython });
  for (const user of ["alice", "bob", "carol"]) tokens[user] = await world.issueToken(user);
  await world.serve();
  browser = await openBrowser();
  for (const user of ["alice", "bob"]) people[user] = await Person.at(browser, { name: user, token: tokens[user] });
});

after(async () => {
  await browser?.close();
  await world?.stop();
});

async function call(client, name, input, options) {
  const result = await client.callTool({ name, arguments: input }, ...(options ?? []));
  answers.push({ from: `answer to ${name}`, text: JSON.stringify(result) });
  return result;
}

/** The people as whom `tool` ran so far, in order. */
async function ranAs(tool) {
  const [provider, path] = PATHS[tool];
  return (await world.calls(provider, path)).filter((c) => c.method === "POST" && c.status === 200).map((c) => c.user);
}

/** Asserts that `work` makes exactly one call of `tool`, as `user`. */
async function runsAs(user, tool, work) {
  const before = await ranAs(tool);
  const result = await work();
  const now = await ranAs(tool);
  assert.deepEqual(now.slice(before.length).map(firstName), [user]);
  return result;
}

/** Asks until the answer is yes, or for ten seconds. */
async function until(isSo) {
  for (const end = Date.now() + 10_000; !(await isSo()); ) assert.ok(Date.now() < end, "it did not come about");
}

function firstName(user) {
  return String(user).split("@")[0];
}

test("without a bearer there is a challenge and nothing else", async () => {
  const answer = await fetch(`${world.url}/mcp`, { method: "POST", body: "{}" });
  assert.equal(answer.status, 401);
  assert.match(answer.headers.get("www-authenticate"), /resource_metadata="[^"]+oauth-protected-resource/);
  const bad = await fetch(`${world.url}/mcp`, { method: "POST", body: "{}", headers: { authorization: "Bearer obo_x" } });
  assert.equal(bad.status, 401);
  const metadata = await (await fetch(`${world.url}/.well-known/oauth-protected-resource/mcp`)).json();
  assert.equal(metadata.resource, `${world.url}/mcp`);
});

test("every client lists the tools, named both ways", async () => {
  const check = async (client) => {
    const { tools } = await client.listTools();
    const tool = tools.find(({ name }) => name === MAIL);
    assert.ok(tool, tools.map(({ name }) => name).join());
    assert.equal(tool._meta["obo/name"], "Google.SendEmail");
    assert.equal(tool.inputSchema.type, "object");
    for (const name of [EVENT, MESSAGE]) assert.ok(tools.some((t) => t.name === name), name);
  };
  await legacyHttp(world.url, tokens.alice, check);
  await legacySse(world.url, tokens.alice, check);
  await modernHttp(world.url, tokens.alice, check);
});

const SHAPES = ["http", "sse"].flatMap((transport) =>
  REVISIONS.flatMap((revision) =>
    [{}, { elicitation: {} }, CAN_OPEN_LINKS].map((capabilities) => ({ transport, revision, capabilities })),
  ),
);

test("each revision, over each transport, is asked in its own shape", async (t) => {
  for (const [n, { transport, revision, capabilities }] of SHAPES.entries()) {
    // HTTP+SSE ended with 2025-11-25; a newer client is offered that.
    const agreed = transport === "sse" && revision === MODERN ? "2025-11-25" : revision;
    const shape = shapeOf(agreed, capabilities === CAN_OPEN_LINKS);
    await t.test(`${revision}, ${transport}, ${JSON.stringify(capabilities)}: ${shape}`, async () => {
      const client = { url: world.url, token: tokens.alice, transport, revision, capabilities };
      const answer = await raw(client, async ({ revision: spoken, ask }) => {
        assert.equal(spoken, agreed);
        // Other arguments every time: the same call would be held until its link was used.
        return ask("tools/call", { name: MAIL, arguments: mail(`shape ${n}`) });
      });
      answers.push({ from: `raw answer ${n}`, text: JSON.stringify(answer) });
      assertShape(world.url, shape, answer);
    });
  }
});

test("2025-03-26 has batches, the others do not", async () => {
  const batch = [
    request("a", "tools/list"),
    { jsonrpc: "2.0", method: "notifications/cancelled", params: { requestId: "nothing" } },
    request("b", "tools/call", { name: MAIL, arguments: mail("in a batch") }),
    request("c", "nonsense"),
  ];
  for (const revision of REVISIONS.filter((revision) => revision !== MODERN)) {
    await raw({ url: world.url, token: tokens.alice, transport: "http", revision }, async ({ post }) => {
      const response = await post(batch);
      if (revision !== "2025-03-26") {
        assert.equal(response.status, 400, revision);
        assert.equal((await response.json()).error.code, -32600);
        return;
      }
      assert.equal(response.status, 200);
      const [list, called, unknown, ...more] = await response.json();
      assert.deepEqual([list.id, called.id, unknown.id, more.length], ["a", "b", "c", 0]);
      assert.ok(list.result.tools.some(({ name }) => name === MAIL));
      assertShape(world.url, "text", called);
      assert.equal(unknown.error.code, -32601);
      assert.equal((await post([batch[1]])).status, 202);
      assert.equal((await post([])).status, 400);
    });
  }
});

test("real clients understand what they are answered", async () => {
  const text = (subject) => (client) => call(client, MAIL, mail(subject));
  assertAuthorizationText(world.url, "google", await legacyHttp(world.url, tokens.alice, text("legacy")));
  assertAuthorizationText(world.url, "google", await legacySse(world.url, tokens.alice, text("sse")));
  assertAuthorizationText(world.url, "google", await modernHttp(world.url, tokens.alice, text("modern")));

  const asking = legacyHttp(world.url, tokens.alice, text("elicited"), CAN_OPEN_LINKS);
  const error = await asking.then(() => assert.fail("the call went through"), (error) => error);
  assertShape(world.url, "-32042", { error });

  const declined = await modernHttp(world.url, tokens.alice, text("declined"), async () => "decline");
  assertAuthorizationText(world.url, "google", declined);
});

test("nothing was sent so far", async () => {
  for (const tool of [MAIL, EVENT, MESSAGE]) assert.deepEqual(await ranAs(tool), []);
});

test("somebody else's link is of no use", async () => {
  const result = await legacyHttp(world.url, tokens.alice, (c) => call(c, MAIL, mail("for alice alone")));
  const link = assertAuthorizationText(world.url, "google", result);
  const mallory = await Person.at(browser, { name: "bob", token: tokens.bob });
  await mallory.open(link, "other-person-1-link");
  const answer = await mallory.signIn("other-person-2-refused");
  assert.equal(answer.status(), 403);
  assert.ok(!mallory.seen.at(-1).text.includes("alice"), "the page does not tell whose link it is");
  await mallory.close();
});

test("alice connects in her browser while the call waits, and the mail goes out as her", async () => {
  let shown;
  const result = await runsAs("alice", MAIL, () =>
    modernHttp(
      world.url,
      tokens.alice,
      (c) => call(c, MAIL, mail("from alice"), [{ timeout: 60_000 }]),
      async (params) => {
        assert.equal(params.mode, "url");
        shown = params.url;
        assertLink(world.url, shown);
        const text = await people.alice.consent(shown, { account: "alice@example.com", title: "google" });
        assert.match(text, /connected as alice@example\.com/i);
        return "accept";
      },
    ),
  );
  assertDone(result);

  const consent = people.alice.seen.find(({ title }) => title === "google-2-signed-in");
  assert.match(consent.text, /alice/, "the page names obo's person before connecting");
  assert.match(consent.text, /obo-e2e/, "and the client that asks");
  assert.equal((await people.alice.page.goto(shown)).status(), 410, "the flow is spent");
});

test("bob is still nobody at Google; the call he makes again is held until he has connected for himself", async () => {
  const make = () => legacySse(world.url, tokens.bob, (c) => call(c, MAIL, mail("from bob")));
  const link = assertAuthorizationText(world.url, "google", await make());
  const begun = async () => (await world.audit()).filter((r) => r.user === "bob" && r.phase === "intent").length;
  const before = await begun();
  await runsAs("bob", MAIL, async () => {
    const held = make();
    // It is under way before he goes to the page.
    await until(async () => (await begun()) > before);
    const text = await people.bob.consent(link, { account: "bob@example.com", title: "google-bob" });
    assert.match(text, /connected as bob@example\.com/i);
    assertDone(await held);
  });
  assertDone(await runsAs("bob", MAIL, make));
});

test("a page that says no says what to do next", async () => {
  const visitor = await Person.at(browser, { name: "carol", token: tokens.carol });
  const shows = async (status, text) => {
    const page = visitor.seen.at(-1);
    assert.equal(page.status, status, page.text);
    assert.match(page.text, text);
  };
  await visitor.open(`${world.url}/`, "says-no-nothing-here");
  await shows(404, /obo server/);
  await visitor.open(`${world.url}/connect/AbCdEfGhIjKlMnOpQrStUvWxYz012345`, "says-no-unknown-link");
  await shows(404, /no such link.*new link/s);
  await visitor.open(`${world.url}/oauth/callback/google?state=nonsense&code=x`, "says-no-not-ours");
  await shows(400, /nothing was connected/i);

  const asked = await legacyHttp(world.url, tokens.carol, (c) => call(c, MAIL, mail("from carol")));
  const link = assertAuthorizationText(world.url, "google", asked);
  await visitor.open(link, "says-no-carol-1-link");
  visitor.token = "obo_wrong";
  await visitor.signIn("says-no-wrong-token");
  await shows(401, /not valid/);
  visitor.token = tokens.carol;
  await visitor.signIn("says-no-carol-2-signed-in");

  // The provider fails while the code is exchanged: nothing is kept, and the link stays good.
  const { base } = world.providers.google;
  const fault = { path: "/token", method: "POST", times: 1, kind: "server_error" };
  await fetch(`${base}/_testbed/fault`, { method: "POST", body: JSON.stringify(fault) });
  await visitor.press("says-no-carol-3-provider");
  await visitor.press("says-no-provider-failed", visitor.page.locator("button", { hasText: "alice@example.com" }).first());
  await shows(502, /could not be connected.*try again/is);

  // She tries again and declines, as a provider reports it (RFC 6749 section 4.1.2.1).
  await visitor.press("says-no-carol-4-again", visitor.page.getByRole("link", { name: "Try again" }));
  await visitor.press("says-no-carol-5-provider");
  const state = new URL(visitor.page.url()).searchParams.get("state");
  await visitor.open(`${world.url}/oauth/callback/google?error=access_denied&state=${state}`, "says-no-declined");
  await shows(200, /did not allow/i);
  await visitor.open(link, "says-no-gone");
  await shows(410, /new link/);
  people.carol = visitor;
});

test("more scopes are asked for when a tool needs them", async () => {
  for (const user of ["alice", "bob"]) {
    const make = () => legacyHttp(world.url, tokens[user], (c) => call(c, EVENT, event(`meeting of ${user}`)));
    const link = assertAuthorizationText(world.url, "google", await make());
    await people[user].consent(link, { account: `${user}@example.com`, title: `calendar-${user}` });
    assertDone(await runsAs(user, EVENT, make));
  }
  const mailing = () => legacyHttp(world.url, tokens.alice, (c) => call(c, MAIL, mail("still works")));
  assertDone(await runsAs("alice", MAIL, mailing));
});

test("Slack: each finds the channel and posts as themselves", async () => {
  for (const user of ["alice", "bob"]) {
    const list = () => legacyHttp(world.url, tokens[user], (c) => call(c, CHANNELS, {}));
    const link = assertAuthorizationText(world.url, "slack", await list());
    // Slack's page names people by their handles, and so does what obo says afterwards.
    const text = await people[user].consent(link, { account: user, title: `slack-${user}` });
    assert.match(text, new RegExp(`connected as .*${user}`, "i"));
    const channel = channelId(assertDone(await list()), "general");
    assert.ok(channel);

    const post = () => legacyHttp(world.url, tokens[user], (c) => call(c, MESSAGE, message(channel, `hello from ${user}`)));
    const more = assertAuthorizationText(world.url, "slack", await post());
    await people[user].consent(more, { account: user, title: `slack-post-${user}` });
    assertDone(await runsAs(user, MESSAGE, post));
    assertDone(await list());
  }
});

test("calls of both at the same time do not mix", async () => {
  const before = (await ranAs(MAIL)).length;
  const many = ["alice", "bob"].flatMap((user) =>
    [1, 2, 3, 4].map((n) => legacyHttp(world.url, tokens[user], (c) => call(c, MAIL, mail(`${user} ${n}`)))),
  );
  for (const result of await Promise.all(many)) assertDone(result);
  const users = (await ranAs(MAIL)).slice(before).map(firstName).sort();
  assert.deepEqual(users, [...Array(4).fill("alice"), ...Array(4).fill("bob")]);
});

test("obo stdio: a client that launches obo shares the person's connections", async () => {
  const entry = { from: "obo stdio (stderr)", text: "" };
  world.said.push(entry);
  const heard = (text) => (entry.text += text);
  const launch = (user, use) =>
    stdio(obo, ["stdio", "--user", user, ...world.options], world.environment, heard, use);
  assertDone(await runsAs("alice", MAIL, () => launch("alice", (c) => call(c, MAIL, mail("by stdio")))));

  const carol = await launch("carol", (c) => call(c, MAIL, mail("by stdio")));
  assertAuthorizationText(world.url, "google", carol);
});

test("obo call: the same path from the shell", async () => {
  const args = (user) => ["call", "Google.SendEmail", "--user", user, "--input", JSON.stringify(mail("by shell")), "--json"];
  const done = await runsAs("bob", MAIL, () => world.run(args("bob")));
  assert.equal(done.code, 0, done.stderr);
  JSON.parse(done.stdout);
  const unconnected = await world.run(args("carol"));
  assert.equal(unconnected.code, 3, unconnected.stderr);
  assert.match(unconnected.stdout, /\/connect\/|obo connect/);
});

test("a token that was revoked behind obo's back leads to a new consent, not to another person", async () => {
  const { base } = world.providers.google;
  await fetch(`${base}/_testbed/revoke`, { method: "POST", body: JSON.stringify({ user: "alice" }) });
  const send = () => legacyHttp(world.url, tokens.alice, (c) => call(c, MAIL, mail("after revocation")));
  const link = assertAuthorizationText(world.url, "google", await send());
  await people.alice.consent(link, { account: "alice@example.com", title: "google-again" });
  assertDone(await runsAs("alice", MAIL, send));
});

test("an access token that expired is refreshed without anybody noticing", async () => {
  const { base } = world.providers.google;
  await fetch(`${base}/_testbed/expire`, { method: "POST", body: JSON.stringify({ user: "bob" }) });
  assertDone(await runsAs("bob", MAIL, () => legacyHttp(world.url, tokens.bob, (c) => call(c, MAIL, mail("refreshed")))));
});

test("the page that says what was connected can undo it", async () => {
  assert.match(people.bob.seen.at(-1).title, /^slack-post-bob-4-connected$/);
  await people.bob.press("slack-bob-disconnected");
  assert.match(people.bob.seen.at(-1).text, /disconnected/i);
  const asked = await legacyHttp(world.url, tokens.bob, (c) => call(c, CHANNELS, { limit: 5 }));
  assertAuthorizationText(world.url, "slack", asked);
  const state = await (await fetch(`${world.providers.slack.base}/_testbed/state`)).json();
  const living = state.tokens.filter((t) => firstName(t.user) === "bob" && !t.dead && t.scopes.includes("chat:write"));
  assert.deepEqual(living, [], "the provider's token is void too");
});

/** The pages of obo's that anybody has seen. */
function ownPages() {
  return Object.values(people).flatMap(({ seen }) => seen).filter(({ url }) => url.startsWith(world.url));
}

test("every page of obo's can be read on a narrow screen and used with a keyboard", () => {
  for (const { title, narrow, controls, reached } of ownPages()) {
    assert.ok(narrow.wide <= 320, `${title} is ${narrow.wide} px wide`);
    assert.equal(reached.length, controls, `${title}: what the keyboard reaches`);
    for (const { name, outline, height } of reached) {
      assert.ok(outline >= 2, `${title}: where the focus is on ${name} cannot be seen`);
      assert.ok(height >= 40, `${title}: ${name} is ${height} px high`);
    }
  }
});

test("every page of obo's says what a browser must not do", () => {
  const pages = ownPages();
  assert.ok(pages.length > 20, `${pages.length} pages`);
  for (const { title, headers, html } of pages) {
    assert.match(headers["content-security-policy"], /default-src 'none'.*frame-ancestors 'none'/, title);
    assert.match(headers["cache-control"], /no-store/, title);
    assert.equal(headers["referrer-policy"], "no-referrer", title);
    assert.doesNotMatch(html, /<script/i, title);
  }
});

test("the audit names each call's person, and verifies", async () => {
  const records = await world.audit();
  const done = records.filter((r) => r.kind === "call" && r.phase === "outcome" && r.outcome === "ok");
  for (const [tool, name] of [[MAIL, "Google.SendEmail"], [EVENT, "GoogleCalendar.CreateEvent"], [MESSAGE, "Slack.PostMessage"]]) {
    const recorded = done.filter((r) => r.tool === name).map((r) => r.user).sort();
    assert.deepEqual(recorded, (await ranAs(tool)).map(firstName).sort(), name);
  }
  assert.ok(!JSON.stringify(records).includes("from alice"), "no argument's text");
  const verified = await world.run(["audit", "verify"]);
  assert.equal(verified.code, 0, verified.stderr);
});

test("disconnecting ends the provider's tokens too", async () => {
  const { code, stderr } = await world.run(["disconnect", "google", "--user", "alice"]);
  assert.equal(code, 0, stderr);
  const state = await (await fetch(`${world.providers.google.base}/_testbed/state`)).json();
  const living = state.tokens.filter((t) => firstName(t.user) === "alice" && !t.dead && !t.expired);
  assert.deepEqual([living, state.refresh.filter((user) => firstName(user) === "alice")], [[], []]);
  const result = await legacyHttp(world.url, tokens.alice, (c) => call(c, MAIL, mail("gone")));
  assertAuthorizationText(world.url, "google", result);
});

test("no secret is in any log, answer, page or file", async () => {
  const secrets = [...(await world.secrets()), ...Object.values(tokens)];
  assert.ok(secrets.length > 10, `${secrets.length} secrets`);
  const pages = ownPages();
  const remains = [
    ...world.remains(),
    ...answers.map(({ from, text }) => ({ from, bytes: Buffer.from(text) })),
    ...pages.map(({ title, html }) => ({ from: `page ${title}`, bytes: Buffer.from(html) })),
  ];
  assert.ok(remains.some(({ from }) => from.startsWith("data/")) && remains.some(({ from }) => from.includes("serve")));
  // The search itself must be able to find something.
  const planted = Buffer.from(`x${spellings(secrets[0]).get("hex")}y`);
  assert.equal(leaks([secrets[0]], [{ from: "planted", bytes: planted }]).length, 1);
  assert.deepEqual(leaks(secrets, remains), []);
});
