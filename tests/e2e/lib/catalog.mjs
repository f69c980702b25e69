// What each tool of the catalog is asked for, what must reach the provider, and what must come back.
//
// The calls of a provider are one story and run in their order, once for each person. `mine` is what a person's calls know:
// who they are, and what earlier calls left for later ones. Of a call,
//
//   asks       are the scopes that the person is asked for because of it: none of the calls before needed them
//   prepare    does behind obo's back what no tool does
//   reached    are the requests that the provider must have seen, all of them as the person's account
//   value      looks at what came back
//
// `answers` are what the provider may say besides, to the first of the two people. The test bed says some of it by itself;
// where it cannot, it is told (`fault`: an answer, or a `kind` of its own) to say what the provider documents. Then
//
//   code, text, retryAfterMs   are what obo makes of it
//   asks                       are the scopes that it asks for again
//   asked                      is the last request's path, with its query

import assert from "node:assert/strict";

/** Two people. Their accounts have their names at every provider. */
export const PEOPLE = ["alice", "bob"];
const address = (person) => `${person}@example.com`;
const other = (person) => PEOPLE.find((one) => one !== person);

// --- GitHub ---------------------------------------------------------------------------------------------------------

/** Each person's own repository on the test bed. */
const REPOSITORIES = { alice: { owner: "alice", repo: "demo" }, bob: { owner: "bob", repo: "secret" } };
const repository = ({ person }) => REPOSITORIES[person];
const slug = ({ person }) => `${REPOSITORIES[person].owner}/${REPOSITORIES[person].repo}`;

/** Opens a pull request in a person's repository, behind obo's back: there is no tool for it. */
async function openPullRequest({ person }, { behind }) {
  const ask = async (method, path, body) => {
    const answer = await fetch(`${behind}/repos/${slug({ person })}${path}`, {
      method,
      headers: { authorization: `Bearer tb-${person}-login` },
      body: body && JSON.stringify(body),
    });
    assert.ok(answer.ok, `${method} ${path}: ${answer.status}`);
    return answer.json();
  };
  const { sha } = (await ask("GET", "/git/ref/heads/main")).object;
  await ask("POST", "/git/refs", { ref: "refs/heads/mend", sha });
  await ask("PUT", "/contents/login.txt", { message: "Mend", content: "aGk=", branch: "mend" });
  return (await ask("POST", "/pulls", { title: "Mend the login", body: "At last.", head: "mend", base: "main" })).number;
}

const GITHUB = {
  revokes: true,
  // Tokens of OAuth apps do not run out; there is nothing to renew them with.
  renews: false,
  calls: [
    {
      tool: "GitHub.ListPullRequests",
      asks: ["repo"],
      prepare: async (mine, at) => {
        mine.pull = await openPullRequest(mine, at);
      },
      input: (mine) => ({ ...repository(mine), max_results: 5 }),
      reached: (mine) => [`GET /repos/${slug(mine)}/pulls 200`],
      value: ({ pull_requests: [first, ...more] }, { person, pull }) => {
        const { number, title, state, merged, author, from, into } = first;
        assert.deepEqual([number, title, state, merged, author, from, into], [pull, "Mend the login", "open", false, person, "mend", "main"]);
        assert.deepEqual(more, []);
      },
    },
    {
      tool: "GitHub.GetPullRequest",
      input: (mine) => ({ ...repository(mine), number: mine.pull }),
      reached: (mine) => [`GET /repos/${slug(mine)}/pulls/${mine.pull} 200`, `GET /repos/${slug(mine)}/pulls/${mine.pull}/files 200`],
      value: ({ number, title, state, author, text, truncated }, { person, pull }) =>
        assert.deepEqual([number, title, state, author, text, truncated], [pull, "Mend the login", "open", person, "At last.", false]),
    },
    {
      tool: "GitHub.GetFile",
      input: (mine) => ({ ...repository(mine), path: "login.txt", ref: "mend" }),
      reached: (mine) => [`GET /repos/${slug(mine)}/contents/login.txt 200`],
      value: ({ type, path, text, total }) => assert.deepEqual([type, path, text, total], ["file", "login.txt", "hi", 2]),
    },
    {
      tool: "GitHub.CreateIssue",
      input: (mine) => ({ ...repository(mine), title: `Login fails for ${mine.person}`, text: "Every time." }),
      reached: (mine) => [`POST /repos/${slug(mine)}/issues 201`],
      value: ({ number, state, link }, mine) => {
        assert.equal(state, "open");
        assert.match(link, new RegExp(`/${slug(mine)}/issues/${number}$`));
        mine.issue = number;
      },
    },
    {
      tool: "GitHub.CommentOnIssue",
      input: (mine) => ({ ...repository(mine), number: mine.issue, text: "I can reproduce it." }),
      reached: (mine) => [`POST /repos/${slug(mine)}/issues/${mine.issue}/comments 201`],
      value: ({ id, link }) => assert.ok(Number.isInteger(id) && link),
    },
    {
      tool: "GitHub.UpdateIssue",
      input: (mine) => ({ ...repository(mine), number: mine.issue, state: "closed", state_reason: "completed" }),
      reached: (mine) => [`PATCH /repos/${slug(mine)}/issues/${mine.issue} 200`],
      value: ({ number, state, title }, { person, issue }) =>
        assert.deepEqual([number, state, title], [issue, "closed", `Login fails for ${person}`]),
    },
    {
      tool: "GitHub.GetIssue",
      input: (mine) => ({ ...repository(mine), number: mine.issue }),
      reached: (mine) => [`GET /repos/${slug(mine)}/issues/${mine.issue} 200`, `GET /repos/${slug(mine)}/issues/${mine.issue}/comments 200`],
      value: ({ type, state, author, text, truncated, comments }, { person }) => {
        assert.deepEqual([type, state, author, text, truncated], ["issue", "closed", person, "Every time.", false]);
        assert.deepEqual(comments.map((comment) => [comment.author, comment.text]), [[person, "I can reproduce it."]]);
      },
    },
    {
      tool: "GitHub.SearchIssues",
      input: (mine) => ({ query: `repo:${slug(mine)} is:issue Login`, sort: "updated" }),
      reached: () => ["GET /search/issues 200"],
      value: ({ total, items: [found] }, mine) => {
        const { repository, number, type, author } = found;
        assert.deepEqual([total, repository, number, type, author], [1, slug(mine), mine.issue, "issue", mine.person]);
      },
    },
  ],
  answers: [
    {
      name: "no such issue",
      tool: "GitHub.GetIssue",
      input: (mine) => ({ ...repository(mine), number: 4711 }),
      code: "not_found",
    },
    {
      name: "a repository that the connection's scopes do not reach",
      tool: "GitHub.CreateIssue",
      input: () => ({ owner: "acme", repo: "hidden", title: "x" }),
      fault: {
        status: 404,
        headers: { "x-oauth-scopes": "read:user", "x-accepted-oauth-scopes": "public_repo, repo" },
        body: { message: "Not Found" },
      },
      asks: ["repo"],
    },
    {
      name: "a repository that there is not, with every scope",
      tool: "GitHub.CreateIssue",
      input: () => ({ owner: "acme", repo: "hidden", title: "x" }),
      fault: {
        status: 404,
        headers: { "x-oauth-scopes": "read:user, repo", "x-accepted-oauth-scopes": "repo" },
        body: { message: "Not Found" },
      },
      code: "not_found",
    },
    {
      name: "the hour's requests are used up",
      tool: "GitHub.SearchIssues",
      input: () => ({ query: "is:issue" }),
      fault: { kind: "rate_limit" },
      code: "rate_limited",
    },
    {
      name: "too many requests at once",
      tool: "GitHub.CommentOnIssue",
      input: (mine) => ({ ...repository(mine), number: mine.issue, text: "again" }),
      fault: { kind: "secondary" },
      code: "rate_limited",
      retryAfterMs: 1000,
    },
    {
      name: "an organisation with single sign-on",
      tool: "GitHub.ListPullRequests",
      input: () => ({ owner: "acme", repo: "platform" }),
      fault: {
        status: 403,
        headers: { "x-github-sso": "required; url=https://example.com" },
        body: { message: "Resource protected by organization SAML enforcement." },
      },
      code: "permission",
      text: /SAML enforcement/,
    },
    {
      name: "an argument that GitHub does not take",
      tool: "GitHub.UpdateIssue",
      input: (mine) => ({ ...repository(mine), number: mine.issue, assignees: ["nobody-there"] }),
      fault: { status: 422, body: { message: "Validation Failed", errors: [{ resource: "Issue", field: "assignees", code: "invalid" }] } },
      code: "invalid_arguments",
      text: /Validation Failed; assignees: invalid/,
    },
    {
      name: "files and labels",
      tool: "GitHub.GetPullRequest",
      input: (mine) => ({ ...repository(mine), number: mine.pull, files_page: 2 }),
      fault: {
        path: "/files",
        status: 200,
        body: [
          { filename: "a.js", status: "modified", additions: 1, deletions: 0, patch: "x".repeat(3000), sha: "1" },
          { filename: "b.png", status: "added" },
        ],
      },
      asked: /\/files\?page=2&per_page=30$/,
      value: ({ files }) => {
        const [{ path, patch, ...more }, image] = files;
        assert.deepEqual([path, patch.length, more], ["a.js", 2000, { status: "modified", additions: 1, deletions: 0 }]);
        assert.deepEqual(image, { path: "b.png", status: "added", additions: null, deletions: null, patch: null });
      },
    },
  ],
};

// --- Microsoft ------------------------------------------------------------------------------------------------------

const at = (time) => `2026-12-01T${time}:00`;
const DAY = { time_min: `${at("00:00")}Z`, time_max: `${at("23:59")}Z` };
/** Each person's meeting, so that they are told apart. */
const MEETING = { alice: { start: at("10:00"), end: at("10:30") }, bob: { start: at("15:00"), end: at("15:30") } };

const MICROSOFT = {
  // There is no revocation of one connection.
  revokes: false,
  renews: true,
  calls: [
    {
      tool: "Microsoft.SendEmail",
      asks: ["Mail.Send"],
      input: ({ person }) => ({
        to: [address(other(person))],
        cc: [address(person)],
        subject: `Lunch with ${person}`,
        body: "<b>At noon.</b>",
        body_type: "html",
        attachments: [{ filename: "menu.txt", mime_type: "text/plain", content_base64: "c291cA==" }],
      }),
      reached: () => ["POST /v1.0/me/sendMail 202"],
      value: (value) => assert.deepEqual(value, { sent: true }),
    },
    {
      tool: "Microsoft.SearchEmails",
      asks: ["Mail.Read"],
      input: ({ person }) => ({ query: `subject:Lunch with ${person}`, max_results: 5 }),
      reached: () => ["GET /v1.0/me/messages 200"],
      value: ({ emails, next_page }, mine) => {
        const { person } = mine;
        // The copy, and what was sent.
        assert.deepEqual(emails.map(({ subject }) => subject), [`Lunch with ${person}`, `Lunch with ${person}`]);
        const [copy] = emails;
        assert.deepEqual([copy.from, copy.to, copy.cc, copy.unread], [address(person), [address(other(person))], [address(person)], true]);
        assert.equal(next_page, null);
        mine.email = copy.id;
      },
    },
    {
      tool: "Microsoft.GetEmail",
      input: ({ email }) => ({ email_id: email }),
      reached: ({ email }) => [`GET /v1.0/me/messages/${email} 200`],
      value: ({ from, subject, text, truncated }, { person }) =>
        assert.deepEqual([from, subject, text, truncated], [address(person), `Lunch with ${person}`, "<b>At noon.</b>", false]),
    },
    {
      tool: "Microsoft.ReplyToEmail",
      input: ({ email }) => ({ email_id: email, text: "Gladly." }),
      reached: ({ email }) => [`POST /v1.0/me/messages/${email}/reply 202`],
      value: (value) => assert.deepEqual(value, { sent: true }),
    },
    {
      tool: "Microsoft.ListEvents",
      asks: ["Calendars.ReadBasic"],
      input: () => DAY,
      reached: () => ["GET /v1.0/me/calendarView 200"],
      value: (value) => assert.deepEqual(value, { events: [], next_page: null }),
    },
    {
      tool: "Microsoft.CreateEvent",
      asks: ["Calendars.ReadWrite"],
      input: ({ person }) => ({
        ...MEETING[person],
        subject: `Review with ${person}`,
        time_zone: "UTC",
        location: "Room 7",
        attendees: [address(other(person))],
        online_meeting: true,
      }),
      reached: () => ["POST /v1.0/me/events 201"],
      value: ({ id, link, start, attendees, meeting_link }, { person }) => {
        assert.ok(id && link && meeting_link);
        assert.deepEqual([start, attendees], [{ dateTime: MEETING[person].start, timeZone: "UTC" }, [address(other(person))]]);
      },
    },
    {
      tool: "Microsoft.ListEvents",
      input: () => ({ ...DAY, time_zone: "Europe/Paris" }),
      reached: () => ["GET /v1.0/me/calendarView 200"],
      value: ({ events }, { person }) => {
        const [{ subject, start, end, all_day, location, organizer, attendees }, ...more] = events;
        assert.deepEqual([subject, start, end, all_day, location, organizer], [
          `Review with ${person}`, MEETING[person].start, MEETING[person].end, false, "Room 7", address(person),
        ]);
        assert.deepEqual(attendees.map(({ email }) => email), [address(other(person))]);
        assert.deepEqual(more, []);
      },
    },
    {
      tool: "Microsoft.FindFreeTime",
      input: ({ person }) => ({ people: [address(person)], start: at("08:00"), end: at("18:00") }),
      reached: () => ["POST /v1.0/me/calendar/getSchedule 200"],
      value: ({ people: [{ email, busy }] }, { person }) => {
        const { start, end } = MEETING[person];
        assert.deepEqual([email, busy], [address(person), [{ start, end, time_zone: "UTC", status: "busy" }]]);
      },
    },
  ],
  answers: [
    { name: "no such e-mail", tool: "Microsoft.GetEmail", input: () => ({ email_id: "AAMkNothing" }), code: "not_found" },
    {
      name: "no such e-mail",
      tool: "Microsoft.ReplyToEmail",
      input: () => ({ email_id: "AAMkNothing", text: "Hello?" }),
      code: "not_found",
    },
    {
      name: "too many requests",
      tool: "Microsoft.SearchEmails",
      input: () => ({}),
      fault: { kind: "rate_limit" },
      code: "rate_limited",
      retryAfterMs: 1000,
      asked: /\?%24orderby=receivedDateTime\+desc&%24select=[^&]+&%24top=10$/,
    },
    {
      name: "not this person's to do",
      tool: "Microsoft.CreateEvent",
      input: () => ({ subject: "x", start: "2026-12-02", end: "2026-12-03" }),
      fault: { status: 403, body: { error: { code: "ErrorAccessDenied", message: "Access is denied." } } },
      code: "permission",
      text: /Access is denied/,
    },
    {
      name: "an account without a mailbox",
      tool: "Microsoft.SearchEmails",
      input: () => ({}),
      fault: { status: 404, body: { error: { code: "MailboxNotEnabledForRESTAPI", message: "The mailbox is inactive." } } },
      code: "permission",
    },
    {
      name: "an address that Outlook does not take",
      tool: "Microsoft.SendEmail",
      input: () => ({ to: ["x@example.com"], subject: "x", body: "x" }),
      fault: { status: 400, body: { error: { code: "ErrorInvalidRecipients", message: "At least one recipient is not valid." } } },
      code: "invalid_arguments",
    },
    {
      name: "a page of a search, and its words in quotes",
      tool: "Microsoft.SearchEmails",
      input: () => ({ query: 'subject:"big \\ deal"' }),
      fault: {
        status: 200,
        body: { value: [], "@odata.nextLink": "https://graph.microsoft.com/v1.0/me/messages?%24search=%22x%22&%24top=10&%24skiptoken=MSZ%2bVlF3%3d" },
      },
      asked: /[?&]%24search=%22subject%3A%5C%22big\+%5C%5C\+deal%5C%22%22&%24select=[^&]+&%24top=10$/,
      value: (value) => assert.deepEqual(value, { emails: [], next_page: "skiptoken=MSZ+VlF3=" }),
    },
    {
      name: "the page after it",
      tool: "Microsoft.SearchEmails",
      input: () => ({ query: "deal", page_token: "skiptoken=MSZ+VlF3=" }),
      asked: /&%24skiptoken=MSZ%2BVlF3%3D&%24top=10$/,
      value: (value) => assert.deepEqual(value, { emails: [], next_page: null }),
    },
    {
      name: "a page of the calendar",
      tool: "Microsoft.ListEvents",
      input: () => ({ ...DAY, page_token: "25" }),
      fault: { status: 200, body: { value: [], "@odata.nextLink": "https://graph.microsoft.com/v1.0/me/calendarView?x=1&$skip=50" } },
      asked: /&%24skip=25&/,
      value: (value) => assert.deepEqual(value, { events: [], next_page: "50" }),
    },
  ],
};

// --- Linear ---------------------------------------------------------------------------------------------------------

const GRAPHQL = "POST /graphql 200";

const LINEAR = {
  revokes: true,
  renews: true,
  calls: [
    {
      tool: "Linear.ListTeams",
      asks: ["read"],
      input: () => ({}),
      reached: () => [GRAPHQL],
      value: ({ teams, next_page }) => {
        const { name, states } = teams.find(({ key }) => key === "ENG");
        assert.equal(name, "Engineering");
        assert.ok(states.some(({ type }) => type === "completed"), JSON.stringify(states));
        assert.equal(next_page, null);
      },
    },
    {
      tool: "Linear.CreateIssue",
      asks: ["issues:create"],
      input: ({ person }) => ({
        team: "eng",
        title: `Ship it for ${person}`,
        description: "Soon.",
        priority: "high",
        assignee: address(other(person)),
        due_date: "2026-12-24",
      }),
      reached: () => [GRAPHQL, GRAPHQL],
      value: ({ identifier, title, assignee, link }, mine) => {
        assert.match(identifier, /^ENG-\d+$/);
        assert.deepEqual([title, assignee], [`Ship it for ${mine.person}`, address(other(mine.person))]);
        assert.ok(link.includes(identifier), link);
        mine.issue = identifier;
      },
    },
    {
      tool: "Linear.SearchIssues",
      input: ({ person }) => ({ query: `ship it for ${person}` }),
      reached: () => [GRAPHQL],
      value: ({ issues, next_page }, { person, issue }) => {
        assert.deepEqual(issues.map(({ identifier, title, team }) => [identifier, title, team]), [[issue, `Ship it for ${person}`, "ENG"]]);
        assert.equal(next_page, null);
      },
    },
    {
      tool: "Linear.AddComment",
      asks: ["comments:create"],
      input: ({ issue }) => ({ issue, text: "On it." }),
      reached: () => [GRAPHQL, GRAPHQL],
      value: ({ id, issue_link }, { issue }) => assert.ok(id && issue_link.includes(issue)),
    },
    {
      tool: "Linear.UpdateIssue",
      asks: ["write"],
      input: ({ person, issue }) => ({ issue, state: "done", priority: "urgent", assignee: address(person) }),
      reached: () => [GRAPHQL, GRAPHQL],
      value: ({ identifier, state, priority, assignee, due_date }, { person, issue }) =>
        assert.deepEqual([identifier, state, priority, assignee, due_date], [issue, "Done", "Urgent", address(person), "2026-12-24"]),
    },
    {
      tool: "Linear.GetIssue",
      input: ({ issue }) => ({ issue }),
      reached: () => [GRAPHQL],
      value: ({ identifier, title, state, creator, description, truncated, comments, more_comments }, { person, issue }) => {
        assert.deepEqual([identifier, title, state, creator, description, truncated, more_comments], [
          issue, `Ship it for ${person}`, "Done", address(person), "Soon.", false, false,
        ]);
        assert.deepEqual(comments.map(({ author, text }) => [author, text]), [[address(person), "On it."]]);
      },
    },
  ],
  answers: [
    { name: "no such issue", tool: "Linear.GetIssue", input: () => ({ issue: "ENG-4711" }), code: "not_found" },
    { name: "no such issue", tool: "Linear.AddComment", input: () => ({ issue: "ENG-4711", text: "x" }), code: "not_found" },
    { name: "no such issue", tool: "Linear.UpdateIssue", input: () => ({ issue: "ENG-4711", title: "x" }), code: "not_found" },
    {
      name: "no such team",
      tool: "Linear.CreateIssue",
      input: () => ({ team: "NONE", title: "x" }),
      code: "invalid_arguments",
      text: /^there is no team with this key; Linear.ListTeams lists them$/,
    },
    {
      name: "no such person",
      tool: "Linear.CreateIssue",
      input: () => ({ team: "ENG", title: "x", assignee: "nobody-there@example.com" }),
      code: "invalid_arguments",
      text: /assignee's address/,
    },
    {
      name: "no such state",
      tool: "Linear.UpdateIssue",
      input: ({ issue }) => ({ issue, state: "Finished" }),
      code: "invalid_arguments",
      // And not that something was done already: the first of the two requests only asks.
      text: /^the issue's team has no such state; it has [^;]*\bDone\b[^;]*$/,
    },
    {
      name: "no such issue, in Linear's own words",
      tool: "Linear.GetIssue",
      input: () => ({ issue: "ENG-4711" }),
      fault: {
        status: 200,
        body: {
          errors: [
            {
              message: "Entity not found: Issue",
              extensions: { type: "invalid input", userError: true, userPresentableMessage: "Could not find referenced Issue." },
            },
          ],
          data: null,
        },
      },
      code: "not_found",
      text: /Could not find referenced Issue/,
    },
    {
      name: "a scope that the token lacks",
      tool: "Linear.AddComment",
      input: ({ issue }) => ({ issue, text: "x" }),
      fault: {
        status: 403,
        body: { errors: [{ message: "Invalid scope: `comments:create` required", extensions: { code: "FORBIDDEN" } }] },
      },
      asks: ["comments:create"],
    },
    {
      name: "not this person's to do",
      tool: "Linear.ListTeams",
      input: () => ({}),
      fault: { status: 200, body: { errors: [{ message: "You don't have permission", extensions: { type: "forbidden", code: "FORBIDDEN" } }] } },
      code: "permission",
    },
    {
      name: "too many requests",
      tool: "Linear.SearchIssues",
      input: () => ({ query: "x" }),
      fault: { kind: "rate_limit" },
      code: "rate_limited",
    },
    {
      name: "a page of teams",
      tool: "Linear.ListTeams",
      input: () => ({ max_results: 1 }),
      fault: { status: 200, body: { data: { teams: { nodes: [], pageInfo: { hasNextPage: true, endCursor: "cursor-1" } } } } },
      value: (value) => assert.deepEqual(value, { teams: [], next_page: "cursor-1" }),
    },
  ],
};

// --- HubSpot --------------------------------------------------------------------------------------------------------

const HUBSPOT = {
  revokes: true,
  renews: true,
  calls: [
    {
      tool: "HubSpot.CreateContact",
      asks: ["crm.objects.contacts.write"],
      input: ({ person }) => ({ email: `client-of-${person}@example.com`, first_name: "Ana", last_name: "Ng", company: "Acme" }),
      reached: () => ["POST /crm/v3/objects/contacts 201"],
      value: ({ id, email }, mine) => {
        assert.equal(email, `client-of-${mine.person}@example.com`);
        mine.contact = id;
      },
    },
    {
      tool: "HubSpot.SearchContacts",
      asks: ["crm.objects.contacts.read"],
      input: ({ person }) => ({ query: `client-of-${person}` }),
      reached: () => ["POST /crm/v3/objects/contacts/search 200"],
      value: ({ total, contacts: [{ id, first_name, last_name, company, phone }], next_page }, { contact }) =>
        assert.deepEqual([total, id, first_name, last_name, company, phone, next_page], [1, contact, "Ana", "Ng", "Acme", null, null]),
    },
    {
      tool: "HubSpot.SearchDeals",
      asks: ["crm.objects.deals.read"],
      input: () => ({}),
      reached: () => ["POST /crm/v3/objects/deals/search 200"],
      value: ({ deals: [{ id, name, stage }] }) => assert.deepEqual([id, name, typeof stage], ["9001", "Big deal", "string"]),
    },
    {
      tool: "HubSpot.UpdateDeal",
      asks: ["crm.objects.deals.write"],
      input: ({ person }) => ({ deal_id: "9001", stage: "closedwon", amount: person === "alice" ? 1500.5 : 0, close_date: "2026-12-24" }),
      reached: () => ["PATCH /crm/v3/objects/deals/9001 200"],
      value: (value, { person }) =>
        assert.deepEqual(value, {
          id: "9001", name: "Big deal", stage: "closedwon", amount: person === "alice" ? "1500.5" : "0", close_date: "2026-12-24",
        }),
    },
  ],
  answers: [
    { name: "no such deal", tool: "HubSpot.UpdateDeal", input: () => ({ deal_id: "4711", name: "x" }), code: "not_found" },
    {
      name: "an address that is there already",
      tool: "HubSpot.CreateContact",
      input: ({ person }) => ({ email: `client-of-${person}@example.com` }),
      code: "invalid_arguments",
      text: /Existing ID: \d+/,
    },
    {
      name: "a scope that the token lacks",
      tool: "HubSpot.SearchDeals",
      input: () => ({}),
      fault: { status: 403, body: { status: "error", category: "MISSING_SCOPES", message: "This app hasn't been granted all required scopes." } },
      asks: ["crm.objects.deals.read"],
    },
    {
      name: "too many requests, with Retry-After",
      tool: "HubSpot.SearchDeals",
      input: () => ({}),
      fault: { kind: "rate_limit" },
      code: "rate_limited",
      retryAfterMs: 1000,
    },
    {
      name: "too many requests in ten seconds",
      tool: "HubSpot.SearchDeals",
      input: () => ({}),
      fault: { status: 429, body: { errorType: "RATE_LIMIT", policyName: "TEN_SECONDLY_ROLLING", message: "You have reached your limit." } },
      code: "rate_limited",
      retryAfterMs: 10_000,
    },
    {
      name: "the day's requests are used up",
      tool: "HubSpot.SearchDeals",
      input: () => ({}),
      fault: { status: 429, body: { errorType: "RATE_LIMIT", policyName: "DAILY", message: "You have reached your daily limit." } },
      code: "rate_limited",
      text: /daily limit/,
    },
    {
      name: "a page",
      tool: "HubSpot.SearchContacts",
      input: () => ({ query: "x", page_token: "10" }),
      fault: { status: 200, body: { total: 30, results: [], paging: { next: { after: "20" } } } },
      value: (value) => assert.deepEqual(value, { total: 30, contacts: [], next_page: "20" }),
    },
  ],
};

// --- Salesforce -----------------------------------------------------------------------------------------------------

const SOBJECTS = "/services/data/v62.0/sobjects";

const SALESFORCE = {
  revokes: true,
  renews: true,
  calls: [
    {
      tool: "Salesforce.CreateRecord",
      asks: ["api"],
      input: ({ person }) => ({ object: "Contact", fields: { LastName: `O'Hara of ${person}`, Email: `ohara-${person}@example.com` } }),
      reached: () => [`POST ${SOBJECTS}/Contact 201`],
      value: ({ id }, mine) => {
        assert.match(id, /^003/);
        mine.record = id;
      },
    },
    {
      tool: "Salesforce.QueryRecords",
      input: ({ person }) => ({ query: `SELECT Id, Email FROM Contact WHERE LastName = 'O\\'Hara of ${person}' LIMIT 5` }),
      reached: () => ["GET /services/data/v62.0/query 200"],
      value: (value, { person, record }) =>
        assert.deepEqual(value, { records: [{ type: "Contact", Id: record, Email: `ohara-${person}@example.com` }], complete: true }),
    },
    {
      tool: "Salesforce.UpdateRecord",
      input: ({ record }) => ({ object: "Contact", record_id: record, fields: { Phone: "+33 1 23 45 67 89", Email: null } }),
      reached: ({ record }) => [`PATCH ${SOBJECTS}/Contact/${record} 204`],
      value: (value) => assert.deepEqual(value, { updated: true }),
    },
    {
      tool: "Salesforce.GetRecord",
      input: ({ record }) => ({ object: "Contact", record_id: record, fields: ["LastName", "Phone"] }),
      reached: ({ record }) => [`GET ${SOBJECTS}/Contact/${record} 200`],
      value: (value, { person, record }) => {
        const { type, Id, LastName, Phone, Email, OwnerId, LastModifiedById } = value;
        assert.deepEqual([type, Id, LastName, Phone, Email], ["Contact", record, `O'Hara of ${person}`, "+33 1 23 45 67 89", undefined]);
        assert.deepEqual([OwnerId, LastModifiedById], [`005${person}`, `005${person}`]);
      },
    },
  ],
  answers: [
    {
      name: "no such record",
      tool: "Salesforce.GetRecord",
      input: () => ({ object: "Contact", record_id: "003000000000000AAA" }),
      asked: /\/sobjects\/Contact\/003000000000000AAA$/,
      code: "not_found",
    },
    {
      name: "no such record",
      tool: "Salesforce.UpdateRecord",
      input: () => ({ object: "Contact", record_id: "003000000000000AAA", fields: { Phone: "1" } }),
      code: "not_found",
    },
    {
      name: "a query that Salesforce does not understand",
      tool: "Salesforce.QueryRecords",
      input: () => ({ query: "SELECT FROM Contact" }),
      code: "invalid_arguments",
      text: /MALFORMED_QUERY: unexpected token/,
    },
    {
      name: "a field that is missing",
      tool: "Salesforce.CreateRecord",
      input: () => ({ object: "Lead", fields: { LastName: "Ng" } }),
      code: "invalid_arguments",
      text: /REQUIRED_FIELD_MISSING: Required fields are missing: \[Company\]/,
    },
    {
      name: "a session without the scope",
      tool: "Salesforce.QueryRecords",
      input: () => ({ query: "SELECT Id FROM Contact" }),
      fault: { status: 403, body: [{ message: "This session is not valid for use with the REST API", errorCode: "INVALID_SESSION_ID" }] },
      asks: ["api"],
    },
    {
      name: "not this person's to do",
      tool: "Salesforce.UpdateRecord",
      input: ({ record }) => ({ object: "Contact", record_id: record, fields: { OwnerId: "005" } }),
      fault: {
        status: 400,
        body: [{ message: "insufficient access rights", errorCode: "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY" }],
      },
      code: "permission",
    },
    {
      name: "the organisation's requests are used up",
      tool: "Salesforce.QueryRecords",
      input: () => ({ query: "SELECT Id FROM Contact" }),
      fault: { kind: "rate_limit" },
      code: "rate_limited",
    },
    {
      name: "more than a page",
      tool: "Salesforce.QueryRecords",
      input: () => ({ query: "SELECT Id FROM Contact" }),
      fault: {
        status: 200,
        body: { done: true, records: Array.from({ length: 300 }, (_, n) => ({ attributes: { type: "Contact" }, Id: `${n}` })) },
      },
      value: ({ records, complete }) => {
        assert.deepEqual([records.length, complete], [200, false]);
        assert.deepEqual(records[199], { type: "Contact", Id: "199" });
      },
    },
  ],
};

export const PROVIDERS = { github: GITHUB, microsoft: MICROSOFT, linear: LINEAR, hubspot: HUBSPOT, salesforce: SALESFORCE };
