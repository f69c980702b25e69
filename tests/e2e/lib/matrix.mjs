// Makes every attack of the table against a world, and judges each by what the providers and the vault saw.

import assert from "node:assert/strict";

import { accountOf, PEOPLE } from "./people.mjs";
import { MAIL, mail, assertDone } from "./tools.mjs";

const PROVIDERS = ["google", "slack"];

export class Matrix {
  constructor(world, people) {
    this.world = world;
    this.people = people;
    this.heard = [];
    people.heard = (page) => this.heard.push(page);
    this.homes = new Map();
  }

  /** A browser that each person is signed in with throughout. Cases take copies of it. */
  home = (person) => this.homes.get(person.name);

  /** Everybody is connected to Slack, nobody to Google: as it must be again after every case. */
  async prepare() {
    for (const person of PEOPLE) {
      const visitor = await this.people.signedIn(person);
      this.homes.set(person.name, visitor);
      await this.people.connect(person, visitor, "slack");
    }
    this.now = await this.truth();
    this.vault = await this.inVault();
  }

  /** Who is connected to what, as each person's own page tells it. */
  async connected() {
    const one = async (person) => {
      const page = await this.home(person).copy().get("/account");
      assert.ok(page.text.includes(`Signed in as ${person.user} (${person.organisation}, `), page.text);
      const sections = [...page.text.matchAll(/<section>(.*?)<form/gs)].map(([, section]) => section);
      return sections.map((section) => {
        const [provider] = />([^<]*)<\/h2>/.exec(section).slice(1);
        const [account] = /<dt>Account<\/dt><dd>([^<]*)</.exec(section).slice(1);
        const abilities = [...section.matchAll(/<li>([^<]*)</g)].map(([, ability]) => ability);
        return [person.name, provider.toLowerCase(), account, abilities.join("+")].join(" ");
      });
    };
    return (await Promise.all(PEOPLE.map(one))).flat().sort();
  }

  /** The same from the vault, as the command line tells it. */
  async inVault() {
    const one = async (person) => (await this.people.connections(person)).map((connection) => [person.name, connection]);
    return (await Promise.all(PEOPLE.map(one))).flat();
  }

  /** How many tokens each provider has issued, and which calls ran there as whom. */
  async providers() {
    const all = PROVIDERS.map(async (id) => {
      const { base } = this.world.providers[id];
      const [log, state] = await Promise.all(["log", "state"].map(async (what) => (await fetch(`${base}/_testbed/${what}`)).json()));
      return { calls: log.filter(({ user }) => user).map(({ user }) => `${id}:${user}`), issued: state.tokens.length };
    });
    const [google, slack] = await Promise.all(all);
    return { calls: [google.calls, slack.calls], issued: google.issued + slack.issued };
  }

  /** The truth of a moment. */
  async truth() {
    const [connected, providers] = await Promise.all([this.connected(), this.providers()]);
    return { connected, ...providers };
  }

  /** What is wrong with what happened between two truths, apart from what was meant to happen. */
  async judge(before, after, { gains = [], calls = [] } = {}) {
    const wrong = [];
    const plain = (connection) => connection.split(" ").slice(0, 3).join(" ");
    const gained = after.connected.filter((one) => !before.connected.includes(one));
    const lost = before.connected.filter((one) => !after.connected.includes(one));
    if (gained.map(plain).join() !== gains.join()) wrong.push(`connected: ${gained}`);
    if (lost.length > 0) wrong.push(`no longer connected: ${lost}`);
    const issued = after.issued - before.issued;
    if (issued !== gains.length) wrong.push(`tokens issued: ${issued}`);
    const ran = after.calls.flatMap((calls, n) => calls.slice(before.calls[n].length));
    if (ran.join() !== calls.join()) wrong.push(`calls ran: ${ran}`);
    const secrets = [...(await this.world.secrets()), ...this.people.bearers.values()];
    for (const page of this.heard.splice(0)) wrong.push(...this.wrongWith(page, secrets));
    return wrong;
  }

  /** What no answer of obo's may ever be. */
  wrongWith({ method, target, status, location, headers, text }, secrets) {
    const at = `${method} ${target.slice(0, 120)}: `;
    const wrong = [];
    if (status >= 500) wrong.push(`${at}status ${status}`);
    if (location !== undefined && !this.isOurs(location)) wrong.push(`${at}leads to ${location}`);
    if (secrets.some((secret) => text.includes(secret) || JSON.stringify(headers).includes(secret))) wrong.push(`${at}a secret`);
    if (headers["content-type"]?.startsWith("text/html")) {
      const { "cache-control": cache, "referrer-policy": referrer, "content-security-policy": policy = "" } = headers;
      if (cache !== "no-store" || referrer !== "no-referrer" || !policy.includes("default-src 'none'") || !policy.includes("frame-ancestors 'none'")) {
        wrong.push(`${at}without the headers of a page`);
      }
    }
    return wrong;
  }

  /** Whether a Location stays here, or leads to a provider or an issuer. */
  isOurs(location) {
    if (/^\/(?![/\\])/.test(location)) return true;
    const known = [...Object.values(this.world.providers).map(({ base }) => base), ...Object.values(this.world.organisations).map(({ issuer }) => issuer)];
    return known.some((origin) => location.startsWith(`${origin}/`));
  }

  /** The owner connects Google, is called as, and disconnects: nothing that an attacker did stands in their way. */
  async honest(owner, gained) {
    const visitor = this.home(owner);
    if (!gained) await this.people.connect(owner, visitor, "google");
    assertDone(await this.people.call(owner, MAIL, mail("from the owner")));
    const account = accountOf(owner, "google");
    const page = await visitor.submit(await visitor.get("/account"), { text: `Disconnect ${account}` });
    assert.match(page.text, /Disconnected/);
  }

  /** Makes one attack. Returns what is wrong; nothing, where it was turned away as it should be. */
  async make({ run, owner, gains, calls }) {
    this.heard.length = 0;
    const before = this.now;
    const wrong = [];
    await run(this).catch((error) => wrong.push(error.message));
    const after = await this.truth();
    wrong.push(...(await this.judge(before, after, { gains, calls })));

    await this.honest(owner, gains.length > 0).catch((error) => wrong.push(`the owner: ${error.message}`));
    const then = await this.truth();
    const ran = then.calls.flatMap((calls, n) => calls.slice(after.calls[n].length));
    const others = ran.filter((call) => call !== `google:${owner.google}`);
    if (others.length > 0) wrong.push(`the owner's calls ran as ${others}`);
    if (then.connected.join() !== before.connected.join()) wrong.push(`left connected: ${then.connected}`);
    this.now = then;
    return wrong;
  }
}
