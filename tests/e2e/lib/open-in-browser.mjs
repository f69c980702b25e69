#!/usr/bin/env node
// What clients take for the browser: it hands the address to the suite. See opener.mjs.

await fetch(process.env.OBO_E2E_OPENER, { method: "POST", body: process.argv[2] });
