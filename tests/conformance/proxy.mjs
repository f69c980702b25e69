// Shows a bearer for a client that cannot, and changes nothing else: Host, Origin and everything around them reach the
// server as the client wrote them.

import { createServer, request } from "node:http";

// Of one connection, not of the message (RFC 9110 §7.6.1).
const HOP = new Set(["connection", "keep-alive", "proxy-connection"]);

/** The headers, in their order and spelling, without those of the connection. */
function endToEnd(raw) {
  const kept = [];
  for (let at = 0; at < raw.length; at += 2) {
    if (!HOP.has(raw[at].toLowerCase())) kept.push(raw[at], raw[at + 1]);
  }
  return kept;
}

/** Passes on what a stream says up to the end of its first event. */
function cutShort(answer, outgoing) {
  let said = "";
  const read = (text) => {
    said += text;
    const end = said.indexOf("\n\n");
    if (end < 0) return;
    answer.off("data", read);
    outgoing.end(said.slice(0, end + 2));
  };
  answer.setEncoding("utf8").on("data", read);
}

/**
 * Listens on `port` of the loopback and forwards to `target`, another one. The stream that answers a request which holds
 * the text `cut` breaks off after its first event, as if the network had failed.
 */
export async function start({ port, target, token, cut }) {
  const server = createServer(async (incoming, outgoing) => {
    const chunks = await incoming.toArray().catch(() => null);
    // Gone before it had said all.
    if (!chunks) return;
    const body = Buffer.concat(chunks);
    const headers = [...endToEnd(incoming.rawHeaders), "Authorization", `Bearer ${token}`];
    const { method, url: path } = incoming;
    const forwarded = request({ host: "127.0.0.1", port: target, method, path, headers, agent: false });
    forwarded.on("response", (answer) => {
      outgoing.writeHead(answer.statusCode, answer.statusMessage, endToEnd(answer.rawHeaders));
      // The head of a stream is news of its own.
      outgoing.flushHeaders();
      answer.on("error", () => outgoing.destroy());
      if (body.includes(cut) && answer.headers["content-type"] === "text/event-stream") cutShort(answer, outgoing);
      else answer.pipe(outgoing);
    });
    forwarded.on("error", () => outgoing.destroy());
    // Whoever goes away withdraws the request (2026-07-28, Transports); the server must come to know.
    outgoing.on("close", () => forwarded.destroy());
    forwarded.end(body);
  });
  await new Promise((done, failed) => server.once("error", failed).listen(port, "127.0.0.1", done));
  return {
    stop() {
      server.closeAllConnections();
      return new Promise((done) => server.close(done));
    },
  };
}
