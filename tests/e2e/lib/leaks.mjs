// Looks for secrets in bytes, in the forms in which they get out: as they are, encoded, and in part.

/** Long enough not to be found by chance, short enough to catch a token that was cut. */
const PART = 20;

/** The spellings of a secret that a leak could have. */
export function spellings(secret) {
  const bytes = Buffer.from(secret);
  const forms = new Map();
  forms.set("raw", secret);
  forms.set("hex", bytes.toString("hex"));
  forms.set("HEX", bytes.toString("hex").toUpperCase());
  forms.set("percent", encodeURIComponent(secret));
  forms.set("percent, every byte", [...bytes].map((b) => `%${b.toString(16).padStart(2, "0")}`).join(""));
  // Base64 of a longer text that contains the secret: three alignments, without the characters at the edges.
  for (const shift of [0, 1, 2]) {
    const padded = Buffer.concat([Buffer.alloc(shift), bytes]);
    const inner = padded.toString("base64").replace(/=+$/, "").slice(shift ? 4 : 0, -2);
    forms.set(`base64, shifted by ${shift}`, inner);
    forms.set(`base64url, shifted by ${shift}`, inner.replaceAll("+", "-").replaceAll("/", "_"));
  }
  if (secret.length > 2 * PART) {
    forms.set("the first part", secret.slice(0, PART));
    forms.set("the last part", secret.slice(-PART));
  }
  return forms;
}

/** How much of a spelling is looked up at every place of a text. All spellings are longer. */
const HEAD = 8;

/** Every secret found: `[{from, form}]`, without the secret itself. */
export function leaks(secrets, remains) {
  // Looked up by how they begin: there may be a thousand, and megabytes to search.
  const byHead = new Map();
  for (const secret of secrets) {
    for (const [form, text] of spellings(secret)) {
      // The bytes of the text, one character each.
      const needle = Buffer.from(text).toString("latin1");
      const head = needle.slice(0, HEAD);
      if (head.length < HEAD) throw new Error("a secret is too short to be searched for");
      byHead.set(head, [...(byHead.get(head) ?? []), { form, needle }]);
    }
  }
  const found = [];
  for (const { from, bytes } of remains) {
    const text = bytes.toString("latin1");
    const seen = new Set();
    for (let at = 0; at <= text.length - HEAD; at++) {
      for (const spelling of byHead.get(text.slice(at, at + HEAD)) ?? []) {
        if (!text.startsWith(spelling.needle, at) || seen.has(spelling)) continue;
        seen.add(spelling);
        found.push({ from, form: spelling.form });
      }
    }
  }
  return found;
}
