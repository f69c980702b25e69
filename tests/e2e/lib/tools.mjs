// The tools the suite calls, and what it expects of answers.

import assert from "node:assert/strict";

import { MODERN } from "./raw.mjs";

export const MAIL = "Google_SendEmail";
export const EVENT = "GoogleCalendar_CreateEvent";
export const CHANNELS = "Slack_ListChannels";
export const MESSAGE = "Slack_PostMessage";

export const mail = (subject) => ({ to: ["bob@example.com"], subject, text: "sent on behalf of somebody" });
export const event = (summary) => ({ summary, start: "2026-12-01T10:00:00Z", end: "2026-12-01T10:30:00Z" });
export const message = (channel, text) => ({ channel, text });

/** Where a call reached the provider's API. */
export const PATHS = {
  [MAIL]: ["google", "/gmail/v1/users/me/messages/send"],
  [EVENT]: ["google", "/calendar/v3/calendars/primary/events"],
  [MESSAGE]: ["slack", "/api/chat.postMessage"],
};

/** A link: obo's own page, at least 128 bits, nothing about the person and nothing of the provider. */
export function assertLink(url, link) {
  assert.match(link, new RegExp(`^${url.replaceAll(".", "\\.")}/connect/[A-Za-z0-9_-]{22,}$`));
}

/** The answer of a tool call for which the person must connect first, for a client without URL elicitation. */
export function assertAuthorizationText(url, provider, result) {
  assert.equal(result.isError, true, JSON.stringify(result));
  const [words, record] = result.content.map((item) => item.text);
  const parsed = JSON.parse(record);
  assert.equal(parsed.status, "authorization_required");
  assert.equal(parsed.provider, provider);
  assertLink(url, parsed.authorization_url);
  assert.ok(Array.isArray(parsed.scopes) && parsed.scopes.length > 0, record);
  assert.ok(parsed.expires_in > 0 && parsed.expires_in <= 600, record);
  assert.ok(words.includes(parsed.authorization_url), words);
  assert.deepEqual(result._meta?.["obo/authorization"], parsed);
  assert.equal(result.structuredContent, undefined);
  return parsed.authorization_url;
}

/** What a call that needs consent looks like, by what client and server agreed on. */
export function shapeOf(revision, opensLinks) {
  if (!opensLinks || revision < "2025-11-25") return "text";
  return revision === MODERN ? "input_required" : "-32042";
}

/** Asserts the shape of an answer that asks for Google, and returns its link. */
export function assertShape(url, shape, answer) {
  if (shape === "text") return assertAuthorizationText(url, "google", answer.result);
  if (shape === "-32042") {
    assert.equal(answer.error?.code, -32042, JSON.stringify(answer));
    const [elicitation, ...more] = answer.error.data.elicitations;
    assert.deepEqual([elicitation.mode, more.length], ["url", 0]);
    assert.ok(elicitation.elicitationId);
    assert.ok(answer.error.message.includes(elicitation.url), "clients that show the message alone show the link too");
    assertLink(url, elicitation.url);
    return elicitation.url;
  }
  assert.equal(answer.result?.resultType, "input_required", JSON.stringify(answer));
  assert.ok(answer.result.requestState);
  assert.equal(answer.result.content, undefined);
  const { method, params } = answer.result.inputRequests["consent:google"];
  assert.deepEqual([method, params.mode], ["elicitation/create", "url"]);
  assertLink(url, params.url);
  return params.url;
}

/** The answer of a call that was done. */
export function assertDone(result) {
  assert.ok(!result.isError, JSON.stringify(result.content));
  return JSON.parse(result.content[0].text);
}

/** The id of a channel in a list of channels, wherever the list stands in the answer. */
export function channelId(value, name) {
  if (value === null || typeof value !== "object") return undefined;
  if (value.name === name && typeof value.id === "string") return value.id;
  return Object.values(value).map((inner) => channelId(inner, name)).find(Boolean);
}
