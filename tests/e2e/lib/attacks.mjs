// Everything that somebody may try in order to act as, or connect an account to, somebody else: one table of cases.
//
// A case makes its attempt and asserts what was answered. That nothing came of it is judged the same way for all of
// them, in matrix.mjs. Unless it says otherwise nothing may change and nobody may be called; `gains` and `calls` name
// what its own honest part brings about.

import assert from "node:assert/strict";

import { accountOf, PEOPLE } from "./people.mjs";
import { CHANNELS, EVENT, event, MAIL, mail } from "./tools.mjs";
import { forms, OWN_FORM } from "./visitor.mjs";

const [ALICE, BOB, OTHER_ALICE, OTHER_BOB] = PEOPLE;
const EVIL = "https://evil.example";

const cases = [];
let family;

/** Adds a case about `owner`, who in the end must be able to connect. */
function attack(name, run, { owner = ALICE, gains = [], calls = [] } = {}) {
  cases.push({ family, name: `${family}: ${name}`, run, owner, gains, calls });
}

function answers(page, ...statuses) {
  assert.ok(statuses.includes(page.status), `${page.method} ${page.target.slice(0, 200)}: ${page.status}, not ${statuses}`);
  return page;
}

/** Refused, and sent nowhere. */
function refused(page, ...statuses) {
  answers(page, ...statuses);
  assert.equal(page.location, undefined, page.target);
  return page;
}

async function assertNobody(visitor) {
  const page = answers(await visitor.get("/account"), 200);
  assert.doesNotMatch(page.text, /Signed in as/);
}

async function assertSignedIn(visitor, person) {
  const page = answers(await visitor.get("/account"), 200);
  assert.ok(page.text.includes(`Signed in as ${person.user} (${person.organisation}, `), page.text);
}

/** A URL with its query changed: `change` gets a list of pairs and returns one. */
function withQuery(url, change) {
  const { origin, pathname, searchParams } = new URL(url);
  const pairs = change([...searchParams]).map(([key, value]) => `${key}=${value.raw ?? encodeURIComponent(value)}`);
  return `${origin}${pathname}?${pairs.join("&")}`;
}

const without = (name) => (url) => withQuery(url, (pairs) => pairs.filter(([key]) => key !== name));
const set = (name, value) => (url) =>
  withQuery(url, (pairs) => pairs.map(([key, old]) => [key, key === name ? (typeof value === "function" ? value(old) : value) : old]));
const twice = (name, value) => (url) =>
  withQuery(url, (pairs) => [...pairs, [name, value ?? pairs.find(([key]) => key === name)[1]]]);
const first = (name, value) => (url) => withQuery(url, (pairs) => [[name, value], ...pairs]);
const path = (from, to) => (url) => url.replace(from, to);
const parameter = (url, name) => new URL(url).searchParams.get(name);

/** Another character of the same alphabet at a place; one that changes every bit pattern that is decoded. */
function bend(text, at) {
  const place = at < 0 ? text.length + at : at;
  const other = text[place] === "A" ? "Q" : "A";
  return text.slice(0, place) + other + text.slice(place + 1);
}

// --- links ----------------------------------------------------------------------------------------------------------

family = "another's link";

for (const owner of PEOPLE) {
  for (const other of PEOPLE.filter((person) => person !== owner)) {
    attack(`${other.name} at ${owner.name}'s`, async ({ people }) => {
      const link = await people.link(owner);
      const visitor = await people.signedIn(other);
      const page = refused(await visitor.get(link), 403);
      assert.ok(!page.text.includes("Google") && !page.text.includes(`${owner.user} (${owner.organisation}`), page.text);
      // The page's own form has a good hidden value; another step than its own must not be had for it.
      refused(await visitor.submit(page, { changes: { step: "connect" } }), 403);
      refused(await visitor.get(link), 403);
    }, { owner });
  }
}

attack("nobody presses its button", async ({ people }) => {
  const visitor = people.visitor();
  const page = answers(await visitor.get(await people.link(ALICE)), 200);
  assert.doesNotMatch(page.text, /Google|alice/);
  refused(await visitor.submit(page, { changes: { step: "connect" } }), 200);
});

attack("somebody of the same organisation signs in from it", async ({ people }) => {
  const link = await people.link(ALICE);
  const visitor = people.visitor();
  const back = await people.atIssuer(await people.beginSignIn(visitor, link), "bob");
  answers(await visitor.get(back), 303);
  refused(await visitor.get(link), 403);
});

for (const [who, token] of [
  ["an obo token of the same id and tenant", async ({ world }) => world.issueToken("alice", "acme")],
  ["an obo token of the same id", async ({ world }) => world.issueToken("alice")],
]) {
  attack(`${who}, pasted`, async (c) => {
    const link = await c.people.link(ALICE);
    const visitor = c.people.visitor();
    const page = await visitor.get(link);
    answers(await visitor.submit(page, { changes: { step: "sign_in", token: await token(c) } }), 303);
    refused(await visitor.get(link), 403);
  });
}

// What an MCP client may do is bounded by its token's scopes: no browser is signed in with one, not even its person's.
for (const [who, person] of [
  ["their own access token", ALICE],
  ["an access token of the same id in the other organisation", OTHER_ALICE],
  ["an access token of somebody in the same organisation", BOB],
]) {
  attack(`${who}, pasted`, async (c) => {
    const link = await c.people.link(ALICE);
    const visitor = c.people.visitor();
    const page = await visitor.get(link);
    refused(await visitor.submit(page, { changes: { step: "sign_in", token: await c.people.bearer(person) } }), 200);
    await assertNobody(visitor);
  });
}

family = "bent link";

for (const [name, bent] of [
  ["cut by one", (id) => id.slice(0, -1)],
  ["cut in half", (id) => id.slice(0, 16)],
  ["one more", (id) => `${id}A`],
  ["another first character", (id) => bend(id, 0)],
  ["another character in the middle", (id) => bend(id, 16)],
  ["another last character", (id) => bend(id, -1)],
  ["made up", () => "A".repeat(32)],
  ["in the other case", (id) => [...id].map((c) => (c === c.toLowerCase() ? c.toUpperCase() : c.toLowerCase())).join("")],
  ["with a NUL", (id) => `${id}%00`],
  ["with a line break", (id) => `${id}%0d%0aLocation:%20${EVIL}`],
  ["with a slash", (id) => `${id}/`],
  ["after a slash", (id) => `/${id}`],
  ["twice", (id) => `${id}${id}`],
  ["after an encoded parent", (id) => `..%2fconnect%2f${id}`],
  ["in wide letters", (id) => [...id].map((c) => encodeURIComponent(String.fromCodePoint(c.codePointAt(0) + 0xfee0))).join("")],
  ["encoded twice", (id) => [...id].map((c) => `%25${c.charCodeAt(0).toString(16)}`).join("")],
  ["of ten thousand characters", () => "A".repeat(10_000)],
  ["empty", () => ""],
]) {
  attack(name, async ({ people, home }) => {
    const link = await people.link(ALICE);
    const visitor = home(ALICE).copy();
    const page = await visitor.get(link);
    const id = link.split("/").at(-1);
    const at = `/connect/${bent(id)}`;
    refused(await visitor.get(at), 400, 404);
    const { fields } = forms(page.text)[0];
    refused(await visitor.post(at, fields), 400, 403, 404, 405);
  });
}

// --- answers of identity providers ----------------------------------------------------------------------------------

family = "sign-in answer";

/** A sign-in of `person` from a link of theirs, up to the answer that the browser would bring. */
async function signingIn({ people }, person = ALICE, user = person.user) {
  const link = await people.link(person);
  const visitor = people.visitor();
  const back = await people.atIssuer(await people.beginSignIn(visitor, link), user);
  return { link, visitor, back };
}

const LONG = "c".repeat(5000);
const NOWHERE = "x".repeat(43);

for (const [name, bent, statuses = [400]] of [
  ["no state", without("state")],
  ["an empty state", set("state", "")],
  ["the state twice", twice("state")],
  ["another state after it", twice("state", NOWHERE)],
  ["another state before it", first("state", NOWHERE)],
  ["an unknown state", set("state", NOWHERE)],
  ["a state that is cut", set("state", (state) => state.slice(0, -1))],
  ["a state with a character more", set("state", (state) => `${state}A`)],
  ["a state with another first character", set("state", (state) => bend(state, 0))],
  ["a state in the other case", set("state", (state) => state.toUpperCase())],
  ["no code", without("code")],
  ["an empty code", set("code", "")],
  ["the code twice", twice("code")],
  ["an overlong code", set("code", LONG)],
  ["an unknown code", set("code", NOWHERE), [403]],
  ["code and error", twice("error", "access_denied")],
  ["an overlong query", twice("more", "m".repeat(9000))],
  ["no iss", without("iss")],
  ["the iss of the other organisation", (url, world) => set("iss", world.organisations.globex.issuer)(url)],
  ["the iss with a slash", set("iss", (iss) => `${iss}/`)],
  ["the iss in capitals", set("iss", (iss) => iss.toUpperCase())],
  ["the iss twice", twice("iss")],
  ["the path of the other organisation", path("/callback/acme", "/callback/globex")],
  ["the path of nobody", path("/callback/acme", "/callback/nobody")],
  ["the path in capitals", path("/callback/acme", "/callback/ACME")],
  ["the path of a provider", path("/login/callback/acme", "/oauth/callback/google")],
  ["the path of obo's own tokens", path("/callback/acme", "/callback/obo")],
]) {
  attack(name, async (c) => {
    const { visitor, back } = await signingIn(c);
    refused(await visitor.get(bent(back, c.world)), ...statuses);
    await assertNobody(visitor);
    // It can be tried again at once, in the same browser.
    await c.people.signedIn(ALICE, visitor);
    await assertSignedIn(visitor, ALICE);
  });
}

attack("posted", async (c) => {
  const { visitor, back } = await signingIn(c);
  refused(await visitor.post(back, ""), 405);
  await assertNobody(visitor);
});

attack("an error", async (c) => {
  const { visitor, back } = await signingIn(c);
  refused(await visitor.get(set("code", "x")(back).replace("code=x", "error=access_denied")), 403);
  await assertNobody(visitor);
});

attack("used before", async (c) => {
  const { visitor, back } = await signingIn(c);
  answers(await visitor.get(back), 303);
  const stranger = c.people.visitor();
  for (const again of [visitor, stranger]) refused(await again.get(back), 400);
  await assertNobody(stranger);
  await assertSignedIn(visitor, ALICE);
});

attack("fifty at once", async (c) => {
  const { visitor, back } = await signingIn(c);
  const copies = Array.from({ length: 50 }, () => visitor.copy());
  const pages = await Promise.all(copies.map((copy) => copy.get(back)));
  assert.equal(pages.filter(({ status }) => status === 303).length, 1, pages.map(({ status }) => status).join());
  for (const page of pages) answers(page, 303, 400);
});

for (const [name, prepare] of [
  ["that has no cookie", async () => {}],
  ["that has a cookie", async (visitor, link) => visitor.get(link)],
  ["that is signing in itself", async (visitor, link, people) => people.beginSignIn(visitor, link)],
]) {
  attack(`in a browser ${name}`, async (c) => {
    const { visitor, back, link } = await signingIn(c);
    const other = c.people.visitor();
    await prepare(other, link, c.people);
    refused(await other.get(back), 400);
    await assertNobody(other);
    await assertNobody(visitor);
  });
}

for (const attacker of [BOB, OTHER_ALICE, OTHER_BOB]) {
  attack(`of ${attacker.name} in the owner's browser`, async (c) => {
    const theirs = await signingIn(c, attacker);
    const visitor = c.people.visitor();
    await c.people.beginSignIn(visitor, await c.people.link(ALICE));
    refused(await visitor.get(theirs.back), 400);
    await assertNobody(visitor);
  });

  attack(`of ${attacker.name} in the browser of the owner, who is signed in`, async (c) => {
    const theirs = await signingIn(c, attacker);
    const visitor = c.home(ALICE).copy();
    refused(await visitor.get(theirs.back), 400);
    await assertSignedIn(visitor, ALICE);
  });

  attack(`the code of ${attacker.name} under the owner's state`, async (c) => {
    const own = await signingIn(c);
    const theirs = await signingIn(c, attacker);
    refused(await own.visitor.get(set("code", parameter(theirs.back, "code"))(own.back)), 403);
    await assertNobody(own.visitor);
  });

  attack(`the owner's code under the state of ${attacker.name}`, async (c) => {
    const own = await signingIn(c);
    const theirs = await signingIn(c, attacker);
    refused(await theirs.visitor.get(set("code", parameter(own.back, "code"))(theirs.back)), 403);
    await assertNobody(theirs.visitor);
  });
}

attack("the state of a consent", async (c) => {
  const { visitor, back } = await consenting(c);
  refused(await visitor.get(path("/oauth/callback/google", "/login/callback/acme")(back)), 400);
  await assertSignedIn(visitor, ALICE);
});

// --- answers of providers -------------------------------------------------------------------------------------------

family = "provider's answer";

/** A consent of `person` up to the answer that the browser would bring. */
async function consenting({ people }, person = ALICE, { what = "google", account } = {}) {
  const provider = what === "calendar" ? "google" : what;
  const visitor = await people.signedIn(person);
  const link = await people.link(person, what);
  const back = await people.answered(visitor, link, account ?? accountOf(person, provider));
  return { visitor, link, back };
}

for (const [name, bent, statuses = [400]] of [
  ["no state", without("state")],
  ["an empty state", set("state", "")],
  ["the state twice", twice("state")],
  ["another state after it", twice("state", "A".repeat(86))],
  ["another state before it", first("state", "A".repeat(86))],
  ["an unknown state", set("state", "A".repeat(86))],
  ["an overlong state", set("state", "A".repeat(5000))],
  ["a state that is cut", set("state", (state) => state.slice(0, -1))],
  ["a state with a character more", set("state", (state) => `${state}A`)],
  ["a state bent at its beginning", set("state", (state) => bend(state, 0))],
  ["a state bent in its first half", set("state", (state) => bend(state, 30))],
  ["a state bent where its halves meet", set("state", (state) => bend(state, 44)), [410]],
  ["a state bent in its second half", set("state", (state) => bend(state, 60)), [410]],
  ["a state bent at its end", set("state", (state) => bend(state, -2)), [410]],
  ["a state in capitals", set("state", (state) => state.toUpperCase())],
  ["a state with a NUL", set("state", (state) => ({ raw: `${state}%00` }))],
  ["a state named as a list", (url) => url.replace("state=", "state[]=")],
  ["no code", without("code")],
  ["an empty code", set("code", "")],
  ["the code twice", twice("code")],
  ["an overlong code", set("code", LONG)],
  ["code and error", twice("error", "access_denied")],
  ["an error without a state", () => "/oauth/callback/google?error=access_denied"],
  ["an overlong query", twice("more", "m".repeat(9000))],
  ["the path of another provider", path("/callback/google", "/callback/slack")],
  ["the path of nobody", path("/callback/google", "/callback/nobody")],
  ["the path in capitals", path("/callback/google", "/callback/GOOGLE")],
  ["the path of a sign-in", path("/oauth/callback/google", "/login/callback/acme")],
  ["a path that leads from one provider to another", path("/callback/google", "/callback/slack%2f..%2fgoogle")],
  ["a path with a slash", path("/callback/google", "/callback/google/"), [404]],
]) {
  attack(name, async (c) => {
    const { visitor, link, back } = await consenting(c);
    refused(await visitor.get(bent(back)), ...statuses);
    assert.match(answers(await visitor.get(link), 200).text, /Continue to Google/, "its owner may press again");
  });
}

attack("posted", async (c) => {
  const { visitor, back } = await consenting(c);
  refused(await visitor.post(back, ""), 405);
});

for (const [name, browser] of [
  ...[BOB, OTHER_ALICE, OTHER_BOB].map((person) => [`${person.name}'s browser`, ({ people }) => people.signedIn(person)]),
  ["a browser that has no cookie", ({ people }) => people.visitor()],
  ["a browser that has a cookie", async ({ people }) => {
    const visitor = people.visitor();
    await visitor.get("/account");
    return visitor;
  }],
  ["another browser of the owner", ({ people }) => people.signedIn(ALICE)],
]) {
  attack(`the owner's in ${name}`, async (c) => {
    const { visitor, link, back } = await consenting(c);
    const other = await browser(c);
    refused(await other.get(back), 403);
    const declined = back.replace(/code=[^&]*/, "error=access_denied");
    refused(await other.get(declined), 403);
    answers(await visitor.get(link), 200);
  });
}

for (const attacker of [BOB, OTHER_ALICE, OTHER_BOB]) {
  // The account of the attacker must not become the owner's, nor that of the owner the attacker's.
  for (const account of new Set([accountOf(attacker, "google"), accountOf(ALICE, "google")])) {
    attack(`${attacker.name}'s, agreed to as ${account}, in the owner's browser`, async (c) => {
      const theirs = await consenting(c, attacker, { account });
      const own = await consenting(c);
      for (const visitor of [own.visitor, c.people.visitor()]) refused(await visitor.get(theirs.back), 403);
    });
  }

  attack(`the owner's code under ${attacker.name}'s state`, async (c) => {
    const own = await consenting(c);
    const theirs = await consenting(c, attacker);
    refused(await theirs.visitor.get(set("code", parameter(own.back, "code"))(theirs.back)), 400);
  });

  attack(`${attacker.name}'s code under the owner's state`, async (c) => {
    const own = await consenting(c);
    const theirs = await consenting(c, attacker);
    refused(await own.visitor.get(set("code", parameter(theirs.back, "code"))(own.back)), 400);
  });

  attack(`${attacker.name}'s state with the owner's code, in the owner's browser`, async (c) => {
    const own = await consenting(c);
    const theirs = await consenting(c, attacker);
    refused(await own.visitor.get(set("state", parameter(theirs.back, "state"))(own.back)), 403);
  });
}

attack("the codes of two links of one person, swapped", async (c) => {
  const mails = await consenting(c);
  const events = await consenting(c, ALICE, { what: "calendar" });
  refused(await mails.visitor.get(set("code", parameter(events.back, "code"))(mails.back)), 400);
  refused(await events.visitor.get(set("code", parameter(mails.back, "code"))(events.back)), 400);
});

attack("the states of two links of one person, swapped", async (c) => {
  const mails = await consenting(c);
  const events = await consenting(c, ALICE, { what: "calendar" });
  refused(await mails.visitor.get(set("state", parameter(events.back, "state"))(mails.back)), 403);
});

attack("an unknown code", async (c) => {
  const { visitor, back } = await consenting(c);
  refused(await visitor.get(set("code", NOWHERE)(back)), 400);
});

attack("of a press that another press replaced", async (c) => {
  const { visitor, link, back } = await consenting(c);
  await c.people.press(visitor, link);
  refused(await visitor.get(back), 410);
});

attack("after signing out", async (c) => {
  const { visitor, back } = await consenting(c);
  answers(await visitor.submit(await visitor.get("/account"), { text: "Sign out" }), 303);
  refused(await visitor.get(back), 403);
});

for (const other of [BOB, OTHER_ALICE]) {
  attack(`after the browser signed in as ${other.name} half way`, async (c) => {
    const { visitor, back } = await consenting(c);
    answers(await visitor.submit(await visitor.get("/account"), { text: "Sign out" }), 303);
    await c.people.signedIn(other, visitor);
    refused(await visitor.get(back), 403);
  });
}

const GAINED = ["acme.alice google alice@example.com"];

attack("used before", async (c) => {
  const { visitor, back } = await consenting(c);
  answers(await visitor.get(back), 200);
  for (const again of [visitor, c.people.visitor(), await c.people.signedIn(BOB)]) refused(await again.get(back), 403, 410);
}, { gains: GAINED, calls: ["google:alice"] });

attack("fifty at once", async (c) => {
  const { visitor, back } = await consenting(c);
  const pages = await Promise.all(Array.from({ length: 50 }, () => visitor.copy().get(back)));
  assert.equal(pages.filter(({ status }) => status === 200).length, 1, pages.map(({ status }) => status).join());
  for (const page of pages) answers(page, 200, 410);
}, { gains: GAINED, calls: ["google:alice"] });

family = "cookies";

attack("planted before the owner signs in", async (c) => {
  const attacker = c.people.visitor();
  await attacker.get("/account");
  const visitor = attacker.copy();
  await c.people.signedIn(ALICE, visitor);
  await assertNobody(attacker);
  const link = await c.people.link(ALICE);
  const back = await c.people.answered(visitor, link, accountOf(ALICE, "google"));
  refused(await attacker.get(back), 403);
});

attack("of the attacker, signed in, at the owner's link", async (c) => {
  const attacker = await c.people.signedIn(BOB);
  refused(await attacker.copy().get(await c.people.link(ALICE)), 403);
});

for (const [name, spell] of [
  ["the name without a port", () => "obo"],
  ["the name that https has", () => "__Host-obo"],
  ["the name of another port", (name) => `${name}1`],
  ["the name in capitals", (name) => name.toUpperCase()],
  ["the name with a space in it", (name) => `x ${name}`],
]) {
  attack(`the owner's under ${name}`, async (c) => {
    const signedIn = c.home(ALICE);
    const visitor = c.people.visitor();
    visitor.cookies.set(spell(signedIn.cookieName), signedIn.cookies.get(signedIn.cookieName));
    await assertNobody(visitor);
    assert.doesNotMatch(answers(await visitor.get(await c.people.link(ALICE)), 200).text, /Google/);
  });
}

for (const order of ["before", "after"]) {
  // What a page of a sibling host, or of another port of this one, can do to a browser where the name has no `__Host-`.
  attack(`the attacker's ${order} the owner's own, with the attacker's answer`, async (c) => {
    const theirs = await consenting(c, BOB, { account: accountOf(ALICE, "google") });
    const own = c.home(ALICE);
    const both = [theirs.visitor, own].map((visitor) => `${own.cookieName}=${visitor.cookies.get(own.cookieName)}`);
    if (order === "after") both.reverse();
    refused(await own.copy().get(theirs.back, { cookie: both.join("; ") }), 403);
  });
}

for (const [name, bent] of [
  ["cut", (value) => value.slice(0, -1)],
  ["bent", (value) => bend(value, 5)],
  ["made up", () => "A".repeat(43)],
  ["with a quote around it", (value) => `"${value}"`],
]) {
  attack(`the owner's, ${name}`, async (c) => {
    const visitor = c.home(ALICE).copy();
    visitor.cookies.set(visitor.cookieName, bent(visitor.cookies.get(visitor.cookieName)));
    await assertNobody(visitor);
  });
}

// --- forms ----------------------------------------------------------------------------------------------------------

family = "form";

/** The connect page in the owner's own browser: everything is right but what the case makes wrong. */
async function asking({ people, home }) {
  const visitor = home(ALICE).copy();
  const link = await people.link(ALICE);
  const page = answers(await visitor.get(link), 200);
  const [{ action, fields }] = forms(page.text);
  return { visitor, link, page, action, fields };
}

for (const [name, headers] of [
  ["from another site", () => ({ origin: EVIL })],
  ["from another site that claims to be ours", () => ({ origin: EVIL, "sec-fetch-site": "same-origin" })],
  ["from a page without an origin, across sites", () => ({ origin: "null", "sec-fetch-site": "cross-site" })],
  ["from a page without an origin, of a sibling host", () => ({ origin: "null", "sec-fetch-site": "same-site" })],
  ["from a page without an origin, from nowhere", () => ({ origin: "null", "sec-fetch-site": "none" })],
  ["from a page without an origin", () => ({ origin: "null" })],
  ["from nowhere", () => ({})],
  ["from nowhere, across sites", () => ({ "sec-fetch-site": "cross-site" })],
  ["from another port", (world) => ({ origin: `${world.url}1` })],
  ["from no port", () => ({ origin: "http://127.0.0.1" })],
  ["from our name over https", (world) => ({ origin: world.url.replace("http:", "https:") })],
  ["from a host that begins like ours", (world) => ({ origin: `${world.url}.evil.example` })],
  ["from us and from another site", (world) => ({ origin: [world.url, EVIL] })],
  ["from both at once, within a site and across", () => ({ "sec-fetch-site": ["same-origin", "cross-site"] })],
  ["from us, with a path", (world) => ({ origin: `${world.url}/connect` })],
]) {
  attack(name, async (c) => {
    const { visitor, action, fields } = await asking(c);
    refused(await visitor.post(action, fields, headers(c.world)), 403);
  });
}

for (const [name, change, ...statuses] of [
  ["without its hidden value", async ({ form, ...fields }) => fields, 400],
  ["with an empty hidden value", async (fields) => ({ ...fields, form: "" }), 403],
  ["with a bent hidden value", async (fields) => ({ ...fields, form: bend(fields.form, 3) }), 403],
  ["with the hidden value of another browser", async (fields, { people }) => {
    const page = await (await people.signedIn(ALICE)).get(await people.link(ALICE));
    return forms(page.text)[0].fields;
  }, 403],
  ["with the hidden value of somebody else", async (fields, { people, home }) => {
    const page = await home(BOB).get(await people.link(BOB));
    return forms(page.text)[0].fields;
  }, 403],
  ["with the hidden value of another link", async (fields, { people, home }) => {
    const page = await home(ALICE).get(await people.link(ALICE, "calendar"));
    return forms(page.text)[0].fields;
  }, 403],
  ["with the hidden value of the account page", async (fields, { home }) => {
    const { form } = forms((await home(ALICE).get("/account")).text).at(-1).fields;
    return { ...fields, form };
  }, 403],
  ["with the hidden value of a disconnect form", async (fields, { home }) => {
    const { form } = forms((await home(ALICE).get("/account")).text)[0].fields;
    return { ...fields, form };
  }, 403],
  ["with its step twice", async (fields) => `${new URLSearchParams(fields)}&step=connect`, 400],
  ["with its hidden value twice", async (fields) => `${new URLSearchParams(fields)}&form=x`, 400],
  ["with a step that does not exist", async (fields) => ({ ...fields, step: "approve" }), 400],
  ["of forty thousand bytes", async (fields) => ({ ...fields, more: "m".repeat(40_000) }), 400],
]) {
  attack(name, async (c) => {
    const { visitor, action, fields } = await asking(c);
    refused(await visitor.post(action, await change(fields, c)), ...statuses);
  });
}

for (const [name, send] of [
  ["as a GET", ({ visitor, action, fields }) => visitor.get(`${action}?${new URLSearchParams(fields)}`, OWN_FORM)],
  ["as a HEAD", ({ visitor, action, fields }) => visitor.send("HEAD", `${action}?${new URLSearchParams(fields)}`, { headers: OWN_FORM })],
  ["as a PUT", ({ visitor, action, fields }) => visitor.send("PUT", action, { headers: OWN_FORM, body: `${new URLSearchParams(fields)}` })],
  ["as a GET that says it is a POST", ({ visitor, action, fields }) =>
    visitor.get(`${action}?${new URLSearchParams({ ...fields, _method: "POST" })}`, { ...OWN_FORM, "x-http-method-override": "POST" })],
  ["in the query of an empty POST", ({ visitor, action, fields }) => visitor.post(`${action}?${new URLSearchParams(fields)}`, "")],
  ...["text/plain", "application/json", "multipart/form-data; boundary=x", ""].map((type) => [
    `as ${type || "nothing in particular"}`,
    ({ visitor, action, fields }) => visitor.post(action, fields, { ...OWN_FORM, "content-type": type }),
  ]),
]) {
  attack(name, async (c) => {
    refused(await send(await asking(c)), 200, 400, 405, 415);
  });
}

attack("that signs the owner's browser in with the attacker's token, from another site", async (c) => {
  const attacker = c.people.visitor();
  const theirs = forms((await attacker.get("/account?with=obo")).text)[0];
  const visitor = c.people.visitor();
  const own = forms((await visitor.get("/account?with=obo")).text)[0];
  const token = await c.people.bearer(BOB);
  refused(await visitor.post(theirs.action, { ...theirs.fields, token }), 403);
  refused(await visitor.post(own.action, { ...own.fields, token }, { origin: EVIL, "sec-fetch-site": "cross-site" }), 403);
  await assertNobody(visitor);
});

attack("that signs the owner out, from another site", async (c) => {
  const visitor = c.home(ALICE).copy();
  const { action, fields } = forms((await visitor.get("/account")).text).at(-1);
  refused(await visitor.post(action, fields, { origin: EVIL, "sec-fetch-site": "cross-site" }), 403);
  await assertSignedIn(visitor, ALICE);
});

// --- requestState ---------------------------------------------------------------------------------------------------

family = "requestState";

/** A call of `person` that needs consent, and the same call made again with what a case makes of its state. */
async function retried({ people }, { owner = ALICE, by = owner, tool = MAIL, input, state = (s) => s }) {
  const first = mail(`state ${cases.length}`);
  const { requestState } = await people.elicited(owner, MAIL, first);
  const further = { requestState: state(requestState), inputResponses: { "consent:google": { action: "accept" } } };
  return people.call(by, tool, input ?? first, { further, capabilities: { elicitation: { url: {} } } });
}

const badState = (answer) => assert.equal(answer.error?.code, -32602, JSON.stringify(answer));

for (const owner of [ALICE, OTHER_ALICE]) {
  for (const by of PEOPLE.filter((person) => person !== owner)) {
    attack(`${owner.name}'s, sent by ${by.name}`, async (c) => badState(await retried(c, { owner, by })), { owner });
  }
}
attack("with another tool", async (c) => badState(await retried(c, { tool: EVENT, input: event("x") })));
attack("with other arguments", async (c) => badState(await retried(c, { input: mail("to somebody else") })));
for (const at of [0, 1, 20, 60, 120, 200, -3]) {
  attack(`bent at ${at}`, async (c) => badState(await retried(c, { state: (s) => bend(s, at) })));
}
for (const [name, state] of [
  ["cut", (s) => s.slice(0, -1)],
  ["cut in half", (s) => s.slice(0, s.length / 2)],
  ["with more", (s) => `${s}AAAA`],
  ["empty", () => ""],
  ["overlong", () => "A".repeat(9000)],
  ["in another alphabet", (s) => `${Buffer.from(s, "base64url").toString("base64")}=`],
]) {
  attack(name, async (c) => badState(await retried(c, { state })));
}
attack("accepted in the client, but not by the person", async (c) => {
  const answer = await retried(c, {});
  assert.ok(answer.isError && answer._meta["obo/authorization"], JSON.stringify(answer));
});

// --- bearers and sessions -------------------------------------------------------------------------------------------

family = "bearer";

/** A call whose token is the caller's own and that claims otherwise elsewhere: it runs as its token, or not at all. */
for (const [name, options, calls = ["slack:bob"]] of [
  ...["x-user", "x-forwarded-user", "x-remote-user", "x-auth-request-user", "x-user-id", "x-tenant", "x-obo-user", "from"].map(
    (header) => [`${header} beside it`, { headers: { [header]: "acme.alice" } }],
  ),
  ["Forwarded beside it", { headers: { forwarded: "for=127.0.0.1;by=alice", "x-forwarded-for": "127.0.0.1" } }],
  ["a user in _meta", { meta: { "obo/user": "alice", "obo/tenant": "acme", user_id: "alice", tenant: "acme" } }],
  ["a user beside the arguments", { further: { user_id: "alice", tenant: "acme" } }],
  ["a cookie of the owner beside it", { cookie: true }],
]) {
  attack(name, async (c) => {
    const home = c.home(ALICE);
    const headers = options.cookie ? { cookie: `${home.cookieName}=${home.cookies.get(home.cookieName)}` } : options.headers;
    const result = await c.people.call(OTHER_ALICE, CHANNELS, { limit: 3 }, { ...options, headers });
    assert.ok(!result.isError && !result.error, JSON.stringify(result));
  }, { calls });
}

for (const [name, input] of [
  ["a user among the arguments", { limit: 3, user_id: "alice" }],
  ["a tenant among the arguments", { limit: 3, tenant: "acme" }],
  ["the owner's account among the arguments", { limit: 3, account: "alice in Acme" }],
]) {
  attack(name, async (c) => {
    const result = await c.people.call(OTHER_ALICE, CHANNELS, input);
    assert.ok(result.isError || result.error, JSON.stringify(result));
  });
}

attack("Obo-User beside it", async ({ people }) => {
  const token = await people.bearer(OTHER_ALICE);
  const params = { name: CHANNELS, arguments: { limit: 3 } };
  refused(await people.ask("tools/call", params, { token, headers: { "obo-user": "alice" } }), 400, 401);
});

const bytes = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
/** A token by hand: what an attacker without any key can make of a good one. */
const remade = (token, header, claims, signature) => {
  const [head, body, signed] = token.split(".");
  const parse = (part) => JSON.parse(Buffer.from(part, "base64url"));
  return `${bytes({ ...parse(head), ...header })}.${bytes({ ...parse(body), ...claims })}.${signature ?? signed}`;
};

for (const [name, token] of [
  ["for another audience", ({ people }) => people.mint("acme", { sub: "alice", aud: "https://other.example/mcp" })],
  ["for the client, as an ID token is", ({ people }) => people.mint("acme", { sub: "alice", aud: "obo", typ: "JWT" })],
  ["for our origin without the path", ({ people, world }) => people.mint("acme", { sub: "alice", aud: world.url })],
  ["for our path with a slash", ({ people, world }) => people.mint("acme", { sub: "alice", aud: `${world.url}/mcp/` })],
  ["of the other organisation that names this one", ({ people, world }) =>
    people.mint("globex", { sub: "alice", iss: world.organisations.acme.issuer })],
  ["of an issuer that nobody knows", ({ people }) => people.mint("acme", { sub: "alice", iss: EVIL })],
  ["of our issuer with a slash", ({ people, world }) => people.mint("acme", { sub: "alice", iss: `${world.organisations.acme.issuer}/` })],
  ["signed with another key", ({ people }) => people.mint("acme", { sub: "alice", bad: "key" })],
  ["that has expired", ({ people }) => people.mint("acme", { sub: "alice", exp_in: -3600 })],
  ["that is a logout token", ({ people }) => people.mint("acme", { sub: "alice", typ: "logout+jwt" })],
  ["of a key that does not exist", ({ people }) => people.mint("acme", { sub: "alice", kid: "../../k1" })],
  ["of nobody", ({ people }) => people.mint("acme", { sub: "" })],
  ["without a signature", async ({ people }) => remade(await people.bearer(ALICE), { alg: "none" }, {}, "")],
  ["with another user under the signature", async ({ people }) => remade(await people.bearer(BOB), {}, { sub: "alice" })],
  ["with another organisation's issuer under the signature", async ({ people, world }) =>
    remade(await people.bearer(OTHER_ALICE), {}, { iss: world.organisations.acme.issuer })],
  ["that brings its own key", async ({ people }) => remade(await people.bearer(BOB), { jwk: { kty: "oct", k: "AA" }, alg: "HS256" }, { sub: "alice" })],
  ["that says where its key is", async ({ people }) => remade(await people.bearer(BOB), { jku: `${EVIL}/jwks` }, { sub: "alice" })],
  ["with a critical extension", async ({ people }) => remade(await people.bearer(ALICE), { crit: ["exp"] }, {})],
  ["cut", async ({ people }) => (await people.bearer(ALICE)).slice(0, -4)],
  ["that is a browser's cookie", ({ home }) => home(ALICE).cookies.get(home(ALICE).cookieName)],
  ["that is empty", () => ""],
]) {
  attack(name, async (c) => {
    const params = { name: CHANNELS, arguments: { limit: 3 } };
    refused(await c.people.ask("tools/call", params, { headers: { authorization: `Bearer ${await token(c)}` } }), 401);
  });
}

for (const [name, ask, ...statuses] of [
  ["none at all", ({ people }) => people.ask("tools/call", { name: CHANNELS, arguments: {} }), 401],
  ["in the query", async ({ people }) => people.visitor().post(`/mcp?access_token=${await people.bearer(ALICE)}`, "{}", { "content-type": "application/json" }), 400, 401],
  ["twice", async ({ people }) => people.ask("tools/call", { name: CHANNELS, arguments: {} }, {
    headers: { authorization: [`Bearer ${await people.bearer(OTHER_ALICE)}`, `Bearer ${await people.bearer(ALICE)}`] },
  }), 400, 401],
  ["under Basic", async ({ people }) => people.ask("tools/call", { name: CHANNELS, arguments: {} }, {
    headers: { authorization: `Basic ${await people.bearer(ALICE)}` },
  }), 401],
]) {
  attack(name, async (c) => void refused(await ask(c), ...statuses));
}

attack("that claims another organisation", async ({ people }) => {
  const claims = { tenant: "acme", org_id: "acme", org: "acme", groups: ["acme"], email: "alice@example.com" };
  const token = await people.mint("globex", { sub: "alice", claims });
  const result = await people.call(OTHER_ALICE, CHANNELS, { limit: 3 }, { token });
  assert.ok(!result.isError && !result.error, JSON.stringify(result));
}, { calls: ["slack:bob"] });

for (const sub of ["alice (acme, acme)", "acme|alice", "acme/alice", "ALICE", "alice ", "alice\u0000", "../alice", "аlice"]) {
  attack(`of one who is called ${JSON.stringify(sub)}`, async ({ people }) => {
    const token = await people.mint("acme", { sub });
    const { status, json } = await people.ask("tools/call", { name: CHANNELS, arguments: { limit: 3 } }, { token });
    // Somebody else, who has connected nothing; or no valid name.
    assert.ok(status === 401 || json?.result?._meta?.["obo/authorization"], JSON.stringify(json ?? status));
  });
}

family = "session";

const REVISION = "2025-11-25";
const INITIALIZE = {
  jsonrpc: "2.0", id: 0, method: "initialize",
  params: { protocolVersion: REVISION, capabilities: {}, clientInfo: { name: "obo-e2e-session", version: "1" } },
};
const CALL = { jsonrpc: "2.0", id: 7, method: "tools/call", params: { name: CHANNELS, arguments: { limit: 3 } } };
const PING = { jsonrpc: "2.0", id: 8, method: "ping" };

const as = async ({ people }, person) => (person ? { authorization: `Bearer ${await people.bearer(person)}` } : {});

async function message(c, person, message, { session, at = "/mcp", method = "POST", headers = {} } = {}) {
  return c.people.visitor().send(method, at, {
    headers: {
      ...(await as(c, person)),
      accept: method === "GET" ? "text/event-stream" : "application/json, text/event-stream",
      ...(message ? { "content-type": "application/json" } : {}),
      ...(session ? { "mcp-session-id": session, "mcp-protocol-version": REVISION } : {}),
      ...headers,
    },
    body: message ? JSON.stringify(message) : undefined,
  });
}

async function session(c, person) {
  const opened = answers(await message(c, person, INITIALIZE), 200);
  const id = opened.headers["mcp-session-id"];
  answers(await message(c, person, { jsonrpc: "2.0", method: "notifications/initialized" }, { session: id }), 202);
  return id;
}

for (const [name, options] of [
  ["a call in it", { message: CALL }],
  ["its end", { method: "DELETE" }],
  ["its stream", { method: "GET" }],
  ["its stream from the beginning", { method: "GET", headers: { "last-event-id": "0" } }],
]) {
  for (const other of [BOB, OTHER_ALICE, null]) {
    attack(`${name} by ${other?.name ?? "nobody"}`, async (c) => {
      const id = await session(c, ALICE);
      refused(await message(c, other, options.message, { session: id, ...options }), other ? 404 : 401);
      answers(await message(c, ALICE, PING, { session: id }), 200);
      answers(await message(c, ALICE, undefined, { session: id, method: "DELETE" }), 200, 202, 204);
    });
  }
}

attack("two sessions in one request", async (c) => {
  const [own, theirs] = [await session(c, OTHER_ALICE), await session(c, ALICE)];
  refused(await message(c, OTHER_ALICE, CALL, { session: [own, theirs] }), 400);
});

attack("the newest revision in the owner's", async (c) => {
  const id = await session(c, ALICE);
  const params = { name: CHANNELS, arguments: { limit: 3 } };
  const token = await c.people.bearer(OTHER_ALICE);
  answers(await c.people.ask("tools/call", params, { token, headers: { "mcp-session-id": id } }), 200);
}, { calls: ["slack:bob"] });

for (const other of [BOB, OTHER_ALICE, null]) {
  attack(`a message of ${other?.name ?? "nobody"} in the stream of another`, async (c) => {
    const closing = new AbortController();
    const stream = await fetch(`${c.world.url}/sse`, { headers: await as(c, ALICE), signal: closing.signal });
    try {
      const { value } = await stream.body.pipeThrough(new TextDecoderStream()).getReader().read();
      const at = /^data: ?(.*)$/m.exec(value)[1];
      refused(await message(c, other, INITIALIZE, { at }), other ? 404 : 401);
      refused(await message(c, other, CALL, { at }), other ? 404 : 401);
      answers(await message(c, ALICE, INITIALIZE, { at }), 202);
    } finally {
      closing.abort();
    }
  });
}

// --- the account page -----------------------------------------------------------------------------------------------

family = "account page";

/** The form that disconnects Slack on a person's own page. */
async function disconnecting({ home }, person) {
  const visitor = home(person).copy();
  const page = answers(await visitor.get("/account"), 200);
  const form = forms(page.text).find(({ text }) => text.includes("Disconnect"));
  return { visitor, ...form };
}

for (const other of [BOB, OTHER_ALICE, OTHER_BOB]) {
  attack(`the owner's form in ${other.name}'s browser`, async (c) => {
    const { action, fields } = await disconnecting(c, ALICE);
    refused(await c.home(other).copy().post(action, fields), 403);
  });

  attack(`${other.name}'s form about the owner's connection`, async (c) => {
    const owners = await disconnecting(c, ALICE);
    const { visitor, action, fields } = await disconnecting(c, other);
    refused(await visitor.post(action, { ...fields, connection: owners.fields.connection }), 403);
    const renamed = { ...JSON.parse(fields.connection), person: JSON.parse(owners.fields.connection).person };
    refused(await visitor.post(action, { ...fields, connection: JSON.stringify(renamed) }), 403);
  });
}

for (const [name, query] of [
  ["with a user in the query", "?user=alice&tenant=acme&source=acme"],
  ["with an organisation in the query", "?with=acme&user=alice"],
]) {
  attack(name, async (c) => {
    const page = answers(await c.home(OTHER_ALICE).copy().get(`/account${query}`), 200);
    assert.ok(page.text.includes("alice (globex") && !page.text.includes("alice (acme"), page.text);
  });
}

attack("in a browser that is signed in as nobody", async (c) => {
  const page = answers(await c.people.visitor().get("/account"), 200);
  assert.doesNotMatch(page.text, /alice|bob|Slack/);
});

attack("the owner's form after signing out", async (c) => {
  const visitor = await c.people.signedIn(ALICE);
  const page = await visitor.get("/account");
  const form = forms(page.text).find(({ text }) => text.includes("Disconnect"));
  answers(await visitor.submit(page, { text: "Sign out" }), 303);
  refused(await visitor.post(form.action, form.fields), 403, 410);
});

attack("the owner's form after signing in as somebody else", async (c) => {
  const visitor = await c.people.signedIn(ALICE);
  const page = await visitor.get("/account");
  const form = forms(page.text).find(({ text }) => text.includes("Disconnect"));
  answers(await visitor.submit(page, { text: "Sign out" }), 303);
  await c.people.signedIn(BOB, visitor);
  refused(await visitor.post(form.action, form.fields), 403);
});

for (const [name, send] of [
  ["from another site", ({ visitor, action, fields }) => visitor.post(action, fields, { origin: EVIL, "sec-fetch-site": "cross-site" })],
  ["as a GET", ({ visitor, action, fields }) => visitor.get(`${action}?${new URLSearchParams(fields)}`)],
  ["with text in place of a connection", ({ visitor, action, fields }) => visitor.post(action, { ...fields, connection: "google" })],
  ["without a connection", ({ visitor, action, fields: { form } }) => visitor.post(action, { form })],
]) {
  attack(`its form ${name}`, async (c) => void refused(await send(await disconnecting(c, ALICE)), 400, 403, 405));
}

// --- where requests come from, and where answers lead ---------------------------------------------------------------

const routes = (link, back) => [
  ["GET", link], ["POST", link], ["GET", back], ["GET", "/login/callback/acme?code=c&state=s"], ["GET", "/account"],
  ["POST", "/account"], ["POST", "/account/disconnect"], ["POST", "/mcp"], ["GET", "/mcp"], ["GET", "/sse"],
  ["POST", "/messages?sessionId=s"], ["GET", "/.well-known/oauth-protected-resource"],
  ["GET", "/.well-known/oauth-protected-resource/mcp"], ["GET", "/nothing"],
];

family = "host";

for (const [name, host, absolute] of [
  ["another name", () => "evil.example"],
  ["another name with our port", (own) => `evil.example:${own.split(":")[1]}`],
  ["a name that begins like ours", () => "127.0.0.1.evil.example"],
  ["a name that ends like ours", () => "evil.localhost"],
  ["ours after a user", (own) => `evil@${own}`],
  ["ours in another spelling", () => "2130706433"],
  ["an address of the network", () => "192.168.0.1"],
  ["ours and another", (own) => [own, "evil.example"]],
  ["none", () => []],
  ["ours under a target of another", (own) => own, true],
]) {
  attack(name, async (c) => {
    const { visitor, link, back } = await consenting(c);
    const own = new URL(c.world.url).host;
    const pathOf = (url) => url.replace(c.world.url, "");
    const headers = { host: host(own), ...(await as(c, ALICE)), ...OWN_FORM, "content-type": "application/x-www-form-urlencoded" };
    for (const [method, target] of routes(pathOf(link), pathOf(back))) {
      const at = absolute ? `http://evil.example${target}` : target;
      refused(await visitor.send(method, at, { headers, body: method === "POST" ? "step=connect&form=x" : undefined }), 400, 403);
    }
  });
}

family = "origin";

for (const origin of [EVIL, "null", "http://127.0.0.1:1", "http://localhost.evil.example", "file://", "https://evil@127.0.0.1"]) {
  attack(`${origin} at the protocol's endpoints`, async (c) => {
    for (const [method, target] of [["POST", "/mcp"], ["GET", "/mcp"], ["DELETE", "/mcp"], ["GET", "/sse"], ["POST", "/messages?sessionId=s"]]) {
      const headers = { origin, ...(await as(c, ALICE)), "content-type": "application/json", accept: "application/json, text/event-stream" };
      const page = await c.people.visitor().send(method, target, { headers, body: method === "POST" ? JSON.stringify(CALL) : undefined });
      refused(page, 403);
      assert.equal(page.headers["access-control-allow-origin"], undefined);
    }
  });
}

family = "redirect";

const NAMES = ["next", "next_uri", "return_to", "returnTo", "redirect", "redirect_uri", "url", "continue", "back", "dest", "r"];

for (const payload of [
  EVIL, "//evil.example", "///evil.example", "\\\\evil.example", "/\\evil.example", "https:evil.example", "https:/evil.example",
  "javascript:alert(1)", "data:text/html,x", "//evil%E3%80%82example", "/%09/evil.example", "%0d%0aLocation:%20https://evil.example",
  "https://127.0.0.1@evil.example", "https://evil.example#@127.0.0.1", "/connect/../..//evil.example",
]) {
  attack(payload, async (c) => {
    // Where answers lead is judged for every answer; here everything that could lead somewhere is asked to.
    const query = NAMES.map((name) => `${name}=${encodeURIComponent(payload)}`).join("&");
    const { visitor, back } = await consenting(c);
    const { action, fields, visitor: own } = await asking(c);
    for (const target of [`${action}?${query}`, `/account?${query}`, `/account?with=${encodeURIComponent(payload)}`, `/?${query}`]) {
      refused(await own.get(target), 200, 404);
    }
    refused(await own.get(`/login/callback/acme?${query}`), 400);
    refused(await visitor.get(`${back.replace(/code=[^&]*/, "error=server_error")}&${query}`), 400);
    refused(await own.get(`/oauth/callback/google?${query}`), 400);
    const more = Object.fromEntries(NAMES.map((name) => [name, payload]));
    const sent = answers(await own.post(action, { ...more, ...fields }), 303);
    assert.ok(sent.location.startsWith(c.world.providers.google.base), sent.location);
    assert.ok(!sent.location.includes("evil"), sent.location);
    const account = c.people.visitor();
    const choice = forms((await account.get(`/account?with=acme&${query}`)).text)[0];
    const login = answers(await account.post(`${choice.action}&${query}`, { ...more, ...choice.fields }), 303);
    assert.ok(login.location.startsWith(c.world.organisations.acme.issuer), login.location);
    assert.ok(!login.location.includes("evil"), login.location);
    const signedIn = await account.get(await c.people.atIssuer(login.location, "alice"));
    assert.equal(answers(signedIn, 303).location, "/account");
    const out = await account.submit(await account.get("/account"), { text: "Sign out", changes: more });
    assert.equal(answers(out, 303).location, "/account?again=1");
  });
}

family = "method";

for (const method of ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]) {
  attack(`${method} at every page`, async (c) => {
    const { visitor, link, back } = await consenting(c);
    for (const target of [link, back, "/login/callback/acme?code=c&state=s", "/account", "/account/disconnect"]) {
      refused(await visitor.send(method, target, { headers: OWN_FORM }), 405);
    }
  });
}

family = "path";

for (const [name, target] of [
  ["to the account from a link", "/connect/../account"],
  ["to the account from a link, encoded", "/connect/%2e%2e/account"],
  ["to the account from a link, encoded twice", "/connect/%252e%252e/account"],
  ["to the account from a link, with a slash encoded", "/connect/..%2faccount"],
  ["to the account from a link, by a parameter", "/connect/..;/account"],
  ["to the account from a link, backwards", "/connect/..\\account"],
  ["two slashes before the account", "//account"],
  ["a slash after the account", "/account/"],
  ["a dot after the account", "/account/."],
  ["the account in capitals", "/ACCOUNT"],
  ["another host in the path", "//evil.example/account"],
  ["out of the folder", "/../../etc/passwd"],
  ["out of the folder, encoded", "/%2e%2e/%2e%2e/etc/passwd"],
  ["into a callback", "/oauth/callback/../../login/callback/acme"],
]) {
  attack(name, async (c) => {
    const page = refused(await c.home(ALICE).copy().get(target), 400, 404);
    assert.doesNotMatch(page.text, /Signed in as/);
  });
}

/** The table. */
export const ATTACKS = cases;
