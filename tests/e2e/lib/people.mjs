// The people of two organisations: the same two names in each, four different people.

import assert from "node:assert/strict";

import { MODERN, request } from "./raw.mjs";
import { EVENT, MAIL, CHANNELS, event, mail } from "./tools.mjs";
import { forms, Visitor } from "./visitor.mjs";

export const ORGANISATIONS = ["acme", "globex"];

/**
 * Whoever has the same name, and whoever is in the same organisation, has another account at Slack, so a call that ran
 * as the wrong person shows in Slack's log.
 */
export const PEOPLE = [
  { organisation: "acme", user: "alice", google: "alice", slack: "alice" },
  { organisation: "acme", user: "bob", google: "bob", slack: "bob" },
  { organisation: "globex", user: "alice", google: "bob", slack: "bob" },
  { organisation: "globex", user: "bob", google: "alice", slack: "alice" },
].map((person) => Object.freeze({ ...person, name: `${person.organisation}.${person.user}` }));

/** The account that a person has at a provider, as its pages show it. */
export const accountOf = (person, provider) => `${person[provider]}@example.com`;

/** Calls that need each provider, and Google twice: for another scope there is another link. */
const NEEDS = {
  google: () => [MAIL, mail("asked for")],
  calendar: () => [EVENT, event("asked for")],
  slack: () => [CHANNELS, { limit: 5 }],
};

const can = (capabilities) => ({
  "io.modelcontextprotocol/protocolVersion": MODERN,
  "io.modelcontextprotocol/clientInfo": { name: "obo-e2e-people", version: "1.0.0" },
  "io.modelcontextprotocol/clientCapabilities": capabilities,
});

export class People {
  constructor(world) {
    this.world = world;
    this.heard = () => {};
    this.bearers = new Map();
    /** Codes and states of sign-ins and consents: they may stand in no log and no file. */
    this.passed = new Set();
  }

  visitor() {
    return new Visitor(this.world.url, (page) => this.heard(page));
  }

  /** Any token of an organisation's identity provider. */
  async mint(organisation, fields) {
    const aud = `${this.world.url}/mcp`;
    const answer = await fetch(this.world.organisations[organisation].mint, {
      method: "POST",
      body: JSON.stringify({ aud, exp_in: 3600, ...fields }),
    });
    return (await answer.json()).access_token;
  }

  async bearer(person) {
    if (!this.bearers.has(person.name)) {
      this.bearers.set(person.name, await this.mint(person.organisation, { sub: person.user }));
    }
    return this.bearers.get(person.name);
  }

  /** A request of 2026-07-28 as exactly the headers say: the page, and its JSON where it is JSON. */
  async ask(method, params, { token, headers = {}, capabilities = {}, meta = {} } = {}) {
    const page = await this.visitor().send("POST", "/mcp", {
      headers: {
        ...(token ? { authorization: `Bearer ${token}` } : {}),
        "content-type": "application/json",
        accept: "application/json, text/event-stream",
        "mcp-protocol-version": MODERN,
        "mcp-method": method,
        ...(params.name ? { "mcp-name": params.name } : {}),
        ...headers,
      },
      body: JSON.stringify(request(1, method, { ...params, _meta: { ...can(capabilities), ...meta } })),
    });
    try {
      return { ...page, json: JSON.parse(page.text) };
    } catch {
      return page;
    }
  }

  /** Calls a tool as a person: the result, or the error. */
  async call(person, tool, input, options = {}) {
    const params = { name: tool, arguments: input, ...options.further };
    const { json, text } = await this.ask("tools/call", params, { token: await this.bearer(person), ...options });
    return json?.result ?? json ?? text;
  }

  /** The link that a person is given by a call which needs `what`: `google`, `calendar` or `slack`. */
  async link(person, what = "google") {
    const result = await this.call(person, ...NEEDS[what]());
    const link = result._meta?.["obo/authorization"]?.authorization_url;
    assert.ok(link, `${person.name} is not asked for ${what}: ${JSON.stringify(result)}`);
    return link;
  }

  /** The same, for a client that opens links: `{link, requestState}`. */
  async elicited(person, tool, input) {
    const result = await this.call(person, tool, input, { capabilities: { elicitation: { url: {} } } });
    const { params } = Object.values(result.inputRequests ?? {})[0] ?? {};
    assert.ok(params?.url, JSON.stringify(result));
    return { link: params.url, requestState: result.requestState };
  }

  /** Presses "Sign in with ...": where the browser is sent. */
  async beginSignIn(visitor, link) {
    const page = await visitor.get(link);
    const sent = await visitor.submit(page, { text: "Sign in with" });
    assert.equal(sent.status, 303, `${sent.status} ${sent.text}`);
    return sent.location;
  }

  /** Signs a user in at an identity provider: where it sends the browser back. */
  async atIssuer(url, user) {
    const cookies = new Map();
    for (let steps = 0; steps < 10; steps++) {
      const form = url.form;
      const answer = await fetch(form ? form.action : url, {
        method: form ? "POST" : "GET",
        redirect: "manual",
        body: form ? new URLSearchParams(form.fields) : undefined,
        headers: { cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join("; ") },
      });
      for (const cookie of answer.headers.getSetCookie()) {
        const [, name, value] = /^([^=]*)=([^;]*)/.exec(cookie);
        cookies.set(name, value);
      }
      const at = form ? form.action : url;
      const location = answer.headers.get("location");
      if (location) {
        await answer.body?.cancel();
        url = new URL(location, at).href;
        if (url.startsWith(this.world.url)) return this.remember(url);
        continue;
      }
      const html = await answer.text();
      const found = forms(html.replaceAll("method=\"post\" action", "action")).find((one) => one.fields.login === user);
      assert.ok(found, `the identity provider shows no form for ${user}: ${answer.status} ${html}`);
      url = { form: { ...found, action: new URL(found.action, at).href } };
    }
    throw new Error("the identity provider redirects without end");
  }

  /** Agrees at a provider with an account: where it sends the browser back. */
  async atProvider(url, account) {
    const html = await (await fetch(url)).text();
    const form = forms(html).find(({ text }) => text.includes(account));
    assert.ok(form, `the provider shows no form for ${account}: ${html}`);
    const answer = await fetch(new URL(form.action, url), {
      method: "POST",
      redirect: "manual",
      body: new URLSearchParams(form.fields),
    });
    await answer.body?.cancel();
    return this.remember(answer.headers.get("location"));
  }

  remember(back) {
    for (const name of ["code", "state"]) {
      const value = new URL(back).searchParams.get(name);
      if (value) this.passed.add(value);
    }
    return back;
  }

  /** A browser that is signed in as a person, by way of `/account`. */
  async signedIn(person, visitor = this.visitor()) {
    const sent = await this.beginSignIn(visitor, `/account?with=${person.organisation}`);
    const back = await visitor.get(await this.atIssuer(sent, person.user));
    assert.equal(back.status, 303, `${back.status} ${back.text}`);
    return visitor;
  }

  /** Presses the button of a link in a browser that is signed in: where the browser is sent. */
  async press(visitor, link) {
    const pressed = await visitor.submit(await visitor.get(link), { text: "Continue to" });
    assert.equal(pressed.status, 303, `${pressed.status} ${pressed.text}`);
    return pressed.location;
  }

  /** Presses, and agrees at the provider: where the browser is sent back. */
  async answered(visitor, link, account) {
    return this.atProvider(await this.press(visitor, link), account);
  }

  /** Goes the whole way from a new call to the page that says "connected". */
  async connect(person, visitor, what = "google") {
    const provider = what === "calendar" ? "google" : what;
    const account = accountOf(person, provider);
    const back = await this.answered(visitor, await this.link(person, what), account);
    const page = await visitor.get(back);
    assert.equal(page.status, 200, page.text);
    assert.ok(page.text.includes("is connected") && page.text.includes(person[provider]), page.text);
    return page;
  }

  /** What a person has connected, as the command line tells it. */
  async connections(person) {
    const { organisation, user } = person;
    const options = ["--user", user, "--tenant", organisation, "--source", organisation];
    const { code, stdout, stderr } = await this.world.run(["connections", "--json", ...options]);
    assert.equal(code, 0, stderr);
    return JSON.parse(stdout);
  }
}
