// A browser without a screen that can also do what no browser does: it sends exactly the bytes it is told to.

import { Agent, request } from "node:http";

const AGENT = new Agent({ keepAlive: true });
const WAIT_MS = 30_000;

const unescape = (text) =>
  text.replace(/&#(\d+);/g, (_, code) => String.fromCodePoint(code)).replaceAll("&quot;", '"').replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">").replaceAll("&amp;", "&");

const attribute = (tag, name) => unescape(new RegExp(` ${name}="([^"]*)"`).exec(tag)?.[1] ?? "");

/** The forms of a page: `{action, fields, text}`, where the fields are the hidden ones. */
export function forms(html) {
  return [...html.matchAll(/(<form [^>]*>)(.*?)<\/form>/gs)].map(([, tag, inner]) => ({
    action: attribute(tag, "action"),
    fields: Object.fromEntries(
      [...inner.matchAll(/<input [^>]*type="hidden"[^>]*>/g)].map(([input]) => [attribute(input, "name"), attribute(input, "value")]),
    ),
    text: unescape(inner.replace(/<[^>]*>/g, " ")),
  }));
}

/** What Chromium sends with a form of a page that has `no-referrer`. */
export const OWN_FORM = { origin: "null", "sec-fetch-site": "same-origin" };

export class Visitor {
  /** `heard` is told every answer of obo's. */
  constructor(url, heard = () => {}) {
    this.url = url;
    this.heard = heard;
    this.cookies = new Map();
    this.cookieName = `obo-${new URL(url).port}`;
  }

  /** The same browser once more: a copy of its cookies. */
  copy() {
    const copy = new Visitor(this.url, this.heard);
    copy.cookies = new Map(this.cookies);
    return copy;
  }

  /**
   * Sends a request. `target` is a URL of obo's, or the request target as it is sent, bytes that no browser would send
   * included. A header may be a list: it is then sent as often; of an empty one, nothing is sent.
   */
  async send(method, target, { headers = {}, body } = {}) {
    const { hostname, port } = new URL(this.url);
    const path = target.startsWith(`${this.url}/`) ? target.slice(this.url.length) : target;
    const all = { host: `${hostname}:${port}`, ...headers };
    if (this.cookies.size > 0 && !("cookie" in all)) {
      all.cookie = [...this.cookies].map(([name, value]) => `${name}=${value}`).join("; ");
    }
    if (body !== undefined) all["content-length"] = `${Buffer.byteLength(body)}`;
    // In this form Node sends what it is given, and adds no Host.
    const lines = Object.entries(all).flatMap(([name, value]) => [value].flat().flatMap((one) => [name, one]));
    const answer = await new Promise((done, fail) => {
      const asking = request({ host: hostname, port, path, method, headers: lines, agent: AGENT, timeout: WAIT_MS }, (response) => {
        const pieces = [];
        response.on("data", (piece) => pieces.push(piece));
        response.on("error", fail);
        response.on("end", () => done({ response, text: Buffer.concat(pieces).toString() }));
      });
      asking.on("timeout", () => asking.destroy(new Error(`${method} ${path}: no answer`)));
      asking.on("error", fail);
      asking.end(body);
    });
    const { statusCode: status, headers: answered } = answer.response;
    for (const cookie of answered["set-cookie"] ?? []) {
      const [, name, value] = /^([^=]*)=([^;]*)/.exec(cookie);
      this.cookies.set(name, value);
    }
    const page = { method, target, status, headers: answered, location: answered.location, text: answer.text };
    this.heard(page);
    return page;
  }

  get(target, headers = {}) {
    return this.send("GET", target, { headers });
  }

  /** Posts fields as a form. */
  post(target, fields, headers = OWN_FORM) {
    const body = typeof fields === "string" ? fields : new URLSearchParams(fields).toString();
    return this.send("POST", target, { headers: { "content-type": "application/x-www-form-urlencoded", ...headers }, body });
  }

  /** Submits the page's form that says `text`, or its first, with changes; one that is undefined takes the field away. */
  submit(page, { text = "", changes = {}, headers = OWN_FORM } = {}) {
    const form = forms(page.text).find((one) => one.text.includes(text));
    if (!form) throw new Error(`no form with ${JSON.stringify(text)} at ${page.target}: ${page.status}`);
    const fields = Object.entries({ ...form.fields, ...changes }).filter(([, value]) => value !== undefined);
    return this.post(form.action, fields, headers);
  }
}
