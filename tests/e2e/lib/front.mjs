// What stands in front of obo, as in an installation whose TLS ends elsewhere: it passes everything on as it is, and
// remembers what clients ask of the authorization server, and every secret that goes by.

import { createServer, request } from "node:http";

export class Front {
  static async open() {
    const front = new Front();
    /** What was asked, in order: `{method, path, form, json, status, challenge, location, answer}`. */
    front.seen = [];
    /** Codes, tokens and verifiers. None may be left anywhere. */
    front.secrets = new Set();
    front.server = createServer((asked, answered) => front.pass(asked, answered));
    await new Promise((done) => front.server.listen(0, "127.0.0.1", done));
    front.url = `http://127.0.0.1:${front.server.address().port}`;
    return front;
  }

  /** Where obo listens. */
  to(port) {
    this.port = port;
  }

  pass(asked, answered) {
    const { pathname } = new URL(asked.url, this.url);
    const entry = { method: asked.method, path: pathname };
    this.seen.push(entry);
    // Read whole, to be remembered; the rest may be streams without an end.
    const whole = pathname.startsWith("/oauth/");
    const { method, url: path, headers } = asked;
    const passed = request({ host: "127.0.0.1", port: this.port, method, path, headers }, (answer) => {
      entry.status = answer.statusCode;
      entry.location = answer.headers.location;
      entry.challenge = answer.headers["www-authenticate"];
      answered.writeHead(answer.statusCode, answer.rawHeaders);
      answered.flushHeaders();
      if (whole) collect(answer).then((text) => this.remember(entry, "answer", answer.headers["content-type"], text));
      answer.pipe(answered);
      answer.on("error", () => answered.destroy());
    });
    passed.on("error", () => answered.destroy());
    answered.on("close", () => passed.destroy());
    if (whole) {
      const type = asked.headers["content-type"];
      collect(asked).then((text) => this.remember(entry, "body", type, text));
    }
    asked.pipe(passed);
  }

  remember(entry, what, type, text) {
    if (type?.startsWith("application/json")) entry[what === "body" ? "json" : what] = JSON.parse(text);
    if (type?.startsWith("application/x-www-form-urlencoded")) entry.form = new URLSearchParams(text);
    for (const name of ["code", "code_verifier", "refresh_token"]) this.keep(entry.form?.get(name));
    for (const name of ["access_token", "refresh_token"]) this.keep(entry.answer?.[name]);
    // What a page sends a browser on with.
    if (entry.location) this.keep(new URL(entry.location, this.url).searchParams.get("code"));
  }

  keep(secret) {
    if (secret) this.secrets.add(secret);
  }

  /** What was asked from `since` on at a path. */
  at(path, since = 0) {
    return this.seen.slice(since).filter((entry) => entry.path === path);
  }

  /** The tokens that were given out last. */
  tokens() {
    return this.at("/oauth/token").findLast(({ answer }) => answer?.access_token);
  }

  async close() {
    this.server.closeAllConnections();
    await new Promise((done) => this.server.close(done));
  }
}

async function collect(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces).toString();
}
