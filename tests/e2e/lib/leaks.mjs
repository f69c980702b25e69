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

/** Every secret found: `[{from, form}]`, without the secret itself. */
export function leaks(secrets, remains) {
  const found = [];
  for (const secret of secrets) {
    for (const [form, text] of spellings(secret)) {
      const needle = Buffer.from(text);
      for (const { from, bytes } of remains) if (bytes.includes(needle)) found.push({ from, form });
    }
  }
  return found;
}
