// Two organisations with an identity provider each, two people in each, and everything that somebody might try. Run by
// `tests/e2e/run`.
//
// One story again: the four sign in at their own identity provider, in a browser, and connect; one of them goes the
// whole way with the keyboard alone; then comes the table of attacks.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import { ATTACKS } from "./lib/attacks.mjs";
import { openBrowser, Person } from "./lib/browser.mjs";
import { leaks } from "./lib/leaks.mjs";
import { Matrix } from "./lib/matrix.mjs";
import { accountOf, ORGANISATIONS, People, PEOPLE } from "./lib/people.mjs";
import { assertDone, CHANNELS, MAIL, mail } from "./lib/tools.mjs";
import { World } from "./lib/world.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: python } = process.env;

const LEAST_ATTACKS = 120;
/** Cases in one data folder. Each leaves a link and some calls behind, and every page and call reads those of its person. */
const CASES_A_FOLDER = 60;

let world;
let browser;
let people;
/** Everybody's browser, by name. */
const browsers = {};
/** What is on record about browsers that were not the owner's. */
const mismatches = [];

before(async () => {
  // Nothing is held: a case that asks again wants its answer now. PKCE at Slack is the operator's to switch on.
  const settings = { server: 'consent_wait = "0s"', slack: "pkce = true" };
  world = await World.start({ obo, testbed, python, organisations: ORGANISATIONS, ...settings });
  await world.serve();
  people = new People(world);
  browser = await openBrowser();
  for (const person of PEOPLE) browsers[person.name] = await Person.at(browser, { name: person.user });
});

after(async () => {
  await browser?.close();
  await world?.stop();
});

/** The people as whom calls ran at a provider from `since` on. */
async function ranAs(provider, since = 0) {
  const log = await world.calls(provider, "/");
  return log.filter(({ user }) => user).map(({ user }) => user).slice(since);
}

/** Asserts that `work` makes one call at the provider, as the account that the person has there. */
async function runsAs(person, provider, work) {
  const before = (await ranAs(provider)).length;
  const result = await work();
  assert.deepEqual(await ranAs(provider, before), [person[provider]]);
  return result;
}

const button = (person, text) => browsers[person.name].page.locator("button", { hasText: text }).first();

for (const person of PEOPLE) {
  test(`${person.name} signs in at ${person.organisation}, connects Google, and sends as themselves`, async () => {
    const { name, user, organisation } = person;
    const own = browsers[name];
    const link = await people.link(person);
    await own.open(link, `${name}-1-link`);
    assert.match(own.seen.at(-1).text, new RegExp(`Sign in with ${organisation}`));
    assert.ok(!own.seen.at(-1).text.includes("Google") && !own.seen.at(-1).text.includes(user), "nothing is told before");
    await own.press(`${name}-2-issuer`);
    assert.equal(new URL(own.page.url()).origin, world.organisations[organisation].issuer);
    await own.press(`${name}-3-signed-in`, button(person, `${user}@example.com`));
    assert.equal(own.page.url(), link);
    assert.ok(own.seen.at(-1).text.includes(`${user} (${organisation}, ${organisation})`), own.seen.at(-1).text);
    await own.press(`${name}-4-provider`);
    await own.press(`${name}-5-connected`, button(person, accountOf(person, "google")));
    assert.ok(own.seen.at(-1).text.includes(`Connected as ${accountOf(person, "google")}`), own.seen.at(-1).text);
    assertDone(await runsAs(person, "google", () => people.call(person, MAIL, mail(`from ${name}`))));
  });
}

test("one of them connects Slack too, without signing in again", async () => {
  const [person] = PEOPLE;
  const own = browsers[person.name];
  await own.open(await people.link(person, "slack"), "slack-1-link");
  await own.press("slack-2-provider");
  await own.press("slack-3-connected", button(person, person.slack));
  assertDone(await runsAs(person, "slack", () => people.call(person, CHANNELS, { limit: 5 })));
  // Connecting is for oneself: nobody else of that name or that organisation is connected now.
  for (const other of PEOPLE.slice(1)) await people.link(other, "slack");
});

test("everybody sees their own connections and calls, and nobody else's", async () => {
  for (const person of PEOPLE) {
    const own = browsers[person.name];
    await own.open(`${world.url}/account`, `${person.name}-6-account`);
    const { text } = own.seen.at(-1);
    assert.ok(text.includes(`Signed in as ${person.user} (${person.organisation}, ${person.organisation}).`), text);
    assert.ok(text.includes(accountOf(person, "google")), text);
    assert.equal(text.includes("Disconnect alice in Acme"), person === PEOPLE[0], text);
    for (const other of PEOPLE.filter((one) => one !== person)) {
      assert.ok(!text.includes(`${other.user} (${other.organisation}`), text);
    }
    const connected = (await people.connections(person)).map(({ provider, account }) => `${provider} ${account}`);
    assert.deepEqual(connected.filter((one) => one.startsWith("google")), [`google ${accountOf(person, "google")}`]);
  }
});

test("everybody disconnects and signs out, and their browser is nobody's", async () => {
  for (const person of PEOPLE) {
    const own = browsers[person.name];
    for (const provider of person === PEOPLE[0] ? ["google", "slack"] : ["google"]) {
      const [{ account }] = (await people.connections(person)).filter((one) => one.provider === provider);
      await own.page.goto(`${world.url}/account`);
      await own.press(`${person.name}-7-disconnected-${provider}`, button(person, `Disconnect ${account}`));
      assert.match(own.seen.at(-1).text, /Disconnected/);
    }
    assert.deepEqual(await people.connections(person), []);
    await own.page.goto(`${world.url}/account`);
    await own.press(`${person.name}-8-signed-out`, button(person, "Sign out"));
    assert.match(own.seen.at(-1).text, /Choose how you sign in/);
    await own.page.goto(await people.link(person));
    assert.match(await own.page.locator("body").innerText(), /Sign in with/);
  }
  const state = await (await fetch(`${world.providers.google.base}/_testbed/state`)).json();
  assert.deepEqual(state.tokens.filter(({ dead }) => !dead).map(({ user }) => user), [], "void at the provider too");
});

test("the whole way, with the keyboard alone", async () => {
  const [, person] = PEOPLE;
  const { user, organisation } = person;
  const own = await Person.at(browser, { name: user });
  const { page } = own;
  const shows = async (title, text) => assert.match(await own.look(title), text);

  await page.goto(await people.link(person));
  await shows("keyboard-1-link", /Sign in to go on/);
  await own.tabTo(`Sign in with ${organisation}`);
  await own.enter();
  await own.tabTo(`${user}@example.com`, { ours: false });
  await own.enter();
  await shows("keyboard-2-ask", /Connect Google\?/);
  await own.tabTo("Continue to Google");
  await own.enter();
  await own.tabTo(accountOf(person, "google"), { ours: false });
  await own.enter();
  await shows("keyboard-3-connected", /Google is connected/);
  await own.tabTo(`Disconnect ${accountOf(person, "google")}`);
  assertDone(await runsAs(person, "google", () => people.call(person, MAIL, mail("by keyboard"))));

  await page.goto(`${world.url}/account`);
  await shows("keyboard-4-account", /Google.SendEmail/);
  await own.tabTo(`Disconnect ${accountOf(person, "google")}`);
  await own.enter();
  await shows("keyboard-5-disconnected", /Disconnected/);
  assert.deepEqual(await people.connections(person), []);
  await page.goto(`${world.url}/account`);
  await own.tabTo("Sign out");
  await own.enter();
  await shows("keyboard-6-signed-out", /Choose how you sign in/);

  // And in again from there, by links in place of buttons.
  await own.tabTo(organisation);
  await own.enter();
  await own.tabTo(`Sign in with ${organisation}`);
  await own.enter();
  await own.tabTo(`${user}@example.com`, { ours: false, optional: true });
  if (!page.url().startsWith(world.url)) await own.enter();
  await shows("keyboard-7-signed-in-again", /Signed in as bob/);
  await own.tabTo("Sign out");
  await own.enter();
  await own.close();
});

test("the pages of all of them are narrow enough, reachable, and in order", () => {
  const seen = Object.values(browsers).flatMap(({ seen }) => seen).filter(({ url }) => url.startsWith(world.url));
  assert.ok(seen.length > 20, `${seen.length} pages`);
  for (const { title, narrow, controls, reached } of seen) {
    assert.ok(narrow.wide <= 320, `${title} is ${narrow.wide} px wide`);
    assert.equal(reached.length, controls, `${title}: what the keyboard reaches`);
    for (const { name, outline } of reached) assert.ok(outline >= 2, `${title}: where the focus is on ${name} cannot be seen`);
  }
});

test("the threat model counts the attacks as they are", () => {
  const document = readFileSync(new URL("../../docs/threat-model.md", import.meta.url), "utf8");
  const [, section] = /^## The attack matrix$(.*?)^## /ms.exec(document);
  const told = [...section.matchAll(/^\| ([^|]*) \| (\d+) \|/gm)].map(([, family, cases]) => `${family}: ${cases}`);
  const families = [...new Set(ATTACKS.map(({ family }) => family))];
  assert.deepEqual(told, families.map((family) => `${family}: ${ATTACKS.filter((one) => one.family === family).length}`));
});

test("attacks", async (t) => {
  const names = new Set(ATTACKS.map(({ name }) => name));
  assert.ok(ATTACKS.length >= LEAST_ATTACKS && names.size === ATTACKS.length, `${names.size} names, ${ATTACKS.length} cases`);
  const matrix = new Matrix(world, people);
  await matrix.prepare();

  await t.test("the judge sees what it must", async () => {
    const [person, other] = PEOPLE;
    const judged = async (work) => {
      const before = await matrix.truth();
      matrix.heard.length = 0;
      await work();
      return (await matrix.judge(before, await matrix.truth())).join("; ");
    };
    assert.equal(await judged(() => people.visitor().get("/account")), "");
    const connected = await judged(() => people.connect(person, matrix.home(person), "google"));
    assert.match(connected, /connected: acme\.alice google/);
    assert.match(connected, /tokens issued: 1; calls ran: google:alice/);
    assert.match(await judged(() => people.call(person, MAIL, mail("seen"))), /^calls ran: google:alice$/);
    assert.match(await judged(() => people.call(other, CHANNELS, { limit: 5 })), /^calls ran: slack:bob$/);
    const page = { method: "GET", target: "/", status: 200, headers: {}, text: "" };
    const wrong = async (change) => judged(async () => people.heard({ ...page, ...change }));
    assert.match(await wrong({ status: 503 }), /status 503/);
    for (const location of ["https://evil.example/", "//evil.example", "/\\evil.example", `${world.url}.evil.example/`]) {
      assert.match(await wrong({ location }), /leads to/);
    }
    const [secret] = await world.secrets();
    assert.match(await wrong({ text: `x${secret}y` }), /a secret/);
    assert.match(await wrong({ headers: { "x-y": await people.bearer(person) } }), /a secret/);
    assert.match(await wrong({ headers: { "content-type": "text/html; charset=utf-8" } }), /without the headers/);
    assert.match(await judged(() => matrix.honest(person, true)), /no longer connected: acme\.alice google/);
    matrix.now = await matrix.truth();
  });

  let accepted = 0;
  let inFolder = 0;
  for (const [n, attack] of ATTACKS.entries()) {
    await t.test(attack.name, async () => {
      const wrong = await matrix.make(attack);
      if (wrong.length > 0) accepted++;
      assert.deepEqual(wrong, []);
    });
    inFolder++;
    if (ATTACKS[n + 1]?.family === attack.family) continue;
    // What the pages tell after every case, the command line confirms after every family.
    assert.deepEqual(await matrix.inVault(), matrix.vault, `the vault after: ${attack.family}`);
    if (inFolder < CASES_A_FOLDER) continue;
    mismatches.push(...(await recordedMismatches()));
    await world.serveAnew();
    await matrix.prepare();
    inFolder = 0;
  }
  console.log(`attacks: ${ATTACKS.length} cases, ${accepted} accepted`);
  assert.equal(accepted, 0);
});

async function recordedMismatches() {
  const verified = await world.run(["audit", "verify"]);
  assert.equal(verified.code, 0, verified.stderr);
  return (await world.audit()).filter(({ note }) => note === "consent.identity_mismatch");
}

test("the operator can read what was tried, and no secret", async () => {
  mismatches.push(...(await recordedMismatches()));
  assert.ok(mismatches.length > 50, `${mismatches.length} are on record`);
  for (const { outcome, tenant, source, user } of mismatches) {
    assert.equal(outcome, "denied");
    assert.ok(PEOPLE.some((person) => person.organisation === tenant && source === tenant && person.user === user));
  }
  const log = world.said.filter(({ from }) => from.startsWith("obo serve")).map(({ text }) => text).join("");
  for (const said of ["a browser of somebody else opened a connect link", "an answer came to a sign-in that it does not belong to",
    "http.host_refused", "http.origin_refused", "a browser brought two cookies"]) {
    assert.ok(log.includes(said), said);
  }

  const remains = world.remains();
  const secrets = [...(await world.secrets()), ...people.bearers.values()];
  assert.ok(secrets.length > 500, `${secrets.length} secrets`);
  assert.deepEqual(leaks(secrets, remains), []);
  assert.ok(people.passed.size > 500, `${people.passed.size} codes and states`);
  assert.deepEqual(leaks([...people.passed], remains), []);
});
