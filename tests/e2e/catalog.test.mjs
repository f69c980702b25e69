// Every tool of the catalog that has a provider on the test bed, as two different people. Run by `tests/e2e/run`.
//
// A provider's story: each person is asked for exactly the scopes that a call lacks, and nothing is called before; each
// tool runs, and the provider's log says as whom; then what goes wrong there is told in obo's codes.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { encode } from "gpt-tokenizer";

import { openBrowser, Person } from "./lib/browser.mjs";
import { PEOPLE, PROVIDERS } from "./lib/catalog.mjs";
import { leaks } from "./lib/leaks.mjs";
import { MODERN, raw } from "./lib/raw.mjs";
import { assertAuthorizationText, assertDone } from "./lib/tools.mjs";
import { World } from "./lib/world.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: python } = process.env;

/** How many tools of providers there are at least. */
const FEWEST_TOOLS = 45;
/** What the list of all tools may cost a model, in tokens. */
const MOST_TOKENS = 12_000;

let world;
let browser;
const browsers = {};
const tokens = {};
/** What each person's calls know, by provider. */
const known = {};

before(async () => {
  // Those that the test bed does not have are only listed.
  const further = ["atlassian", "notion"].map((id) => `[providers.${id}]\nclient_id = "x"\n`).join("");
  world = await World.start({ obo, testbed, python, providers: ["google", "slack", ...Object.keys(PROVIDERS)], further });
  for (const person of PEOPLE) tokens[person] = await world.issueToken(person);
  await world.serve();
  browser = await openBrowser();
  for (const person of PEOPLE) browsers[person] = await Person.at(browser, { name: person, token: tokens[person] });
});

after(async () => {
  await browser?.close();
  await world?.stop();
});

async function ask(person, method, params) {
  const client = { url: world.url, token: tokens[person], transport: "http", revision: MODERN };
  const { result, error } = await raw(client, ({ ask }) => ask(method, params));
  assert.ok(result, JSON.stringify(error));
  return result;
}

const call = (person, tool, input) => ask(person, "tools/call", { name: tool.replace(".", "_"), arguments: input });

/** What a provider can be told and asked besides its API: `fault`, `revoke`, `state`, `log`. */
async function control(provider, what, settings = {}) {
  const url = `${world.providers[provider].base}/_testbed/${what}`;
  const answer = await fetch(url, { method: "POST", body: JSON.stringify(settings) });
  assert.ok(answer.ok, `${what}: ${answer.status}`);
  return answer.json();
}

/** The API calls that a provider saw; not those of a flow. */
const log = async (provider) => (await control(provider, "log")).filter(({ user, note }) => user || note === "fault");

/** Asserts that `work` makes exactly these calls at the provider, all of them as the person. */
async function reaches(provider, person, calls, work) {
  const before = (await log(provider)).length;
  const result = await work();
  const now = (await log(provider)).slice(before);
  const made = now.map(({ method, path, status }) => `${method} ${path.split("?")[0]} ${status}`);
  assert.deepEqual(made, calls, JSON.stringify(result));
  assert.ok(now.every(({ user }) => user === person), JSON.stringify(now));
  return result;
}

/** Asserts that a call asks the person for exactly these scopes. Returns the link. */
function assertAsked(provider, scopes, result) {
  const link = assertAuthorizationText(world.url, provider, result);
  assert.deepEqual(result._meta["obo/authorization"].scopes, scopes);
  return link;
}

for (const [provider, { revokes, renews, calls, answers }] of Object.entries(PROVIDERS)) {
  describe(provider, () => {
    const [first, second] = PEOPLE;
    for (const person of PEOPLE) {
      const mine = ((known[provider] ??= {})[person] = { person });
      for (const { tool, asks, prepare, input, reached, value } of calls) {
        test(`${tool} as ${person}`, async () => {
          const { base } = world.providers[provider];
          await prepare?.(mine, { behind: base.replace(/\d+$/, (port) => Number(port) + 100) });
          if (asks) {
            const result = await reaches(provider, person, [], () => call(person, tool, input(mine)));
            const link = assertAsked(provider, asks, result);
            const text = await browsers[person].consent(link, { account: person, title: `${provider}-${person}` });
            assert.ok(text.includes("is connected") && text.includes(person), text);
          }
          const result = await reaches(provider, person, reached(mine), () => call(person, tool, input(mine)));
          value(assertDone(result), mine);
        });
      }
    }

    test("each has their own connection", async () => {
      for (const person of PEOPLE) {
        const { connections } = assertDone(await call(person, "Obo.ListConnections", {}));
        const accounts = connections.filter((one) => one.provider === provider).map(({ account }) => account);
        assert.equal(accounts.length, 1, accounts);
        assert.match(accounts[0], new RegExp(`\\b${person}\\b`));
      }
    });

    for (const { name, tool, input, fault, asked, asks, code, text, retryAfterMs, value } of answers) {
      test(`${tool}: ${name}`, async () => {
        if (fault) await control(provider, "fault", fault);
        const result = await call(first, tool, input(known[provider][first]));
        if (asked) assert.match((await log(provider)).at(-1).path, asked);
        if (asks) return void assertAsked(provider, asks, result);
        if (value) return value(assertDone(result));
        assert.equal(result.isError, true, JSON.stringify(result));
        const error = result._meta["obo/error"];
        assert.deepEqual([error?.code, error?.retry_after_ms], [code, retryAfterMs], JSON.stringify(result));
        if (text) assert.match(result.content[0].text, text);
      });
    }

    // The last call of a story changes nothing that is not so already.
    const { tool, input, reached, value } = calls.at(-1);

    test(`an access token that ran out is ${renews ? "renewed, each time" : "asked for again"}`, async () => {
      const issued = async () => (await control(provider, "state")).tokens.length;
      const mine = known[provider][second];
      for (let round = 0; round < 2; round++) {
        const before = await issued();
        await control(provider, "expire", { user: second });
        if (renews) {
          value(assertDone(await reaches(provider, second, reached(mine), () => call(second, tool, input(mine)))), mine);
        } else {
          const result = await reaches(provider, second, [], () => call(second, tool, input(mine)));
          const link = assertAuthorizationText(world.url, provider, result);
          await browsers[second].consent(link, { account: second, title: `${provider}-again` });
        }
        assert.equal((await issued()) - before, 1);
      }
    });

    test("a connection that was ended there is asked for again, and nobody else's", async () => {
      await control(provider, "revoke", { user: first });
      const ended = await call(first, tool, input(known[provider][first]));
      assertAuthorizationText(world.url, provider, ended);
      const { scopes } = ended._meta["obo/authorization"];
      for (const scope of calls.flatMap(({ asks = [] }) => asks)) assert.ok(scopes.includes(scope), `${scope}: ${scopes}`);
      const mine = known[provider][second];
      assertDone(await reaches(provider, second, reached(mine), () => call(second, tool, input(mine))));
    });

    test(`disconnecting ${revokes ? "ends it there too" : "says that it has not ended there"}`, async () => {
      const newest = async () => (await control(provider, "state")).tokens.findLast(({ user }) => user === second);
      assert.equal((await newest()).dead, false);
      const done = assertDone(await call(second, "Obo.Disconnect", { provider }));
      assert.deepEqual([done.status, done.confirmed_by_provider], ["disconnected", revokes], done.message);
      assert.equal((await newest()).dead, revokes);
      await reaches(provider, second, [], async () =>
        assertAuthorizationText(world.url, provider, await call(second, tool, input(known[provider][second]))),
      );
    });
  });
}

test("no tool is left out here", async () => {
  const { tools } = await ask(PEOPLE[0], "tools/list", {});
  const called = Object.values(PROVIDERS).flatMap(({ calls }) => calls.map(({ tool }) => tool));
  // Those of Google and Slack, and obo's own, have suites of their own; what the test bed lacks is run by tests/it/tool_calls.rs.
  const elsewhere = /^(Google|GoogleCalendar|GoogleDrive|Slack|Obo|Notion|Jira|Confluence)\.|^HubSpot\.CreateNote$/;
  const others = tools.map((tool) => tool._meta["obo/name"]).filter((name) => !elsewhere.test(name));
  assert.deepEqual([...new Set(called)].sort(), others.sort());
});

test("the list of all tools is short enough to be given to a model", async (t) => {
  const { tools } = await ask(PEOPLE[0], "tools/list", {});
  const offered = new Set(tools.map((tool) => tool._meta["obo/name"].split(".")[0]));
  for (const toolkit of ["Google", "GoogleCalendar", "GoogleDrive", "Slack", "Notion", "Jira", "Confluence", "Obo"]) assert.ok(offered.has(toolkit), toolkit);
  assert.ok(tools.filter((tool) => !tool._meta["obo/name"].startsWith("Obo.")).length >= FEWEST_TOOLS, `${tools.length} tools`);
  const count = encode(JSON.stringify(tools)).length;
  t.diagnostic(`${tools.length} tools, ${count} tokens (o200k_base)`);
  assert.ok(count < MOST_TOKENS, `${count} tokens`);
});

test("no token of a provider's was left anywhere", async () => {
  const secrets = await world.secrets();
  assert.ok(secrets.length > 2 * Object.keys(PROVIDERS).length, `${secrets.length} secrets`);
  assert.deepEqual(leaks(secrets, world.remains()), []);
});
