// Real clients that are given the address of obo and nothing else sign their person in. Run by `tests/e2e/run`.
//
// obo is their authorization server here. Each client finds out where to ask, makes itself known, and sends the person
// to their browser, where the page says who asks and where it leads; from there on its calls run as that person, until
// the person signs it out.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { openBrowser, Person } from "./lib/browser.mjs";
import { DocumentSite } from "./lib/document.mjs";
import { Front } from "./lib/front.mjs";
import { leaks } from "./lib/leaks.mjs";
import { Opener } from "./lib/opener.mjs";
import { People, PEOPLE } from "./lib/people.mjs";
import { SIGN_INS } from "./lib/sign-ins.mjs";
import { MAIL, mail, PATHS } from "./lib/tools.mjs";
import { World } from "./lib/world.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: python, OBO_E2E_PYTHON_1: python1 } = process.env;

/** Longer than an access token is good for. */
const LATER_S = 16 * 60;

/** The test bed's identity provider tells groups to whoever asks for them, and not in the ID token. */
const GROUPS = 'groups_claim = "groups"\nsign_in_scopes = ["groups"]';

/** One client of each library: how the person signs in makes no difference to the others of it. */
const SOME_SIGN_INS = SIGN_INS.filter(({ name }, n) => SIGN_INS.findIndex((one) => one.name === name) === n);

/** The addresses at which the clients wait for their browser, as a document lists them: the port is learned later. */
const LOOPBACK = ["127.0.0.1", "localhost"].flatMap((host) =>
  ["/callback", "/oauth/callback"].map((path) => `http://${host}${path}`),
);

let browser;
let site;
let opener;
let folder;
/** What each client did: a row of the table that is printed at the end. */
const rows = [];

before(async () => {
  browser = await openBrowser();
  site = await DocumentSite.open(python1);
  opener = await Opener.open();
  folder = mkdtempSync(join(tmpdir(), "obo-e2e-clients-"));
});

after(async () => {
  await opener?.close();
  await site?.close();
  await browser?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
  table(rows);
});

/** An obo that clients sign in at, and a person of it with a browser. */
class Place {
  static async open(settings) {
    const place = new Place();
    place.looked = new Set();
    place.front = await Front.open();
    const further = `
[authorization_server]
enabled = true
[network]
ca_file = "${site.caFile}"
allow_private = ["${site.host}"]
${settings.further ?? ""}`;
    place.world = await World.start({ obo, testbed, python, front: place.front, ...settings, further });
    return place;
  }

  async close() {
    await this.person?.close();
    await this.world?.stop();
    await this.front?.close();
  }

  get url() {
    return this.world.url;
  }

  /** The people as whom mails were sent. */
  async ranAs() {
    const [provider, path] = PATHS[MAIL];
    const calls = await this.world.calls(provider, path);
    const sent = calls.filter(({ method, status }) => method === "POST" && status === 200);
    return sent.map(({ user }) => user.split("@")[0]);
  }

  /** A call that runs as the person. */
  async sends(conversation, subject) {
    const before = (await this.ranAs()).length;
    const result = await conversation.call(MAIL, mail(subject));
    assert.equal(result.isError, false, result.texts.join());
    assert.deepEqual((await this.ranAs()).slice(before), [this.account]);
  }

  /** What the person does with an address that a client opens: signs in if need be, reads the page, presses a button. */
  decides(button, title) {
    return async (url) => {
      const { page } = this.person;
      const response = await page.goto(url);
      if (await this.signIn(title)) await this.person.look(`${title}-consent`);
      else if (title) await this.person.look(`${title}-consent`, response);
      this.read = await page.locator("main").innerText();
      // Some clients begin to listen only when they have opened the browser; nobody reads that fast.
      await listens(new URL(new URL(url).searchParams.get("redirect_uri")));
      if (button === "Allow") await page.locator("input[name=begun]").check();
      await page.locator("button", { hasText: new RegExp(`^${button}$`) }).click();
      await page.waitForURL((at) => !at.href.startsWith(this.url));
      this.landed = page.url();
    };
  }

  /** Presses the button with which the person signs a client out. */
  async signOut(label) {
    const { page } = this.person;
    await page.goto(`${this.url}/account`);
    // Over plain http a decision signs the browser out.
    await this.signIn();
    await page.locator("button", { hasText: `Sign ${label} out` }).click();
    await page.waitForLoadState();
    assert.equal(await page.locator("button", { hasText: `Sign ${label} out` }).count(), 0);
  }
}

/** Waits until somebody listens at an address. */
async function listens({ hostname, port }) {
  const connects = () =>
    new Promise((done) => {
      const socket = connect({ host: hostname, port }, () => socket.end(() => done(true)));
      socket.on("error", () => done(false));
    });
  for (const end = Date.now() + 10_000; !(await connects()); await new Promise((next) => setTimeout(next, 20))) {
    assert.ok(Date.now() < end, `nobody listens at ${hostname}:${port}`);
  }
}

const nameOf = ({ name, transport, document }) => `${name}, ${transport}${document ? ", document" : ""}`;

/** What the page that asks about a client says of it, by what it made itself known with. */
function told(id, name) {
  return id ? [site.host, id, `“${name}”`] : ["unknown: nobody has checked who it is", `“${name}”`];
}

/** A client from its first look at the address to its end. */
async function life(t, place, kind) {
  const { front } = place;
  const title = `${place.name} ${nameOf(kind)}`.replaceAll(/[ .,]+/g, "-");
  // One page of each kind is looked at closely; those of the others differ in a name.
  const known = kind.document ? "document" : "registration";
  const look = place.looked.has(known) ? undefined : `${place.name}-${known}`;
  place.looked.add(known);
  const name = kind.document ? `Published ${kind.name}` : undefined;
  const document = kind.document ? site.publish(`/${title}.json`, name, LOOPBACK) : undefined;
  const options = { url: `${place.url}/${kind.transport === "sse" ? "sse" : "mcp"}`, document, opener, folder };

  const began = front.seen.length;
  const { result: conversation, opened } = await opener.with(place.decides("Allow", look), () => kind.open(options));
  let open = true;
  t.after(() => open && conversation.close());
  assert.equal(opened.length, 1, opened.join());

  // Found out by itself: refused and told where to look, looked there, and was registered or named its document.
  const asked = front.seen.slice(began);
  assert.equal(asked[0].status, 401);
  assert.match(asked[0].challenge, /resource_metadata="/);
  const found = asked.filter(({ status }) => status === 200).map(({ path }) => path);
  assert.ok(found.some((path) => path.startsWith("/.well-known/oauth-protected-resource")), found.join());
  assert.ok(found.includes("/.well-known/oauth-authorization-server"), found.join());
  const [registered] = front.at("/oauth/register", began);
  assert.equal(Boolean(registered), !kind.document);
  const { searchParams: sent } = new URL(opened[0]);
  if (kind.document) assert.equal(sent.get("client_id"), document);
  else assert.deepEqual([registered.status, sent.get("client_id")], [201, registered.answer.client_id]);

  // The page named it, and where it leads, which is where it led.
  const calls = name ?? registered.json.client_name;
  const leads = ["a program on this computer", sent.get("redirect_uri")];
  for (const said of [...told(document, calls), ...leads]) assert.ok(place.read.includes(said), `${said}: ${place.read}`);
  assert.ok(place.landed.startsWith(sent.get("redirect_uri")), `the browser went to ${place.landed.split("?")[0]}`);

  const quiet = async (work) => {
    const { result, opened } = await opener.with(place.decides("Allow"), work);
    assert.deepEqual(opened, [], "the person was not asked");
    return result;
  };
  assert.ok((await quiet(() => conversation.list())).includes(MAIL));
  await quiet(() => place.sends(conversation, `${title} 1`));

  // It is listed with whose it is and the groups that they are in.
  const label = kind.document ? `${calls} (${site.host})` : `${calls} (as it calls itself)`;
  const { stdout } = await place.world.run(["token", "list", "--json"]);
  const [listed, ...others] = JSON.parse(stdout).filter(({ client }) => client === label);
  assert.deepEqual([listed.user, listed.source, listed.groups, others], [place.user, place.source, place.groups, []]);

  // The access token ends; the client gets a new one without its person.
  const first = front.tokens();
  const voided = await fetch(`${place.url}/oauth/revoke`, {
    method: "POST",
    body: new URLSearchParams({ token: first.answer.access_token, client_id: sent.get("client_id") }),
  });
  assert.equal(voided.status, 200);
  const headers = { authorization: `Bearer ${first.answer.access_token}` };
  assert.equal((await fetch(`${place.url}/mcp`, { method: "POST", body: "{}", headers })).status, 401);
  await conversation.later(LATER_S);
  const mark = front.seen.length;
  await quiet(() => place.sends(conversation, `${title} 2`));
  const [renewal, ...more] = front.at("/oauth/token", mark);
  assert.deepEqual([renewal.form.get("grant_type"), renewal.status, more.length], ["refresh_token", 200, 0]);
  assert.equal(renewal.form.get("refresh_token"), first.answer.refresh_token);

  // The person signs it out. Its next call needs them again.
  await place.signOut(label);
  const again = await opener.with(place.decides("Allow"), () => place.sends(conversation, `${title} 3`));
  assert.equal(again.opened.length, 1, "the person is asked to sign in again");
  await conversation.close();
  open = false;
  await place.signOut(label);

  // Somebody who has it anew, and does not allow it.
  const denied = opener.with(place.decides("Do not allow"), () => kind.open(options));
  const error = await denied.then(() => assert.fail("it was not allowed, and went on"), (error) => error);
  const back = new URL(place.landed).searchParams;
  assert.deepEqual([back.get("error"), back.get("iss"), back.has("code")], ["access_denied", place.url, false]);
  // Some show the error's code, some its text.
  assert.match(error.message, /access_denied|Access was denied|the person did not allow it/);

  const asksFor = [sent, front.at("/oauth/token", began)[0].form, renewal.form].map((form) => form.getAll("resource"));
  rows.push({
    person: place.name,
    client: kind.name,
    address: kind.transport === "sse" ? "/sse" : "/mcp",
    known,
    name: calls,
    "redirect URI": sent.get("redirect_uri"),
    "client authentication": kind.document ? "" : (registered.json.token_endpoint_auth_method ?? "not said"),
    scope: sent.get("scope"),
    "resource (page, code, refresh)": asksFor.join(" ").replaceAll(place.url, ""),
  });
}

/** A client by hand, for those that do not run here: it is told to be a web page, or a program that opens links. */
class ByHand {
  static async register(place, name, redirectUri) {
    const client = new ByHand();
    Object.assign(client, { place, redirectUri });
    const answer = await fetch(`${place.url}/oauth/register`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ client_name: name, redirect_uris: [redirectUri] }),
    });
    assert.equal(answer.status, 201);
    client.id = (await answer.json()).client_id;
    return client;
  }

  /** Where it sends the browser, with changes; one that is null takes the parameter away. */
  url(changes = {}) {
    this.verifier = randomBytes(32).toString("base64url");
    const parameters = {
      response_type: "code",
      client_id: this.id,
      redirect_uri: this.redirectUri,
      code_challenge: createHash("sha256").update(this.verifier).digest("base64url"),
      code_challenge_method: "S256",
      state: "of this client",
      ...changes,
    };
    const given = Object.entries(parameters).filter(([, value]) => value !== null);
    this.asked = `${this.place.url}/oauth/authorize?${new URLSearchParams(given)}`;
    return this.asked;
  }

  /** Presses a button: where the browser is sent. Chromium itself finds nothing there. */
  async sent(press) {
    const { person } = this.place;
    const { page } = person;
    const complaints = [];
    const hear = (message) => complaints.push(message.text());
    page.on("console", hear);
    const [answer] = await Promise.all([page.waitForResponse((one) => one.request().method() === "POST"), press()]);
    // Another page: after a scheme that nobody opens, the keyboard does nothing any more on this one.
    person.page = await person.context.newPage();
    await page.close();
    // The page's own policy says where its forms may lead.
    assert.deepEqual(complaints.filter((text) => text.includes("Content Security Policy")), []);
    assert.equal(answer.status(), 303);
    return new URL(answer.headers().location);
  }

  /** Exchanges the code of an answer: the status. */
  async exchange(answer) {
    const { state, iss, code } = Object.fromEntries(answer.searchParams);
    assert.deepEqual([state, iss], ["of this client", this.place.url]);
    const form = { grant_type: "authorization_code", code, redirect_uri: this.redirectUri, client_id: this.id };
    const body = new URLSearchParams({ ...form, code_verifier: this.verifier });
    return (await fetch(`${this.place.url}/oauth/token`, { method: "POST", body })).status;
  }
}

/** What every person's browser has seen in the end, and what is left on the server. */
function endings(theirs, kinds) {
  test("the pages are narrow enough, reachable, and in order", () => {
    const { person, url } = theirs();
    const seen = person.seen.filter((one) => one.url.startsWith(url));
    assert.ok(seen.length >= 3, `${seen.length} pages`);
    for (const { title, narrow, controls, reached } of seen) {
      assert.ok(narrow.wide <= 320, `${title} is ${narrow.wide} px wide`);
      assert.equal(reached.length, controls, `${title}: what the keyboard reaches`);
      for (const { name, outline } of reached) assert.ok(outline >= 2, `${title}: the focus on ${name} cannot be seen`);
    }
  });

  test("no code and no token is left in a log or a file", async () => {
    const { world, front } = theirs();
    // A code, a verifier, and two pairs of tokens for each client at least.
    assert.ok(front.secrets.size > 6 * kinds.length, `${front.secrets.size} secrets`);
    assert.ok((await world.audit()).length > 6 * kinds.length);
    const remains = world.remains();
    const planted = [...front.secrets].at(-1);
    assert.equal(leaks([planted], [{ from: "here", bytes: Buffer.from(`code=${planted}`) }]).length > 0, true);
    assert.deepEqual(leaks([...front.secrets, ...(await world.secrets())], remains), []);
  });
}

function table(rows) {
  if (rows.length === 0) return;
  const columns = Object.keys(rows[0]);
  const width = (column) => Math.max(column.length, ...rows.map((row) => `${row[column]}`.length));
  const line = (cell) => `| ${columns.map((column) => `${cell(column)}`.padEnd(width(column))).join(" | ")} |`;
  const head = [line((column) => column), line((column) => "-".repeat(width(column)))];
  console.log([...head, ...rows.map((row) => line((column) => row[column]))].join("\n"));
}

describe("a person with an obo token", () => {
  let place;
  before(async () => {
    place = await Place.open({});
    const { world } = place;
    Object.assign(place, { name: "token", user: "alice", source: "obo", groups: [], account: "alice" });
    const token = await world.issueToken("alice");
    place.front.keep(token);
    await world.serve();
    // Connected beforehand, in another browser.
    const elsewhere = await Person.at(browser, { name: "alice", token });
    const { json } = await new People(world).ask("tools/call", { name: MAIL, arguments: mail("before") }, { token });
    const { authorization_url: link } = json.result._meta["obo/authorization"];
    await elsewhere.consent(link, { account: "alice", title: "token-0" });
    await elsewhere.close();
    place.person = await Person.at(browser, { name: "alice", token });
    place.signIn = async (title) => place.person.signIn(title && `${title}-signed-in`);
  });
  after(() => place?.close());

  for (const kind of SIGN_INS) {
    test(nameOf(kind), (t) => life(t, place, kind));
  }

  /** Opens an address, and signs in where that is asked for: a decision over plain http signs the browser out. */
  const opens = async (url, title) => {
    const answer = await place.person.open(url, title);
    return (await place.signIn(title)) ?? answer;
  };

  const button = (text) => place.person.page.locator("button", { hasText: new RegExp(`^${text}$`) });

  for (const [what, redirectUri, words] of [
    ["a web page", "https://app.example/mcp/callback", "app.example"],
    ["a program that opens links", "com.example.editor://obo/callback", "the program that opens com.example.editor: links"],
  ]) {
    test(`${what} is sent a code`, async () => {
      const client = await ByHand.register(place, "An editor", redirectUri);
      await opens(client.url(), `token-${what.replaceAll(" ", "-")}`);
      const { text } = place.person.seen.at(-1);
      for (const said of [words, redirectUri, "Nobody sent me here by a link."]) assert.ok(text.includes(said), text);
      // Without the box nothing is sent.
      await button("Allow").click();
      assert.equal(place.person.page.url(), client.asked);
      await place.person.page.locator("input[name=begun]").check();
      const answer = await client.sent(() => button("Allow").click());
      assert.ok(answer.href.startsWith(`${redirectUri}?`));
      assert.equal(await client.exchange(answer), 200);
    });
  }

  test("whoever published a document is named by where it stands", async () => {
    const redirectUri = `https://${site.host}/callback`;
    const client = Object.assign(new ByHand(), { place, redirectUri });
    client.id = site.publish("/web.json", "A web client", [redirectUri]);
    await opens(client.url(), "token-document-of-a-web-page");
    const { text } = place.person.seen.at(-1);
    for (const said of [...told(client.id, "A web client"), redirectUri]) assert.ok(text.includes(said), text);
  });

  test("requests that cannot be granted are told to the person", async () => {
    const client = await ByHand.register(place, "An editor", "http://127.0.0.1/callback");
    const refused = async (title, url, words, link) => {
      const answer = await opens(url, `token-refused-${title}`);
      assert.equal(answer.status(), 400);
      const { text } = place.person.seen.at(-1);
      assert.match(text, words);
      assert.equal(await place.person.page.locator("a").count(), link, text);
    };
    await refused("elsewhere", client.url({ redirect_uri: "https://elsewhere.example/" }), /not registered with/, 0);
    await refused("unknown", client.url({ client_id: "somebody" }), /not known here/, 0);
    await refused("plain", client.url({ code_challenge_method: "plain" }), /code_challenge_method must be S256/, 1);
    const unpublished = `https://${site.host}/nothing.json`;
    const missing = await opens(client.url({ client_id: unpublished }), "token-document-missing");
    assert.equal(missing.status(), 502);
  });

  test("the whole way, with the keyboard alone", async () => {
    const { token } = place.person;
    const own = await Person.at(browser, { name: "alice", token });
    const mouse = place.person;
    place.person = own;
    try {
      const client = await ByHand.register(place, "By keyboard", "com.example.editor://obo/callback");
      await own.page.goto(client.url());
      // The field has the keyboard without anybody's doing, once the page is there.
      const focused = () => own.page.locator("input[name=token]:focus").waitFor();
      await focused();
      await own.page.keyboard.type(token);
      await own.enter();
      assert.match(await own.look("token-keyboard-consent"), /Let an app act for you\?/);
      await own.tabTo("I have just begun this myself");
      await own.page.keyboard.press("Space");
      await own.tabTo("Allow");
      const answer = await client.sent(() => own.page.keyboard.press("Enter"));
      assert.equal(await client.exchange(answer), 200);
      await own.page.goto(`${place.url}/account`);
      await focused();
      await own.page.keyboard.type(token);
      await own.enter();
      await own.look("token-keyboard-account");
      await own.tabTo("Sign By keyboard (as it calls itself) out");
      await own.enter();
      assert.doesNotMatch(await own.look("token-keyboard-signed-out"), /By keyboard/);
    } finally {
      place.person = mouse;
      await own.close();
    }
  });

  endings(() => place, SIGN_INS);
});

describe("a person of an organisation, with its groups", () => {
  let place;
  before(async () => {
    const [person] = PEOPLE;
    place = await Place.open({ organisations: [person.organisation], issuer: GROUPS });
    const { user, organisation: source } = person;
    Object.assign(place, { name: source, user, source, groups: ["eng"], account: person.google });
    await place.world.serve();
    const people = new People(place.world);
    await people.connect(person, await people.signedIn(person), "google");
    place.person = await Person.at(browser, { name: person.user });
    place.signIn = async (title) => {
      const { page } = place.person;
      const way = page.locator("a", { hasText: person.organisation });
      if ((await way.count()) === 0) return false;
      if (title) await place.person.look(`${title}-choose`);
      await way.click();
      await page.waitForLoadState();
      if (title) await place.person.look(`${title}-issuer`);
      const signIn = page.locator("button", { hasText: `Sign in with ${person.organisation}` });
      await Promise.all([page.waitForEvent("load"), signIn.click()]);
      // Their issuer remembers them from the second time on.
      if (!page.url().startsWith(place.url)) {
        await page.locator("button", { hasText: `${person.user}@example.com` }).click();
        await page.waitForURL((at) => at.href.startsWith(place.url));
      }
      return true;
    };
  });
  after(() => place?.close());

  for (const kind of SOME_SIGN_INS) {
    test(nameOf(kind), (t) => life(t, place, kind));
  }

  endings(() => place, SOME_SIGN_INS);
});
