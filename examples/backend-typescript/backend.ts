// A backend whose users send mail from their own accounts: obo asks each of them once, and sends as them.
//
// The loop: authorize and send the browser to the link (`mail`), confirm whose it is (`verify`), wait and execute
// (`send`).

import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";

import Arcade from "@arcadeai/arcadejs";

const PORT = Number(process.env.PORT ?? 5000);
const HERE = `http://127.0.0.1:${PORT}`;
const TOOL = "Google.SendEmail";

const obo = new Arcade({ baseURL: process.env.OBO_URL, apiKey: process.env.OBO_KEY });
/** Who is signed in, by the session's cookie. */
const sessions = new Map<string, string>();
/** What became of each user's last mail. */
const sent = new Map<string, Promise<string>>();

type Authorization = Awaited<ReturnType<typeof obo.tools.authorize>>;

/** What an agent does on behalf of a user, while nobody looks. */
async function send(user: string, input: Record<string, unknown>, authorization: Authorization): Promise<string> {
  try {
    if (authorization.status !== "completed") await obo.auth.waitForCompletion(authorization);
  } catch (error) {
    if (error instanceof Arcade.APIError) return "You did not connect the account, so nothing was sent.";
    throw error;
  }
  const answer = await obo.tools.execute({ tool_name: TOOL, user_id: user, input });
  return answer.success ? "Sent." : (answer.output?.error?.message ?? "It failed.");
}

async function mail(user: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const form = new URLSearchParams(await read(request));
  const input = { to: [form.get("to")], subject: form.get("subject"), text: "Sent on your behalf." };
  const authorization = await obo.tools.authorize({ tool_name: TOOL, user_id: user, next_uri: `${HERE}/done` });
  sent.set(user, send(user, input, authorization).catch(String));
  go(response, authorization.status === "completed" ? "/done" : authorization.url!);
}

/** obo asks whose browser it is: whoever is signed in to it, and nobody else. */
async function verify(user: string, flow: string, response: ServerResponse): Promise<void> {
  try {
    const confirmed = await obo.auth.confirmUser({ flow_id: flow, user_id: user });
    go(response, confirmed.next_uri ?? "/");
  } catch (error) {
    if (!(error instanceof Arcade.APIError)) throw error;
    page(response, error.status ?? 502, "Nothing was connected: the link was not yours.");
  }
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname, searchParams } = new URL(request.url ?? "/", HERE);
  if (pathname === "/sign-in") {
    // Stands for the sign-in that your backend has.
    const session = randomBytes(32).toString("base64url");
    sessions.set(session, searchParams.get("user") ?? "");
    return go(response, "/", `session=${session}; HttpOnly; SameSite=Lax; Path=/`);
  }
  const user = sessions.get(/(?:^|; )session=([\w-]+)/.exec(request.headers.cookie ?? "")?.[1] ?? "");
  if (!user) return page(response, 401, "Sign in first.");
  if (request.method === "POST" && pathname === "/mail") return mail(user, request, response);
  if (pathname === "/obo/verify") return verify(user, searchParams.get("flow_id") ?? "", response);
  const outcome = sent.get(user);
  if (pathname === "/done" && outcome) return page(response, 200, await outcome);
  page(response, 200, `You are ${user}.`);
}

async function read(request: IncomingMessage): Promise<string> {
  let body = "";
  for await (const bytes of request) {
    body += bytes;
    if (body.length > 10_000) throw new Error("the form is too long");
  }
  return body;
}

function page(response: ServerResponse, status: number, text: string): void {
  const safe = text.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);
  response.writeHead(status, { "content-type": "text/html; charset=utf-8" }).end(`<!doctype html><title>Mail</title><p>${safe}</p>
<form method="post" action="/mail"><input name="to"><input name="subject"><button>Send</button></form>`);
}

function go(response: ServerResponse, location: string, cookie?: string): void {
  response.writeHead(303, cookie ? { location, "set-cookie": cookie } : { location }).end();
}

const server = createServer((request, response) => {
  answer(request, response).catch(() => page(response, 500, "Something went wrong."));
});
server.listen(PORT, "127.0.0.1", () => console.log(`listening on ${HERE}`));
