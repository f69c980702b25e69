// Every client, over every transport, with and without links: lists tools, is asked, is declined, is refused somebody
// else's consent, connects. Run by `tests/e2e/run`.
//
// One table of clients, one of scenarios. Each lane has two people of its own, an alice and a bob of a tenant that nobody
// else is in, and goes through the scenarios in their order: the later ones build on the earlier. The providers' own log
// says as whom calls ran.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import { openBrowser, Person } from "./lib/browser.mjs";
import { client, inspector, mcpRemote, Python, sdk } from "./lib/conversations.mjs";
import { leaks } from "./lib/leaks.mjs";
import { MODERN } from "./lib/raw.mjs";
import { assertAuthorizationText, assertDone, assertLink, assertShape, EVENT, MAIL, mail, PATHS, shapeOf } from "./lib/tools.mjs";
import { Visitor } from "./lib/visitor.mjs";
import { World } from "./lib/world.mjs";

const { OBO_BIN: obo, OBO_E2E_TESTBED: testbed, OBO_E2E_PYTHON: systemPython } = process.env;
const { OBO_E2E_NODE_22: node22 } = process.env;
const INTERPRETERS = {
  "mcp 1.30.0": process.env.OBO_E2E_PYTHON_1,
  "mcp 2.3.0": process.env.OBO_E2E_PYTHON_2,
  "fastmcp-slim 4.1.6": process.env.OBO_E2E_PYTHON_FASTMCP,
};

const PAGE = readFileSync(new URL("../../docs/clients.md", import.meta.url), "utf8");
const LEGACY = "2025-11-25";
const BOTH = [false, true];
const LANE_MS = 60_000;

// --- clients ---------------------------------------------------------------------------------------------------------

const python = (library, mode) => (server, options) =>
  pythons.get(options.client).open(server, { ...options, library, mode });

/**
 * `ways`: how each can be used. `links`: whether it says that it can show links, where it can say so. `speaks`: the
 * revision that it must come to.
 */
const CLIENTS = [
  {
    name: "@modelcontextprotocol/sdk 1.32.2",
    ways: [{ over: ["http", "sse", "stdio"], links: BOTH, speaks: LEGACY, open: sdk }],
  },
  {
    name: "@modelcontextprotocol/client 2.4.0",
    ways: [
      { how: "auto", over: ["http", "stdio"], links: BOTH, speaks: MODERN, open: (s, o) => client(s, { ...o, mode: "auto" }) },
      { how: "legacy", over: ["http", "sse"], links: BOTH, speaks: LEGACY, open: (s, o) => client(s, { ...o, mode: "legacy" }) },
    ],
  },
  {
    // Its command line never says that it can show links. Its process ends with each call, and so would the page behind a
    // link of the obo that it launched: it is used where there is an `obo serve`.
    name: "@modelcontextprotocol/inspector 2.12.0",
    ends: true,
    ways: ["legacy", "auto", "modern"].flatMap((era) => {
      const open = (server, options) => inspector(server, { ...options, era, node: node22, environment: { PATH: process.env.PATH } });
      const way = { how: era, links: [false], open };
      if (era === "legacy") return [{ ...way, over: ["http", "sse", "stdio"], speaks: LEGACY }];
      return [{ ...way, over: era === "modern" ? ["http", "stdio"] : ["http"], speaks: MODERN }];
    }),
  },
  {
    name: "mcp-remote 0.15.1",
    ways: [
      { over: ["http"], links: BOTH, speaks: LEGACY, open: mcpRemote },
      { how: "sse-only", over: ["sse"], links: BOTH, speaks: LEGACY, open: mcpRemote },
    ],
    through: "mcp-remote",
  },
  {
    name: "mcp 1.30.0",
    ways: [{ over: ["http", "sse", "stdio"], links: BOTH, speaks: LEGACY, open: python("mcp") }],
  },
  {
    name: "mcp 2.3.0",
    ways: [
      { how: "auto", over: ["http", "stdio"], links: BOTH, speaks: MODERN, open: python("mcp", "auto") },
      { how: "legacy", over: ["http", "sse", "stdio"], links: BOTH, speaks: LEGACY, open: python("mcp", "legacy") },
    ],
  },
  {
    name: "fastmcp-slim 4.1.6",
    ways: [
      { how: "auto", over: ["http", "stdio"], links: BOTH, speaks: MODERN, open: python("fastmcp", "auto") },
      { how: "auto", over: ["sse"], links: BOTH, speaks: LEGACY, open: python("fastmcp", "auto") },
    ],
  },
];

const LANES = CLIENTS.flatMap(({ ways, ...client }) =>
  ways.flatMap(({ over, links, ...way }) =>
    over.flatMap((transport) =>
      links.map((links) => {
        const shape = shapeOf(way.speaks, links);
        const title = [client.name, way.how, transport, links ? "shows links" : "text"].filter(Boolean).join(" · ");
        // Launched by its client as on somebody's own machine: no `obo serve` beside it.
        const alone = transport === "stdio" && !client.ends;
        return { client: client.name, through: client.through, ...way, transport, links, shape, title, alone };
      }),
    ),
  ),
);
LANES.sort((a, b) => a.alone - b.alone);
LANES.forEach((lane, n) => (lane.tenant = `lane-${n}`));

// --- scenarios -------------------------------------------------------------------------------------------------------

const FIRST = mail("the first");
/** What is answered to a link in the client: it has been opened, and nobody says whether that was all. */
const accepted = ({ requestState, key }) => ({ requestState, inputResponses: { [key]: { action: "accept" } } });
const asksInClient = ({ shape }) => shape !== "input_required" && `asks nothing in the client: ${shape}`;

/** Makes the call that asks, as the client gets to see it, and returns its link, and what the retry carries. */
async function ask({ shape, speaks }, conversation, input) {
  const answer = await (shape === "input_required" ? conversation.call(MAIL, input, {}) : conversation.call(MAIL, input));
  answers.push({ from: "an answer", text: JSON.stringify(answer) });
  const link = assertShape(world.url, shape, answer);
  // A client that does not tell what was agreed on: the server's name is in results of 2026-07-28 alone.
  if (!conversation.revision) assert.equal("io.modelcontextprotocol/serverInfo" in answer.result._meta, speaks === MODERN);
  const { requestState, inputRequests = {} } = answer.result ?? {};
  return { link, requestState, key: Object.keys(inputRequests)[0] };
}

/** What a link shows to one of the lane's people, after signing in where the page asks for that. */
async function signedIn(lane, user, link, visitor = new Visitor(world.url, heardPage)) {
  const page = await visitor.get(link);
  if (lane.alone) return page;
  const answer = await visitor.submit(page, { changes: { token: lane.tokens[user] } });
  return answer.status === 303 ? visitor.get(answer.location) : answer;
}

const heardPage = ({ target, text }) => answers.push({ from: `page ${target}`, text });

/**
 * `not`: why it cannot be done with a lane, if it cannot. `run` is given the lane, and what it leaves there is for those
 * that follow. `ran`: as whom the provider sees it make calls; each of them is connected by it.
 */
const SCENARIOS = {
  list: {
    title: "lists the tools, named both ways",
    run: async (lane) => {
      if (lane.alice.revision) assert.equal(lane.alice.revision, lane.speaks);
      const tools = await lane.alice.list();
      for (const [name, own] of [[MAIL, "Google.SendEmail"], [EVENT, "GoogleCalendar.CreateEvent"]]) {
        assert.equal(tools.find((tool) => tool.name === name)?._meta["obo/name"], own);
      }
    },
  },
  asked: {
    title: "is asked in its own shape",
    run: async (lane) => {
      lane.asked = await ask(lane, lane.alice, FIRST);
    },
  },
  "declined in the client": {
    title: "declines in the client, and has the link as text",
    not: asksInClient,
    run: async (lane) => {
      for (const action of ["decline", "cancel"]) {
        const shown = [];
        lane.onLink = async ({ url }) => {
          shown.push(url);
          return action;
        };
        const { result } = await lane.alice.call(MAIL, mail(action));
        assert.deepEqual(shown, [assertAuthorizationText(world.url, "google", result)], "shown once, and told again");
      }
    },
  },
  "another's state": {
    title: "may not go on where somebody else was asked",
    not: asksInClient,
    run: async (lane) => {
      const { error } = await lane.as("bob", (bob) => bob.call(MAIL, FIRST, accepted(lane.asked)));
      assert.equal(error?.code, -32602);
      // The same from alice is in order: she has not been to the page yet.
      const { result } = await lane.alice.call(MAIL, FIRST, accepted(lane.asked));
      assertAuthorizationText(world.url, "google", result);
    },
  },
  "garbled state": {
    // That it runs out after ten minutes is in tests/it/consent.rs (t14), which has a clock to set.
    title: "may not go on with a state that was changed, or of another call",
    not: asksInClient,
    run: async (lane) => {
      const { requestState } = lane.asked;
      const at = requestState.length >> 1;
      const bent = requestState.slice(0, at) + (requestState[at] === "A" ? "B" : "A") + requestState.slice(at + 1);
      for (const [input, state] of [[FIRST, bent], [FIRST, requestState.slice(0, -4)], [mail("another"), requestState]]) {
        const { error } = await lane.alice.call(MAIL, input, accepted({ ...lane.asked, requestState: state }));
        assert.equal(error?.code, -32602);
      }
    },
  },
  "another's browser": {
    title: "somebody else's browser is turned away from the link",
    not: ({ alone }) => alone && "obo stdio shows its pages to its own machine, and signs nobody in",
    run: async (lane) => {
      const { status, text } = await signedIn(lane, "bob", lane.asked.link);
      assert.equal(status, 403);
      assert.doesNotMatch(text, /alice/, "the page does not tell whose link it is");
    },
  },
  "declined at the provider": {
    title: "declines at the provider, and is given a new link",
    run: async (lane) => {
      const { visitor } = lane;
      const { link } = lane.asked;
      const decline = async () => {
        const pressed = await visitor.submit(await signedIn(lane, "alice", link, visitor), { text: "Continue to" });
        const state = new URL(pressed.location).searchParams.get("state");
        const back = await visitor.get(`/oauth/callback/google?error=access_denied&state=${state}`);
        assert.deepEqual([back.status, /did not allow/i.test(back.text)], [200, true], back.text);
      };
      if (lane.shape === "input_required") {
        lane.onLink = async ({ url }) => {
          assert.equal(url, link, "there is one link for one need");
          await decline();
          return "accept";
        };
        const { result } = await lane.alice.call(MAIL, FIRST);
        assert.equal(result._meta["obo/error"]?.code, "authorization_required", JSON.stringify(result));
        assert.match(result.content[0].text, /declined/);
      } else {
        await decline();
      }
      lane.over = [link];
      lane.asked = await ask(lane, lane.alice, FIRST);
      assert.notEqual(lane.asked.link, lane.over[0]);
    },
  },
  connected: {
    title: "connects in the browser, and the call goes through as that person and nobody else",
    ran: ["alice"],
    run: async (lane) => {
      const consent = async ({ url }) => {
        assertLink(world.url, url);
        alice.token = lane.tokens.alice;
        const text = await alice.consent(url, { account: "alice@example.com", title: "connected" });
        assert.match(text, /connected as alice@example\.com/i);
        lane.over.push(url);
        return "accept";
      };
      if (lane.shape === "input_required") lane.onLink = consent;
      else await consent({ url: lane.asked.link });
      // One call, whatever the client has to do for it.
      const { result } = await lane.alice.call(MAIL, FIRST);
      answers.push({ from: "an answer", text: JSON.stringify(result) });
      assertDone(result);
      assert.equal(lane.over.length, 2, "she was shown one link");
      const asked = await lane.as("bob", (bob) => ask(lane, bob, FIRST));
      assert.ok(!lane.over.includes(asked.link));
    },
  },
  over: {
    // That a link runs out after ten minutes is in tests/it/consent.rs, which has a clock to set. To a browser it looks
    // like these: one that was declined, one that was used.
    title: "a link that is over says so",
    run: async (lane) => {
      for (const link of lane.over) {
        const { status, text } = await lane.visitor.get(link);
        assert.deepEqual([status, /new link/.test(text)], [410, true], text);
      }
    },
  },
};

// --- running ---------------------------------------------------------------------------------------------------------

let world;
let browser;
/** In Chromium: each lane's alice, one after the other. */
let alice;
const pythons = new Map();
/** What clients were answered and what they wrote, and the pages, searched for secrets at the end. */
const answers = [];
const tokens = [];
/** What the provider had seen when the last scenario ended. */
let seen = { ran: [], issued: 0 };
/** What became of each scenario of each lane: `ok`, or why it cannot be. */
const results = new Map(LANES.map((lane) => [lane, {}]));

before(async () => {
  // Nothing is held: whoever asks again wants the answer now.
  world = await World.start({ obo, testbed, python: systemPython, server: 'consent_wait = "0s"' });
  await world.serve();
  browser = await openBrowser();
  alice = await Person.at(browser, { name: "alice", tries: false });
  for (const [name, interpreter] of Object.entries(INTERPRETERS)) pythons.set(name, new Python(interpreter, heardFrom(name)));
});

after(async () => {
  for (const python of pythons.values()) await python.stop();
  await browser?.close();
  await world?.stop();
});

function heardFrom(what) {
  const entry = { from: `${what} (stderr)`, text: "" };
  world.said.push(entry);
  return (text) => (entry.text += text);
}

const serving = () => world.server.exitCode === null && world.server.signalCode === null;

/** The page's blocks of JSON, with this world's address and a person's token in them. */
function blocks(token) {
  const [...found] = PAGE.matchAll(/^```json\n(.*?)^```$/gms);
  return found.map(([, text]) => JSON.parse(text.replaceAll("https://obo.example.com", world.url).replaceAll("obo_your-token", token)));
}

/** The server that a person's client is configured with, as the page says it. */
function serverOf({ transport, through, tenant }, user, token) {
  const [stdio, http, sse, remote, older, ...more] = blocks(token).map((block) => block.mcpServers?.obo ?? block);
  assert.equal(more.length, 0, "a configuration on the page that no client is started with");
  if (through) {
    const env = { ...remote.env, PATH: process.env.PATH, MCP_REMOTE_CONFIG_DIR: world.folder };
    // Plain HTTP is for this machine alone, where the page has none.
    return { ...remote, args: [...(transport === "sse" ? older : remote.args), "--allow-http"], env };
  }
  if (transport !== "stdio") return { http, sse }[transport];
  assert.equal(stdio.command, "obo");
  const folders = { OBO_CONFIG: world.config, OBO_DATA_DIR: world.data };
  return { command: obo, args: [...stdio.args, "--user", user, "--tenant", tenant], env: { ...world.environment, ...folders } };
}

/** Opens the lane's client as one of its people. */
async function opened(lane, user) {
  const token = lane.tokens[user] ?? "";
  const onLink = lane.links ? (params) => lane.onLink(params) : undefined;
  const options = { client: lane.client, onLink, heard: heardFrom(lane.title) };
  const conversation = await lane.open(serverOf(lane, user, token), options);
  if (conversation.version) assert.ok(lane.client.endsWith(` ${conversation.version}`), conversation.version);
  return conversation;
}

/** What the provider saw so far: as whom calls ran, and how many tokens it issued. */
async function truth() {
  const [provider, path] = PATHS[MAIL];
  const state = await (await fetch(`${world.providers[provider].base}/_testbed/state`)).json();
  return { ran: (await world.calls(provider, path)).map(({ user, status }) => `${user} ${status}`), issued: state.tokens.length };
}

async function prepare(lane) {
  if (lane.alone && serving()) await world.stopServing();
  lane.tokens = {};
  if (!lane.alone) {
    const [alice, bob] = await Promise.all(["alice", "bob"].map((user) => world.issueToken(user, lane.tenant)));
    lane.tokens = { alice, bob };
    tokens.push(alice, bob);
  }
  await alice.context.clearCookies();
  // A second browser of hers, without a screen, for everything but connecting.
  lane.visitor = new Visitor(world.url, heardPage);
  lane.onLink = () => assert.fail("a link was shown unasked");
  lane.as = async (user, use) => {
    const conversation = await opened(lane, user);
    try {
      return await use(conversation);
    } finally {
      await conversation.close();
    }
  };
  lane.alice = await opened(lane, "alice");
}

for (const lane of LANES) {
  test(lane.title, { timeout: LANE_MS }, async (t) => {
    await prepare(lane);
    try {
      for (const [name, { title, not, run, ran = [] }] of Object.entries(SCENARIOS)) {
        const why = not?.(lane);
        if (why) {
          results.get(lane)[name] = why;
          continue;
        }
        await t.test(title, async () => {
          const since = seen;
          // Also after one that failed: the next is not to be blamed for it.
          await run(lane).finally(async () => (seen = await truth()));
          assert.deepEqual(seen.ran.slice(since.ran.length), ran.map((user) => `${user} 200`));
          assert.equal(seen.issued - since.issued, ran.length, "tokens issued");
          results.get(lane)[name] = "ok";
        });
      }
    } finally {
      await lane.alice.close();
    }
  });
}

// --- the whole -------------------------------------------------------------------------------------------------------

/** The rows of the page's first table: `{client, version, over}`. */
function promised() {
  const rows = [...PAGE.matchAll(/^\| (?:npm|PyPI) `([^`[]+)[^|]*\| ([\d.]+) \|[^|]*\| ([^|]+) \|$/gm)];
  return rows.map(([, client, version, over]) => `${client} ${version}: ${over}`).sort();
}

test("the matrix is whole: every client that docs/clients.md names, over what it says, in every scenario", (t) => {
  const names = Object.keys(SCENARIOS);
  const reasons = [];
  const mark = (result) => {
    if (result === "ok" || result === undefined) return result ?? "MISSING";
    if (!reasons.includes(result)) reasons.push(result);
    return `(${reasons.indexOf(result) + 1})`;
  };
  const width = Math.max(...LANES.map(({ title }) => title.length));
  const line = (title, cells) => t.diagnostic([title.padEnd(width), ...cells.map((cell, n) => cell.padEnd(names[n].length))].join(" | "));
  line("", names);
  for (const [{ title }, result] of results) line(title, names.map((name) => mark(result[name])));
  reasons.forEach((reason, n) => t.diagnostic(`(${n + 1}) ${reason}`));

  const cells = [...results.values()].flatMap((result) => names.map((name) => result[name]));
  assert.ok(cells.every(Boolean), "a scenario is missing");
  for (const name of names) assert.ok([...results.values()].some((result) => result[name] === "ok"), name);
  for (const { name } of CLIENTS) {
    const lanes = [...results].filter(([lane]) => lane.client === name);
    for (const scenario of ["list", "asked", "declined at the provider", "connected", "over"]) {
      assert.ok(lanes.every(([, result]) => result[scenario] === "ok"), `${name}: ${scenario}`);
    }
  }
  for (const { name, ends } of CLIENTS) {
    const links = LANES.filter((lane) => lane.client === name).map((lane) => lane.links);
    assert.deepEqual([...new Set(links)], ends ? [false] : BOTH, name);
  }
  const shapes = (transport) => new Set(LANES.filter((lane) => lane.transport === transport).map(({ shape }) => shape));
  assert.deepEqual(shapes("http"), new Set(["text", "-32042", "input_required"]));
  assert.deepEqual(shapes("sse"), new Set(["text", "-32042"]));
  assert.deepEqual(shapes("stdio"), new Set(["text", "-32042", "input_required"]));
  const tested = CLIENTS.map(({ name, ways }) => `${name}: ${[...new Set(ways.flatMap(({ over }) => over))].sort().join(", ")}`);
  assert.deepEqual(tested.sort(), promised());
});

test("the clients are the versions that they are said to be", () => {
  for (const { name } of CLIENTS.filter(({ name }) => !(name in INTERPRETERS))) {
    const [client, version] = name.split(" ");
    const installed = JSON.parse(readFileSync(new URL(`node_modules/${client}/package.json`, import.meta.url), "utf8"));
    assert.equal(installed.version, version, client);
  }
});

test("mcp-remote cannot pass a link on when it is told to negotiate, which is why docs/clients.md leaves it alone", async () => {
  const lane = LANES.find(({ through, transport, links }) => through && transport === "http" && links);
  // The last lanes were without it.
  if (!serving()) await world.serve();
  const server = serverOf(lane, "bob", lane.tokens.bob);
  const options = { onLink: () => assert.fail(), heard: heardFrom("mcp-remote --protocol auto") };
  const conversation = await lane.open({ ...server, args: [...server.args, "--protocol", "auto"] }, options);
  try {
    const { error } = await conversation.call(MAIL, FIRST);
    assert.equal(error?.code, -32001, JSON.stringify(error));
  } finally {
    await conversation.close();
  }
});

test("no secret is in any log, answer, page or file", async () => {
  const secrets = [...(await world.secrets()), ...tokens];
  assert.ok(secrets.length > LANES.length, `${secrets.length} secrets`);
  const heard = [...answers, ...alice.seen.map(({ title, html }) => ({ from: `page ${title}`, text: html }))];
  const remains = [...world.remains(), ...heard.map(({ from, text }) => ({ from, bytes: Buffer.from(text) }))];
  assert.deepEqual(leaks(secrets, remains), []);
});
